//! Limits just below, at and above their edge.

use crate::script::{disk, memory};

#[test]
fn hello_tells_the_limits() {
    memory(
        r"
        C: HELLO
        S: OK proto=1 server=ringmq/… max_body=1048576 …auth=0…
        C: HELLO 1 name=me
        S: OK proto=1 …
        C: HELLO 2
        S: ERR …
        C: HELLO 1 frob=1
        S: ERR …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn a_line_of_64_kib() {
    // `PING :` and 65,530 octets are 65,536; the line end does not count.
    memory(
        r"
        C: PING :{x*65000}
        S: PONG :{x*65000}
        C: PING :{x*65530}
        S: PONG :{x*65530}
        C2: PING :{x*65531}
        S2: ERR LINE :…
        S2: (closes)
        C3+ {x*70000}
        S3: ERR LINE :…
        S3: (closes)
        ",
    );
}

#[test]
fn an_inline_body_is_bounded_by_its_line() {
    memory(
        r"
        C: PUB q :{x*65000}
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $65000
        S: {x*65000}
        S: END 1
        ",
    );
}

#[test]
fn a_line_of_a_batch_may_be_longer_than_a_command() {
    memory(
        r"
        C: MPUB q *2
        C: {x*70000}
        C: y
        S: OK 1 2 mem
        C: PULL q 2
        S: MSG q <a> $70000
        S: {x*70000}
        S: MSG q <b> $1
        S: y
        S: END 2
        ",
    );
}

#[test]
fn a_body_of_1_mib_and_not_one_octet_more() {
    memory(
        r"
        C: PUB q $1048575
        C: {x*1048575}
        S: OK 1 mem
        C: PUB q $1048576
        C: {x*1048576}
        S: OK 2 mem
        C: PUB q $1048577
        C: {x*1048577}
        S: ERR TOOBIG :…
        C: FROB $1048577
        C: {x*1048577}
        S: ERR …
        C: PING
        S: PONG
        C: PULL q ack=auto
        S: MSG q - id=1 $1048575
        S: {x*1048575}
        S: END 1
        C: PULL q ack=auto
        S: MSG q - id=2 $1048576
        S: {x*1048576}
        S: END 1
        ",
    );
}

#[test]
fn a_body_over_64_times_its_limit_is_answered_and_closed() {
    memory(
        r"
        C: PUB q $67108865
        S: ERR TOOBIG :…
        S: (closes)
        C2: PUB q $9999999999
        S2: ERR TOOBIG :…
        S2: (closes)
        ",
    );
}

#[test]
fn one_message_over_the_limit_refuses_the_batch() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: {x*1048577}
        C: b
        S: ERR TOOBIG :…
        C: PING
        S: PONG
        C: PULL q
        S: END 0
        C: MPUB q *2
        C: {x*1048576}
        C: b
        S: OK 1 2 mem
        ",
    );
}

#[test]
fn a_batch_of_2_to_the_20_messages_and_not_one_more() {
    memory(
        r"
        C: MPUB q *1048576
        C+ {\n*1048576}
        S: OK 1 1048576 mem
        C: MPUB q *1048577
        C+ {\n*1048577}
        S: ERR TOOBIG :…
        C: PING
        S: PONG
        C: PURGE q
        S: OK 1048576
        ",
    );
}

#[test]
fn a_batch_of_more_than_32_mib_is_read_past() {
    let line = "C: {x*1048000}\n";
    memory(&format!(
        r"
        C: MPUB q *32
        {}
        S: OK 1 32 mem
        C: MPUB q *33
        {}
        S: ERR TOOBIG :…
        C: PING
        S: PONG
        C: PURGE q
        S: OK 32
        ",
        line.repeat(32),
        line.repeat(33)
    ));
}

#[test]
fn numbers_that_are_none() {
    for number in [
        "-1",
        "+1",
        "0x10",
        "1e3",
        "18446744073709551616",
        "{9*100}",
        "1.5",
        "",
    ] {
        memory(&format!(
            r"
            C: PULL q n{number}
            S: ERR SYNTAX :…
            C: PULL q 1 wait={number}
            S: ERR SYNTAX :…
            C: PUB q pri={number} :x
            S: ERR SYNTAX :…
            C: QSET q maxlen={number}
            S: ERR SYNTAX :…
            C: CREDIT q x{number}
            S: ERR SYNTAX :…
            C: PING
            S: PONG
            "
        ));
    }
}

#[test]
fn headers_of_60_000_octets() {
    memory(
        r"
        C: PUB q h.x={a*60000} :d
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> h.x={a*60000} $1
        S: d
        S: END 1
        C: PUB q h.x={a*62000} :d
        S: ERR TOOBIG …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn a_thousand_sources_or_ids_and_not_one_more() {
    memory(
        r"
        C: PULL a{,a*999}
        S: END 0
        C: PULL a{,a*1000}
        S: ERR TOOBIG …
        C: DEL a{ 1*1000}
        S: OK 0 stale=…
        C: DEL a{ 1*1001}
        S: ERR TOOBIG …
        ",
    );
}

#[test]
fn a_half_close_returns_a_thousand_leases() {
    memory(
        r"
        C: MPUB q *1000
        C+ {x\n*1000}
        S: OK 1 1000 mem
        C: PULL q 1000
        S: …
        S: MSG q <a>.1000.<b> $1
        S: x
        S: END 1000
        C: (half-close)
        S: (closes)
        C2: PULL q 2000 wait=5s ack=auto
        S2: …
        S2: END 1000
        ",
    );
}

#[test]
fn a_thousand_stale_handles_fit_the_line() {
    memory(
        r"
        C: ACK{ 1.1.1aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa*1000}
        S: OK 0 stale=…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn the_bytes_of_a_queue_are_exact_after_a_kill() {
    disk(
        r"
        C: QSET q maxbytes=1000
        S: OK created
        C: PUB q :{a*900}
        S: OK 1 disk
        C+ PUB q :{b*10}\nPUB q :{c*10}\n
        S: OK 2 disk
        S: OK 3 disk
        C: PULL q ack=auto
        S: MSG q - id=1 $900
        S: {a*900}
        S: END 1
        -- kill
        C2: QGET q
        S2: DATA $…
        S2: …
        S2: bytes=20
        S2: …
        S2: set.pause=none
        S2:
        C2: PUB q :{d*900}
        S2: OK 4 disk
        ",
    );
}

#[test]
fn a_rate_refuses_with_the_time_to_try_again() {
    disk(
        r"
        C: QSET q rate=5/s
        S: OK created
        C: MPUB q *5
        C: 1
        C: 2
        C: 3
        C: 4
        C: 5
        S: OK 1 5 disk
        -- mark
        C: PUB q :6
        S: ERR LIMIT retry=… :the queue takes 5 messages a second (rate=5/s)
        C: PUB! q :6
        S: ERR LIMIT retry=…
        C: PUB other :x
        S: OK 1 disk
        -- 1100ms
        C: PUB q :6
        S: OK 6 disk
        C: QGET q
        S: DATA $…
        S: ready=6
        S: …
        S: set.rate=5/s
        S: …
        S:
        -- kill
        C: QGET q
        S: DATA $…
        S: …
        S: set.rate=5/s
        S: …
        S:
        C: QSET q rate=none
        S: OK updated
        C: MPUB q *9
        C: 1
        C: 2
        C: 3
        C: 4
        C: 5
        C: 6
        C: 7
        C: 8
        C: 9
        S: OK 7 9 disk
        C: PUB q :x
        S: OK 16 disk
        ",
    );
}

#[test]
fn a_refusal_for_another_cause_uses_up_no_rate() {
    memory(
        r"
        C: QSET q rate=2/s maxlen=1
        S: OK created
        C: PUB q :1
        S: OK 1 mem
        C: PUB q :2
        S: ERR FULL …
        C: PUB q :2
        S: ERR FULL …
        C: PULL q
        S: MSG q <x> $1
        S: 1
        S: END 1
        C: ACK <x>
        S: OK 1
        C: PUB q :2
        S: OK 2 mem
        ",
    );
}
