//! QSET, QGET, QLS, QDEL, DEL, PURGE, MOVE, PEEK: queues and what is in them, which commands make one.

use crate::script::{disk, memory, memory_with};

#[test]
fn which_commands_create_a_queue() {
    memory(
        r"
        C: PUB a :x
        S: OK 1 mem
        C: MPUB b *1
        C: x
        S: OK 1 1 mem
        C: PULL c
        S: END 0
        C: @s SUB d
        S: OK @s
        C: QSET e
        S: OK created
        C: MOVE a f
        S: OK 1
        C: PULL f
        S: MSG f <f> $1
        S: x
        S: END 1
        C: NACK <f> dead=1
        S: OK 1
        C: PEEK a
        S: END 0
        C: PEEK b
        S: MSG b - id=1 $1
        S: x
        S: END 1
        C: PEEK c
        S: END 0
        C: PEEK d
        S: END 0
        C: PEEK e
        S: END 0
        C: PEEK f
        S: END 0
        C: PEEK f.dead
        S: MSG f.dead - id=1 … $1
        S: x
        S: END 1
        ",
    );
}

#[test]
fn everything_else_answers_noqueue() {
    memory(
        r"
        C: QGET no
        S: ERR NOQUEUE :…
        C: QDEL no
        S: ERR NOQUEUE :…
        C: DEL no 1
        S: ERR NOQUEUE :…
        C: PURGE no
        S: ERR NOQUEUE :…
        C: MOVE no other
        S: ERR NOQUEUE :…
        C: PEEK no
        S: ERR NOQUEUE :…
        C: STATS q no
        S: ERR NOQUEUE :…
        C: PEEK other
        S: ERR NOQUEUE :…
        C: QLS
        S: DATA $0
        S:
        ",
    );
}

#[test]
fn qget_counts_what_is_there() {
    memory(
        r"
        C: MPUB q *4
        C: aa
        C: bb
        C: cc
        C: dd
        S: OK 1 4 mem
        C: PUB q delay=1h :later
        S: OK 5 mem
        C: PULL q 2
        S: MSG q <a> $2
        S: aa
        S: MSG q <b> $2
        S: bb
        S: END 2
        C: NACK <b> dead=1
        S: OK 1
        C: QGET q
        S: DATA $…
        S: ready=2
        S: leased=1
        S: delayed=1
        S: dead=1
        S: bytes=11
        S: consumers=…
        S: waiting=0
        S: oldest_ms=…
        S: …
        S: set.lease=30s
        S: …
        S: set.maxdeliver=5
        S: …
        S: set.dead=q.dead
        S: …
        S: set.backoff=1s..5m
        S: …
        S: set.dedup=2m
        S: …
        S: set.full=reject
        S: …
        S: set.pause=none
        S:
        C2: @w PULL empty wait=20s
        C2: @s SUB empty
        S2: OK @s
        C: QGET empty
        S: DATA $…
        S: ready=0
        S: …
        S: consumers=<n>
        S: waiting=1
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn dead_counts_what_is_now_there_and_from_here() {
    memory(
        r"
        C: QSET a dead=grave
        S: OK created
        C: QSET b dead=grave
        S: OK created
        C: PUB a :x
        S: OK 1 mem
        C: PUB b :y
        S: OK 1 mem
        C: PULL a,b 2
        S: MSG a <x> $1
        S: x
        S: MSG b <y> $1
        S: y
        S: END 2
        C: NACK <x> <y> dead=1
        S: OK 2
        C: QGET a
        S: DATA $…
        S: …
        S: dead=1
        S: …
        S: set.pause=none
        S:
        C: PULL grave 2 ack=auto
        S: MSG grave - id=1 h.dead-queue=a …
        S: x
        S: MSG grave - id=2 h.dead-queue=b …
        S: y
        S: END 2
        C: QGET a
        S: DATA $…
        S: …
        S: dead=0
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn qls_lists_by_pattern() {
    memory(
        r"
        C: QSET a.b
        S: OK created
        C: QSET a.b.c
        S: OK created
        C: QSET a
        S: OK created
        C: QSET x.b
        S: OK created
        C: QLS
        S: DATA $…
        S: a …
        S: a.b …
        S: a.b.c …
        S: x.b …
        S:
        C: QLS a.*
        S: DATA $…
        S: a.b …
        S:
        C: QLS *.b
        S: DATA $…
        S: a.b …
        S: x.b …
        S:
        C: QLS a.#
        S: DATA $…
        S: a …
        S: a.b …
        S: a.b.c …
        S:
        C: QLS #.c
        S: DATA $…
        S: a.b.c …
        S:
        C: QLS a.b
        S: DATA $…
        S: a.b …
        S:
        C: QLS none
        S: DATA $0
        S:
        ",
    );
}

#[test]
fn qdel_removes_messages_leases_and_dedup_window() {
    disk(
        r"
        C: QSET q lease=7s
        S: OK created
        C: PUB q once=1 :x
        S: OK 1 disk
        C: QDEL q
        S: OK
        C: QGET q
        S: ERR NOQUEUE :…
        C: PUB q once=1 :y
        S: OK <id> disk
        C: QGET q
        S: DATA $…
        S: ready=1
        S: …
        S: set.lease=30s
        S: …
        S: set.pause=none
        S:
        -- kill
        C: PULL q 5
        S: MSG q <a> $1
        S: y
        S: END 1
        C: QDEL q
        S: OK
        -- kill
        C: QGET q
        S: ERR NOQUEUE :…
        C: QLS
        S: DATA $0
        S:
        ",
    );
}

#[test]
fn del_takes_ready_and_delayed_messages() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: PUB q delay=1h :d
        S: OK 4 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        # A leased one, one that is gone, one that never was.
        C: DEL q 2 4 1 2 99
        S: OK 2 stale=1,2,99
        C: PULL q 5
        S: MSG q <c> $1
        S: c
        S: END 1
        C: ACK <a> <c>
        S: OK 2
        C: DEL q
        S: ERR SYNTAX :…
        C: DEL q x
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn purge_takes_ready_and_delayed_unless_told() {
    memory(
        r"
        C: MPUB q *3
        C: a
        C: b
        C: c
        S: OK 1 3 mem
        C: MPUB q delay=1h *2
        C: d
        C: e
        S: OK 4 2 mem
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: PURGE q state=delayed
        S: OK 2
        C: PURGE q state=delayed
        S: OK 0
        C: PURGE q state=ready
        S: OK 2
        C: MPUB q *1
        C: f
        S: OK 6 1 mem
        C: PUB q delay=1h :g
        S: OK 7 mem
        C: PURGE q
        S: OK 2
        # The leased one was left.
        C: ACK <a>
        S: OK 1
        C: PURGE q state=frob
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn purge_and_del_are_kept_across_a_kill() {
    disk(
        r"
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: OK 1 4 disk
        C: DEL q 4
        S: OK 1
        C: MPUB p *2
        C: a
        C: b
        S: OK 1 2 disk
        C: PURGE p
        S: OK 2
        C: MOVE q r 1
        S: OK 1
        -- kill
        C: PULL q,p,r 9 ack=auto
        S: MSG q - id=2 $1
        S: b
        S: MSG q - id=3 $1
        S: c
        S: MSG r - id=1 $1
        S: a
        S: END 3
        ",
    );
}

#[test]
fn move_takes_ready_messages_to_the_end_of_another_queue() {
    memory(
        r"
        C: MPUB a key=k h.x=1 pri=2 *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C: PUB b :first
        S: OK 1 mem
        C: MOVE a b 2
        S: OK 2
        C: PEEK b 9
        S: …
        S: END 3
        C: MOVE a b
        S: OK 1
        C: MOVE a b
        S: OK 0
        C: MOVE a a
        S: …
        C: PING
        S: PONG
        C: MOVE a
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn a_redrive_resets_the_tries_and_keeps_the_trace() {
    disk(
        r"
        C: QSET q maxdeliver=2 backoff=0
        S: OK created
        C: PUB q h.type=t :x
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> h.type=t $1
        S: x
        S: END 1
        C: NACK <a>
        S: OK 1
        C: PULL q
        S: MSG q <b> try=2 h.type=t $1
        S: x
        S: END 1
        C: NACK <b> why=no
        S: OK 1
        -- kill
        C: MOVE q.dead q
        S: OK 1
        C: PULL q
        S: MSG q <c> h.type=t h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=2 h.dead-why=no $1
        S: x
        S: END 1
        C: NACK <c>
        S: OK 1
        C: PULL q
        S: MSG q <d> try=2 h.type=t h.dead-queue=q … $1
        S: x
        S: END 1
        C: ACK <d>
        S: OK 1
        C: PEEK q.dead
        S: END 0
        ",
    );
}

#[test]
fn peek_shows_each_state_and_takes_no_lease() {
    memory(
        r"
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: OK 1 4 mem
        C: PUB q delay=1h :e
        S: OK 5 mem
        C: PULL q 2
        S: MSG q <a> $1
        S: a
        S: MSG q <b> $1
        S: b
        S: END 2
        C: NACK <b> dead=1
        S: OK 1
        C: PEEK q
        S: MSG q - id=3 $1
        S: c
        S: END 1
        C: PEEK q 9 state=ready
        S: MSG q - id=3 $1
        S: c
        S: MSG q - id=4 $1
        S: d
        S: END 2
        C: PEEK q 9 state=leased
        S: MSG q - id=1 $1
        S: a
        S: END 1
        C: PEEK q 9 state=delayed
        S: MSG q - id=5 $1
        S: e
        S: END 1
        C: PEEK q 9 state=dead
        S: …
        S: b
        S: END 1
        C: PEEK q 9 state=ready from=4
        S: MSG q - id=4 $1
        S: d
        S: END 1
        C: PEEK q state=frob
        S: ERR SYNTAX :…
        # Nothing has changed.
        C: PULL q 9
        S: MSG q <c> $1
        S: c
        S: MSG q <d> $1
        S: d
        S: END 2
        C: ACK <a> <c> <d>
        S: OK 3
        ",
    );
}

#[test]
fn a_definition_says_created_then_updated() {
    memory(
        r"
        C: QSET q
        S: OK created
        C: QSET q
        S: OK updated
        C: PUB p :x
        S: OK 1 mem
        C: QSET p lease=1m
        S: OK updated
        C: QSET
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn every_setting_survives_a_kill_and_a_restart() {
    disk(
        r"
        C: QSET q durable=os lease=45s maxdeliver=7 dead=grave deadon=tries,ttl,full backoff=2s..1m dedup=9m full=dropold maxlen=10 maxbytes=1M ttl=3h retain=2h,3M fair=key single=1 rate=7/s pri=4 pause=out
        S: OK created
        C: QSET n durable=none lease=5s
        S: OK created
        C: PUB n :lost
        S: OK 1 mem
        -- kill
        C: QGET q
        S: DATA $…
        S: …
        S: set.durable=os
        S: set.lease=45s
        S: set.maxdeliver=7
        S: set.dead=grave
        S: set.deadon=tries,ttl,full
        S: set.backoff=2s..1m
        S: set.dedup=9m
        S: set.full=dropold
        S: set.maxlen=10
        S: set.maxbytes=<bytes>
        S: set.ttl=3h
        S: set.retain=2h,3M
        S: set.fair=key
        S: set.single=1
        S: set.rate=7/s
        S: set.pri=4
        S: set.pause=out
        S:
        C: QSET q pause=none maxlen=none
        S: OK updated
        -- restart
        C: QGET q
        S: DATA $…
        S: …
        S: set.durable=os
        S: …
        S: set.maxlen=none
        S: …
        S: set.pause=none
        S:
        # A queue of level none has its settings and no messages.
        C: QGET n
        S: DATA $…
        S: ready=0
        S: …
        S: set.durable=none
        S: set.lease=5s
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn defaults_of_new_queues_come_from_the_command_line() {
    memory_with(
        "--set lease=5s --set maxdeliver=2 --set backoff=0",
        r"
        C: PUB q :x
        S: OK 1 mem
        C: QGET q
        S: DATA $…
        S: …
        S: set.lease=5s
        S: set.maxdeliver=2
        S: …
        S: set.backoff=0
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn a_refused_definition_changes_nothing() {
    memory(
        r"
        C: QSET q lease=1m frob=1
        S: ERR …
        C: QSET q lease=1m maxlen=x
        S: ERR SYNTAX :…
        C: QSET q lease=1m lease=2m
        S: ERR SYNTAX :…
        C: QSET q pri=256
        S: ERR SYNTAX :…
        C: QSET q backoff=5m..1s
        S: ERR SYNTAX :…
        C: QSET q durable=tape
        S: ERR …
        C: QSET q deadon=never
        S: ERR SYNTAX :…
        C: QSET q pause=up
        S: ERR SYNTAX :…
        C: QSET q full=burst
        S: ERR SYNTAX :…
        C: QGET q
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn a_cycle_of_dead_letter_queues_is_a_conflict() {
    memory(
        r"
        C: QSET a dead=a
        S: ERR CONFLICT :…
        C: QSET a dead=b
        S: OK created
        C: QSET b dead=c
        S: OK created
        C: QSET c dead=a
        S: ERR CONFLICT :…
        C: QSET c dead=d
        S: OK …
        ",
    );
}

#[test]
fn a_deleted_dead_letter_queue_counts_no_more() {
    disk(
        r"
        C: PUB q :a
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: a
        S: END 1
        C: NACK <a> dead=1
        S: OK 1
        C: QDEL q.dead
        S: OK
        C: QGET q
        S: DATA $…
        S: …
        S: dead=0
        S: …
        S: set.pause=none
        S:
        -- kill
        C: PULL q,q.dead
        S: END 0
        ",
    );
}

#[test]
fn move_keeps_the_order() {
    disk(
        r"
        C: MPUB q *5
        C: 1
        C: 2
        C: 3
        C: 4
        C: 5
        S: OK 1 5 disk
        C: MOVE q r 3
        S: OK 3
        C: MOVE q r 100
        S: OK 2
        C: PULL r 9 ack=auto
        S: MSG r - id=1 $1
        S: 1
        S: MSG r - id=2 $1
        S: 2
        S: MSG r - id=3 $1
        S: 3
        S: MSG r - id=4 $1
        S: 4
        S: MSG r - id=5 $1
        S: 5
        S: END 5
        ",
    );
}

#[test]
fn peek_shows_ready_order_and_all_fields() {
    memory(
        r"
        C: PUB q pri=1 key=k h.a=b :1
        S: OK 1 mem
        C: PUB q pri=2 :2
        S: OK 2 mem
        C: PEEK q 9
        S: MSG q - id=2 $1
        S: 2
        S: MSG q - id=1 key=k h.a=b $1
        S: 1
        S: END 2
        ",
    );
}
