//! The binary as scripts see it: its subcommands against a running broker, its exit codes, and what
//! it says on stdout and stderr.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::support::{Broker, Launch, TempDir, contents, eventually, os};

/// How long a command may take on a busy machine.
const END_MAX: Duration = Duration::from_secs(60);

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    command
        .args(words)
        .env_remove("RINGMQ_ADDR")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end of a command; one that does not end is stopped, and the test fails.
fn finish(child: Child) -> Said {
    let pid = child.id();
    let (sender, ended) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = ended.recv_timeout(END_MAX) else {
        os::signal(pid, libc::SIGKILL);
        panic!("a command did not end within {END_MAX:?}");
    };
    output.expect("its output can be read").into()
}

/// Runs a command without a broker.
fn plain(words: &[&str]) -> Said {
    finish(
        command(words)
            .spawn()
            .expect("the binary was built for this test"),
    )
}

/// Runs a command against a broker.
fn run(broker: &Broker, words: &[&str]) -> Said {
    let mut command = command(words);
    command.env("RINGMQ_ADDR", broker.address.to_string());
    finish(command.spawn().expect("the binary was built for this test"))
}

/// The same, with something on stdin.
fn feed(broker: &Broker, words: &[&str], input: &str) -> Said {
    let mut child = command(words)
        .env("RINGMQ_ADDR", broker.address.to_string())
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary was built for this test");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let said = finish(child);
    // A command that ends early does not read everything.
    let _ = writer.join().expect("it only writes");
    said
}

/// It did what it was asked; what it printed.
fn good(said: Said) -> String {
    assert_eq!(said.code, Some(0), "{said:?}");
    said.out
}

#[test]
fn arguments_that_cannot_be_used_end_with_2_and_a_hint() {
    let cases: &[(&[&str], &str)] = &[
        (&["frobnicate"], "no command 'frobnicate'"),
        (&["--frob"], "no option --frob"),
        (&["serve", "--listen", "0.0.0.0:0"], "--insecure"),
        (&["--memory", "--data", "x"], "leave out"),
        (&["serve", "--set", "lease=soon"], "lease="),
        (&["serve", "--durable", "fast"], "none, os or disk"),
        (&["pub"], "name the queue"),
        (&["pull", "jobs", "-n", "many"], "whole number"),
        (&["ack"], "name the handles"),
        (&["bench", "sideways"], "modes are"),
        (&["check"], "name the directory"),
    ];
    for (words, want) in cases {
        let said = plain(words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.err.contains(want), "{words:?}: {said:?}");
        assert!(said.err.contains("--help"), "{words:?}: {said:?}");
        assert_eq!(said.out, "", "{words:?}");
    }
}

#[test]
fn help_and_version() {
    let page = good(plain(&["--help"]));
    for word in [
        "serve", "pub", "pull", "sub", "ack", "stats", "bench", "check", "dump",
    ] {
        assert!(
            page.contains(&format!("ringmq {word}")) || word == "serve",
            "{word}"
        );
        let own = good(plain(&[word, "--help"]));
        assert_eq!(own, good(plain(&["help", word])), "{word}");
        assert!(own.starts_with("ringmq "), "{own}");
    }
    let version = good(plain(&["--version"]));
    assert_eq!(version, format!("ringmq {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_a_broker_one_sentence_says_how_to_start_one() {
    // Nobody listens on port 1.
    let said = plain(&["stats", "--addr", "127.0.0.1:1"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("ringmq serve"), "{said:?}");
    assert_eq!(said.err.lines().count(), 1, "{said:?}");
}

#[test]
fn published_pulled_and_settled() {
    let broker = Launch::memory().start();
    let receipts = good(run(&broker, &["pub", "jobs", "first", "second 2"]));
    assert_eq!(receipts, "OK 1 mem\nOK 2 mem\n");
    assert_eq!(good(run(&broker, &["pub", "-q", "jobs", "third"])), "");

    let pulled = run(&broker, &["pull", "jobs", "--handles"]);
    let line = good(pulled);
    let (handle, body) = line
        .trim_end()
        .split_once('\t')
        .expect("a handle and a body");
    assert_eq!(body, "first");
    // The lease outlives the client that took it.
    assert_eq!(good(run(&broker, &["ack", handle])), "OK 1\n");
    let again = run(&broker, &["ack", handle]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains(handle), "{again:?}");

    let plain = run(&broker, &["pull", "jobs"]);
    assert!(plain.err.contains("ringmq ack"), "{plain:?}");
    assert_eq!(good(plain), "second 2\n");

    assert_eq!(
        good(run(&broker, &["pull", "jobs", "-n", "10", "--ack"])),
        "third\n"
    );
    assert_eq!(
        good(run(&broker, &["pull", "jobs", "--wait", "10ms", "--ack"])),
        ""
    );
    let stats = good(run(&broker, &["stats", "jobs", "--json"]));
    assert!(stats.contains("\"ready\":0,\"leased\":1"), "{stats}");
    assert!(good(run(&broker, &["stats"])).contains("acked_total=2"));
}

#[test]
fn options_of_a_publish_reach_the_consumer() {
    let broker = Launch::memory().start();
    good(run(&broker, &["pub", "a b", "low"]));
    good(run(
        &broker,
        &[
            "pub", "a b", "--pri", "9", "--key", "k 1", "-H", "x=y z", "high",
        ],
    ));
    let out = good(run(&broker, &["pull", "a b", "--json", "--ack"]));
    assert!(out.contains("\"source\":\"a%20b\""), "{out}");
    assert!(out.contains("\"key\":\"k 1\""), "{out}");
    assert!(out.contains("\"h.x\":\"y z\""), "{out}");
    assert!(out.contains("\"body\":\"high\""), "{out}");

    good(run(&broker, &["pub", "later", "--delay", "1h", "x"]));
    assert_eq!(good(run(&broker, &["pull", "later", "--ack"])), "");
    good(run(&broker, &["pub", "once", "--once", "id 1", "x"]));
    let twice = good(run(&broker, &["pub", "once", "--once", "id 1", "x"]));
    assert_eq!(twice, "OK 1 mem dup=1\n");
}

#[test]
fn lines_of_stdin_are_messages_and_come_out_as_they_were() {
    let broker = Launch::memory().start();
    let lines: String = (1..=50_000).map(|n| format!("line {n}\n")).collect();
    let said = feed(&broker, &["pub", "bulk"], &lines);
    assert_eq!(good(said), "50000 messages mem\n");
    let out = good(run(&broker, &["pull", "bulk", "-n", "60000", "--ack"]));
    assert!(out == lines, "what came out is not what went in");
}

#[test]
fn a_refused_line_of_stdin_tells_how_far_it_got() {
    let broker = Launch::memory().arg("--max-body 1K").start();
    let lines = format!("short\nshort\n{}\n", "x".repeat(2000));
    let said = feed(&broker, &["pub", "bulk"], &lines);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("2 messages were confirmed"), "{said:?}");
    assert!(said.err.contains("TOOBIG"), "{said:?}");
}

/// A subscription in the background, and its first lines.
fn subscribed(broker: &Broker, words: &[&str], lines: usize) -> (Child, Vec<String>) {
    let mut child = command(words)
        .env("RINGMQ_ADDR", broker.address.to_string())
        .spawn()
        .expect("the binary was built for this test");
    let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut read = Vec::new();
    for _ in 0..lines {
        let mut line = String::new();
        out.read_line(&mut line).expect("it prints");
        read.push(line.trim_end().to_owned());
    }
    child.stdout = Some(out.into_inner());
    (child, read)
}

fn settled(broker: &Broker, queue: &str, ready: u64) {
    let want = format!("\"ready\":{ready},\"leased\":0");
    let mut last = String::new();
    eventually("everything is settled", Duration::from_secs(5), || {
        last = good(run(broker, &["stats", queue, "--json"]));
        last.contains(&want)
    });
}

#[test]
fn a_subscription_settles_what_it_printed_and_ends_at_a_signal() {
    let broker = Launch::memory().start();
    good(run(&broker, &["pub", "-q", "jobs", "one", "two"]));
    let (mut child, lines) = subscribed(&broker, &["sub", "jobs"], 2);
    assert_eq!(lines, ["one", "two"]);
    good(run(&broker, &["pub", "-q", "jobs", "three"]));
    let mut out = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut third = String::new();
    out.read_line(&mut third).expect("it prints");
    assert_eq!(third, "three\n");
    os::signal(child.id(), libc::SIGINT);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    settled(&broker, "jobs", 0);
}

#[test]
fn a_subscription_ends_when_nobody_reads_it() {
    let broker = Launch::memory().start();
    good(run(&broker, &["pub", "-q", "jobs", "one"]));
    let (mut child, lines) = subscribed(&broker, &["sub", "jobs"], 1);
    assert_eq!(lines, ["one"]);
    settled(&broker, "jobs", 0);
    drop(child.stdout.take());
    good(run(&broker, &["pub", "-q", "jobs", "two"]));
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    // What nobody read is still there.
    settled(&broker, "jobs", 1);
}

#[test]
fn a_subscription_can_be_counted_or_leave_everything() {
    let broker = Launch::memory().start();
    good(run(&broker, &["pub", "-q", "jobs", "one", "two", "three"]));
    assert_eq!(
        good(run(&broker, &["sub", "jobs", "-n", "2"])),
        "one\ntwo\n"
    );
    settled(&broker, "jobs", 1);
    let out = good(run(
        &broker,
        &["sub", "jobs", "-n", "1", "--no-ack", "--handles"],
    ));
    assert!(out.ends_with("\tthree\n"), "{out}");
    settled(&broker, "jobs", 1);
}

#[test]
fn a_bench_of_every_mode_finds_every_message() {
    let broker = Launch::memory().start();
    let pid = broker.process.pid().to_string();
    let modes: [&[&str]; 6] = [
        &["publish", "--count", "20000"],
        &["pull", "--count", "20000", "--batch", "50"],
        &["e2e", "--count", "20000", "--quiet-acks"],
        &[
            "fanout",
            "--count",
            "2000",
            "--consumers",
            "5",
            "--window",
            "50",
            "--backlog",
            "50",
        ],
        &[
            "e2e",
            "--count",
            "20000",
            "--producers",
            "3",
            "--consumers",
            "2",
        ],
        &[
            "e2e",
            "--duration",
            "300ms",
            "--warmup",
            "50ms",
            "--consume",
            "pull",
            "--batch",
            "5",
        ],
    ];
    for mode in modes {
        let words = [&["bench"], mode, &["--json", "--server-pid", &pid]].concat();
        let out = good(run(&broker, &words));
        assert!(out.contains("\"faults\":\"\""), "{mode:?}: {out}");
        assert!(out.contains("\"server\":\"ringmq/"), "{mode:?}: {out}");
        assert!(
            !out.contains("\"server_cpu_us_per_message\":null"),
            "{mode:?}: {out}"
        );
    }
    // The queues that were made for it are gone.
    assert!(good(run(&broker, &["stats"])).contains("queues=0"));
    // One run can take what another has left in a queue that was there before.
    let left = ["--queue", "left", "--count", "5000", "--json"];
    good(run(&broker, &[&["bench", "publish"], &left[..]].concat()));
    let taken = good(run(
        &broker,
        &[&["bench", "pull", "--filled"], &left[..]].concat(),
    ));
    assert!(taken.contains("\"total_arrived\":5000,"), "{taken}");
    settled(&broker, "left", 0);
    let idle = ["bench", "idle", "--consumers", "20", "--duration", "20ms"];
    let idle = good(run(
        &broker,
        &[&idle[..], &["--json", "--server-pid", &pid]].concat(),
    ));
    assert!(idle.contains("\"connections\":20,"), "{idle}");
}

#[test]
fn a_data_directory_is_checked_and_dumped() {
    let dir = TempDir::new("check");
    let data = dir.data();
    let path = data.to_str().expect("temporary paths are UTF-8");
    let mut broker = Launch::data(&data).start();
    good(run(
        &broker,
        &["pub", "-q", "jobs", "findme", "two", "three"],
    ));
    broker.terminate();
    let told = good(plain(&["check", path]));
    assert!(told.contains("3 messages verified"), "{told}");
    assert!(told.contains("0 problems"), "{told}");
    let dumped = good(plain(&["dump", path]));
    assert!(dumped.contains("findme"), "{dumped}");

    // A bit of a body, in the middle of the log.
    let (file, mut bytes) = contents(&data)
        .into_iter()
        .find(|(_, bytes)| bytes.windows(6).any(|window| window == b"findme"))
        .expect("the body is in a segment");
    let at = bytes.windows(6).position(|window| window == b"findme");
    bytes[at.expect("it was just found")] ^= 1;
    std::fs::write(&file, &bytes).expect("the file is ours");
    let before = contents(&data);
    let said = plain(&["check", path]);
    assert_eq!(said.code, Some(3), "{said:?}");
    let name = file
        .file_name()
        .expect("a file")
        .to_string_lossy()
        .into_owned();
    assert!(
        said.out.contains(&name) || said.err.contains(&name),
        "{said:?}"
    );
    assert_eq!(contents(&data), before, "checking changes nothing");
}

#[test]
fn a_dump_that_nobody_reads_to_its_end_is_no_error() {
    let dir = TempDir::new("dump");
    let data = dir.data();
    let mut broker = Launch::data(&data).start();
    let lines: String = (1..=20_000).map(|n| format!("line {n}\n")).collect();
    good(feed(&broker, &["pub", "bulk"], &lines));
    broker.terminate();
    let path = data.to_str().expect("temporary paths are UTF-8");
    let mut child = command(&["dump", path])
        .spawn()
        .expect("the binary was built");
    let mut first = String::new();
    let out = child.stdout.take().expect("stdout is piped");
    BufReader::new(out)
        .read_line(&mut first)
        .expect("it prints");
    let said = finish(child);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
}

/// The binary of an example. `cargo test` builds them all; `cargo test --test process` does not.
fn example(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_BIN_EXE_ringmq"))
        .parent()
        .expect("a file has a directory");
    let path = dir.join("examples").join(name);
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", name]);
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("cargo runs this test");
        assert!(built.success(), "the example does not build");
    }
    path
}

#[test]
fn every_example_does_what_it_shows() {
    let dir = TempDir::new("examples");
    let broker = Launch::data(&dir.data()).start();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).expect("they are there") {
        let path = entry.expect("it can be read").path();
        if path.extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let name = path.file_stem().expect("it has a name").to_string_lossy();
        let mut command = Command::new(example(&name));
        command
            .env("RINGMQ_ADDR", broker.address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let said = finish(command.spawn().expect("the example was built"));
        assert_eq!(said.code, Some(0), "{name}: {said:?}");
        count += 1;
    }
    assert!(count >= 5, "the examples are where this test looks");
    let stats = good(run(&broker, &["stats", "--json"]));
    assert!(
        stats.contains("\"ready\":0,\"leased\":0,\"delayed\":0"),
        "{stats}"
    );
}

#[test]
fn a_data_directory_that_is_none_ends_with_3() {
    let dir = TempDir::new("none");
    let path = dir.data();
    let path = path.to_str().expect("temporary paths are UTF-8");
    for word in ["check", "dump"] {
        let said = plain(&[word, path]);
        assert_eq!(said.code, Some(3), "{word}: {said:?}");
        assert!(said.err.contains("not a directory"), "{word}: {said:?}");
    }
    let said = plain(&[
        "serve",
        "--data-must-exist",
        "--listen",
        "127.0.0.1:0",
        "--data",
        path,
    ]);
    assert_eq!(said.code, Some(3), "{said:?}");
}
