//! BEGIN, COMMIT, ABORT: publishes, acks and nacks of one connection, all or none.

use crate::script::{disk, disk_with, memory, memory_with};

#[test]
fn what_is_queued_happens_at_the_commit() {
    disk(
        r"
        C: PUB in :work
        S: OK 1 disk
        C: PULL in
        S: MSG in <a> $4
        S: work
        S: END 1
        C: BEGIN
        S: OK
        C: PUB out :result
        S: OK queued
        C: MPUB log *2
        C: one
        C: two
        S: OK queued
        C: ACK <a>
        S: OK queued
        # Nobody sees anything of it, and no queue is made.
        C2: QLS
        S2: DATA $…
        S2: in ready=0 leased=1 delayed=0 dead=0
        S2:
        C: COMMIT
        S: OK 3
        C: PULL out,log 5
        S: MSG out <b> $6
        S: result
        S: MSG log <c> $3
        S: one
        S: MSG log <d> $3
        S: two
        S: END 3
        C: PULL in
        S: END 0
        C: ACK <a>
        S: OK 0 stale=<a>
        ",
    );
}

#[test]
fn a_transaction_outlives_a_kill_as_a_whole() {
    disk(
        r"
        C: MPUB in *3
        C: a
        C: b
        C: c
        S: OK 1 3 disk
        C: PULL in 3
        S: MSG in <a> $1
        S: a
        S: MSG in <b> $1
        S: b
        S: MSG in <c> $1
        S: c
        S: END 3
        C: BEGIN
        S: OK
        C: PUB out :A
        S: OK queued
        C: ACK <a>
        S: OK queued
        C: NACK <b> dead=1 why=bad
        S: OK queued
        C: COMMIT
        S: OK 3
        # The second one is never committed.
        C: BEGIN
        S: OK
        C: PUB out :C
        S: OK queued
        C: ACK <c>
        S: OK queued
        -- kill
        C: PULL in 5
        S: MSG in <d> $1
        S: c
        S: END 1
        C: PULL out 5
        S: MSG out <e> $1
        S: A
        S: END 1
        C: PULL in.dead 5
        S: MSG in.dead <f> h.dead-queue=in h.dead-id=2 h.dead-reason=rejected h.dead-tries=1 h.dead-why=bad $1
        S: b
        S: END 1
        ",
    );
}

#[test]
fn an_abort_and_a_close_change_nothing() {
    memory(
        r"
        C: PUB in :x
        S: OK 1 mem
        C: PULL in
        S: MSG in <a> $1
        S: x
        S: END 1
        C: BEGIN
        S: OK
        C: PUB out :y
        S: OK queued
        C: ACK <a>
        S: OK queued
        C: ABORT
        S: OK
        C: QGET out
        S: ERR NOQUEUE :…
        C: NACK <a> delay=0
        S: OK 1
        C2: PULL in
        S2: MSG in <b> try=2 $1
        S2: x
        S2: END 1
        C2: BEGIN
        S2: OK
        C2: PUB out :y
        S2: OK queued
        C2: ACK <b>
        S2: OK queued
        C2: (close)
        C: PULL in wait=5s
        S: MSG in <c> try=3 $1
        S: x
        S: END 1
        C: QGET out
        S: ERR NOQUEUE :…
        # The end of the input is one too, and so is QUIT.
        C3: BEGIN
        S3: OK
        C3: PUB out :y
        S3: OK queued
        C3: (half-close)
        S3: (closes)
        C4: BEGIN
        S4: OK
        C4: PUB out :y
        S4: OK queued
        C4: QUIT
        S4: OK bye
        S4: (closes)
        C: QGET out
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn a_stale_handle_voids_the_whole_and_is_named() {
    memory(
        r"
        C: MPUB in *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL in 2
        S: MSG in <a> $1
        S: a
        S: MSG in <b> $1
        S: b
        S: END 2
        C: BEGIN
        S: OK
        C: PUB out :A
        S: OK queued
        C: ACK <a> nonsense 1.1.99
        S: OK queued
        C: NACK <b>
        S: OK queued
        C: COMMIT
        S: ERR STALE stale=nonsense,1.1.99 :…
        # Nothing was done and the transaction is over.
        C: QGET out
        S: ERR NOQUEUE :…
        C: COMMIT
        S: ERR CONFLICT :…
        # A handle can end one lease once.
        C: BEGIN
        S: OK
        C: ACK <a>
        S: OK queued
        C: NACK <a>
        S: OK queued
        C: COMMIT
        S: ERR STALE stale=<a> :…
        C: ACK <a> <b>
        S: OK 2
        ",
    );
}

#[test]
fn a_lease_that_ends_before_the_commit_voids_it() {
    memory(
        r"
        C: PUB in :a
        S: OK 1 mem
        C: PULL in lease=300ms
        S: MSG in <a> $1
        S: a
        S: END 1
        C: BEGIN
        S: OK
        C: ACK <a>
        S: OK queued
        C: PUB out :A
        S: OK queued
        C2: PULL in wait=5s
        S2: MSG in <b> try=2 $1
        S2: a
        S2: END 1
        C: COMMIT
        S: ERR STALE stale=<a> :…
        C2: BEGIN
        S2: OK
        C2: PUB out :A
        S2: OK queued
        C2: ACK <b>
        S2: OK queued
        C2: COMMIT
        S2: OK 2
        C: PULL out 5
        S: MSG out <c> $1
        S: A
        S: END 1
        ",
    );
}

#[test]
fn the_verbs_have_their_places() {
    memory(
        r"
        C: COMMIT
        S: ERR CONFLICT :…
        C: ABORT
        S: ERR CONFLICT :…
        C: BEGIN x
        S: ERR SYNTAX :…
        C: BEGIN
        S: OK
        C: PING :there
        S: PONG :there
        C: PULL q
        S: ERR CONFLICT :…
        C: ABORT
        S: OK
        # Tags and quiet verbs go as everywhere.
        C: @b BEGIN
        S: OK @b
        C: @p PUB q :x
        S: OK @p queued
        C: PUB! q :y
        C: MPUB! q *1
        C: z
        C: @c COMMIT
        S: OK @c 3
        C: BEGIN!
        C: PUB! q :w
        C: COMMIT!
        C: BEGIN!
        C: ABORT!
        C: PULL q 9
        S: MSG q <a> $1
        S: x
        S: MSG q <b> $1
        S: y
        S: MSG q <c> $1
        S: z
        S: MSG q <d> $1
        S: w
        S: END 4
        # A quiet commit counts as one for SYNC, what it holds does not.
        C: SYNC
        S: OK accepted=1 rejected=0 mem
        C: BEGIN!
        C: ACK! 9.9.9
        C: COMMIT!
        S: ERR STALE stale=9.9.9 :…
        C: SYNC
        S: OK accepted=0 rejected=1 mem
        ",
    );
}

#[test]
fn every_other_verb_is_refused_inside() {
    for verb in [
        "HELLO",
        "HELP",
        "PULL q",
        "TOUCH 1.1.1",
        "SUB q",
        "CREDIT q 1",
        "UNSUB q",
        "QSET q lease=1s",
        "QGET q",
        "QLS",
        "QDEL q",
        "DEL q 1",
        "PURGE q",
        "PEEK q",
        "MOVE q r",
        "SYNC",
        "STATS",
        "CANCEL @1",
        "WHY q",
        "KILL 1.1",
        "REQ q :x",
        "REP t :x",
        "CAST t :x",
        "BIND a.# q",
        "UNBIND a.# q",
        "SEEK q to=first",
        "BEGIN",
    ] {
        memory(&format!(
            r"
            C: PUB q :x
            S: OK 1 mem
            C: BEGIN
            S: OK
            C: {verb}
            S: ERR CONFLICT :…
            C: ABORT
            S: OK
            C: PULL q
            S: MSG q <a> $1
            S: x
            S: END 1
            "
        ));
    }
}

#[test]
fn an_error_inside_voids_the_rest() {
    // Sent ahead without reading the answers, a part of it must not happen.
    for (bad, error) in [
        ("PUB out hello", "SYNTAX"),
        ("PUB out frob=1 :x", "UNKNOWN"),
        ("FROB", "UNKNOWN"),
        ("PUB ../x :x", "NAME"),
        ("PULL in", "CONFLICT"),
        ("BEGIN", "CONFLICT"),
        ("PUB! out hello", "SYNTAX"),
        ("MPUB out *0", "SYNTAX"),
        ("PUB out $1048577\n{x*1048577}", "TOOBIG"),
    ] {
        let raw = bad.replace('\n', r"\n");
        memory(&format!(
            r"
            C: PUB in :x
            S: OK 1 mem
            C: PULL in
            S: MSG in <a> $1
            S: x
            S: END 1
            C+ BEGIN\nACK <a>\n{raw}\nPUB out :more\nCOMMIT\n
            S: OK
            S: OK queued
            S: ERR {error} :…
            S: ERR CONFLICT :…
            S: ERR CONFLICT :…
            C: ACK <a>
            S: OK 1
            C: QLS
            S: DATA $…
            S: in ready=…
            S:
            "
        ));
    }
}

#[test]
fn bodies_of_every_kind_are_kept_whole() {
    disk(
        r"
        C: BEGIN
        S: OK
        C+ PUB out $5\na\r\nb\0\n
        S: OK queued
        C+ PUB out $40000\n{x*40000}
        -- 50ms
        C+ \n
        S: OK queued
        C+ MPUB out *3\r\n{y*20000}\r\n
        -- 50ms
        C+ \r\nz\nMPUB out $9\n1\na\n2\nbc\n\n
        S: OK queued
        S: OK queued
        C: COMMIT
        S: OK 4
        C: PULL out 9
        S: MSG out <a> $5
        S: a…
        S: b…
        S: MSG out <b> $40000
        S: {x*40000}
        S: MSG out <c> $20000
        S: {y*20000}
        S: MSG out <d> $0
        S:
        S: MSG out <e> $1
        S: z
        S: MSG out <f> $1
        S: a
        S: MSG out <g> $2
        S: bc
        S: END 7
        ",
    );
}

#[test]
fn a_duplicate_is_there_already_and_the_rest_goes_on() {
    disk(
        r"
        C: PUB out once=1 :first
        S: OK 1 disk
        C: BEGIN
        S: OK
        C: PUB out once=1 :again
        S: OK queued
        C: PUB out once=2 :second
        S: OK queued
        C: PUB out once=2 :second again
        S: OK queued
        C: PUB other once=2 :another queue
        S: OK queued
        C: COMMIT
        S: OK 4
        -- kill
        C: PUB out once=2 :third time
        S: OK 2 disk dup=1
        C: PULL out,other 9
        S: MSG out <a> $5
        S: first
        S: MSG out <b> $6
        S: second
        S: MSG other <c> $13
        S: another queue
        S: END 3
        ",
    );
}

#[test]
fn limits_of_queues_hold_for_the_whole() {
    memory(
        r"
        C: QSET out maxlen=2
        S: OK created
        C: BEGIN
        S: OK
        C: PUB other :x
        S: OK queued
        C: MPUB out *2
        C: a
        C: b
        S: OK queued
        C: PUB out :c
        S: OK queued
        C: COMMIT
        S: ERR FULL …
        C: QGET other
        S: ERR NOQUEUE :…
        C: PULL out
        S: END 0
        # What is acked makes room first, wherever the ack stands.
        C: MPUB out *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL out
        S: MSG out <a> $1
        S: a
        S: END 1
        C: BEGIN
        S: OK
        C: PUB out :c
        S: OK queued
        C: ACK <a>
        S: OK queued
        C: COMMIT
        S: OK 2
        C: BEGIN
        S: OK
        C: PUB out :d
        S: OK queued
        C: COMMIT
        S: ERR FULL …
        # A duplicate takes none.
        C: QSET once maxlen=1
        S: OK created
        C: PUB once once=1 :x
        S: OK 1 mem
        C: BEGIN
        S: OK
        C: PUB once once=1 :x
        S: OK queued
        C: COMMIT
        S: OK 1
        C: QSET shut pause=in
        S: OK created
        C: BEGIN
        S: OK
        C: PUB other :x
        S: OK queued
        C: PUB shut :x
        S: OK queued
        C: COMMIT
        S: ERR PAUSED retry=… :…
        C: QSET slow rate=2/s
        S: OK created
        C: BEGIN
        S: OK
        C: MPUB slow *2
        C: a
        C: b
        S: OK queued
        C: PUB slow :c
        S: OK queued
        C: COMMIT
        S: OK 2
        C: BEGIN
        S: OK
        C: PUB slow :d
        S: OK queued
        C: COMMIT
        S: ERR LIMIT retry=… :…
        C: QGET other
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn the_oldest_make_room_with_the_commit() {
    disk(
        r"
        C: QSET out maxlen=3 full=dropold deadon=full
        S: OK created
        C: MPUB out *3
        C: a
        C: b
        C: c
        S: OK 1 3 disk
        C: PULL out
        S: MSG out <a> $1
        S: a
        S: END 1
        C: BEGIN
        S: OK
        C: PUB out :d
        S: OK queued
        C: COMMIT
        S: OK 1
        -- kill
        C: PULL out 9
        S: MSG out <b> $1
        S: a
        S: MSG out <c> $1
        S: c
        S: MSG out <d> $1
        S: d
        S: END 3
        C: PULL out.dead 9
        S: MSG out.dead <e> h.dead-queue=out h.dead-id=2 h.dead-reason=full h.dead-tries=0 $1
        S: b
        S: END 1
        # More than the queue can ever hold.
        C: BEGIN
        S: OK
        C: MPUB out *4
        C: a
        C: b
        C: c
        C: d
        S: OK queued
        C: COMMIT
        S: ERR FULL …
        ",
    );
}

#[test]
fn what_moves_is_read_from_the_disk_first() {
    disk(
        r"
        C: QSET out maxlen=3 full=dropold deadon=full
        S: OK created
        C: MPUB out *3
        C: {a*5000}
        C: {b*5000}
        C: {c*5000}
        S: OK 1 3 disk
        -- kill
        C: BEGIN
        S: OK
        C: MPUB out *2
        C: d
        C: e
        S: OK queued
        C: COMMIT
        S: OK 1
        C: PULL out.dead 9
        S: MSG out.dead <a> h.dead-queue=out h.dead-id=1 h.dead-reason=full h.dead-tries=0 $5000
        S: {a*5000}
        S: MSG out.dead <b> h.dead-queue=out h.dead-id=2 h.dead-reason=full h.dead-tries=0 $5000
        S: {b*5000}
        S: END 2
        C: PULL out 9
        S: MSG out <c> $5000
        S: {c*5000}
        S: MSG out <d> $1
        S: d
        S: MSG out <e> $1
        S: e
        S: END 3
        ",
    );
}

#[test]
fn nacks_do_what_they_do_outside() {
    disk(
        r"
        C: QSET in maxdeliver=2 backoff=0
        S: OK created
        C: MPUB in *2
        C: a
        C: b
        S: OK 1 2 disk
        C: PULL in 2
        S: MSG in <a> $1
        S: a
        S: MSG in <b> $1
        S: b
        S: END 2
        C: BEGIN
        S: OK
        C: NACK <a>
        S: OK queued
        C: NACK <b> delay=1h
        S: OK queued
        C: COMMIT
        S: OK 2
        C: PULL in 2
        S: MSG in <c> try=2 $1
        S: a
        S: END 1
        # Its last try: it goes to the dead-letter queue, and one is published there too.
        C: BEGIN
        S: OK
        C: PUB in.dead :by hand
        S: OK queued
        C: NACK <c>
        S: OK queued
        C: COMMIT
        S: OK 2
        -- kill
        C: PULL in.dead 9
        S: MSG in.dead <d> h.dead-queue=in h.dead-id=1 h.dead-reason=tries h.dead-tries=2 $1
        S: a
        S: MSG in.dead <e> $7
        S: by hand
        S: END 2
        C: PEEK in state=delayed
        S: MSG in - id=2 …$1
        S: b
        S: END 1
        ",
    );
}

#[test]
fn groups_settle_for_themselves() {
    disk(
        r"
        C: MPUB in *2
        C: a
        C: b
        S: OK 1 2 disk
        C: PULL in/one 2 from=first
        S: MSG in/one <a> $1
        S: a
        S: MSG in/one <b> $1
        S: b
        S: END 2
        C: PULL in/two 2 from=first
        S: MSG in/two <c> $1
        S: a
        S: MSG in/two <d> $1
        S: b
        S: END 2
        C: BEGIN
        S: OK
        C: ACK <a> <c>
        S: OK queued
        C: NACK <b> dead=1
        S: OK queued
        C: NACK <d> dead=1
        S: OK queued
        C: PUB out :A
        S: OK queued
        C: COMMIT
        S: OK 4
        -- kill
        C: PULL in/one,in/two 9
        S: END 0
        C: PULL in.dead 9
        S: MSG in.dead <e> h.dead-queue=in h.dead-id=2 … $1
        S: b
        S: MSG in.dead <f> h.dead-queue=in h.dead-id=2 … $1
        S: b
        S: END 2
        C: PULL out
        S: MSG out <g> $1
        S: A
        S: END 1
        # What only one group has acked still counts.
        C: QSET full maxlen=1
        S: OK created
        C: PUB full :x
        S: OK 1 disk
        C: PULL full/one from=first
        S: MSG full/one <h> $1
        S: x
        S: END 1
        C: PULL full/two from=first
        S: MSG full/two <i> $1
        S: x
        S: END 1
        C: BEGIN
        S: OK
        C: ACK <h>
        S: OK queued
        C: PUB full :y
        S: OK queued
        C: COMMIT
        S: ERR FULL …
        C: ACK <i>
        S: OK 1
        C: BEGIN
        S: OK
        C: ACK <h>
        S: OK queued
        C: PUB full :y
        S: OK queued
        C: COMMIT
        S: OK 2
        ",
    );
}

#[test]
fn delays_count_from_the_commit_and_options_hold() {
    memory(
        r"
        C: BEGIN
        S: OK
        C: PUB q pri=1 h.kind=low :low
        S: OK queued
        C: PUB q pri=9 key=k :high
        S: OK queued
        C: PUB q delay=300ms :late
        S: OK queued
        -- 400ms
        C: COMMIT
        S: OK 3
        -- mark
        C: PULL q 9
        S: MSG q <a> key=k $4
        S: high
        S: MSG q <b> h.kind=low $3
        S: low
        S: END 2
        C: PULL q wait=5s
        S: MSG q <c> $4
        S: late
        S: END 1
        -- at least 200ms
        ",
    );
}

#[test]
fn no_more_is_promised_than_a_queue_stores() {
    disk(
        r"
        C: QSET fast durable=none
        S: OK created
        C: BEGIN
        S: OK
        C: PUB slow :x
        S: OK queued
        C: PUB fast sync=disk :x
        S: OK queued
        C: COMMIT
        S: ERR CONFLICT :…
        C: QGET slow
        S: ERR NOQUEUE :…
        C: BEGIN
        S: OK
        C: PUB slow sync=os :x
        S: OK queued
        C: PUB fast :x
        S: OK queued
        C: COMMIT
        S: OK 2
        C: PULL slow,fast 9
        S: MSG slow <a> $1
        S: x
        S: MSG fast <b> $1
        S: x
        S: END 2
        ",
    );
}

#[test]
fn an_empty_transaction_is_one() {
    disk(
        r"
        C: BEGIN
        S: OK
        C: COMMIT
        S: OK 0
        ",
    );
}

#[test]
fn a_transaction_has_a_size() {
    memory_with(
        "--max-batch=4 --max-batch-bytes=2M",
        r"
        C: BEGIN
        S: OK
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK queued
        C: ACK 1.1.1
        S: OK queued
        C: PUB q :one more
        S: ERR TOOBIG :…
        C: COMMIT
        S: ERR CONFLICT :…
        C: BEGIN
        S: OK
        C+ PUB q $1000000\n{x*1000000}\n
        S: OK queued
        C+ PUB q $1000000\n{x*1000000}\n
        S: OK queued
        C+ PUB q $1000000\n{x*1000000}\n
        S: ERR TOOBIG :…
        C: COMMIT
        S: ERR CONFLICT :…
        C: BEGIN
        S: OK
        C+ PUB q $1000000\n{x*1000000}\n
        S: OK queued
        C+ PUB q $1000000\n{x*1000000}\n
        S: OK queued
        C: COMMIT
        S: OK 2
        C: PULL q 9 bytes=1
        S: MSG q <a> $1000000
        S: {x*1000000}
        S: END 1
        ",
    );
}

#[test]
fn memory_of_open_transactions_is_counted() {
    // Seven of these fit into 16 MiB, and an eighth nearly, so that what else takes memory doesn't matter.
    let two = "PUB! q $1045000\\n{x*1045000}\\nPUB! q $1045000\\n{x*1045000}\\nPING\\n";
    let mut script = String::new();
    for connection in 1..=12 {
        script += &format!("C{connection}: BEGIN!\nC{connection}+ {two}\n");
        script += &match connection {
            12 => "S12: ERR MEM retry=… :…\nS12: ERR CONFLICT :…\nS12: PONG\n".to_owned(),
            _ => format!("S{connection}: …\nS{connection}: PONG\n"),
        };
    }
    // It is free again when they are gone.
    for connection in 1..=11 {
        script += &format!("C{connection}: (close)\n");
    }
    script += &format!("-- 500ms\nC12: ABORT\nS12: OK\nC12: BEGIN!\nC12+ {two}\nS12: PONG\n");
    script += "C12: COMMIT\nS12: OK 2\n";
    memory_with("--memory-budget=16M", &script);
}

#[test]
fn one_too_large_for_a_record_is_refused_as_a_whole() {
    disk_with(
        "--segment=1M",
        r"
        C: BEGIN
        S: OK
        C+ PUB a $600000\n{x*600000}\n
        S: OK queued
        C+ PUB b $600000\n{x*600000}\n
        S: OK queued
        C: COMMIT
        S: ERR DISK retry=… :…
        C: QLS
        S: DATA $0
        S:
        C: BEGIN
        S: OK
        C+ PUB a $400000\n{x*400000}\n
        S: OK queued
        C+ PUB b $400000\n{x*400000}\n
        S: OK queued
        C: COMMIT
        S: OK 2
        ",
    );
}

#[test]
fn a_transaction_of_a_broker_in_memory_makes_a_dead_letter_queue() {
    memory(
        r"
        C: PUB in :work
        S: OK 1 mem
        C: PULL in
        S: MSG in <a> $4
        S: work
        S: END 1
        C: BEGIN
        S: OK
        C: NACK <a> dead=1 why=bad
        S: OK queued
        C: COMMIT
        S: OK 1
        C: PULL in
        S: END 0
        C: PULL in.dead ack=auto
        S: MSG in.dead - id=1 h.dead-queue=in h.dead-id=1 h.dead-reason=rejected h.dead-tries=1 h.dead-why=bad $4
        S: work
        S: END 1
        ",
    );
}
