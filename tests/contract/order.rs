//! Replies come in command order, a command sees the earlier ones of its connection, and a half-closed
//! connection gets everything that it is owed (F4).

use crate::script::{disk, memory};

#[test]
fn replies_come_in_command_order_whatever_they_wait_for() {
    disk(
        r"
        C: QSET n durable=none
        S: OK created
        C+ PUB q :a\nPING :1\nPUB n :b\nPUB q sync=os :c\nPING :2\nPULL n\nQGET no\nPING :3\n
        S: OK 1 disk
        S: PONG :1
        S: OK 1 mem
        S: OK 2 os
        S: PONG :2
        S: MSG n <b> $1
        S: b
        S: END 1
        S: ERR NOQUEUE :…
        S: PONG :3
        ",
    );
}

#[test]
fn a_pull_sees_the_publishes_before_it() {
    disk(
        r"
        C+ PUB! q :a\nMPUB! q *2\nb\nc\nPULL q 9\n
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: MSG q <c> $1
        S: c
        S: END 3
        C+ PUB q :d\nPULL q\n
        S: OK 4 disk
        S: MSG q <d> $1
        S: d
        S: END 1
        ",
    );
}

#[test]
fn a_pull_sees_every_publish_before_it_whatever_their_levels() {
    disk(
        r"
        C: QSET o durable=os
        S: OK created
        C: PUB q once=1 :a
        S: OK 1 disk
        C: PULL q ack=auto
        S: MSG q - id=1 $1
        S: a
        S: END 1
        C+ PUB! q :b\nPUB! o :c\nPULL q\nPUB! o :d\nPUB! q once=1 :a\nPUB! q :e\nPUB! q once=1 sync=none :a\nPULL q\n
        S: MSG q <b> $1
        S: b
        S: END 1
        S: MSG q <e> $1
        S: e
        S: END 1
        ",
    );
}

#[test]
fn peek_and_qget_see_the_publishes_before_them() {
    disk(
        r"
        C+ PUB! q :a\nPEEK q\nPUB! q :b\nQGET q\n
        S: MSG q - id=1 $1
        S: a
        S: END 1
        S: DATA $…
        S: ready=2
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn purge_del_and_move_see_the_publishes_before_them() {
    disk(
        r"
        C+ PUB! q :a\nPURGE q\nPUB! q :b\nMOVE q r\nPUB! q :c\nDEL q 3\nPULL q,r 9\n
        S: OK 1
        S: OK 1
        S: OK 1
        S: MSG r <b> $1
        S: b
        S: END 1
        ",
    );
}

#[test]
fn a_later_command_sees_a_quiet_settle() {
    disk(
        r"
        C: QSET q backoff=0
        S: OK created
        C+ PUB! q :a\nPULL q\n
        S: MSG q <a> $1
        S: a
        S: END 1
        C+ NACK! <a>\nPULL q\n
        S: MSG q <b> try=2 $1
        S: a
        S: END 1
        C+ ACK! <b>\nACK <b>\nPULL q\n
        S: OK 0 stale=<b>
        S: END 0
        ",
    );
}

#[test]
fn the_ok_of_an_ack_does_not_hold_up_a_tagged_command() {
    disk(
        r"
        C: PUB q :a
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C+ ACK <a>\nPING :behind\n
        S: OK 1
        S: PONG :behind
        ",
    );
}

#[test]
fn a_half_closed_connection_gets_everything() {
    disk(
        r"
        C: PUB jobs :hi
        C: PULL jobs
        C: (half-close)
        S: OK 1 disk
        S: MSG jobs <a> $2
        S: hi
        S: END 1
        S: (closes)
        # Its lease returned at the close.
        C2: PULL jobs wait=10s
        S2: MSG jobs <b> try=2 $2
        S2: hi
        S2: END 1
        ",
    );
}

#[test]
fn waits_end_at_once_at_a_half_close() {
    memory(
        r"
        -- mark
        C: PULL q wait=1h
        C: @t PULL q wait=1h
        C: PUB q :x
        C: PING :done
        C: (half-close)
        S: …
        S: PONG :done
        S: …
        S: (closes)
        -- at most 5s
        ",
    );
}

#[test]
fn a_subscription_ends_at_a_half_close() {
    memory(
        r"
        C: PUB q :x
        C: SUB q
        C: (half-close)
        S: OK 1 mem
        S: OK
        S: …
        S: (closes)
        C2: PULL q wait=10s
        S2: MSG q <a> …$1
        S2: x
        S2: END 1
        C2: QGET q
        S2: DATA $…
        S2: …
        S2: consumers=0
        S2: …
        S2: set.pause=none
        S2:
        ",
    );
}

#[test]
fn a_batch_by_pipe() {
    disk(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        C: (half-close)
        S: OK 1 3 disk
        S: (closes)
        ",
    );
}

#[test]
fn a_frame_that_the_half_close_cuts_is_not_run() {
    memory(
        r"
        C+ PUB q :whole\nPUB q :cut
        C: (half-close)
        S: OK 1 mem
        S: ERR PROTO :…
        S: (closes)
        C2+ PUB q $10\nhalf
        C2: (half-close)
        S2: ERR PROTO :…
        S2: (closes)
        C4+ PULL other wait=1h\nPIN
        C4: (half-close)
        S4: END 0
        S4: ERR PROTO :…
        S4: (closes)
        C3: PULL q 9
        S3: MSG q <a> $5
        S3: whole
        S3: END 1
        ",
    );
}

#[test]
fn quit_answers_everything_before_it() {
    disk(
        r"
        C+ PUB q :a\nPUB q :b\nQUIT\nPUB q :never\n
        S: OK 1 disk
        S: OK 2 disk
        S: OK bye
        S: (closes)
        C2: PULL q 9
        S2: MSG q <a> $1
        S2: a
        S2: MSG q <b> $1
        S2: b
        S2: END 2
        ",
    );
}

#[test]
fn help_fits_a_screen_and_knows_every_verb() {
    memory(
        r"
        C: HELP
        S: DATA $…
        S: …
        C: PING :a
        S: PONG :a
        C: HELP PUB
        S: DATA $…
        S: PUB …
        S: …
        C: PING :b
        S: PONG :b
        C: HELP frob
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn stats_are_told() {
    memory(
        r"
        C: HELLO name=me
        S: OK …
        C: PUB q :x
        S: OK 1 mem
        C: STATS q q
        S: DATA $…
        S: ready=1
        S: …
        S: published_total=1
        S: …
        S:
        C: STATS conns
        S: DATA $…
        S: …name=me…
        S: …
        S:
        C: STATS frob
        S: ERR …
        C: STATS
        S: DATA $…
        S: …
        C: PING :end
        S: PONG :end
        ",
    );
}
