//! PULL and POP: what one gives, when it waits, several sources, order.

use crate::script::{disk, memory, memory_with};

#[test]
fn one_message_at_once_or_none() {
    memory(
        r"
        C: PULL q
        S: END 0
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: POP q
        S: MSG q <b> $1
        S: b
        S: END 1
        C: PULL q 5
        S: END 0
        ",
    );
}

#[test]
fn end_0_means_that_nothing_was_ready() {
    memory(
        r"
        C: PUB q delay=1h :later
        S: OK 1 mem
        C: PULL q
        S: END 0
        C: PUB q :x
        S: OK 2 mem
        C: QSET q pause=out
        S: OK updated
        C: PULL q
        S: END 0
        C: QSET q pause=none
        S: OK updated
        C: PULL q
        S: MSG q <c> $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn never_0_while_one_is_ready() {
    memory(
        r"
        C: PUB q :{x*2000}
        S: OK 1 mem
        C: PULL q bytes=1
        S: MSG q <a> $2000
        S: {x*2000}
        S: END 1
        ",
    );
}

#[test]
fn bytes_bounds_the_bodies_of_one_reply() {
    memory(
        r"
        C: MPUB q *4
        C: {a*600}
        C: {b*600}
        C: {c*600}
        C: {d*600}
        S: OK 1 4 mem
        C: PULL q 10 bytes=1200 ack=auto
        S: MSG q - id=1 $600
        S: {a*600}
        S: MSG q - id=2 $600
        S: {b*600}
        S: END 2
        C: PULL q 10 bytes=600 ack=auto
        S: MSG q - id=3 $600
        S: {c*600}
        S: END 1
        ",
    );
}

#[test]
fn wait_is_for_the_first_message_only() {
    memory(
        r"
        C: PULL q 10 wait=20s
        C2: PUB q :one
        S2: OK 1 mem
        S: MSG q <a> $3
        S: one
        S: END 1
        ",
    );
}

#[test]
fn a_wait_that_nothing_meets_ends_in_time() {
    memory(
        r"
        -- mark
        C: PULL q wait=150ms
        S: END 0
        -- at least 150ms
        -- at most 3s
        -- mark
        # A bare number is milliseconds.
        C: PULL q wait=100
        S: END 0
        -- at least 100ms
        -- at most 3s
        ",
    );
}

#[test]
fn while_an_untagged_pull_waits_later_commands_are_kept() {
    memory(
        r"
        C: PULL q wait=20s
        C: PING :later
        C2: PUB q :x
        S2: OK 1 mem
        S: MSG q <a> $1
        S: x
        S: END 1
        S: PONG :later
        ",
    );
}

#[test]
fn its_own_later_publish_does_not_wake_it_before_its_time() {
    memory(
        r"
        C: PULL q wait=200ms
        C: PUB q :x
        S: END 0
        S: OK 1 mem
        ",
    );
}

#[test]
fn an_empty_line_as_the_next_input_cancels_the_wait() {
    memory(
        r"
        C: PULL q wait=1h
        C:
        S: END 0
        C: PULL q wait=1h
        C+ \r\n
        S: END 0
        # Not once something else is there: the empty line is no longer the next input.
        C: PULL q wait=300ms
        C: PING
        C:
        S: END 0
        S: PONG
        ",
    );
}

#[test]
fn a_tagged_pull_may_be_overtaken() {
    memory(
        r"
        C: @w PULL q wait=20s
        C: PING
        S: PONG
        C: @v PULL other wait=20s
        C: PUB other :o
        S: …
        S: END @v 1
        C: PUB q :x
        S: …
        S: MSG @w q <a> $1
        S: x
        S: END @w 1
        ",
    );
}

#[test]
fn a_tag_in_use_is_a_conflict() {
    memory(
        r"
        C: @w PULL q wait=20s
        C: @w PULL q wait=20s
        S: ERR @w CONFLICT :…
        C: @w PING
        S: ERR @w CONFLICT :…
        C: @w PUB q :never
        S: ERR @w CONFLICT :…
        C: CANCEL @w
        S: END @w 0
        S: OK 1
        # Free again.
        C: @w PULL q
        S: END @w 0
        ",
    );
}

#[test]
fn cancel_ends_a_tagged_wait() {
    memory(
        r"
        C: @w PULL q wait=1h
        C: CANCEL @w
        S: END @w 0
        S: OK 1
        C: CANCEL @w
        S: OK 0
        C: CANCEL @never
        S: OK 0
        C: @w PULL q wait=1h
        C: @c CANCEL @w
        S: END @w 0
        S: OK @c 1
        C: CANCEL
        S: ERR SYNTAX :…
        C: CANCEL w
        S: ERR SYNTAX :…
        # It has not taken the message that comes later.
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn an_untagged_pull_or_peek_beside_an_untagged_sub_is_a_conflict() {
    memory(
        r"
        C: SUB q
        S: OK
        C: PULL other
        S: ERR CONFLICT :…
        C: PEEK q
        S: ERR CONFLICT :…
        C: @p PULL other
        S: END @p 0
        C: @p PEEK q
        S: END @p 0
        C: UNSUB q
        S: OK
        C: PULL other
        S: END 0
        # A tagged SUB stands in nobody's way.
        C: @s SUB q
        S: OK @s
        C: PULL other
        S: END 0
        C: PEEK q
        S: END 0
        ",
    );
}

#[test]
fn sources_are_taken_in_the_order_written() {
    memory(
        r"
        C: MPUB a *2
        C: a1
        C: a2
        S: OK 1 2 mem
        C: MPUB b *2
        C: b1
        C: b2
        S: OK 1 2 mem
        C: PULL b,a 3 ack=auto
        S: MSG b - id=1 $2
        S: b1
        S: MSG b - id=2 $2
        S: b2
        S: MSG a - id=1 $2
        S: a1
        S: END 3
        C: PULL empty,b,a 9 ack=auto
        S: MSG a - id=2 $2
        S: a2
        S: END 1
        C: PULL a,b,c wait=20s
        C2: PUB c :c1
        S2: OK 1 mem
        S: MSG c <c> $2
        S: c1
        S: END 1
        C: PULL a,,b
        S: ERR …
        C: PULL a,
        S: ERR …
        ",
    );
}

#[test]
fn the_same_source_twice_gives_each_message_once() {
    memory(
        r"
        C: MPUB a *2
        C: x
        C: y
        S: OK 1 2 mem
        C: PULL a,a 9
        S: MSG a <x> $1
        S: x
        S: MSG a <y> $1
        S: y
        S: END 2
        C: PULL a,a wait=20s
        C2: PUB a :z
        S2: OK 3 mem
        S: MSG a <z> $1
        S: z
        S: END 1
        ",
    );
}

#[test]
fn a_multi_source_wait_that_is_met_leaves_nothing_behind() {
    memory(
        r"
        C: PULL a,b wait=20s
        C2: PUB b :x
        S2: OK 1 mem
        S: MSG b <x> $1
        S: x
        S: END 1
        # Its place at the other source is gone.
        C2: PUB a :y
        S2: OK 1 mem
        C2: PULL a
        S2: MSG a <y> $1
        S2: y
        S2: END 1
        ",
    );
}

#[test]
fn waiting_pulls_are_served_first_come_first_served() {
    memory(
        r"
        C: @p PULL q wait=20s
        C: PING
        S: PONG
        C2: @p PULL q wait=20s
        C2: PING
        S2: PONG
        C3: @p PULL q wait=20s
        C3: PING
        S3: PONG
        C4: PUB q :1
        S4: OK 1 mem
        C4: PUB q :2
        S4: OK 2 mem
        C4: PUB q :3
        S4: OK 3 mem
        S: MSG @p q <a> $1
        S: 1
        S: END @p 1
        S2: MSG @p q <b> $1
        S2: 2
        S2: END @p 1
        S3: MSG @p q <c> $1
        S3: 3
        S3: END @p 1
        ",
    );
}

#[test]
fn ready_order_is_priority_then_id() {
    memory(
        r"
        C: MPUB q *2
        C: 1
        C: 2
        S: OK 1 2 mem
        C: PUB q pri=255 :3
        S: OK 3 mem
        C: PUB q pri=9 :4
        S: OK 4 mem
        C: PUB q pri=9 :5
        S: OK 5 mem
        C: PUB q pri=9 delay=50ms :6
        S: OK 6 mem
        C: PUB q pri=9 :7
        S: OK 7 mem
        -- 150ms
        C: PULL q 9 ack=auto
        S: MSG q - id=3 $1
        S: 3
        S: MSG q - id=4 $1
        S: 4
        S: MSG q - id=5 $1
        S: 5
        S: MSG q - id=6 $1
        S: 6
        S: MSG q - id=7 $1
        S: 7
        S: MSG q - id=1 $1
        S: 1
        S: MSG q - id=2 $1
        S: 2
        S: END 7
        ",
    );
}

#[test]
fn a_returned_message_keeps_its_place() {
    memory_with(
        "--set backoff=0",
        r"
        C: MPUB q *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PULL q 2
        S: MSG q <a> $1
        S: 1
        S: MSG q <b> $1
        S: 2
        S: END 2
        C: NACK <b>
        S: OK 1
        C: NACK <a>
        S: OK 1
        C: PULL q 9 ack=auto
        S: MSG q - id=1 try=2 $1
        S: 1
        S: MSG q - id=2 try=2 $1
        S: 2
        S: MSG q - id=3 $1
        S: 3
        S: END 3
        ",
    );
}

#[test]
fn ts_is_the_time_of_the_publish() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q ts=1
        S: MSG q <a> ts=1… $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn what_is_not_understood_takes_nothing() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q 0
        S: ERR SYNTAX :…
        C: PULL q -1
        S: ERR SYNTAX :…
        C: PULL q 1e3
        S: ERR SYNTAX :…
        C: PULL q wait=x
        S: ERR SYNTAX :…
        C: PULL q lease=0
        S: ERR SYNTAX :…
        C: PULL q ack=yes
        S: ERR SYNTAX :…
        C: PULL q hold=2
        S: ERR SYNTAX :…
        C: PULL q frob=1
        S: ERR …
        C: PULL
        S: ERR SYNTAX :…
        C: PULL q :body
        S: ERR SYNTAX :…
        C: PULL q/group/of
        S: ERR …
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn a_pull_of_several_queues_outlives_one_that_is_deleted_while_it_is_read_from_the_disk() {
    disk(
        r"
        C: PUB a :x
        S: OK 1 disk
        C: PUB b :y
        S: OK 1 disk
        -- kill
        C2+ @1 PULL c,b 9 wait=10s\nQDEL b\nPUB c :z\n
        S2: OK
        S2: OK 1 disk
        S2: MSG @1 c <a> $1
        S2: z
        S2: END @1 1
        # Nor does it keep one waiting.
        C2+ @2 PULL c,a 9 wait=300ms\nQDEL a\n
        S2: OK
        S2: END @2 0
        ",
    );
}
