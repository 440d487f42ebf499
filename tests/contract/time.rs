//! delay=, at=, ttl= and once=: what waits, what goes, what is a duplicate.

use crate::script::{disk, memory};

#[test]
fn a_delayed_message_is_not_ready_before_its_time() {
    memory(
        r"
        -- mark
        C: PUB q delay=150ms :x
        S: OK 1 mem
        C: PULL q
        S: END 0
        C: PULL q wait=10s
        S: MSG q <a> $1
        S: x
        S: END 1
        -- at least 150ms
        -- at most 2s
        C: PUB q delay=100 :a bare number is milliseconds
        S: OK 2 mem
        C: PULL q
        S: END 0
        C: PULL q wait=10s
        S: MSG q <b> $29
        S: a bare number is milliseconds
        S: END 1
        C: PUB q delay=0 :at once
        S: OK 3 mem
        C: PULL q
        S: MSG q <c> $7
        S: at once
        S: END 1
        ",
    );
}

#[test]
fn at_is_a_time_in_words_or_unix_ms() {
    memory(
        r"
        C: PUB q at=2001-01-31T09:00:00Z :past
        S: OK 1 mem
        C: PUB q at=2999-01-31T09:00:00Z :future
        S: OK 2 mem
        C: PUB q at=@1 :past
        S: OK 3 mem
        C: PUB q at=@32503680000000 :future
        S: OK 4 mem
        C: PULL q 9 ack=auto
        S: MSG q - id=1 $4
        S: past
        S: MSG q - id=3 $4
        S: past
        S: END 2
        C: PEEK q 9 state=delayed
        S: MSG q - id=2 $6
        S: future
        S: MSG q - id=4 $6
        S: future
        S: END 2
        C: PUB q at=2026-13-01T00:00:00Z :x
        S: ERR SYNTAX :…
        C: PUB q at=2026-02-30T00:00:00Z :x
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn a_delay_outlives_a_kill() {
    disk(
        r"
        C: PUB q delay=1h :later
        S: OK 1 disk
        C: PUB q delay=10ms :soon
        S: OK 2 disk
        -- kill
        C: PULL q 9 wait=10s
        S: MSG q <a> $4
        S: soon
        S: END 1
        C: PEEK q state=delayed
        S: MSG q - id=1 $5
        S: later
        S: END 1
        ",
    );
}

#[test]
fn ttl_counts_from_the_end_of_the_delay() {
    memory(
        r"
        C: PUB q delay=150ms ttl=100ms :x
        S: OK 1 mem
        C: PULL q wait=10s
        S: MSG q <a> $1
        S: x
        S: END 1
        C: PUB q delay=50ms ttl=50ms :y
        S: OK 2 mem
        -- 300ms
        C: PULL q
        S: END 0
        C: PEEK q state=delayed
        S: END 0
        ",
    );
}

#[test]
fn a_time_to_live_set_later_counts_from_the_end_of_a_delay_too() {
    memory(
        r"
        C: PUB q delay=200ms :late
        S: OK 1 mem
        C: PUB q :now
        S: OK 2 mem
        C: QSET q ttl=300ms
        S: OK updated
        # The one without a delay has 300 ms from here, the other one 300 ms from 200.
        -- 400ms
        C: PULL q 2
        S: MSG q <a> $4
        S: late
        S: END 1
        ",
    );
}

#[test]
fn a_leased_message_does_not_expire_before_its_lease_ends() {
    memory(
        r"
        C: PUB q ttl=50ms :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        -- 150ms
        C: ACK <a>
        S: OK 1
        # Its end may come with the end of the lease.
        C: PUB q ttl=50ms :y
        S: OK 2 mem
        C: PULL q lease=150ms
        S: MSG q <b> $1
        S: y
        S: END 1
        C: PULL q wait=300ms
        S: END 0
        ",
    );
}

#[test]
fn an_expired_message_frees_its_room() {
    memory(
        r"
        C: QSET q maxlen=1
        S: OK created
        C: PUB q ttl=50ms :x
        S: OK 1 mem
        -- 200ms
        C: PUB q :y
        S: OK 2 mem
        ",
    );
}

#[test]
fn ttl_outlives_a_kill() {
    disk(
        r"
        C: PUB q ttl=20ms :x
        S: OK 1 disk
        C: PUB q ttl=1h :y
        S: OK 2 disk
        -- kill
        -- 50ms
        C: PULL q 9
        S: MSG q <a> $1
        S: y
        S: END 1
        ",
    );
}

#[test]
fn a_duplicate_is_answered_with_the_originals_id() {
    disk(
        r"
        C: PUB q once=a :x
        S: OK 1 disk
        C: PUB q once=a :other
        S: OK 1 disk dup=1
        C: PUB q once=b :y
        S: OK 2 disk
        # One queue is the scope.
        C: PUB p once=a :z
        S: OK 1 disk
        C: PULL q,p 9 ack=auto
        S: MSG q - id=1 $1
        S: x
        S: MSG q - id=2 $1
        S: y
        S: MSG p - id=1 $1
        S: z
        S: END 3
        # Acked, and still a duplicate.
        C: PUB q once=a :x
        S: OK 1 disk dup=1
        C: PURGE p
        S: OK 0
        # PURGE keeps the window.
        C: PUB p once=a :z
        S: OK 1 disk dup=1
        -- kill
        C: PUB q once=a :x
        S: OK 1 disk dup=1
        C: PUB p once=a :x
        S: OK 1 disk dup=1
        -- restart
        C: PUB q once=b :x
        S: OK 2 disk dup=1
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn duplicates_in_one_packet_wait_for_the_original() {
    disk(
        r"
        C+ PUB q once=a :x\nPUB q once=a :x\nPUB q once=a :x\n
        S: OK 1 disk
        S: OK 1 disk dup=1
        S: OK 1 disk dup=1
        ",
    );
}

#[test]
fn once_names_a_whole_batch() {
    disk(
        r"
        C: MPUB q once=a *2
        C: x
        C: y
        S: OK 1 2 disk
        C: MPUB q once=a *2
        C: x
        C: y
        S: OK 1 2 disk dup=1
        -- kill
        C: MPUB q once=a *2
        C: x
        C: y
        S: OK 1 2 disk dup=1
        C: PULL q 9
        S: …
        S: END 2
        ",
    );
}

#[test]
fn a_refused_publish_leaves_no_id() {
    memory(
        r"
        C: QSET q maxlen=0 pause=in
        S: …
        C: QSET q pause=in
        S: …
        C: PUB q once=a :x
        S: ERR PAUSED …
        C: QSET q pause=none maxlen=none
        S: OK updated
        C: PUB q once=a :x
        S: OK 1 mem
        C: PUB q once=a :x
        S: OK 1 mem dup=1
        ",
    );
}

#[test]
fn the_window_counts_from_the_originals_publish() {
    memory(
        r"
        C: QSET q dedup=200ms
        S: OK created
        C: PUB q once=a :x
        S: OK 1 mem
        C: PUB q once=a :x
        S: OK 1 mem dup=1
        -- 350ms
        C: PUB q once=a :x
        S: OK 2 mem
        ",
    );
}

#[test]
fn the_ttl_of_a_queue_outlives_a_kill() {
    disk(
        r"
        C: QSET q ttl=600ms
        S: OK created
        C: PUB q :a
        S: OK 1 disk
        C: PUB q delay=10ms :b
        S: OK 2 disk
        -- kill
        C: PULL q ack=auto
        S: MSG q - id=1 $1
        S: a
        S: END 1
        -- 700ms
        C2: PULL q
        S2: END 0
        ",
    );
}

#[test]
fn a_publish_refused_as_full_leaves_no_id() {
    memory(
        r"
        C: QSET q maxlen=1
        S: OK created
        C: PUB q :d
        S: OK 1 mem
        C: PUB q once=a :d
        S: ERR FULL …
        C: PURGE q
        S: OK 1
        C: PUB q once=a :d
        S: OK 2 mem
        C: PUB q once=a :d
        S: OK 2 mem dup=1
        ",
    );
}
