//! ACK, NACK, TOUCH and how a lease ends: handles, tries, backoff, hold=1, EXPIRED.

use crate::script::{disk, memory, memory_with};

#[test]
fn acks_are_counted_and_stale_ones_named() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: PULL q 3
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: MSG q <c> $1
        S: c
        S: END 3
        C: ACK <a> <b>
        S: OK 2
        # Every token that is no live lease is stale, whatever its form, and voids nothing.
        C: ACK <a> x <c> - 1.2 1.2.3.4 99999999999999999999.1.1 0 q
        S: OK 1 stale=<a>,x,-,1.2,1.2.3.4,99999999999999999999.1.1,0,q
        C: ACK <c> <c>
        S: OK 0 stale=<c>,<c>
        C: ACK
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn the_same_handle_twice_in_one_ack_counts_once() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: ACK <a> <a>
        S: OK 1 stale=<a>
        ",
    );
}

#[test]
fn the_middle_number_of_a_handle_is_the_id() {
    memory(
        r"
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL q 2
        S: MSG q <x>.1.<y> $1
        S: a
        S: MSG q <z>.2.<w> $1
        S: b
        S: END 2
        ",
    );
}

#[test]
fn any_connection_that_knows_a_handle_may_settle_it() {
    memory(
        r"
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL q 2
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: END 2
        C2: ACK <a>
        S2: OK 1
        C2: TOUCH <b> lease=1m
        S2: OK 1
        C2: NACK <b> delay=0
        S2: OK 1
        C: ACK <a> <b>
        S: OK 0 stale=<a>,<b>
        ",
    );
}

#[test]
fn a_stale_handle_never_acks_a_newer_delivery() {
    memory_with(
        "--set backoff=0",
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a>
        S: OK 1
        C: PULL q
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        C: ACK <a>
        S: OK 0 stale=<a>
        C: NACK <a>
        S: OK 0 stale=<a>
        C: TOUCH <a>
        S: OK 0 stale=<a>
        C: ACK <b>
        S: OK 1
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn a_nack_waits_for_its_delay_or_the_backoff_of_its_try() {
    memory(
        r"
        C: QSET q backoff=200ms..300ms
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        -- mark
        C: NACK <a>
        S: OK 1
        C: PULL q
        S: END 0
        C: PULL q wait=10s
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        -- at least 200ms
        -- at most 2s
        # doubled, but never above the second number
        -- mark
        C: NACK <b>
        S: OK 1
        C: PULL q wait=10s
        S: MSG q <c> try=3 $1
        S: x
        S: END 1
        -- at least 300ms
        -- at most 2s
        -- mark
        C: NACK <c> delay=100ms
        S: OK 1
        C: PULL q wait=10s
        S: MSG q <d> try=4 $1
        S: x
        S: END 1
        -- at least 100ms
        -- at most 2s
        C: NACK <d> delay=0
        S: OK 1
        C: PULL q
        S: MSG q <e> try=5 $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn a_lease_that_expires_makes_its_message_ready_at_once() {
    memory(
        r"
        C: HELLO expired=1
        S: OK proto=1 …
        C: PUB q :x
        S: OK 1 mem
        -- mark
        C: PULL q lease=150ms
        S: MSG q <a> $1
        S: x
        S: END 1
        # The backoff is for NACK alone.
        C: @p PULL q wait=10s
        S: EXPIRED <a>
        S: MSG @p q <b> try=2 $1
        S: x
        S: END @p 1
        -- at least 150ms
        -- at most 900ms
        C: ACK <a>
        S: OK 0 stale=<a>
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn expired_is_told_only_to_a_holder_that_asked() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q lease=50ms
        S: MSG q <a> $1
        S: x
        S: END 1
        C2: HELLO expired=1
        S2: OK proto=1 …
        C2: PULL q wait=10s
        S2: MSG q <b> try=2 $1
        S2: x
        S2: END 1
        C: PING
        S: PONG
        # Nor for an ack, a nack, or an UNSUB.
        C2: NACK <b>
        S2: OK 1
        C2: PING
        S2: PONG
        ",
    );
}

#[test]
fn touch_makes_the_deadline_now_plus_lease() {
    memory(
        r"
        C: QSET q lease=10s
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        # longer
        C: PULL q lease=200ms
        S: MSG q <a> $1
        S: x
        S: END 1
        C: TOUCH <a> lease=10s
        S: OK 1
        -- 350ms
        C: PULL q
        S: END 0
        # and shorter
        -- mark
        C: TOUCH <a> lease=100ms
        S: OK 1
        C: PULL q wait=5s
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        -- at least 100ms
        -- at most 2s
        C: TOUCH <a> <b>
        S: OK 1 stale=<a>
        C: TOUCH <b> lease=0
        S: ERR SYNTAX :…
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn a_closed_connection_returns_its_leases_at_once() {
    memory(
        r"
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL q 2
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: END 2
        C2: PULL q wait=10s
        -- 30ms
        C: (close)
        S2: MSG q <c> try=2 $1
        S2: a
        S2: END 1
        C2: PULL q wait=10s
        S2: MSG q <d> try=2 $1
        S2: b
        S2: END 1
        C2: ACK <a> <c> <d>
        S2: OK 2 stale=<a>
        ",
    );
}

#[test]
fn hold_lets_a_lease_outlive_its_connection() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q hold=1 lease=10s
        S: MSG q <a> $1
        S: x
        S: END 1
        C: (close)
        C2: PULL q wait=150ms
        S2: END 0
        C2: ACK <a>
        S2: OK 1
        # Its deadline counts all the same.
        C2: PUB q :y
        S2: OK 2 mem
        C3: PULL q hold=1 lease=200ms
        S3: MSG q <b> $1
        S3: y
        S3: END 1
        C3: QUIT
        S3: OK bye
        S3: (closes)
        C2: PULL q wait=10s
        S2: MSG q <c> try=2 $1
        S2: y
        S2: END 1
        ",
    );
}

#[test]
fn hold_works_for_one_shot_scripts() {
    memory(
        r"
        C: PUB q :x
        C: PULL q hold=1
        C: (half-close)
        S: OK 1 mem
        S: MSG q <a> $1
        S: x
        S: END 1
        S: (closes)
        C2: NACK <a> delay=0
        C2: (half-close)
        S2: OK 1
        S2: (closes)
        C3: PULL q
        C3: (half-close)
        S3: MSG q <b> try=2 $1
        S3: x
        S3: END 1
        S3: (closes)
        C4: ACK <b>
        S4: OK 0 stale=<b>
        ",
    );
}

#[test]
fn a_restart_voids_leases_of_hold_too() {
    disk(
        r"
        C: PUB q :x
        S: OK 1 disk
        C: PULL q hold=1 lease=1h
        S: MSG q <a> $1
        S: x
        S: END 1
        -- kill
        C: ACK <a>
        S: OK 0 stale=<a>
        C: PULL q
        S: MSG q <b> …$1
        S: x
        S: END 1
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn ack_auto_leaves_nothing_to_settle() {
    disk(
        r"
        C: PUB q :x
        S: OK 1 disk
        C: PULL q ack=auto
        S: MSG q - id=1 $1
        S: x
        S: END 1
        C: ACK -
        S: OK 0 stale=-
        C: (close)
        -- kill
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn handles_are_never_used_again_after_qdel() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: QDEL q
        S: OK
        C: PUB q :y
        S: OK …
        C: PULL q
        S: MSG q <b> $1
        S: y
        S: END 1
        C: ACK <a>
        S: OK 0 stale=<a>
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn a_thousand_handles_and_not_one_more() {
    memory(
        r"
        C: ACK{ 1.1.1*1000}
        S: OK 0 stale=1.1.1…
        C: ACK{ 1.1.1*1001}
        S: ERR TOOBIG :…
        C: TOUCH{ x*1001}
        S: ERR TOOBIG :…
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn more_than_maxdeliver_tries_go_to_the_dead_letter_queue() {
    memory_with(
        "--set backoff=0",
        r"
        C: QSET q maxdeliver=3
        S: OK created
        C: PUB q key=k h.type=t reply=r pri=7 :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> key=k reply=r h.type=t $1
        S: x
        S: END 1
        C: NACK <a> why=first
        S: OK 1
        # An expiry and a close are tries too.
        C: PULL q lease=20ms
        S: MSG q <b> try=2 key=k reply=r h.type=t $1
        S: x
        S: END 1
        C: PULL q wait=10s
        S: MSG q <c> try=3 key=k reply=r h.type=t $1
        S: x
        S: END 1
        C: NACK <c> why=bad%20luck
        S: OK 1
        C: PULL q
        S: END 0
        C: PULL q.dead
        S: MSG q.dead <d> key=k reply=r h.type=t h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=3 h.dead-why=bad%20luck $1
        S: x
        S: END 1
        # maxdeliver=0 there: it never leaves by tries.
        C: NACK <d>
        S: OK 1
        C: PULL q.dead wait=1s
        S: MSG q.dead <e> try=2 …
        S: x
        S: END 1
        ",
    );
}

#[test]
fn a_close_on_the_last_try_is_a_dead_letter() {
    memory(
        r"
        C: QSET q maxdeliver=1
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C2: PULL q.dead wait=10s
        -- 30ms
        C: (close)
        S2: MSG q.dead <b> h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=1 $1
        S2: x
        S2: END 1
        ",
    );
}

#[test]
fn nack_dead_goes_there_at_once_whatever_deadon_says() {
    memory(
        r"
        C: QSET q deadon=none maxdeliver=0 dead=grave
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a> dead=1 why=broken
        S: OK 1
        C: PULL grave
        S: MSG grave <b> h.dead-queue=q h.dead-id=1 h.dead-reason=… h.dead-tries=1 h.dead-why=broken $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn tries_are_kept_across_a_kill_and_a_restart() {
    disk(
        r"
        C: QSET q backoff=0 maxdeliver=0
        S: OK created
        C: PUB q :x
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a>
        S: OK 1
        C: PULL q
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        C: NACK <b>
        S: OK 1
        -- kill
        C: PULL q
        S: MSG q <c> try=3 $1
        S: x
        S: END 1
        C: NACK <c>
        S: OK 1
        -- restart
        C: ACK <a> <b> <c>
        S: OK 0 stale=<a>,<b>,<c>
        C: PULL q
        S: MSG q <d> try=4 $1
        S: x
        S: END 1
        C: ACK <d>
        S: OK 1
        -- kill
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn a_nacks_delay_outlives_a_restart() {
    disk(
        r"
        C: PUB q :x
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a> delay=1h
        S: OK 1
        -- kill
        C: PULL q
        S: END 0
        C: PEEK q state=delayed
        S: MSG q - id=1 … $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn touch_without_lease_takes_the_queues_or_what_it_had() {
    memory(
        r"
        C: QSET q lease=10s
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        C: PULL q lease=200ms
        S: MSG q <a> $1
        S: x
        S: END 1
        C: TOUCH <a>
        S: OK 1
        -- 400ms
        C: ACK <a>
        S: OK 1
        C: QSET q lease=200ms
        S: OK updated
        C: PUB q :y
        S: OK 2 mem
        C: PULL q lease=10s
        S: MSG q <b> $1
        S: y
        S: END 1
        C: TOUCH <b>
        S: OK 1
        -- 400ms
        C: ACK <b>
        S: OK 1
        ",
    );
}

#[test]
fn a_command_behind_a_nack_finds_the_dead_letter() {
    disk(
        r"
        C: PUB q :x
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a> dead=1
        C: MOVE q.dead q
        S: OK 1
        S: OK 1
        ",
    );
}
