//! The client in tools/ringmq.py against a real broker, with `tests/support/python_client.py`: a tour of
//! its calls, and a broker killed a hundred times under load. Without python3 there is nothing to run, and
//! a line says so.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Launch, Random, TempDir, free_port};

/// Longest wait for a line, or for the end.
const LONG: Duration = Duration::from_secs(60);

/// The script with these arguments, or nothing where there is no Python that can run it.
fn script(words: &[&str]) -> Option<Command> {
    let version = "import sys; sys.exit(sys.version_info < (3, 8))";
    let tried = Command::new("python3").args(["-c", version]).status();
    if !tried.is_ok_and(|status| status.success()) {
        // Not by `println!`, which is only shown for tests that fail.
        let line = "skipped: there is no python3 of at least 3.8 to test tools/ringmq.py with\n";
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    }
    let mut command = Command::new("python3");
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/python_client.py"
    ));
    command.args(words);
    Some(command)
}

#[test]
fn every_call_of_the_python_client() {
    let dir = TempDir::new("python-tour");
    let broker = Launch::data(&dir.data()).start();
    let Some(mut tour) = script(&["tour", &broker.address.to_string()]) else {
        return;
    };
    let said = tour.output().expect("python3 runs");
    let err = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{err}");
}

/// The script under load, and what it says. Killed when it goes out of scope.
struct Load {
    child: Child,
    lines: Receiver<String>,
}

impl Load {
    fn start(mut command: Command) -> Load {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Load { child, lines }
    }

    /// The next line; none when it has ended.
    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(LONG) {
            Ok(line) => {
                assert!(!line.starts_with("failed"), "{line}");
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing"),
        }
    }

    /// Waits until so many more were published and seen than at `from`; how many there are then.
    fn wait_for_more(&self, from: [u64; 2], more: u64) -> [u64; 2] {
        let start = Instant::now();
        loop {
            let line = self.line().expect("it goes on");
            let numbers = numbers(&line, "at ");
            if numbers[0] >= from[0] + more && numbers[1] >= from[1] + more {
                return [numbers[0], numbers[1]];
            }
            assert!(start.elapsed() < LONG, "it does not get on: {line}");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers of a line that begins so.
fn numbers(line: &str, begin: &str) -> Vec<u64> {
    let words = line.strip_prefix(begin).unwrap_or_default();
    let numbers = words.split(' ').map_while(|word| word.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    assert!(numbers.len() >= 2, "{line}");
    numbers
}

#[test]
fn nothing_is_lost_or_doubled_when_the_broker_is_killed_a_hundred_times() {
    let rounds = std::env::var("RINGMQ_PYTHON_ROUNDS")
        .map_or(100, |text| text.parse::<u64>().expect("a number of rounds"));
    let seed = Random::seed_from("RINGMQ_PYTHON_SEED");
    println!("RINGMQ_PYTHON_ROUNDS={rounds} RINGMQ_PYTHON_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = TempDir::new("python");
    let launch = Launch::data(&dir.data())
        .arg("--segment 1M --checkpoint 1M")
        .port(free_port());
    let mut broker = launch.start();
    let Some(load) = script(&["load", &broker.address.to_string()]) else {
        return;
    };
    let asked = broker.client().ask("QSET load maxdeliver=0 dedup=10m");
    assert_eq!(asked, "OK created");
    let mut load = Load::start(load);
    let mut at = [0, 0];
    for _ in 0..rounds {
        at = load.wait_for_more(at, 30);
        thread::sleep(Duration::from_micros(random.below(5_000)));
        broker.process.kill_running();
        broker = launch.start();
    }
    let stdin = load.child.stdin.as_mut().expect("stdin is piped");
    stdin.write_all(b"stop\n").expect("it reads");
    let end = loop {
        let line = load.line().expect("it tells its end");
        if line.starts_with("end ") {
            break numbers(&line, "end ");
        }
    };
    println!(
        "{} published, {} seen, {} resent in vain, {} redeliveries hidden",
        end[0], end[1], end[2], end[3]
    );
    let status = load.child.wait().expect("it is our child");
    assert!(status.success(), "something was lost or came twice");
    assert_eq!(end[0], end[1]);
    // With so many cuts some must have lost a receipt, and some an answer to an ack.
    assert!(rounds < 100 || end[2] > 0 && end[3] > 0, "{end:?}");
    broker.terminate();
}
