//! PUB and MPUB: receipts, every option, batches that are all or nothing, SYNC.

use crate::script::{disk, disk_with, memory};

#[test]
fn a_receipt_says_what_the_queue_stores() {
    disk(
        r"
        C: PUB d :x
        S: OK 1 disk
        C: QSET o durable=os
        S: OK created
        C: PUB o :x
        S: OK 1 os
        C: QSET n durable=none
        S: OK created
        C: PUB n :x
        S: OK 1 mem
        ",
    );
}

#[test]
fn without_a_directory_every_receipt_says_mem() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: MPUB q *2
        C: a
        C: b
        S: OK 2 2 mem
        # Never silently less.
        C: QSET d durable=disk
        S: ERR CONFLICT :…
        C: PUB q sync=disk :x
        S: ERR CONFLICT :…
        ",
    );
}

#[test]
fn a_new_queue_has_the_level_it_was_told_at_start() {
    disk_with(
        "--durable os",
        r"
        C: PUB q :x
        S: OK 1 os
        C: PUB q sync=disk :y
        S: ERR CONFLICT :…
        ",
    );
}

#[test]
fn sync_lowers_the_receipt_and_never_asks_for_more() {
    disk(
        r"
        C: PUB q sync=os :x
        S: OK 1 os
        C: PUB q sync=none :x
        S: OK 2 mem
        C: PUB q sync=disk :x
        S: OK 3 disk
        C: QSET o durable=os
        S: OK created
        C: PUB o sync=disk :x
        S: ERR CONFLICT :…
        C: PUB o sync=none :x
        S: OK 1 mem
        C: MPUB o sync=disk *1
        C: PING :inside
        S: ERR CONFLICT :…
        C: QSET n durable=none
        S: OK created
        C: PUB n sync=os :x
        S: ERR CONFLICT :…
        # The refused ones never appear, the early receipts are all there.
        C: PULL q,o,n 10 ack=auto
        S: MSG q - id=1 $1
        S: x
        S: MSG q - id=2 $1
        S: x
        S: MSG q - id=3 $1
        S: x
        S: MSG o - id=1 $1
        S: x
        S: END 4
        C: PUB q sync=tape :x
        S: ERR …
        ",
    );
}

#[test]
fn ids_increase_per_queue_and_are_consecutive_within_a_batch() {
    memory(
        r"
        C: PUB a :x
        S: OK 1 mem
        C: PUB b :x
        S: OK 1 mem
        C: MPUB a *3
        C: x
        C: y
        C: z
        S: OK 2 3 mem
        C: PUB a :x
        S: OK 5 mem
        ",
    );
}

#[test]
fn lines_of_a_batch_are_taken_literally() {
    memory(
        r"
        C: MPUB q *5
        C: :colon
        C: $3
        C:
        C: PUB q :x
        C: *2
        S: OK 1 5 mem
        C: PULL q 9 ack=auto
        S: MSG q - id=1 $6
        S: :colon
        S: MSG q - id=2 $2
        S: $3
        S: MSG q - id=3 $0
        S:
        S: MSG q - id=4 $8
        S: PUB q :x
        S: MSG q - id=5 $2
        S: *2
        S: END 5
        ",
    );
}

#[test]
fn a_counted_batch_is_exact_or_refused_whole() {
    memory(
        r"
        C+ MPUB q $15\n4\na\nbc\n0\n\n2\nxy\n\n
        S: OK 1 3 mem
        C: PULL q 9 ack=auto
        S: MSG q - id=1 $4
        S: a
        S: bc
        S: MSG q - id=2 $0
        S:
        S: MSG q - id=3 $2
        S: xy
        S: END 3
        C+ MPUB q $6\n2\nab\n9\n
        S: ERR SYNTAX :…
        C+ MPUB q $4\n9\nx\n\n
        S: ERR SYNTAX :…
        C+ MPUB q $6\n-1\nab\n\n
        S: ERR SYNTAX :…
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn an_empty_batch() {
    memory(
        r"
        C: MPUB q *0
        S: ERR SYNTAX :…
        C: PING :in step
        S: PONG :in step
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn options_of_a_batch_hold_for_each_message() {
    memory(
        r"
        C: MPUB q pri=3 key=k h.a=b reply=r *2
        C: x
        C: y
        S: OK 1 2 mem
        C: PUB q pri=4 :first
        S: OK 3 mem
        C: PULL q 3 ack=auto
        S: MSG q - id=3 $5
        S: first
        S: MSG q - id=1 key=k reply=r h.a=b $1
        S: x
        S: MSG q - id=2 key=k reply=r h.a=b $1
        S: y
        S: END 3
        ",
    );
}

#[test]
fn a_batch_over_a_limit_of_the_queue_is_refused_whole() {
    memory(
        r"
        C: QSET q maxlen=3
        S: OK created
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: ERR FULL retry=…
        C: PULL q
        S: END 0
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK …
        C: PULL q 9 ack=auto
        S: …
        S: END 3
        ",
    );
}

#[test]
fn sync_is_the_barrier_of_quiet_publishes() {
    disk(
        r"
        C: SYNC
        S: OK accepted=0 rejected=0 …
        C: PUB! q :a
        C: MPUB! q *2
        C: b
        C: c
        C: SYNC
        S: OK accepted=<n> rejected=0 disk
        # It counts since the last SYNC.
        C: PUB! q :d
        C: SYNC
        S: OK accepted=1 rejected=0 disk
        C: SYNC
        S: OK accepted=0 rejected=0 …
        # The weakest level.
        C: QSET n durable=none
        S: OK created
        C: PUB! q :e
        C: PUB! n :e
        C: SYNC
        S: OK accepted=2 rejected=0 mem
        # What is refused is told at once, and counted.
        C: QSET n maxlen=1
        S: OK updated
        C: PUB! q :f
        C: PUB! n :f
        S: ERR FULL retry=… :…
        C: SYNC
        S: OK accepted=1 rejected=1 disk
        C: @s SYNC
        S: OK @s accepted=0 rejected=0 …
        ",
    );
}

#[test]
fn sync_may_wait_for_a_level() {
    disk(
        r"
        C: QSET o durable=os
        S: OK created
        C: PUB! o :x
        C: SYNC os
        S: OK accepted=1 rejected=0 os
        C: PUB! o :x
        C: SYNC none
        S: OK accepted=1 rejected=0 …
        C: SYNC tape
        S: ERR …
        ",
    );
}

#[test]
fn an_unfit_option_is_told_with_what_to_do() {
    memory(
        r"
        C: PUB q pri=256 :x
        S: ERR SYNTAX :…
        C: PUB q pri=-1 :x
        S: ERR SYNTAX :…
        C: PUB q delay=abc :x
        S: ERR SYNTAX :…
        C: PUB q delay=-1s :x
        S: ERR SYNTAX :…
        C: PUB q ttl=0 :x
        S: …
        C: PUB q at=tomorrow :x
        S: ERR SYNTAX :…
        C: PUB q pri=1 pri=2 :x
        S: ERR SYNTAX :…
        C: PUB q frob=1 :x
        S: ERR …
        C: PUB q
        S: ERR SYNTAX :…
        C: PUB
        S: ERR SYNTAX :…
        C: MPUB q :x
        S: ERR SYNTAX :…
        C: PUB q *1
        C: PING
        S: ERR SYNTAX :…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn the_first_try_prints_no_try_and_fields_stand_in_the_written_order() {
    memory(
        r"
        C: PUB q h.b=2 reply=r key=k h.a=1 :x
        S: OK 1 mem
        C: QSET q backoff=0
        S: OK updated
        C: PULL q
        S: MSG q <a> key=k reply=r h.b=2 h.a=1 $1
        S: x
        S: END 1
        C: NACK <a>
        S: OK 1
        C: PULL q ts=1
        S: MSG q <b> try=2 ts=… key=k reply=r h.b=2 h.a=1 $1
        S: x
        S: END 1
        C: NACK <b>
        S: OK 1
        C: PULL q ts=1 ack=auto
        S: MSG q - id=1 try=3 ts=… key=k reply=r h.b=2 h.a=1 $1
        S: x
        S: END 1
        ",
    );
}
