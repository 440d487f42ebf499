//! Where a command ends, and that nothing inside a body is ever run (F1 to F3, the grammar, the first
//! bytes of a connection).

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::script::{disk, memory};
use crate::support::Launch;

#[test]
fn the_first_session_as_the_contract_prints_it() {
    disk(
        r"
        C: PUB jobs :Hello, world
        S: OK 1 disk
        C: PULL jobs wait=10s
        S: MSG jobs 1.1.1 $12
        S: Hello, world
        S: END 1
        C: ACK 1.1.1
        S: OK 1
        C: PUB jobs hello
        S: ERR SYNTAX :the body starts with a colon, as in PUB jobs :hello
        ",
    );
}

#[test]
fn a_line_may_end_with_cr_lf_and_the_server_sends_lf_alone() {
    memory(
        r"
        C+ PING\r\nPING :x\r\nPUB q :body\r\n
        S: PONG
        S: PONG :x
        S: OK 1 mem
        # One trailing CR is dropped, not two.
        C+ PUB q :two\r\r\n
        S: OK 2 mem
        C+ PULL q 2\r\n
        S: MSG q <a> $4
        S: body
        S: MSG q <b> $4
        S: two…
        S: END 2
        C+ PUB q $3\r\nabc\r\n
        S: OK 3 mem
        C+ MPUB q *2\r\na\r\nb\n
        S: OK 4 2 mem
        ",
    );
}

#[test]
fn verbs_are_case_insensitive() {
    memory(
        r"
        C: ping
        S: PONG
        C: Pub q :x
        S: OK 1 mem
        C: pULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: ack <a>
        S: OK 1
        ",
    );
}

#[test]
fn an_inline_body_keeps_its_spaces() {
    memory(
        r"
        C: PUB q :  two  spaces : and $5
        S: OK 1 mem
        C: PUB q :
        S: OK 2 mem
        C: PULL q 2 ack=auto
        S: MSG q - id=1 $22
        S:   two  spaces : and $5
        S: MSG q - id=2 $0
        S:
        S: END 2
        ",
    );
}

#[test]
fn a_counted_body_is_binary_safe() {
    memory(
        r"
        C+ PUB q $12\nPING\nPING\r\n\0\nPING :behind\n
        S: OK 1 mem
        S: PONG :behind
        C: PULL q
        S: MSG q <a> $12
        S: PING
        S: PING…
        S: …
        S: END 1
        C: PUB q $0
        C:
        S: OK 2 mem
        ",
    );
}

#[test]
fn the_body_of_an_unknown_verb_is_skipped_exactly() {
    memory(
        r"
        C: FROB q :PING
        S: ERR UNKNOWN :…
        C: FROB q $9
        C: PING :bad
        S: ERR UNKNOWN :…
        C: FROB q *2
        C: PING :bad
        C: PING :worse
        S: ERR UNKNOWN :…
        C: PING :good
        S: PONG :good
        ",
    );
}

#[test]
fn the_body_of_a_refused_command_is_skipped_exactly() {
    memory(
        r"
        # a bad option value
        C: PUB q pri=999 $9
        C: PING :bad
        S: ERR SYNTAX :…
        # an option that is not known
        C: PUB q frob=1 $9
        C: PING :bad
        S: ERR …
        # a bad name
        C: PUB :q
        S: ERR …
        C: PUB a/b $9
        C: PING :bad
        S: ERR NAME :…
        # verbs that have no body
        C: ACK $9
        C: PING :bad
        S: ERR SYNTAX :…
        C: PULL q *1
        C: PING :bad
        S: ERR SYNTAX :…
        C: QUIT *1
        C: PING :bad
        S: ERR SYNTAX :…
        # a quiet verb that cannot be
        C: PULL! q $9
        C: PING :bad
        S: ERR SYNTAX :…
        C: PING :good
        S: PONG :good
        ",
    );
}

#[test]
fn verbs_of_later_issues_answer_unknown_and_skip_their_bodies() {
    memory(
        r"
        C: AUTH user :secret
        S: ERR UNKNOWN :…
        C: ROUTE q
        S: ERR UNKNOWN :…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn a_pattern_as_the_last_token_is_no_length() {
    memory(
        r"
        C: PUB a.b :x
        S: OK 1 mem
        C: QLS *
        S: DATA $0
        S:
        C: QLS *.b
        S: DATA $…
        S: a.b …
        S:
        C: QLS #
        S: DATA $…
        S: a.b …
        S:
        C: UNBIND *.eu
        S: ERR SYNTAX :…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn a_last_token_that_is_no_length_closes() {
    for last in [
        "$",
        "$1e3",
        "$-1",
        "$+1",
        "$0x10",
        "$12345678901",
        "*x",
        "*1e3",
        "*-1",
        "$5x",
    ] {
        memory(&format!(
            r"
            C: PUB q {last}
            C: PING
            S: ERR PROTO :…
            S: (closes)
            "
        ));
    }
}

#[test]
fn a_body_that_no_line_end_follows_closes() {
    memory(
        r"
        C+ PUB q $3\nabcd\nPING\n
        S: ERR PROTO :…
        S: (closes)
        C2: FROB $1
        C2: xx
        S2: ERR …
        S2: (closes)
        C3: PEEK q
        S3: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn a_length_elsewhere_on_the_line_is_no_body() {
    memory(
        r"
        C: PUB $3 q
        S: ERR …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn every_byte_alone() {
    memory(
        r"
        C+ P
        -- 5ms
        C+ UB q
        -- 5ms
        C+ \x20$
        -- 5ms
        C+ 3
        -- 5ms
        C+ \r
        -- 5ms
        C+ \na
        -- 5ms
        C+ bc
        -- 5ms
        C+ \r
        -- 5ms
        C+ \n
        S: OK 1 mem
        ",
    );
}

#[test]
fn an_empty_line_is_ignored() {
    memory(
        r"
        C:
        C+ \r\n\r\n
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn names_print_as_they_are_written() {
    memory(
        r"
        C: PUB a%20b :x
        S: OK 1 mem
        C: PULL a%20b
        S: MSG a%20b <a> $1
        S: x
        S: END 1
        # An octet that stands for itself is the same name when written as %XX.
        C: PUB %61.b-_:@+~ :x
        S: OK 1 mem
        C: PULL a.b-_:@+~
        S: MSG a.b-_:@+~ <b> $1
        S: x
        S: END 1
        C: PUB @q :x
        S: ERR …
        C: PUB %40q :x
        S: OK 1 mem
        C: PULL %40q
        S: MSG %40q <c> $1
        S: x
        S: END 1
        C: PUB a% :x
        S: ERR NAME :…
        C: PUB a%2 :x
        S: ERR NAME :…
        C: PUB a%zz :x
        S: ERR NAME :…
        ",
    );
}

#[test]
fn names_have_1_to_255_octets() {
    memory(
        r"
        C: PUB {n*255} :x
        S: OK 1 mem
        C: PUB {n*256} :x
        S: ERR NAME :…
        C: PUB {%20*255} :x
        S: OK 1 mem
        C: PULL {%20*255}
        S: MSG {%20*255} <a> $1
        S: x
        S: END 1
        C: PUB {%20*256} :x
        S: ERR NAME :…
        ",
    );
}

#[test]
fn options_carry_any_octet() {
    memory(
        r"
        C: PUB q key=a%20b%25c%0A h.Some-Name_1=%00%ff reply=x%0Ay :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> key=a%20b%25c%0A reply=x%0Ay h.Some-Name_1=… $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn tags_are_1_to_20_of_their_octets() {
    memory(
        r"
        C: @a PING
        S: PONG @a
        C: @A-b_9 PING :x
        S: PONG @A-b_9 :x
        C: @{t*20} PING
        S: PONG @{t*20}
        C: @{t*21} PING
        S: ERR SYNTAX :…
        C: @ PING
        S: ERR SYNTAX :…
        C: @a.b PING
        S: ERR SYNTAX :…
        C: @a
        S: ERR …
        C: @bad! PUB q $9
        C: PING :bad
        S: ERR SYNTAX :…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn every_line_of_a_tagged_command_carries_the_tag() {
    memory(
        r"
        C: @1 PUB q :x
        S: OK @1 1 mem
        C: @2 PULL q
        S: MSG @2 q <a> $1
        S: x
        S: END @2 1
        C: @3 ACK <a> 9.9.9
        S: OK @3 1 stale=9.9.9
        C: @4 QGET q
        S: DATA @4 $…
        S: …
        S: set.pause=none
        S:
        C: @5 FROB
        S: ERR @5 UNKNOWN :…
        C: @6 QUIT
        S: OK @6 bye
        S: (closes)
        ",
    );
}

#[test]
fn quiet_verbs_say_only_errors() {
    memory(
        r"
        C: PUB! q :a
        C: MPUB! q *2
        C: b
        C: c
        C: QSET! q lease=1m
        C: PULL q 3
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: MSG q <c> $1
        S: c
        S: END 3
        C: TOUCH! <a>
        C: ACK! <a>
        C: NACK! <b> delay=1h
        C: PING
        S: PONG
        C: ACK! <a> <c>
        S: ERR STALE done=1 stale=<a> :…
        C: NACK! <a> <b>
        S: ERR STALE done=0 stale=<a>,<b> :…
        C: TOUCH! x
        S: ERR STALE done=0 stale=x :…
        C: @9 ACK! x
        S: ERR @9 STALE done=0 stale=x :…
        C: PUB! q pri=x :y
        S: ERR SYNTAX :…
        C: PURGE! q
        C: QDEL! q
        C: QDEL! q
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn verbs_that_answer_with_more_than_ok_are_never_quiet() {
    for command in [
        "PULL q", "POP q", "PEEK q", "PING", "HELP", "QGET q", "QLS", "STATS",
    ] {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        memory(&format!(
            r"
            C: {verb}! {rest}
            S: ERR SYNTAX :…
            C: PING
            S: PONG
            "
        ));
    }
}

#[test]
fn nothing_inside_other_protocols_is_run() {
    for (bytes, answer) in [
        (r"\x16\x03\x01PUB q :x\n", "(closes)"),
        // Those that are spoken here answer in their own way.
        (r"*1\r\n$4\r\nPING\r\nPUB q :x\n", "…"),
        (r"GET / HTTP/1.1\r\nPUB q :x\r\n\r\n", "…"),
        (
            r"POST /q HTTP/1.1\r\nContent-Length: 9\r\n\r\nPUB q :x\n",
            "…",
        ),
    ] {
        memory(&format!(
            r"
            C+ {bytes}
            S: {answer}
            C2: PEEK q
            S2: ERR NOQUEUE :…
            "
        ));
    }
}

#[test]
fn nothing_inside_amqp_is_run() {
    let broker = Launch::memory().start();
    let mut stream = TcpStream::connect(broker.address).expect("it listens");
    let sent = stream.write_all(b"AMQP\0\0\x09\x01PUB q :x\n");
    sent.expect("it reads");
    // A frame of a method on channel 0, connection.start; what follows is no frame, which ends it.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end");
    assert_eq!(answer[..3], [1, 0, 0]);
    assert_eq!(answer[7..11], [0, 10, 0, 10]);
    assert!(broker.client().ask("PEEK q").starts_with("ERR NOQUEUE"));
}
