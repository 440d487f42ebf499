//! SIGTERM and SIGINT: what is confirmed is there, who waits is answered, a second signal ends the
//! broker at once.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::load::{self, Load, Shared};
use crate::support::{Launch, TempDir};

/// One second, one sync, and the time that a busy test machine takes for itself.
const GRACEFUL_MAX: Duration = Duration::from_secs(4);

#[test]
fn under_load_it_ends_in_time_and_everything_confirmed_is_there() {
    for (seed, signal) in [(1, libc::SIGTERM), (2, libc::SIGINT), (3, libc::SIGTERM)] {
        let dir = TempDir::new("term");
        let launch = Launch::data(&dir.data()).arg("--segment 1M --checkpoint 1M");
        let shared = Shared::default();
        let mut broker = launch.start();
        load::create_queues(&broker);
        let load = Load::start(&shared, broker.address, 3, 2, seed);
        sleep(Duration::from_millis(200));
        let start = Instant::now();
        broker.process.signal(signal);
        let status = broker.process.wait(GRACEFUL_MAX);
        let status = status.unwrap_or_else(|| panic!("still running after {:?}", start.elapsed()));
        assert_eq!(status.code(), Some(0), "{}", broker.process.stderr());
        load.join();
        shared.ledger().assert_faultless("after the signal");
        assert!(shared.ledger().confirmed > 0, "there was no load");

        let broker = launch.start();
        load::assert_queues_kept(&broker);
        load::drain(&shared, &broker);
        shared.ledger().assert_faultless("after the restart");
    }
}

#[test]
fn a_drain_under_load_ends_like_a_signal() {
    for (seed, drain, signal) in [
        (4, "DRAIN 400ms", None),
        (5, "DRAIN 1h", Some(libc::SIGTERM)),
    ] {
        let dir = TempDir::new("drain");
        let launch = Launch::data(&dir.data()).arg("--segment 1M --checkpoint 1M");
        let shared = Shared::default();
        let mut broker = launch.start();
        load::create_queues(&broker);
        // A lease that nobody settles.
        let mut holder = broker.client();
        assert_eq!(holder.ask("PUB held :x"), "OK 1 disk");
        assert_eq!(holder.pull("held lease=1h").expect("an answer").len(), 1);
        let load = Load::start(&shared, broker.address, 3, 2, seed);
        sleep(Duration::from_millis(200));
        let start = Instant::now();
        assert_eq!(holder.ask(drain), "OK");
        sleep(Duration::from_millis(100));
        assert!(holder.ask("PUB held :y").starts_with("ERR DRAINING retry="));
        assert!(broker.process.ended().is_none(), "somebody holds a message");
        if let Some(signal) = signal {
            broker.process.signal(signal);
        }
        let status = broker.process.wait(GRACEFUL_MAX);
        let status = status.unwrap_or_else(|| panic!("still running after {:?}", start.elapsed()));
        assert_eq!(status.code(), Some(0), "{}", broker.process.stderr());
        load.join();
        shared.ledger().assert_faultless("after the drain");
        assert!(shared.ledger().confirmed > 0, "there was no load");

        let broker = launch.start();
        load::assert_queues_kept(&broker);
        load::drain(&shared, &broker);
        shared.ledger().assert_faultless("after the restart");
        let held = broker.client().pull("held 10").expect("an answer");
        assert_eq!(held.len(), 1, "what was held comes again");
    }
}

#[test]
fn who_waits_is_answered() {
    let dir = TempDir::new("waiters");
    let launch = Launch::data(&dir.data());
    let mut broker = launch.start();
    let mut puller = broker.client();
    puller
        .send(b"PULL nothing wait=60s\n")
        .expect("the broker reads");
    let mut publisher = broker.client();
    for n in 0..100 {
        publisher
            .send(format!("PUB q :{n}\n").as_bytes())
            .expect("the broker reads");
    }
    // The first receipt shows that the pull, sent before, waits by now.
    let mut confirmed = 1;
    assert_eq!(publisher.line().expect("a receipt"), "OK 1 disk");
    broker.terminate();
    let answer = puller.line().expect("a waiting pull is answered");
    assert!(
        answer.starts_with("END 0") || answer.starts_with("ERR"),
        "{answer}"
    );
    let end = puller.line().expect_err("and then the connection ends");
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    while let Ok(line) = publisher.line() {
        if line.starts_with("OK ") {
            confirmed += 1;
        }
    }

    let broker = launch.start();
    let kept = broker.client().pull("q 1000").expect("an answer");
    assert!(
        kept.len() >= confirmed,
        "{} of {confirmed} confirmed messages",
        kept.len()
    );
    for (n, message) in kept.iter().enumerate() {
        assert_eq!(message.body, n.to_string().into_bytes());
    }
}

#[test]
fn an_idle_broker_ends_at_once_and_starts_again() {
    let dir = TempDir::new("idle");
    let launch = Launch::data(&dir.data());
    let mut broker = launch.start();
    let banner = broker.banner().join("\n");
    assert!(banner.contains("NEW, empty"), "{banner}");
    assert_eq!(broker.client().ask("PUB q :kept"), "OK 1 disk");
    let idle = broker.client();
    let start = Instant::now();
    broker.terminate();
    assert!(start.elapsed() < GRACEFUL_MAX);
    drop(idle);

    let broker = launch.start();
    let banner = broker.banner().join("\n");
    assert!(
        !banner.contains("NEW") && banner.contains("1 message"),
        "{banner}"
    );
    let kept = broker.client().pull("q").expect("an answer");
    assert_eq!(kept[0].body, b"kept");
}

#[test]
fn a_signal_while_it_starts_ends_it_and_harms_nothing() {
    let dir = TempDir::new("starting");
    let launch = Launch::data(&dir.data());
    let mut broker = launch.start();
    assert_eq!(broker.client().ask("PUB q :kept"), "OK 1 disk");
    broker.process.kill();
    for moment in 0..30 {
        let mut starting = launch.spawn();
        sleep(Duration::from_micros(500 * moment));
        starting.signal(libc::SIGTERM);
        let status = starting.wait(GRACEFUL_MAX).expect("SIGTERM ends it");
        // Before the program has begun the signal is the system's.
        let ended = status.code() == Some(0) || status.signal() == Some(libc::SIGTERM);
        assert!(ended, "{status}: {}", starting.stderr());
    }
    let broker = launch.start();
    let kept = broker.client().pull("q").expect("an answer");
    assert_eq!(kept[0].body, b"kept");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second) in [
        (libc::SIGTERM, libc::SIGTERM),
        (libc::SIGTERM, libc::SIGINT),
    ] {
        let ended_by_second = (0..10).any(|_| second_signal_wins(first, second));
        assert!(
            ended_by_second,
            "in ten tries the second signal never came in time"
        );
    }
}

/// A reader that takes nothing makes a graceful end last; false when that was over too soon.
fn second_signal_wins(first: i32, second: i32) -> bool {
    let dir = TempDir::new("second");
    let mut broker = Launch::data(&dir.data()).start();
    let mut client = broker.client();
    let body = vec![b'x'; 1 << 20];
    for _ in 0..12 {
        assert!(
            client
                .publish("big", &body)
                .expect("a receipt")
                .starts_with("OK ")
        );
    }
    let mut lazy = broker.client();
    lazy.send(b"SUB big credit=100\n")
        .expect("the broker reads");
    // The kernel's buffers fill up, the rest waits in the broker.
    sleep(Duration::from_millis(200));
    broker.process.signal(first);
    sleep(Duration::from_millis(30));
    if broker.process.ended().is_some() {
        return false;
    }
    let start = Instant::now();
    broker.process.signal(second);
    let status = broker
        .process
        .wait(GRACEFUL_MAX)
        .expect("two signals end the broker");
    match status.code() {
        Some(0) => false,
        code => {
            assert_eq!(code, Some(128 + second), "{}", broker.process.stderr());
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "{:?}",
                start.elapsed()
            );
            true
        }
    }
}

#[test]
fn without_a_directory_it_says_that_nothing_survives() {
    let mut broker = Launch::memory().start();
    let banner = broker.banner().join("\n");
    assert!(banner.contains("nothing survives a restart"), "{banner}");
    assert_eq!(broker.client().ask("PUB q :gone"), "OK 1 mem");
    broker.terminate();
    let broker = Launch::memory().start();
    assert_eq!(broker.client().ask("PULL q"), "END 0");
}

#[test]
fn arguments_that_make_no_sense_are_exit_code_2() {
    let dir = TempDir::new("arguments");
    for bad in ["--no-such-option", "--durable granite"] {
        let (code, stderr) = Launch::data(&dir.data()).arg(bad).refused();
        assert_eq!(code, Some(2), "{bad}: {stderr}");
        assert!(!stderr.is_empty());
        assert!(!dir.data().exists(), "{bad} made a directory");
    }
}

#[test]
fn a_taken_port_is_exit_code_1_before_anything_else() {
    let dir = TempDir::new("port");
    let broker = Launch::memory().start();
    let taken = format!("--listen {}", broker.address);
    // Two addresses are asked for; one of them is taken.
    let (code, stderr) = Launch::data(&dir.data()).arg(&taken).refused();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("another program is listening"), "{stderr}");
    assert!(
        !dir.data().exists(),
        "a data directory was made for nothing"
    );
}
