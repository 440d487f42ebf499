//! SUB, CREDIT, UNSUB: what is pushed, how much, and when credit comes back.

use crate::script::{disk, memory, memory_with};

#[test]
fn messages_are_pushed_as_they_come() {
    disk(
        r"
        C: SUB q
        S: OK
        C2: PUB q :a
        S2: OK 1 disk
        S: MSG q <a> $1
        S: a
        C2: MPUB q *2
        C2: b
        C2: c
        S2: OK 2 2 disk
        S: MSG q <b> $1
        S: b
        S: MSG q <c> $1
        S: c
        C: ACK <a> <b> <c>
        S: OK 3
        ",
    );
}

#[test]
fn the_backlog_is_pushed_first_and_in_order() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: SUB q
        S: OK
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: MSG q <c> $1
        S: c
        ",
    );
}

#[test]
fn credit_is_the_most_unacked_and_comes_back_with_an_ack() {
    memory(
        r"
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: OK 1 4 mem
        C: SUB q credit=2
        S: OK
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        C: PING
        S: PONG
        # Settled by another connection: the credit returns to the holder.
        C2: ACK <a>
        S2: OK 1
        S: MSG q <c> $1
        S: c
        C: ACK <b>
        S: OK 1
        S: MSG q <d> $1
        S: d
        ",
    );
}

#[test]
fn credit_comes_back_with_a_nack() {
    memory(
        r"
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: SUB q credit=1
        S: OK
        S: MSG q <a> $1
        S: a
        C: NACK <a> delay=1h
        S: OK 1
        S: MSG q <b> $1
        S: b
        C: NACK <b> dead=1
        S: OK 1
        C2: PUB q :c
        S2: OK 3 mem
        S: MSG q <c> $1
        S: c
        ",
    );
}

#[test]
fn credit_comes_back_with_an_expiry() {
    memory(
        r"
        C: QSET q maxdeliver=1
        S: OK created
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: SUB q credit=1 lease=50ms
        S: OK
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        ",
    );
}

#[test]
fn credit_comes_back_when_the_queue_is_deleted() {
    memory(
        r"
        C: PUB q :a
        S: OK 1 mem
        C: SUB q credit=1
        S: OK
        S: MSG q <a> $1
        S: a
        C2: QDEL q
        S2: OK
        C2: PUB q :b
        S2: OK …
        S: MSG q <b> $1
        S: b
        C: ACK <a> <b>
        S: OK 1 stale=<a>
        ",
    );
}

#[test]
fn the_default_credit_is_100() {
    memory(
        r"
        C2: MPUB q *101
        C2+ {x\n*101}
        S2: OK 1 101 mem
        C: SUB q
        S: …
        S: MSG q <a>.100.<b> $1
        S: x
        C: PING
        S: PONG
        C: ACK <a>.100.<b>
        S: OK 1
        S: MSG q <c>.101.<d> $1
        S: x
        ",
    );
}

#[test]
fn credit_sets_it_and_0_pauses() {
    memory(
        r"
        C: SUB q credit=0
        S: OK
        C2: MPUB q *3
        C2: a
        C2: b
        C2: c
        S2: OK 1 3 mem
        C: PING
        S: PONG
        C: CREDIT q 2
        S: OK
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        # It is the most unacked, not an addition.
        C: CREDIT q 2
        S: OK
        C: CREDIT q 1
        S: OK
        C: ACK <a>
        S: OK 1
        C: PING
        S: PONG
        C: ACK <b>
        S: OK 1
        S: MSG q <c> $1
        S: c
        C: CREDIT other 5
        S: ERR CONFLICT :…
        C: CREDIT q
        S: ERR SYNTAX :…
        C: CREDIT q x
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn a_second_sub_updates_the_first() {
    memory(
        r"
        C: PUB q :a
        S: OK 1 mem
        C: MPUB q *2
        C: b
        C: c
        S: OK 2 2 mem
        C: SUB q credit=1
        S: OK
        S: MSG q <a> $1
        S: a
        C: SUB q credit=2 ts=1
        S: OK
        S: MSG q <b> ts=… $1
        S: b
        C: SUB q ack=auto
        S: OK
        S: MSG q - id=3 $1
        S: c
        # There is still one: nothing comes twice, one UNSUB ends it.
        C: UNSUB q
        S: OK
        C2: PUB q :d
        S2: OK 4 mem
        C: PING
        S: PONG
        C: UNSUB q
        S: ERR CONFLICT :…
        ",
    );
}

#[test]
fn unsub_leaves_the_leases_as_they_are() {
    memory(
        r"
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: SUB q credit=1
        S: OK
        S: MSG q <a> $1
        S: a
        C: UNSUB q
        S: OK
        C2: PULL q
        S2: MSG q <b> $1
        S2: b
        S2: END 1
        C2: PULL q
        S2: END 0
        C: ACK <a>
        S: OK 1
        ",
    );
}

#[test]
fn pushed_messages_of_a_tagged_sub_carry_the_tag() {
    memory(
        r"
        C: @s SUB q
        S: OK @s
        C: PUB q :x
        S: …
        S: MSG @s q <a> $1
        S: x
        C: CREDIT q 1
        S: …
        S: OK
        C: ACK <a>
        S: OK 1
        C: UNSUB q
        S: OK
        ",
    );
}

#[test]
fn the_tag_of_a_sub_is_in_use() {
    memory(
        r"
        C: @s SUB q
        S: OK @s
        C: @s PULL q
        S: ERR @s CONFLICT :…
        C: @s SUB other
        S: ERR @s CONFLICT :…
        # A refused command has changed nothing.
        C: PEEK other
        S: ERR NOQUEUE :…
        # An update of what has the tag is none.
        C: @s SUB q credit=5
        S: OK @s
        C: QDEL q
        S: OK
        C: @s SUB q credit=6
        S: OK @s
        C: UNSUB q
        S: OK
        C: @s PULL q
        S: END @s 0
        ",
    );
}

#[test]
fn ack_auto_pushes_what_is_settled() {
    disk(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 disk
        C: SUB q ack=auto credit=1
        S: OK
        S: MSG q - id=1 $1
        S: a
        S: MSG q - id=2 $1
        S: b
        S: MSG q - id=3 $1
        S: c
        -- kill
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn a_lease_of_a_sub_is_its_own_or_the_queues() {
    memory(
        r"
        C: HELLO expired=1
        S: OK …
        C: QSET q lease=100ms maxdeliver=1
        S: OK created
        C: SUB q
        S: OK
        -- mark
        C2: PUB q :a
        S2: OK 1 mem
        S: MSG q <a> $1
        S: a
        S: EXPIRED <a>
        -- at least 100ms
        -- at most 2s
        C: SUB q lease=1h
        S: OK
        C2: PUB q :b
        S2: OK 2 mem
        S: MSG q <b> $1
        S: b
        C: PING
        S: PONG
        -- 250ms
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn two_subscribers_share_the_work() {
    memory(
        r"
        C: SUB q credit=1
        S: OK
        C2: SUB q credit=1
        S2: OK
        C3: MPUB q *2
        C3: x
        C3: x
        S3: OK 1 2 mem
        S: MSG q <a> $1
        S: x
        S2: MSG q <b> $1
        S2: x
        ",
    );
}

#[test]
fn a_subscriber_that_closes_gives_its_leases_back() {
    memory_with(
        "--set lease=1h",
        r"
        C: SUB q
        S: OK
        C2: PUB q :x
        S2: OK 1 mem
        S: MSG q <a> $1
        S: x
        C3: SUB q
        S3: OK
        C: (close)
        S3: MSG q <b> try=2 $1
        S3: x
        ",
    );
}

#[test]
fn deleting_a_queue_leaves_its_waiting_consumers() {
    memory(
        r"
        C: SUB q
        S: OK
        C2: @p PULL p wait=20s
        C2: PING
        S2: PONG
        C3: QSET p
        S3: OK …
        C3: QDEL q
        S3: OK
        C3: QDEL p
        S3: OK
        C3: PEEK q
        S3: ERR NOQUEUE :…
        C3: PUB q :x
        S3: OK …
        S: MSG q <a> $1
        S: x
        C3: PUB p :y
        S3: OK …
        S2: MSG @p p <b> $1
        S2: y
        S2: END @p 1
        ",
    );
}

#[test]
fn pause_out_stops_pushing_and_its_end_resumes() {
    memory(
        r"
        C: SUB q
        S: OK
        C2: QSET q pause=out
        S2: OK updated
        C2: PUB q :x
        S2: OK 1 mem
        C: PING
        S: PONG
        C2: QSET q pause=none
        S2: OK updated
        S: MSG q <a> $1
        S: x
        ",
    );
}
