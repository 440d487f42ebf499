//! `retain=` keeps what was settled, and SEEK reads it again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::script::{disk, memory};
use crate::support::{Launch, TempDir, eventually};

/// The scripts that say the same with a log and without: `LEVEL` stands for the level.
fn both(script: &str) {
    disk(&script.replace("LEVEL", "disk"));
    memory(&script.replace("LEVEL", "mem"));
}

#[test]
fn what_was_acked_can_be_read_again() {
    both(
        r"
        C: QSET q retain=1h
        S: OK created
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 LEVEL
        C: PULL q 3 ack=auto
        S: …
        S: END 3
        C: QGET q
        S: …
        S: stored=3
        S: retained=3
        S: retained_bytes=3
        S: …
        S: set.retain=1h
        S: …
        C: PULL q
        S: END 0
        C: SEEK q to=first
        S: OK
        C: PULL q 2
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: END 2
        C: ACK <a>
        S: OK 1
        # to an id; leases end, and what is passed over is retained
        C: SEEK q to=3
        S: OK
        C: ACK <b>
        S: OK 0 stale=<b>
        C: PULL q 9
        S: MSG q <c> $1
        S: c
        S: END 1
        C: SEEK q to=new
        S: OK
        C: PULL q 9
        S: END 0
        C: PULL q/late 9 from=2
        S: MSG q/late <d> $1
        S: b
        S: MSG q/late <e> $1
        S: c
        S: END 2
        C: SEEK q/late to=first
        S: OK
        C: PULL q/late
        S: MSG q/late <f> $1
        S: a
        S: END 1
        C: SEEK q to=99
        S: OK
        C: PUB q :d
        S: OK 4 LEVEL
        C: PULL q 9
        S: MSG q <g> $1
        S: d
        S: END 1
        ",
    );
}

#[test]
fn seek_without_retain_reads_again_what_is_still_stored() {
    both(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 LEVEL
        C: PULL q 2
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: END 2
        C: ACK <a>
        S: OK 1
        C: SEEK q to=first
        S: OK
        C: PULL q 9
        S: MSG q <c> $1
        S: b
        S: MSG q <d> $1
        S: c
        S: END 2
        C: NACK <c>
        S: OK 1
        # tries are counted anew, and a backoff is over
        C: SEEK q to=2
        S: OK
        C: PULL q 9
        S: MSG q <e> $1
        S: b
        S: MSG q <f> $1
        S: c
        S: END 2
        C: SEEK q to=new
        S: OK
        C: QGET q
        S: …
        S: bytes=0
        S: …
        S: stored=0
        S: …
        C: SEEK q
        S: ERR SYNTAX :…
        C: SEEK to=first
        S: ERR SYNTAX :…
        C: SEEK q to=soon
        S: ERR SYNTAX :to= …
        C: SEEK q to=first to=new
        S: ERR SYNTAX :to= is said twice…
        C: SEEK q q to=first
        S: ERR SYNTAX :…
        C: SEEK q from=first
        S: ERR UNKNOWN :…
        C: SEEK none to=first
        S: ERR NOQUEUE :…
        C: SEEK q/none to=first
        S: ERR NOGROUP :…
        C: SEEK! q to=first
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn subscribers_get_what_was_sought() {
    both(
        r"
        C: QSET q retain=1G
        S: OK created
        C: SUB q/g credit=1
        S: OK
        C2: MPUB q *2
        C2: a
        C2: b
        S2: OK 1 2 LEVEL
        S: MSG q/g <a> $1
        S: a
        C: ACK <a>
        S: OK 1
        S: MSG q/g <b> $1
        S: b
        # its credit comes back with its lease
        C2: SEEK q/g to=first
        S2: OK
        S: MSG q/g <c> $1
        S: a
        C: ACK <b> <c>
        S: OK 1 stale=<b>
        S: MSG q/g <d> $1
        S: b
        ",
    );
}

#[test]
fn only_what_was_acked_is_retained() {
    both(
        r"
        C: QSET q retain=1h full=dropold maxlen=3 maxdeliver=1
        S: OK created
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: ERR FULL …
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 LEVEL
        C: PUB q :d
        S: OK 4 LEVEL
        C: DEL q 2
        S: OK 1
        C: PULL q
        S: MSG q <a> $1
        S: c
        S: END 1
        C: NACK <a> dead=1
        S: OK 1
        C: PUB q ttl=50ms :e
        S: OK 5 LEVEL
        C: PULL q 1 ack=auto
        S: …
        S: END 1
        -- 200ms
        C: PUB q :f
        S: OK 6 LEVEL
        C: PURGE q
        S: OK 1
        C: QGET q
        S: …
        S: stored=1
        S: retained=1
        S: …
        C: SEEK q to=first
        S: OK
        C: PULL q 9
        S: MSG q <b> $1
        S: d
        S: END 1
        ",
    );
}

#[test]
fn size_and_age_bound_what_is_retained() {
    both(
        r"
        C: QSET q retain=3K
        S: OK created
        C: MPUB q *4
        C: {aaaaaaaaaaaaaaaa*64}
        C: {bbbbbbbbbbbbbbbb*64}
        C: {cccccccccccccccc*64}
        C: {dddddddddddddddd*64}
        S: OK 1 4 LEVEL
        C: PULL q 4 ack=auto
        S: …
        S: END 4
        C: PING
        S: PONG
        C: QGET q
        S: …
        S: stored=3
        S: retained=3
        S: retained_bytes=3072
        S: …
        S: set.retain=3K
        S: …
        C: SEEK q to=first
        S: OK
        C: PULL q
        S: MSG q <b> $1024
        S: …
        S: END 1
        C: QSET q retain=100ms,1G
        S: OK updated
        C: QGET q
        S: …
        S: set.retain=100ms,1G
        S: …
        C: ACK <b>
        S: OK 1
        -- 400ms
        C: QGET q
        S: …
        S: stored=2
        S: retained=0
        S: …
        C: PULL q 2 ack=auto
        S: …
        S: END 2
        -- 50ms
        C: QGET q
        S: …
        S: stored=0
        S: …
        # limits count what is waiting, not what is retained
        C: QSET r retain=1h maxlen=1
        S: OK created
        C: PUB r :1
        S: OK 1 LEVEL
        C: PUB r :2
        S: ERR FULL …
        C: PULL r ack=auto
        S: …
        S: END 1
        C: PUB r :2
        S: OK 2 LEVEL
        C: PULL r ack=auto
        S: …
        S: END 1
        C: QSET r retain=none
        S: OK updated
        C: QGET r
        S: …
        S: retained=0
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn what_is_retained_survives() {
    for how in ["kill", "restart"] {
        disk(
            &r"
            C: QSET q retain=1h
            S: OK created
            C: MPUB q *4
            C: a
            C: b
            C: c
            C: d
            S: OK 1 4 disk
            C: PULL q/g 3
            S: MSG q/g <a> $1
            S: a
            S: MSG q/g <b> $1
            S: b
            S: MSG q/g <c> $1
            S: c
            S: END 3
            C: ACK <a> <b> <c>
            S: OK 3
            -- HOW
            C: QGET q
            S: …
            S: stored=4
            S: retained=3
            S: …
            C: SEEK q/g to=2
            S: OK
            -- HOW
            C: QGET q
            S: …
            S: stored=4
            S: retained=1
            S: …
            S: group.g.unsettled=3
            S: …
            C: QSET q retain=none
            S: OK updated
            -- HOW
            C: QGET q
            S: …
            S: stored=3
            S: retained=0
            S: …
            C: PULL q/g 9
            S: MSG q/g <e> …
            S: b
            S: MSG q/g …
            S: c
            S: MSG q/g …
            S: d
            S: END 3
            "
            .replace("HOW", how),
        );
    }
}

/// Publish times are found by halving, wherever the messages lie.
#[test]
fn a_time_is_found() {
    let dir = TempDir::new("retain");
    for launch in [Launch::memory(), Launch::data(&dir.data())] {
        let mut broker = launch.start();
        let mut client = broker.client();
        let now_ms = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.expect("it is after 1970").as_millis() as u64
        };
        assert_eq!(client.ask("QSET q retain=1h"), "OK created");
        let mut marks = Vec::new();
        for batch in 0..20u64 {
            marks.push(now_ms());
            let lines: Vec<_> = (0..700).map(|n| format!("{batch}.{n}")).collect();
            let answer = client.ask(&format!("MPUB q *700\n{}", lines.join("\n")));
            assert!(
                answer.starts_with(&format!("OK {} 700 ", batch * 700 + 1)),
                "{answer}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        for batch in [0, 1, 7, 12, 19] {
            let group = format!("q/at{batch}");
            let taken = client
                .pull(&format!("{group} from=@{} wait=20s", marks[batch]))
                .expect("it answers");
            assert_eq!(taken[0].id(), batch as u64 * 700 + 1, "batch {batch}");
        }
        let ago_ms = now_ms() - marks[9];
        assert_eq!(client.ask(&format!("SEEK q/at0 to=-{ago_ms}ms")), "OK");
        let taken = client.pull("q/at0 wait=20s").expect("it answers");
        let id = taken[0].id();
        assert!((8 * 700..=10 * 700 + 1).contains(&id), "{id}");
        assert_eq!(
            client
                .pull("q/none from=@99999999999999")
                .expect("it answers")
                .len(),
            0
        );
        assert_eq!(
            client.pull("q/all from=-1000d").expect("it answers")[0].id(),
            1
        );
        broker.assert_well();
    }
}

/// Five groups over many messages: one copy in memory and on the disk, which returns with the last ack.
#[test]
fn five_groups_take_one_copy() {
    const COUNT: u64 = 40_000;
    let dir = TempDir::new("copies");
    let mut broker = Launch::data(&dir.data()).start();
    let mut client = broker.client();
    let memory = |client: &mut crate::support::client::Client| -> u64 {
        let text = client.data("STATS q q");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("memory_bytes="));
        line.expect("it is told").parse().expect("it is a number")
    };
    assert_eq!(client.ask("PULL q/g0"), "END 0");
    for group in 1..5 {
        assert_eq!(client.ask(&format!("PULL q/g{group}")), "END 0");
    }
    let body = "x".repeat(100);
    let lines = vec![body.as_str(); 1000].join("\n");
    for _ in 0..COUNT / 1000 {
        assert!(
            client
                .ask(&format!("MPUB q *1000\n{lines}"))
                .ends_with("disk")
        );
    }
    let on_disk: u64 = crate::support::contents(&dir.data())
        .iter()
        .filter(|(path, _)| path.to_string_lossy().contains("log"))
        .map(|(_, bytes)| {
            bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |at| at as u64)
        })
        .sum();
    assert!(
        on_disk < COUNT * 150,
        "{on_disk} bytes for {COUNT} messages"
    );
    let text = client.data("QGET q");
    assert!(
        text.contains(&format!("\nbytes={}\n", COUNT * 100)),
        "{text}"
    );
    // The queue's own index is 4 bytes a message; a group at most 16.
    let own = memory(&mut client);
    assert!(own < COUNT * 16, "{own}");
    for group in 0..5 {
        let taken = format!("PULL q/g{group} 1000 ack=auto wait=20s\n");
        let mut left = COUNT;
        while left > 0 {
            client.send(taken.as_bytes()).expect("it listens");
            left -= client.pulled().expect("it answers").len() as u64;
        }
        let text = client.data("QGET q");
        let stored = if group == 4 { 0 } else { COUNT };
        assert!(text.contains(&format!("\nstored={stored}\n")), "{text}");
    }
    eventually("memory returns", Duration::from_secs(20), || {
        memory(&mut client) < 100_000
    });
    broker.assert_well();
}
