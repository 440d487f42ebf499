//! WHY: the right reason in staged situations. KILL: a connection is closed from elsewhere.

use crate::script::{disk, memory, memory_with};

#[test]
fn an_empty_queue_says_whether_it_ever_had_messages() {
    memory(
        r"
        C: WHY q
        S: ERR NOQUEUE :…
        C: QSET q
        S: OK created
        C: WHY q
        S: DATA $…
        S: ready=0
        S: …
        S: why=the queue is empty: nothing was ever published to it
        S:
        C: PUB q :x
        S: OK 1 mem
        C: POP q ack=auto
        S: MSG q - id=1 $1
        S: x
        S: END 1
        C: WHY q
        S: DATA $…
        S: …
        S: why=the queue is empty: all 1 message published so far are settled
        S:
        ",
    );
}

#[test]
fn leased_messages_name_their_holders() {
    memory(
        r"
        C2: HELLO 1 name=worker%207
        S2: OK proto=1 …
        C: MPUB q *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 mem
        C2: PULL q 2 lease=60s
        S2: MSG q <a> $1
        S2: 1
        S2: MSG q <b> $1
        S2: 2
        S2: END 2
        C: PULL q lease=30s
        S: MSG q <c> $1
        S: 3
        S: END 1
        C: WHY q
        S: DATA $…
        S: ready=0
        S: leased=3
        S: …
        S: holder=… peer=127.0.0.1:… name=worker%207 leased=2 first_ends_ms=5…
        S: holder=… peer=127.0.0.1:… name= leased=1 first_ends_ms=2…
        S: why=3 messages are leased, see the holders; the first lease ends by itself in 2… ms
        S:
        ",
    );
}

#[test]
fn ready_messages_that_nobody_asks_for() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: WHY q
        S: DATA $…
        S: ready=1
        S: …
        S: why=1 message is ready and nobody asks: no SUB, no waiting PULL
        S:
        ",
    );
}

#[test]
fn subscribers_without_credit() {
    memory(
        r"
        C2: SUB q credit=1
        S2: OK
        C: MPUB q *2
        C: 1
        C: 2
        S: OK 1 2 mem
        S2: MSG q <a> $1
        S2: 1
        C: WHY q
        S: DATA $…
        S: ready=1
        S: leased=1
        S: …
        S: subscriptions=1
        S: without_credit=1
        S: …
        S: why=1 message is ready and every SUB has used up its credit: …
        S:
        C2: ACK <a>
        S2: OK 1
        S2: MSG q <b> $1
        S2: 2
        ",
    );
}

#[test]
fn delayed_messages_say_until_when() {
    memory_with(
        "--set backoff=20s",
        r"
        C: PUB q delay=1h :later
        S: OK 1 mem
        C: WHY q
        S: DATA $…
        S: ready=0
        S: leased=0
        S: delayed=1
        S: …
        S: why=1 message is delayed, by delay= or at=, or by a backoff after a NACK; the first is ready in 3599… ms
        S:
        C: PUB q :x
        S: OK 2 mem
        C: PULL q
        S: MSG q <x> $1
        S: x
        S: END 1
        C: NACK <x>
        S: OK 1
        C: WHY q
        S: DATA $…
        S: …
        S: why=2 messages are delayed, …; the first is ready in 1…
        S:
        ",
    );
}

#[test]
fn paused_queues_say_which_way() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C: QSET q pause=in,out
        S: OK updated
        C: WHY q
        S: DATA $…
        S: …
        S: paused=in,out
        S: why=the queue is paused for consumers; …
        S: why=publishes are refused: the queue has pause=in; …
        S:
        ",
    );
}

#[test]
fn dead_letters_say_where_they_are() {
    memory(
        r"
        C: PUB q%20x :x
        S: OK 1 mem
        C: PULL q%20x
        S: MSG q%20x <x> $1
        S: x
        S: END 1
        C: NACK <x> dead=1
        S: OK 1
        C: WHY q%20x
        S: DATA $…
        S: …
        S: dead=1
        S: …
        S: why=1 message is given up and in q%20x.dead; MOVE puts them back
        S:
        ",
    );
}

#[test]
fn a_lease_that_outlives_its_connection_has_no_holder() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C2: PULL q hold=1 lease=60s
        S2: MSG q <x> $1
        S2: x
        S2: END 1
        C2: (close)
        -- 100ms
        C: WHY q
        S: DATA $…
        S: …
        S: holder=- peer=- name= leased=1 first_ends_ms=5…
        S: why=1 message is leased, see the holders; …
        S:
        ",
    );
}

#[test]
fn messages_behind_one_of_their_key_are_locked() {
    memory(
        r"
        C: MPUB q key=a *2
        C: 1
        C: 2
        S: OK 1 2 mem
        C: PULL q 2
        S: MSG q <x> key=a $1
        S: 1
        S: END 1
        C: WHY q
        S: DATA $…
        S: ready=0
        S: leased=1
        S: delayed=0
        S: key_locked=1
        S: hidden=0
        S: …
        S: why=1 message is leased, see the holders; …
        S: why=1 message is behind another of the same key that is leased or waits for its retry
        S:
        ",
    );
}

#[test]
fn a_single_active_consumer_without_credit() {
    memory(
        r"
        C: QSET q single=1
        S: OK created
        C2: SUB q credit=1
        S2: OK
        C3: SUB q
        S3: OK
        C: MPUB q *2
        C: 1
        C: 2
        S: OK 1 2 mem
        S2: MSG q <a> $1
        S2: 1
        C: WHY q
        S: DATA $…
        S: …
        S: why=1 message is ready and the queue has single=1: …
        S:
        ",
    );
}

#[test]
fn why_sees_the_connections_own_publishes_and_refuses_nonsense() {
    disk(
        r"
        C: PUB! q :x
        C: WHY q
        S: DATA $…
        S: ready=1
        S: …
        S: hidden=0
        S: …
        S:
        C: WHY
        S: ERR SYNTAX :…
        C: WHY q r
        S: ERR SYNTAX :…
        C: WHY! q
        S: ERR SYNTAX :…
        C: WHY q x=1
        S: ERR UNKNOWN :…
        ",
    );
}

#[test]
fn kill_closes_a_connection_and_its_messages_are_ready_again() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C2: PULL q
        S2: MSG q <x> $1
        S2: x
        S2: END 1
        C: STATS conns
        S: DATA $…
        S: conn=<first> peer=…
        S: conn=<second> peer=…
        S:
        C: KILL <second>
        S: OK
        S2: (closes)
        C: PULL q
        S: MSG q <y> try=2 $1
        S: x
        S: END 1
        C: KILL <second>
        S: ERR STALE :…
        C: KILL 7
        S: ERR SYNTAX :…
        C: KILL 7.x
        S: ERR SYNTAX :…
        C: KILL
        S: ERR SYNTAX :…
        C: KILL <first>
        S: OK
        S: (closes)
        ",
    );
}
