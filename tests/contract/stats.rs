//! STATS: what is counted of transactions and of schedules.

use std::thread;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::{Launch, TempDir};

/// A counter of `STATS`, or of what is said behind it.
fn counter(watch: &mut Client, scope: &str, key: &str) -> u64 {
    let text = watch.data(&format!("STATS{scope}"));
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.expect("it is listed").parse().expect("it is a count")
}

/// How many transactions are open, and were begun, committed, aborted, voided.
fn transactions(watch: &mut Client) -> [u64; 5] {
    [
        "",
        "_begun_total",
        "_committed_total",
        "_aborted_total",
        "_voided_total",
    ]
    .map(|what| counter(watch, "", &format!("transactions{what}")))
}

#[test]
fn stats_tell_how_transactions_ended() {
    let dir = TempDir::new("transaction-stats");
    let mut broker = Launch::data(&dir.data()).start();
    let (mut watch, mut client) = (broker.client(), broker.client());
    assert_eq!(transactions(&mut watch), [0; 5]);
    assert_eq!(client.ask("BEGIN"), "OK");
    assert_eq!(client.ask("PUB q :x"), "OK queued");
    assert_eq!(transactions(&mut watch), [1, 1, 0, 0, 0]);
    assert_eq!(client.ask("COMMIT"), "OK 1");
    assert_eq!(transactions(&mut watch), [0, 1, 1, 0, 0]);

    // Aborted by name, by QUIT, and by the end of the connection.
    assert_eq!(client.ask("BEGIN"), "OK");
    assert_eq!(client.ask("ABORT"), "OK");
    assert_eq!(transactions(&mut watch), [0, 2, 1, 1, 0]);
    for end in ["QUIT", ""] {
        let mut other = broker.client();
        assert_eq!(other.ask("BEGIN"), "OK");
        if !end.is_empty() {
            assert_eq!(other.ask(end), "OK bye");
        }
    }
    while transactions(&mut watch) != [0, 4, 1, 3, 0] {
        thread::sleep(Duration::from_millis(1));
    }

    // Void as soon as something is refused, and counted once, however it ends.
    for (number, end) in ["COMMIT", "ABORT", "PUB q :y"].into_iter().enumerate() {
        let number = number as u64;
        assert_eq!(client.ask("BEGIN"), "OK");
        assert!(client.ask("QDEL q").starts_with("ERR CONFLICT"));
        assert_eq!(transactions(&mut watch), [0, 5 + number, 1, 3, 1 + number]);
        client.ask(end);
        assert_eq!(transactions(&mut watch), [0, 5 + number, 1, 3, 1 + number]);
    }
    drop(client);
    // Void at the COMMIT, which finds a handle that is none.
    let mut client = broker.client();
    assert_eq!(client.ask("BEGIN"), "OK");
    assert_eq!(client.ask("ACK 1.1.1"), "OK queued");
    assert!(client.ask("COMMIT").starts_with("ERR STALE"));
    assert_eq!(transactions(&mut watch), [0, 8, 1, 3, 4]);
    broker.terminate();
}

#[test]
fn stats_tell_how_many_schedules_there_are_and_what_they_published() {
    let mut broker = Launch::memory().start();
    let mut client = broker.client();
    assert_eq!(client.ask("PUB q every=20ms once=tick :go"), "OK 1 mem");
    assert_eq!(client.ask("PUB q every=1h once=hourly :go"), "OK 2 mem");
    assert_eq!(client.ask("PUB other every=1h once=hourly :go"), "OK 3 mem");
    assert_eq!(client.ask("PUB other :by hand"), "OK 1 mem");
    assert_eq!(counter(&mut client, "", "schedules"), 3);
    assert_eq!(counter(&mut client, " q q", "schedules"), 2);
    while counter(&mut client, " q q", "scheduled_total") < 3 {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(client.ask("PUB q every=0 once=tick :"), "OK 1 mem");
    let fired = counter(&mut client, " q q", "scheduled_total");
    assert_eq!(counter(&mut client, " q q", "published_total"), fired);
    assert_eq!(counter(&mut client, " q other", "scheduled_total"), 0);
    assert_eq!(counter(&mut client, "", "scheduled_total"), fired);
    assert_eq!(counter(&mut client, "", "published_total"), fired + 1);
    assert_eq!(counter(&mut client, " q q", "schedules"), 1);
    // What a deleted queue has counted stays in the sum; its schedules go with it.
    assert_eq!(client.ask("QDEL q"), "OK");
    assert_eq!(counter(&mut client, "", "scheduled_total"), fired);
    assert_eq!(counter(&mut client, "", "published_total"), fired + 1);
    assert_eq!(counter(&mut client, "", "schedules"), 1);
    broker.terminate();
}
