//! PUB every=: messages that come again and again.

use crate::script::{disk, disk_with, memory};

#[test]
fn a_schedule_publishes_again_and_again() {
    memory(
        r"
        C: PUB q every=100ms once=tick pri=3 key=k h.kind=x :go
        S: OK 1 mem
        -- mark
        C: PULL q
        S: END 0
        C: PULL q wait=5s
        S: MSG q <a>.1.<b> key=k h.kind=x $2
        S: go
        S: END 1
        C: ACK <a>.1.<b>
        S: OK 1
        C: PULL q wait=5s
        S: MSG q <c>.2.<d> key=k h.kind=x $2
        S: go
        S: END 1
        C: ACK <c>.2.<d>
        S: OK 1
        C: PULL q wait=5s
        S: MSG q <e>.3.<f> key=k h.kind=x $2
        S: go
        S: END 1
        # Three intervals, and not a fourth.
        -- at least 280ms
        -- at most 5s
        C: PUB q every=0 once=tick :
        S: OK 1 mem
        C: PURGE q
        S: …
        C: PULL q wait=300ms
        S: END 0
        C: PUB q every=0 once=tick :
        S: ERR CONFLICT :…
        C: PUB nowhere every=0 once=tick :
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn qget_lists_schedules_and_a_second_one_of_a_name_replaces_the_first() {
    memory(
        r"
        C: PUB q every=1h once=nightly%20run delay=10s :a
        S: OK 1 mem
        C: PUB q every=36h once=b :b
        S: OK 2 mem
        C: PUB other every=1d once=b :b
        S: OK 3 mem
        C: QGET q
        S: …
        S: schedule.nightly%20run=id:1,every:1h,next_ms:<first>
        S: schedule.b=id:2,every:36h,next_ms:<second>
        S: …
        S: set.rate=none
        S: …
        # The same interval: what it says is new, when it is due is not.
        C: PUB q every=60m once=nightly%20run :c
        S: OK 1 mem
        C: QGET q
        S: …
        S: schedule.nightly%20run=id:1,every:1h,next_ms:<first>
        S: …
        C: PUB q every=50ms once=nightly%20run delay=0 :d
        S: OK 1 mem
        C: PULL q wait=5s
        S: MSG q <x> $1
        S: d
        S: END 1
        # They go with their queue.
        C: QDEL q
        S: OK
        C: PUB q :alone
        S: OK 1 mem
        -- 200ms
        C: PULL q 9
        S: MSG q <y> $5
        S: alone
        S: END 1
        ",
    );
}

#[test]
fn what_is_no_schedule() {
    memory(
        r"
        C: PUB q every=1h :x
        S: ERR SYNTAX :…once=…
        C: PUB q every=1h once=x
        S: ERR SYNTAX :…
        C: PUB q every=9ms once=x :x
        S: ERR SYNTAX :…10ms…
        C: PUB q every=x once=x :x
        S: ERR SYNTAX :…
        C: PUB q every=1h every=2h once=x :x
        S: ERR SYNTAX :…
        C: PUB q every=1h once=x sync=none :x
        S: ERR SYNTAX :…
        C: PUB q every=1h once={x*256} :x
        S: ERR SYNTAX :…
        C: MPUB q every=1h once=x *1
        C: x
        S: ERR UNKNOWN :…
        C: CAST t every=1h once=x :x
        S: ERR UNKNOWN :…
        C+ PUB q every=1h once=x $65537\n{x*65537}\n
        S: ERR TOOBIG :…
        C: BEGIN
        S: OK
        C: PUB q every=1h once=x :x
        S: ERR CONFLICT :…
        C: ABORT
        S: OK
        C: QLS
        S: DATA $0
        S:
        C: PUB! q every=1h once=x :x
        C: PUB! q every=0 once=y :x
        S: ERR CONFLICT :…
        C: SYNC
        S: OK accepted=1 rejected=1 mem
        C+ PUB q every=1h once=x $65536\n{x*65536}\n
        S: OK 1 mem
        C: @t PUB q every=1h once=z :x
        S: OK @t 2 mem
        ",
    );
}

#[test]
fn a_queue_has_a_thousand_at_most() {
    let mut script = String::new();
    for number in 0..1000 {
        script += &format!("C: PUB! q every=1h once=s{number} :x\n");
    }
    script += "C: PUB q every=1h once=more :x\nS: ERR LIMIT :…\n";
    script += "C: PUB q every=2h once=s7 :x\nS: OK 8 mem\n";
    script += "C: PUB q every=0 once=s7 :x\nS: OK 8 mem\n";
    script += "C: PUB q every=1h once=more :x\nS: OK 1001 mem\n";
    memory(&script);
}

#[test]
fn a_schedule_outlives_restarts_and_misses_once() {
    disk(
        r"
        C: PUB q every=400ms once=tick :go
        S: OK 1 disk
        C: PUB gone every=10ms once=x delay=1h :go
        S: OK 2 disk
        C: PUB gone every=0 once=x :
        S: OK 2 disk
        C: QSET volatile durable=none
        S: OK created
        C: PUB volatile every=1h once=x :
        S: OK 3 disk
        -- kill
        # It was down for several intervals: that is one message, and the next comes in its time.
        -- 1300ms
        C: PULL q 9
        S: MSG q <a>.1.<b> $2
        S: go
        S: …
        C: PURGE q
        S: …
        -- kill
        C: PULL gone wait=200ms
        S: END 0
        C: QGET volatile
        S: …
        S: schedule.x=id:3,every:1h,next_ms:<next>
        S: …
        C: PUB gone every=1h once=y :
        S: OK 4 disk
        -- restart
        C: QGET gone
        S: …
        S: schedule.y=id:4,every:1h,…
        S: …
        ",
    );
}

#[test]
fn time_that_the_broker_was_down_is_one_message() {
    let dir = crate::support::TempDir::new("schedule");
    let launch = crate::support::Launch::data(&dir.data());
    let mut broker = launch.start();
    let mut client = broker.client();
    for name in ["one", "two"] {
        let answer = client.ask(&format!("PUB {name} every=500ms once=tick :{name}"));
        assert!(answer.ends_with(" disk"), "{answer}");
        // From here on one is missed at every interval.
        assert_eq!(client.ask(&format!("QSET {name} pause=in")), "OK updated");
        assert!(client.ask(&format!("PURGE {name}")).starts_with("OK "));
    }
    broker.process.kill_running();
    std::thread::sleep(std::time::Duration::from_millis(1200));
    broker = launch.start();
    let mut client = broker.client();
    for name in ["one", "two"] {
        assert_eq!(client.ask(&format!("QSET {name} pause=none")), "OK updated");
        let first = client.pull(&format!("{name} 100 wait=20s ack=auto"));
        assert_eq!(
            first.expect("it answers").len(),
            1,
            "all that were missed are one"
        );
    }
    broker.terminate();
}

#[test]
fn what_a_schedule_has_published_is_not_published_again() {
    disk_with(
        "--segment=1M --checkpoint=1M",
        r"
        C: PUB q every=1h once=tick delay=0 :go
        S: OK 1 disk
        C: PULL q wait=5s
        S: MSG q <a>.1.<b> $2
        S: go
        S: END 1
        C: ACK <a>.1.<b>
        S: OK 1
        -- kill
        C: PULL q wait=300ms
        S: END 0
        # The same from a checkpoint.
        C: MPUB fill *1
        C: {x*500000}
        S: OK 1 1 disk
        C: MPUB fill *1
        C: {x*500000}
        S: OK 2 1 disk
        C: MPUB fill *1
        C: {x*500000}
        S: OK 3 1 disk
        -- 300ms
        -- kill
        C: PULL q wait=300ms
        S: END 0
        C: QGET q
        S: …
        S: schedule.tick=id:1,every:1h,next_ms:<next>
        S: …
        ",
    );
}

#[test]
fn a_message_that_is_refused_comes_when_it_is_taken() {
    memory(
        r"
        C: QSET q pause=in
        S: OK created
        C: PUB q every=1h once=tick delay=0 :go
        S: OK 1 mem
        -- 200ms
        C: PULL q
        S: END 0
        C: QSET q pause=none
        S: OK updated
        C: PULL q wait=5s
        S: MSG q <a> $2
        S: go
        S: END 1
        C: PULL q wait=1500ms
        S: END 0
        ",
    );
}

#[test]
fn at_says_from_when_intervals_count_and_ttl_when_each_ends() {
    memory(
        r"
        C: PUB a every=4000000000s once=tick at=@0 :go
        S: OK 1 mem
        C: QGET a
        S: …
        S: schedule.tick=id:1,every:4000000000s,next_ms:4000000000000
        S: …
        S: set.pause=none
        S:
        C: QDEL a
        S: OK
        C: PUB q every=1h once=tick delay=0 ttl=300ms :go
        S: OK 2 mem
        C: PULL q wait=5s lease=1h
        S: MSG q <a> $2
        S: go
        S: END 1
        C: NACK <a> delay=0
        S: OK 1
        -- 500ms
        C: PULL q
        S: END 0
        ",
    );
}
