//! What each key of QSET does, and that a change is live.

use crate::script::{disk, memory};

#[test]
fn lease_is_how_long_a_consumer_has() {
    memory(
        r"
        C: QSET q lease=100ms
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        -- mark
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: PULL q wait=10s
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        -- at least 100ms
        -- at most 2s
        C: QSET q lease=1h
        S: OK updated
        # A deadline that was given stays.
        C: PULL q wait=10s
        S: MSG q <c> try=3 $1
        S: x
        S: END 1
        C: PULL q wait=200ms
        S: END 0
        ",
    );
}

#[test]
fn maxdeliver_is_live() {
    memory(
        r"
        C: QSET q maxdeliver=0 backoff=0
        S: OK created
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
        C: QSET q maxdeliver=2 dead=first
        S: OK updated
        C: QSET q dead=grave
        S: OK updated
        C: NACK <b>
        S: OK 1
        C: PULL grave
        S: MSG grave <c> h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=2 $1
        S: x
        S: END 1
        C: PEEK first
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn backoff_0_is_at_once() {
    memory(
        r"
        C: QSET q backoff=1h
        S: OK created
        C: PUB q :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: QSET q backoff=0
        S: OK updated
        C: NACK <a>
        S: OK 1
        C: PULL q
        S: MSG q <b> try=2 $1
        S: x
        S: END 1
        C: QSET q backoff=1h
        S: OK updated
        C: NACK <b>
        S: OK 1
        C: PULL q
        S: END 0
        C: PEEK q state=delayed
        S: MSG q - id=1 …
        S: x
        S: END 1
        ",
    );
}

#[test]
fn durable_changes_between_os_and_disk_at_once() {
    disk(
        r"
        C: PUB q :a
        S: OK 1 disk
        C: QSET q durable=os
        S: OK updated
        C: PUB q :b
        S: OK 2 os
        C: QSET q durable=disk
        S: OK updated
        C: PUB q :c
        S: OK 3 disk
        # To or from none only while empty.
        C: QSET q durable=none
        S: ERR CONFLICT :…
        C: PULL q 3 ack=auto
        S: …
        S: END 3
        C: QSET q durable=none
        S: OK updated
        C: PUB q :d
        S: OK 4 mem
        C: QSET q durable=disk
        S: ERR CONFLICT :…
        C: PURGE q
        S: OK 1
        C: QSET q durable=disk
        S: OK updated
        C: PUB q :e
        S: OK 5 disk
        -- kill
        C: PULL q 3 ack=auto
        S: MSG q - id=5 $1
        S: e
        S: END 1
        ",
    );
}

#[test]
fn maxlen_counts_every_unfreed_message() {
    memory(
        r"
        C: QSET q maxlen=3
        S: OK created
        C: PUB q :a
        S: OK 1 mem
        C: PUB q delay=1h :b
        S: OK 2 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: PUB q :c
        S: OK 3 mem
        # one leased, one delayed, one ready
        C: PUB q :d
        S: ERR FULL retry=… :…
        C: ACK <a>
        S: OK 1
        C: PUB q :d
        S: OK 4 mem
        C: PUB q :e
        S: ERR FULL retry=… :…
        C: QSET q maxlen=none
        S: OK updated
        C: PUB q :e
        S: OK 5 mem
        ",
    );
}

#[test]
fn maxbytes_counts_bodies() {
    memory(
        r"
        C: QSET q maxbytes=10
        S: OK created
        C: PUB q :12345
        S: OK 1 mem
        C: PUB q :123456
        S: ERR FULL retry=… :…
        C: PUB q :12345
        S: OK 2 mem
        C: PUB q :x
        S: ERR FULL retry=… :…
        C: QSET q maxbytes=11
        S: OK updated
        C: PUB q :x
        S: OK 3 mem
        ",
    );
}

#[test]
fn dropold_frees_the_oldest_that_nobody_leases() {
    memory(
        r"
        C: QSET q maxlen=2 full=dropold
        S: OK created
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: PUB q :c
        S: OK 3 mem
        C: PEEK q 9
        S: MSG q - id=3 $1
        S: c
        S: END 1
        C: PULL q
        S: MSG q <c> $1
        S: c
        S: END 1
        # Everything is leased.
        C: PUB q :d
        S: ERR FULL retry=… :…
        C: ACK <a>
        S: OK 1
        C: PUB q :d
        S: OK 4 mem
        C: ACK <c>
        S: OK 1
        ",
    );
}

#[test]
fn a_limit_below_what_is_there_drops_nothing() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: QSET q maxlen=1
        S: OK updated
        C: PUB q :d
        S: ERR FULL retry=… :…
        C: PULL q 9
        S: …
        S: END 3
        ",
    );
}

#[test]
fn pri_is_the_default_of_publishes() {
    memory(
        r"
        C: PUB q :a
        S: OK 1 mem
        C: QSET q pri=5
        S: OK updated
        C: PUB q :b
        S: OK 2 mem
        C: PUB q pri=4 :c
        S: OK 3 mem
        C: PULL q 3 ack=auto
        S: MSG q - id=2 $1
        S: b
        S: MSG q - id=3 $1
        S: c
        S: MSG q - id=1 $1
        S: a
        S: END 3
        ",
    );
}

#[test]
fn pause_in_refuses_publishes_and_pause_out_hands_out_nothing() {
    memory(
        r"
        C: PUB q :a
        S: OK 1 mem
        C: QSET q pause=in
        S: OK updated
        C: PUB q :b
        S: ERR PAUSED retry=… :…
        C: MPUB q *1
        C: b
        S: ERR PAUSED retry=… :…
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: NACK <a> delay=0
        S: OK 1
        C: QSET q pause=in,out
        S: OK updated
        C: PULL q
        S: END 0
        C: PUB q :b
        S: ERR PAUSED retry=… :…
        C: QSET q pause=out
        S: OK updated
        C: PUB q :b
        S: OK 2 mem
        C: @w PULL q 9 wait=20s
        C: PING
        S: PONG
        C2: QSET q pause=none
        S2: OK updated
        S: MSG @w q <a2> try=2 $1
        S: a
        S: MSG @w q <b> $1
        S: b
        S: END @w 2
        ",
    );
}

#[test]
fn pause_lets_leases_be_settled() {
    memory(
        r"
        C: PUB q :a
        S: OK 1 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: QSET q pause=in,out
        S: OK updated
        C: TOUCH <a>
        S: OK 1
        C: ACK <a>
        S: OK 1
        ",
    );
}

#[test]
fn ttl_of_the_queue_is_for_messages_that_bring_none() {
    memory(
        r"
        C: QSET q ttl=100ms
        S: OK created
        C: PUB q :short
        S: OK 1 mem
        C: PUB q ttl=1h :long
        S: OK 2 mem
        -- 250ms
        C: PULL q 5 ack=auto
        S: MSG q - id=2 $4
        S: long
        S: END 1
        C: QSET q ttl=none
        S: OK updated
        C: PUB q :kept
        S: OK 3 mem
        -- 150ms
        C: PULL q 5 ack=auto
        S: MSG q - id=3 $4
        S: kept
        S: END 1
        ",
    );
}

#[test]
fn a_delayed_message_outlives_the_ttl_of_its_neighbours() {
    memory(
        r"
        C: QSET q ttl=100ms
        S: OK created
        C: PUB q :short
        S: OK 1 mem
        C: PUB q delay=300ms ttl=1h :long
        S: OK 2 mem
        C: PUB q delay=300ms :the queue's ttl begins at the end of its delay
        S: OK 3 mem
        -- 20ms
        C: PUB q :short
        S: OK 4 mem
        C: PULL q 5 wait=10s ack=auto bytes=1
        S: MSG q - id=1 $5
        S: short
        S: END 1
        -- 200ms
        C: PULL q 2 wait=10s ack=auto bytes=1
        S: MSG q - id=2 $4
        S: long
        S: END 1
        C: PULL q wait=10s ack=auto
        S: MSG q - id=3 $46
        S: the queue's ttl begins at the end of its delay
        S: END 1
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn dedup_0_is_off_and_a_change_is_live() {
    memory(
        r"
        C: QSET q dedup=0
        S: OK created
        C: PUB q once=a :x
        S: OK 1 mem
        C: PUB q once=a :x
        S: OK 2 mem
        C: QSET q dedup=1h
        S: OK updated
        C: PUB q once=b :x
        S: OK 3 mem
        C: PUB q once=b :x
        S: OK 3 mem dup=1
        ",
    );
}

#[test]
fn deadon_says_what_goes_to_the_dead_letter_queue() {
    memory(
        r"
        C: QSET q deadon=ttl,full maxlen=1 full=dropold maxdeliver=1 backoff=0
        S: OK created
        C: PUB q :old
        S: OK 1 mem
        C: PUB q ttl=50ms :ttl
        S: OK 2 mem
        C: PULL q.dead wait=10s
        S: MSG q.dead <a> h.dead-queue=q h.dead-id=1 h.dead-reason=full h.dead-tries=0 $3
        S: old
        S: END 1
        C: PULL q.dead wait=10s
        S: MSG q.dead <b> h.dead-queue=q h.dead-id=2 h.dead-reason=ttl h.dead-tries=0 $3
        S: ttl
        S: END 1
        ",
    );
}

#[test]
fn limits_of_a_dead_letter_queue_do_not_refuse_a_move() {
    memory(
        r"
        C: QSET grave maxlen=1 pause=in
        S: OK created
        C: QSET q dead=grave
        S: OK created
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
        C: NACK <a> <b> dead=1
        S: OK 2
        C: PEEK grave 9
        S: …
        S: END 2
        ",
    );
}

#[test]
fn a_dead_letter_queue_made_as_a_target_has_no_end_of_its_own() {
    disk(
        r"
        C: QSET q durable=os
        S: OK created
        C: PUB q :x
        S: OK 1 os
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: NACK <a> dead=1
        S: OK 1
        C: PULL q.dead wait=10s
        S: MSG q.dead <b> h.dead-queue=q h.dead-id=1 … $1
        S: x
        S: END 1
        C: QGET q.dead
        S: DATA $…
        S: ready=0
        S: leased=1
        S: …
        S: set.durable=<level>
        S: …
        S: set.maxdeliver=0
        S: set.dead=
        S: …
        S: set.pause=none
        S:
        -- kill
        C: QGET q.dead
        S: DATA $…
        S: ready=1
        S: …
        S: set.maxdeliver=0
        S: set.dead=
        S: …
        S: set.pause=none
        S:
        C: PULL q.dead
        S: MSG q.dead <c> …h.dead-queue=q h.dead-id=1 … $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn a_new_default_priority_leaves_earlier_messages_alone() {
    disk(
        r"
        C+ PUB! q :a\nQSET! q pri=5\nPUB! q pri=4 :c\nPUB! q :d\nPULL q 3 ack=auto\n
        S: MSG q - id=3 $1
        S: d
        S: MSG q - id=2 $1
        S: c
        S: MSG q - id=1 $1
        S: a
        S: END 3
        ",
    );
}

#[test]
fn priorities_outlive_a_kill() {
    disk(
        r"
        C: PUB q :a
        S: OK 1 disk
        C: QSET q pri=5
        S: OK updated
        C: PUB q pri=4 :c
        S: OK 2 disk
        C: PUB q :d
        S: OK 3 disk
        C: QSET q pri=0
        S: OK updated
        -- kill
        C: PULL q ack=auto
        S: MSG q - id=3 $1
        S: d
        S: END 1
        C: PULL q ack=auto
        S: MSG q - id=2 $1
        S: c
        S: END 1
        C: PULL q ack=auto
        S: MSG q - id=1 $1
        S: a
        S: END 1
        ",
    );
}

#[test]
fn a_ttl_set_later_counts_from_the_end_of_a_delay() {
    memory(
        r"
        C: PUB q delay=300ms :a
        S: OK 1 mem
        C: QSET q ttl=100ms
        S: OK updated
        C: PULL q wait=2s
        S: MSG q <a> $1
        S: a
        S: END 1
        ",
    );
}

#[test]
fn a_longer_ttl_is_live() {
    memory(
        r"
        C: QSET q ttl=100ms
        S: OK created
        C: PUB q :a
        S: OK 1 mem
        C: QSET q ttl=1h
        S: OK updated
        -- 250ms
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        ",
    );
}

#[test]
fn a_shorter_ttl_is_live() {
    memory(
        r"
        C: QSET q ttl=1h
        S: OK created
        C: PUB q :a
        S: OK 1 mem
        C: QSET q ttl=100ms
        S: OK updated
        -- 250ms
        C: PULL q
        S: END 0
        ",
    );
}

#[test]
fn a_dead_letter_of_ttl_outlives_a_kill() {
    disk(
        r"
        C: QSET q deadon=ttl,tries
        S: OK created
        C: PUB q ttl=50ms :a
        S: OK 1 disk
        C: PULL q.dead wait=5s
        S: MSG q.dead <a> …h.dead-reason=ttl… $1
        S: a
        S: END 1
        -- kill
        C: PULL q,q.dead 9
        S: MSG q.dead …
        S: a
        S: END 1
        ",
    );
}

#[test]
fn a_message_that_outlived_its_time_while_leased_goes_with_its_lease() {
    disk(
        r"
        C: QSET q deadon=ttl,tries
        S: OK created
        C: PUB q ttl=500ms :a
        S: OK 1 disk
        C: PULL q lease=700ms
        S: MSG q <b> $1
        S: a
        S: END 1
        C: PULL q.dead wait=5s
        S: MSG q.dead <a> h.dead-queue=q h.dead-id=1 h.dead-reason=ttl h.dead-tries=1 $1
        S: a
        S: END 1
        ",
    );
}

#[test]
fn dropold_makes_room_for_a_whole_batch() {
    memory(
        r"
        C: QSET q maxlen=3 full=dropold
        S: OK created
        C: MPUB q *2
        C: a
        C: b
        S: OK 1 2 mem
        C: MPUB q *3
        C: c
        C: d
        C: e
        S: OK 3 3 mem
        C: MPUB q *4
        C: c
        C: d
        C: e
        C: f
        S: ERR FULL …
        C: PULL q 9 ack=auto
        S: MSG q - id=3 $1
        S: c
        S: MSG q - id=4 $1
        S: d
        S: MSG q - id=5 $1
        S: e
        S: END 3
        ",
    );
}

#[test]
fn dropold_brings_a_queue_under_a_lower_limit() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: QSET q maxlen=1 full=dropold
        S: OK updated
        C: PUB q :d
        S: OK 4 mem
        C: PULL q 9 ack=auto
        S: MSG q - id=4 $1
        S: d
        S: END 1
        ",
    );
}

#[test]
fn a_ttl_set_later_holds_for_every_message_that_waits() {
    disk(
        "C: MPUB jobs *3
         C: a
         C: b
         C: c
         S: OK 1 3 disk
         C: PUB jobs ttl=1h :d
         S: OK 4 disk
         C: QSET jobs ttl=300ms
         S: OK updated
         C: QGET jobs
         S: DATA $…
         S: ready=4
         S: …
         S: 
         -- 600ms
         C: PULL jobs 9
         S: MSG jobs 1.4.1 $1
         S: d
         S: END 1",
    );
}

#[test]
fn a_ttl_set_later_ends_many_messages_and_all_over_a_restart() {
    disk(
        r"C: MPUB jobs *10000
         C+ {x\n*10000}
         S: OK 1 10000 disk
         C: QSET jobs ttl=400ms
         S: OK updated
         -- restart
         -- 800ms
         C: PULL jobs 9
         S: END 0
         C: PUB jobs :y
         S: OK 10001 disk",
    );
}
