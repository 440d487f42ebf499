//! `ringmq reshard` on directories of real brokers, killed before; and what tools and brokers say of a directory
//! that is being converted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::support::load::{self, Load, Shared};
use crate::support::{Launch, Random, TempDir, amqp, contents};

/// Runs the program: its exit code, stdout and stderr.
fn ringmq(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    let command = command.args(words).env_remove("RUST_LOG");
    let output = command.stdin(Stdio::null()).output();
    let output = output.expect("the binary was built for this test");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn path(data: &Path) -> &str {
    data.to_str().expect("temporary paths are UTF-8")
}

#[track_caller]
fn reshard(data: &Path, shards: u32) -> String {
    let shards = shards.to_string();
    let (code, out, err) = ringmq(&["reshard", "--data", path(data), "--shards", &shards]);
    assert_eq!(code, Some(0), "{out}{err}");
    out
}

#[test]
fn what_was_confirmed_is_there_once_and_in_order_after_kills_and_conversions() {
    let seed = Random::seed_from("RINGMQ_KILL_SEED");
    println!("RINGMQ_KILL_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = TempDir::new("reshard-kill");
    let launch = |shards: u32| {
        Launch::data(&dir.data())
            .arg("--segment 1M --checkpoint 1M --memory-budget 64M")
            .arg(&format!("--shards {shards}"))
    };
    let shared = Shared::default();
    let mut broker = launch(1).start();
    load::create_queues(&broker);
    for to in [2, 4, 3, 1] {
        let when = format!("before {to} shards, seed {seed}");
        let (publishers, consumers) = (1 + random.below(3), 1 + random.below(3));
        let load = Load::start(
            &shared,
            broker.address,
            publishers,
            consumers,
            random.next(),
        );
        thread::sleep(Duration::from_millis(100 + random.below(300)));
        broker.process.kill_running();
        load.join();
        shared.ledger().assert_faultless(&when);
        let out = reshard(&dir.data(), to);
        assert!(out.contains(&format!("--shards {to}\n")), "{out}");
        broker = launch(to).start();
        load::assert_queues_kept(&broker);
    }
    load::end(&shared, broker);
}

#[test]
fn a_client_reads_the_same_before_and_after() {
    let dir = TempDir::new("reshard-transcript");
    let data = dir.data();
    let launch = |shards: u32| Launch::data(&data).arg(&format!("--shards {shards}"));
    let broker = launch(1).start();
    let mut client = broker.client();
    for (command, answer) in [
        (
            "QSET jobs lease=1m maxdeliver=2 backoff=0 dedup=1h",
            "OK created",
        ),
        ("QSET news retain=1h", "OK created"),
        ("BIND orders.# jobs", "OK"),
        (
            "PUB jobs pri=9 key=user-7 h.type=invoice reply=desk :first",
            "OK 1 disk",
        ),
        ("PUB jobs once=order-17 :paid", "OK 2 disk"),
        ("PUB jobs delay=1h :later", "OK 3 disk"),
        (
            "PUB jobs every=1d once=nightly at=2099-01-01T02:00:00Z :wake",
            "OK 1 disk",
        ),
        ("PUB news :one", "OK 1 disk"),
        ("CAST orders.eu :cast", "OK 1 disk"),
    ] {
        assert_eq!(client.ask(command), answer, "{command}");
    }
    // One of the news is read by a group, and a job has failed once.
    let read = client.pull("news/readers").expect("an answer");
    assert_eq!(client.ask(&format!("ACK {}", read[0].handle)), "OK 1");
    let failed = client.pull("jobs").expect("an answer");
    assert_eq!(client.ask(&format!("NACK {}", failed[0].handle)), "OK 1");
    let stale = client.pull("jobs").expect("an answer")[0].handle.clone();
    let definition = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::to_owned);
        lines
            .filter(|line| {
                line.starts_with("bindings=")
                    || line.starts_with("dedup=")
                    || line.starts_with("schedule.")
            })
            .collect()
    };
    let before = definition(&client.data("QGET jobs"));
    drop(broker);
    for to in [3, 1, 2] {
        reshard(&data, to);
        let mut broker = launch(to).start();
        let mut client = broker.client();
        assert_eq!(
            client.ask(&format!("ACK {stale}")),
            format!("OK 0 stale={stale}")
        );
        assert_eq!(
            client.ask("PUB jobs once=order-17 :paid again"),
            "OK 2 disk dup=1"
        );
        assert_eq!(definition(&client.data("QGET jobs")), before);
        assert_eq!(client.ask("SEEK news/readers to=first"), "OK");
        let news = client.pull("news/readers").expect("an answer");
        let news: Vec<_> = news.iter().map(|message| &message.body[..]).collect();
        assert_eq!(news, [b"one"]);
        client
            .send(b"PEEK jobs 9\nPEEK jobs 9 state=delayed\n")
            .expect("it reads");
        let (mut told, mut ends) = (Vec::new(), 0);
        while ends < 2 {
            let line = client.line().expect("an answer");
            if line.starts_with("END") {
                ends += 1;
                continue;
            }
            let body = client.counted(&line).expect("the bytes follow");
            // How often it was tried is not what this is about.
            let words = line.split(' ').filter(|word| !word.starts_with("try="));
            let words: Vec<&str> = words.skip(3).collect();
            told.push(format!(
                "{} {}",
                words.join(" "),
                String::from_utf8_lossy(&body)
            ));
        }
        told.sort();
        let wanted = [
            "id=1 key=user-7 reply=desk h.type=invoice $5 first",
            "id=2 $4 paid",
            "id=3 $5 later",
            "id=4 $4 cast",
        ];
        assert_eq!(told, wanted);
        broker.process.kill_running();
    }
}

#[test]
fn what_amqp_has_defined_is_the_same_on_any_number_of_shards() {
    const DURABLE: u8 = 2;
    const NO_ACK: u8 = 1;
    let dir = TempDir::new("reshard-amqp");
    let data = dir.data();
    let queues = ["orders", "mails", "bills", "all", "dies"];
    let to_graves = amqp::texts(&[("x-dead-letter-exchange", "graves")]);
    let arguments = |queue: &str| match queue {
        "dies" => to_graves.clone(),
        _ => Vec::new(),
    };
    let mut broker = Launch::data(&data).start();
    let mut client = amqp::Client::open(broker.address);
    client.exchange("shop", "topic", DURABLE, &[]);
    client.exchange("graves", "fanout", DURABLE, &[]);
    for queue in queues {
        client.declare(queue, DURABLE, &arguments(queue));
        let key = if queue == "all" { "#" } else { queue };
        client.bind(queue, "shop", key);
    }
    for grave in ["bills", "mails"] {
        client.bind(grave, "graves", "");
    }
    client.select_confirms();
    client.publish_safely("shop", "orders", "first");
    drop(client);
    broker.terminate();
    for (nth, shards) in [4, 3, 1].into_iter().enumerate() {
        reshard(&data, shards);
        // Twice, from what the conversion has written, and from what the broker has.
        for start in ["converted", "again"] {
            let arg = format!("--shards {shards}");
            broker = Launch::data(&data).arg(&arg).start();
            let mut client = amqp::Client::open(broker.address);
            // Declared otherwise, they would be refused.
            client.exchange("shop", "topic", DURABLE, &[]);
            for queue in queues {
                client.declare(queue, DURABLE, &arguments(queue));
            }
            client.select_confirms();
            let said = format!("{nth} {start}");
            client.publish_safely("shop", "mails", &said);
            client.publish_safely("shop", "dies", &said);
            let (got, _) = client.get("dies", 0).expect("it is bound");
            client.reject(got.tag, false);
            let first = if (nth, start) == (0, "converted") {
                &["first"][..]
            } else {
                &[]
            };
            for (queue, count) in [("orders", 0), ("mails", 2), ("bills", 1), ("all", 2)] {
                let mut got = Vec::new();
                while let Some((delivered, _)) = client.get(queue, NO_ACK) {
                    got.push(delivered.body().to_owned());
                }
                let mut wanted = match queue {
                    "orders" | "all" => first.to_vec(),
                    _ => Vec::new(),
                };
                wanted.extend(vec![&*said; count]);
                assert_eq!(got, wanted, "{queue} on {shards} shards, {start}");
            }
            drop(client);
            broker.terminate();
        }
    }
}

#[test]
fn another_number_of_shards_is_refused_with_the_command_that_helps() {
    let dir = TempDir::new("reshard-refused");
    let data = dir.data();
    let mut broker = Launch::data(&data).start();
    let (code, _, err) = ringmq(&["reshard", "--data", path(&data), "--shards", "2"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(
        err.contains(&format!("process {}", broker.process.pid())),
        "{err}"
    );
    for n in 0..9 {
        assert_eq!(broker.client().ask(&format!("PUB q{n} :x")), "OK 1 disk");
    }
    broker.terminate();
    let (code, text) = Launch::data(&data).arg("--shards 2").refused();
    assert_eq!(code, Some(3), "{text}");
    let command = format!("ringmq reshard --data {} --shards 2", path(&data));
    assert!(text.contains(&command), "{text}");
    // What it would do changes nothing.
    let untouched = contents(&data);
    let (code, out, err) = ringmq(&[
        "reshard",
        "--data",
        path(&data),
        "--shards",
        "2",
        "--dry-run",
    ]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("has     shard 0 of 1: 9 queues, 9 messages"),
        "{out}"
    );
    assert!(
        contents(&data) == untouched,
        "a dry run has changed something"
    );
    reshard(&data, 2);
    assert!(reshard(&data, 2).contains("nothing to do"));
    // Tools take it whole.
    let (code, out, err) = ringmq(&["check", path(&data)]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("shard-1-of-2:") && out.contains("2 shards: "),
        "{out}"
    );
    assert!(
        out.contains(" 9 messages verified") && out.ends_with(" 0 problems\n"),
        "{out}"
    );
    let (code, out, _) = ringmq(&["dump", path(&data)]);
    assert_eq!(
        (code, out.matches("publish ").count()),
        (Some(0), 9),
        "{out}"
    );
    let part = data.join("shard-0-of-2");
    assert_eq!(ringmq(&["check", path(&part)]).0, Some(0));
    for words in [
        &["reshard", "--data", "nowhere", "--shards", "2"][..],
        &["reshard", "--data", path(dir.path()), "--shards", "2"],
    ] {
        assert_eq!(ringmq(words).0, Some(3), "{words:?}");
    }
    assert_eq!(ringmq(&["reshard", "--data", path(&data)]).0, Some(2));
}

#[test]
fn an_interrupted_conversion_is_told_and_cleared_away() {
    let dir = TempDir::new("reshard-interrupted");
    let data = dir.data();
    let mut broker = Launch::data(&data).start();
    assert_eq!(broker.client().ask("PUB jobs :x"), "OK 1 disk");
    broker.terminate();
    // As if it had been killed before its switch: of the new shards something is there.
    let text =
        "ringmq data directory whose number of shards is being changed\nversion 1\nfrom 1\nto 2\n";
    let crc = crc32c(text.as_bytes());
    let begin = || {
        fs::write(data.join("RESHARD"), format!("{text}crc {crc:08x}\n")).expect("a file of ours");
        fs::create_dir_all(data.join("shard-0-of-2/shard-0")).expect("a directory of ours");
        fs::write(data.join("shard-0-of-2/shard-0/0000000000000001.seg"), "x")
            .expect("a file of ours");
    };
    begin();
    let (_, out, _) = ringmq(&["check", path(&data)]);
    assert!(
        out.contains("begun and has not switched") && out.contains("--shards 2"),
        "{out}"
    );
    let (code, text) = Launch::data(&data).arg("--shards 2").refused();
    assert_eq!(code, Some(3), "{text}");
    let mut broker = Launch::data(&data).start();
    let said = broker.process.stderr();
    assert!(
        said.contains("from 1 to 2 shards was interrupted"),
        "{said}"
    );
    assert!(!data.join("RESHARD").exists() && !data.join("shard-0-of-2").exists());
    assert_eq!(broker.client().ask("PUB jobs :y"), "OK 2 disk");
    broker.terminate();
    // The next attempt begins anew.
    begin();
    reshard(&data, 2);
    let broker = Launch::data(&data).arg("--shards 2").start();
    assert_eq!(broker.client().pull("jobs 9").expect("an answer").len(), 2);
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
