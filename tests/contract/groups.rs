//! Groups: every group gets every message once, its consumers share it, and one copy is stored.

use std::time::Duration;

use crate::script::{disk, memory};
use crate::support::{Launch, Random, TempDir, eventually};

/// The scripts that say the same with a log and without: `LEVEL` stands for the level.
fn both(script: &str) {
    disk(&script.replace("LEVEL", "disk"));
    memory(&script.replace("LEVEL", "mem"));
}

#[test]
fn every_group_gets_every_message_and_its_consumers_share_it() {
    both(
        r"
        C: SUB orders/billing
        S: OK
        C2: SUB orders/billing credit=1
        S2: OK
        C3: SUB orders/mail
        S3: OK
        C4: MPUB orders *2
        C4: a
        C4: b
        S4: OK 1 2 LEVEL
        S: MSG orders/billing <a> $1
        S: a
        S2: MSG orders/billing <b> $1
        S2: b
        S3: MSG orders/mail <c> $1
        S3: a
        S3: MSG orders/mail <d> $1
        S3: b
        C: ACK <a>
        S: OK 1
        C4: QGET orders
        S4: …
        S4: leased=3
        S4: …
        S4: stored=2
        S4: retained=0
        S4: retained_bytes=0
        S4: groups=2
        S4: group.billing.unsettled=1
        S4: group.billing.ready=0
        S4: group.billing.leased=1
        S4: …
        S4: group.mail.unsettled=2
        S4: …
        C3: ACK <d> <c>
        S3: OK 2
        C2: ACK <b>
        S2: OK 1
        C4: STATS q orders
        S4: …
        S4: bytes=0
        S4: …
        S4: stored=0
        S4: …
        C4: PING
        S4: PONG
        ",
    );
}

#[test]
fn acks_come_in_any_order_and_each_group_has_its_own() {
    both(
        r"
        C: MPUB q *4
        C: a
        C: b
        C: c
        C: d
        S: OK 1 4 LEVEL
        C: PULL q/x 4
        S: MSG q/x <a> $1
        S: a
        S: MSG q/x <b> $1
        S: b
        S: MSG q/x <c> $1
        S: c
        S: MSG q/x <d> $1
        S: d
        S: END 4
        C: PULL q/y 2 from=3
        S: MSG q/y <e> $1
        S: c
        S: MSG q/y <f> $1
        S: d
        S: END 2
        C: ACK <d> <b>
        S: OK 2
        # a handle of one group says nothing to the other
        C: NACK <a> delay=0
        S: OK 1
        C: PULL q/x 4
        S: MSG q/x <g> try=2 $1
        S: a
        S: END 1
        C: PULL q/y 4
        S: END 0
        C: ACK <e> <a>
        S: OK 1 stale=<a>
        C: ACK <g> <c> <f>
        S: OK 3
        C: STATS q q
        S: …
        S: stored=0
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn the_first_reader_inherits_and_later_ones_begin_at_new() {
    for first in ["", "/a"] {
        both(
            &r"
            C: PUB q :one
            S: OK 1 LEVEL
            C: PULL qFIRST 5
            S: MSG qFIRST <a> $3
            S: one
            S: END 1
            C: PULL q/late 5
            S: END 0
            C: PULL q/again 5 from=first
            S: MSG q/again <b> $3
            S: one
            S: END 1
            C: PUB q :two
            S: OK 2 LEVEL
            C: PULL q/late 5
            S: MSG q/late <c> $3
            S: two
            S: END 1
            # from= says only where a group begins
            C: PULL q/late 5 from=first
            S: END 0
            C: PULL q/again 5
            S: MSG q/again <d> $3
            S: two
            S: END 1
            "
            .replace("FIRST", first),
        );
    }
}

#[test]
fn the_bare_name_beside_groups_says_where_it_begins() {
    both(
        r"
        C: PUB q :one
        S: OK 1 LEVEL
        C: PULL q/a
        S: MSG q/a <a> $3
        S: one
        S: END 1
        C: PULL q
        S: ERR CONFLICT :…q/a…
        C: SUB q
        S: ERR CONFLICT :…
        C: PEEK q
        S: ERR NOGROUP :…q/a…
        C: PURGE q
        S: ERR NOGROUP :…
        C: WHY q
        S: ERR NOGROUP :…
        C: MOVE q other
        S: ERR NOGROUP :…
        C: SEEK q to=first
        S: ERR NOGROUP :…
        C: PULL q from=new
        S: END 0
        C: PULL q
        S: END 0
        C: PUB q :two
        S: OK 2 LEVEL
        C: PULL q 9
        S: MSG q <b> $3
        S: two
        S: END 1
        C: PEEK q/a 9
        S: MSG q/a - id=2 $3
        S: two
        S: END 1
        ",
    );
}

#[test]
fn a_bare_reader_keeps_its_leases_when_a_group_comes() {
    both(
        r"
        C: QSET q backoff=0
        S: OK created
        C: PUB q pri=3 h.a=b :one
        S: OK 1 LEVEL
        C: PUB q delay=1h :two
        S: OK 2 LEVEL
        C: PUB q key=k :three
        S: OK 3 LEVEL
        C: PUB q key=k :four
        S: OK 4 LEVEL
        C: PULL q 2
        S: MSG q <a> h.a=b $3
        S: one
        S: MSG q <c> key=k $5
        S: three
        S: END 2
        C: PULL q/g 9 from=first
        S: MSG q/g <d> h.a=b $3
        S: one
        S: MSG q/g <e> key=k $5
        S: three
        S: END 2
        C: QGET q
        S: …
        S: bare.unsettled=4
        S: bare.ready=0
        S: bare.leased=2
        S: bare.delayed=1
        S: …
        S: group.g.unsettled=4
        S: group.g.ready=0
        S: group.g.leased=2
        S: group.g.delayed=1
        S: …
        C: ACK <a> <c> <e>
        S: OK 3
        C: PULL q 9
        S: MSG q <f> key=k $4
        S: four
        S: END 1
        C: PULL q/g 9
        S: MSG q/g <g> key=k $4
        S: four
        S: END 1
        C: NACK <d>
        S: OK 1
        C: PULL q/g 9
        S: MSG q/g <h> try=2 h.a=b $3
        S: one
        S: END 1
        C: PULL q 9
        S: END 0
        ",
    );
}

#[test]
fn groups_are_listed_and_deleted_and_storage_returns() {
    both(
        r"
        C: MPUB q *3
        C: aa
        C: bb
        C: cc
        S: OK 1 3 LEVEL
        C: PULL q/one ack=auto
        S: MSG q/one - id=1 $2
        S: aa
        S: END 1
        # what every group has settled is gone
        C: PULL q/two%20b from=first
        S: MSG q/two%20b <a> $2
        S: bb
        S: END 1
        C: QLS
        S: DATA $…
        S: q ready=…
        S: q/one ready=2 leased=0 delayed=0 dead=0
        S: q/two%20b ready=1 leased=1 delayed=0 dead=0
        S:
        C: QDEL q/two%20b
        S: OK
        C: ACK <a>
        S: OK 0 stale=<a>
        C: QGET q
        S: …
        S: bytes=4
        S: …
        C: QDEL q/two%20b
        S: ERR NOGROUP :…
        # the last one goes, and what it had not settled stays for the next
        C: QDEL q/one
        S: OK
        C: QLS
        S: DATA $…
        S: q ready=2 leased=0 delayed=0 dead=0
        S:
        C: PULL q/three 9
        S: MSG q/three <b> $2
        S: bb
        S: MSG q/three <c> $2
        S: cc
        S: END 2
        C: QDEL q
        S: OK
        C: ACK <b>
        S: OK 0 stale=<b>
        C: QGET q/three
        S: ERR NOQUEUE :…
        C: QDEL q/three
        S: ERR NOQUEUE :…
        ",
    );
}

#[test]
fn consumers_wait_for_a_deleted_group_to_come_again() {
    both(
        r"
        C: SUB q/g
        S: OK
        C: @p PULL q/h wait=20s
        C2: PUB q :one
        S2: OK 1 LEVEL
        S: MSG q/g <a> $3
        S: one
        S: MSG @p q/h <b> $3
        S: one
        S: END @p 1
        C2: QDEL q
        S2: OK
        C: ACK <a>
        S: OK 0 stale=<a>
        C2: PUB q :two
        S2: OK 1 LEVEL
        S: MSG q/g <c> $3
        S: two
        C2: QDEL q/g
        S2: OK
        C2: PUB q :three
        S2: OK 2 LEVEL
        C2: PULL q/g from=first 9
        S2: …
        S2: END …
        C: UNSUB q/g
        S: …
        S: OK
        C2: PING
        S2: PONG
        ",
    );
}

#[test]
fn who_waits_for_a_deleted_queue_by_its_bare_name_reads_it_first() {
    both(
        r"
        C: SUB q
        S: OK
        C2: PUB q :one
        S2: OK 1 LEVEL
        S: MSG q <a> $3
        S: one
        C2: QDEL q
        S2: OK
        C2: QSET q lease=1m
        S2: OK created
        C2: PULL q/late
        S2: END 0
        C2: PUB q :two
        S2: OK 1 LEVEL
        S: MSG q <b> $3
        S: two
        C2: PULL q/late 9
        S2: MSG q/late <c> $3
        S2: two
        S2: END 1
        ",
    );
}

#[test]
fn each_group_has_its_own_tries_and_dead_letters() {
    both(
        r"
        C: QSET q maxdeliver=2 backoff=0
        S: OK created
        C: PULL q/a
        S: END 0
        C: PULL q/b
        S: END 0
        C: PUB q :x
        S: OK 1 LEVEL
        C: PULL q/a
        S: MSG q/a <a> $1
        S: x
        S: END 1
        C: NACK <a>
        S: OK 1
        C: PULL q/a
        S: MSG q/a <b> try=2 $1
        S: x
        S: END 1
        C: NACK <b> why=no
        S: OK 1
        C: PULL q/a
        S: END 0
        C: PULL q.dead
        S: MSG q.dead <c> h.dead-queue=q h.dead-id=1 h.dead-reason=tries h.dead-tries=2 h.dead-why=no $1
        S: x
        S: END 1
        C: QGET q
        S: …
        S: dead=1
        S: …
        S: group.a.dead=1
        S: …
        S: group.b.unsettled=1
        S: …
        C: PULL q/b
        S: MSG q/b <d> $1
        S: x
        S: END 1
        C: ACK <c> <d>
        S: OK 2
        C: QGET q
        S: …
        S: dead=0
        S: bytes=0
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn limits_count_what_is_stored_once() {
    both(
        r"
        C: QSET q maxlen=2 full=dropold deadon=full
        S: OK created
        C: PULL q/a
        S: END 0
        C: PULL q/b
        S: END 0
        C: MPUB q *2
        C: 1
        C: 2
        S: OK 1 2 LEVEL
        C: PULL q/a
        S: MSG q/a <a> $1
        S: 1
        S: END 1
        # 1 is with a consumer of a, so 2 goes: for everybody, and to one place once
        C: PUB q :3
        S: OK 3 LEVEL
        C: PULL q/b 9
        S: MSG q/b <b> $1
        S: 1
        S: MSG q/b <c> $1
        S: 3
        S: END 2
        C: PEEK q.dead 9
        S: MSG q.dead - id=1 h.dead-queue=q h.dead-id=2 h.dead-reason=full h.dead-tries=0 $1
        S: 2
        S: END 1
        C: PULL q/a 9
        S: MSG q/a <d> $1
        S: 3
        S: END 1
        C: PUB q :4
        S: ERR FULL …
        C: ACK <a> <b>
        S: OK 2
        C: PUB q :4
        S: OK 4 LEVEL
        ",
    );
}

#[test]
fn commands_mean_the_group_they_name() {
    both(
        r"
        C: PULL q/a
        S: END 0
        C: PULL q/b
        S: END 0
        C: MPUB q *3
        C: 1
        C: 2
        C: 3
        S: OK 1 3 LEVEL
        C: PURGE q/a
        S: OK 3
        C: PEEK q/a 9
        S: END 0
        C: MOVE q/b other 1
        S: OK 1
        C: MOVE q/b q
        S: ERR CONFLICT :…
        C: PEEK q/b 9
        S: MSG q/b - id=2 $1
        S: 2
        S: MSG q/b - id=3 $1
        S: 3
        S: END 2
        C: PULL q/b
        S: MSG q/b <a> $1
        S: 2
        S: END 1
        # deleted for everybody, unless somebody has it at hand
        C: DEL q 2 3 1
        S: OK 1 stale=2,1
        C: PULL q/b 9
        S: END 0
        C: WHY q/b
        S: …
        S: why=1 message is leased, …
        S:
        C: WHY q/a
        S: …
        S: why=the group is through: …
        S:
        C: PULL other
        S: MSG other <b> $1
        S: 1
        S: END 1
        ",
    );
}

#[test]
fn a_group_is_refused_where_only_a_queue_can_be() {
    memory(
        r"
        C: PUB q/g :x
        S: ERR NAME :…
        C: MPUB q/g *1
        C: x
        S: ERR NAME :…
        C: QSET q/g lease=1s
        S: ERR NAME :…
        C: BIND a.# q/g
        S: ERR NAME :…
        C: PULL q/ 
        S: ERR NAME :…
        C: PULL /g
        S: ERR NAME :…
        C: PULL q/g/h
        S: ERR NAME :…
        C: PULL q/g from=never
        S: ERR SYNTAX :from= is first, new, …
        C: SUB q/g from=
        S: ERR SYNTAX :from= …
        C: SUB a.# mode=live from=new
        S: ERR SYNTAX :…
        C: PULL q/g from=new from=first
        S: ERR SYNTAX :from= is said twice…
        C: PEEK q/g
        S: ERR NOQUEUE :…
        C: PUB q :x
        S: OK 1 mem
        C: PEEK q/g
        S: ERR NOGROUP :q has no group g…
        C: CREDIT q/g 5
        S: ERR CONFLICT :…
        C: UNSUB q/g
        S: ERR CONFLICT :…q/g…
        C: QLS
        S: DATA $36
        S: q ready=1 leased=0 delayed=0 dead=0
        S:
        ",
    );
}

#[test]
fn requests_are_answered_by_groups_too() {
    memory(
        r"
        C: PUB q :x
        S: OK 1 mem
        C2: SUB q/workers credit=9
        S2: OK
        S2: MSG q/workers <a> $1
        S2: x
        C: @r REQ q :who?
        S2: MSG q/workers <b> reply=<token> $4
        S2: who?
        C2: REP <token> :me
        S2: OK
        C2: ACK <a> <b>
        S2: OK 2
        S: MSG @r q - $2
        S: me
        S: END @r 1
        C: @s REQ q timeout=20s :again?
        S2: MSG q/workers …
        S2: again?
        C2: (close)
        S: ERR @s NOCONSUMER :…
        ",
    );
}

#[test]
fn order_by_key_and_one_consumer_hold_in_each_group() {
    both(
        r"
        C: QSET q single=1
        S: OK created
        C: @a SUB q/g
        S: OK @a
        C2: SUB q/g
        S2: OK
        C3: SUB q/h
        S3: OK
        C4: MPUB q key=k *2
        C4: 1
        C4: 2
        S4: OK 1 2 LEVEL
        S: MSG @a q/g <a> key=k $1
        S: 1
        S3: MSG q/h <b> key=k $1
        S3: 1
        C3: ACK <b>
        S3: OK 1
        S3: MSG q/h <c> key=k $1
        S3: 2
        C: (close)
        S2: MSG q/g <d> try=2 key=k $1
        S2: 1
        C2: ACK <d>
        S2: OK 1
        S2: MSG q/g <e> key=k $1
        S2: 2
        ",
    );
}

#[test]
fn what_is_delayed_or_expires_does_so_in_each_group() {
    both(
        r"
        C: PULL q/a
        S: END 0
        C: PUB q delay=150ms :later
        S: OK 1 LEVEL
        C: PUB q ttl=200ms :gone
        S: OK 2 LEVEL
        C: PULL q/b from=first
        S: MSG q/b <a> $4
        S: gone
        S: END 1
        C: PULL q/b
        S: END 0
        C: PULL q/b wait=20s
        S: MSG q/b <b> $5
        S: later
        S: END 1
        -- 300ms
        C: PULL q/a 9
        S: MSG q/a <c> $5
        S: later
        S: END 1
        # a leased message doesn't expire
        C: ACK <a> <b> <c>
        S: OK 3
        C: QGET q
        S: …
        S: bytes=0
        S: …
        C: PING
        S: PONG
        ",
    );
}

#[test]
fn groups_and_what_they_have_settled_survive() {
    for how in ["kill", "restart"] {
        disk(
            &r"
            C: QSET q retain=1h backoff=0
            S: OK created
            C: MPUB q *4
            C: a
            C: b
            C: c
            C: d
            S: OK 1 4 disk
            C: PULL q/x 3
            S: MSG q/x <a> $1
            S: a
            S: MSG q/x <b> $1
            S: b
            S: MSG q/x <c> $1
            S: c
            S: END 3
            C: PULL q/y 4 from=2
            S: MSG q/y <d> $1
            S: b
            S: MSG q/y <e> $1
            S: c
            S: MSG q/y <f> $1
            S: d
            S: END 3
            C: PULL q/z
            S: END 0
            C: ACK <a> <c> <d>
            S: OK 3
            C: NACK <b> delay=1h
            S: OK 1
            -- HOW
            C: QLS
            S: DATA $…
            S: q ready=…
            S: q/x ready=1 leased=0 delayed=1 dead=0
            S: q/y ready=2 leased=0 delayed=0 dead=0
            S: q/z ready=0 leased=0 delayed=0 dead=0
            S:
            C: QGET q
            S: …
            S: stored=4
            S: retained=1
            S: …
            C: PULL q
            S: ERR CONFLICT :…
            C: PUB q :e
            S: OK 5 disk
            C: PULL q/x 9
            S: MSG q/x …
            S: d
            S: MSG q/x …
            S: e
            S: END 2
            C: PULL q/y 9
            S: MSG q/y …
            S: c
            S: MSG q/y …
            S: d
            S: MSG q/y …
            S: e
            S: END 3
            C: PULL q/z 9
            S: MSG q/z …
            S: e
            S: END 1
            C: QDEL q/x
            S: OK
            -- HOW
            C: QLS
            S: DATA $…
            S: q ready=…
            S: q/y ready=3 leased=0 delayed=0 dead=0
            S: q/z ready=1 leased=0 delayed=0 dead=0
            S:
            "
            .replace("HOW", how),
        );
    }
}

#[test]
fn a_none_queue_keeps_its_groups_over_a_restart() {
    disk(
        r"
        C: QSET q durable=none
        S: OK created
        C: PULL q/g
        S: END 0
        C: PUB q :x
        S: OK 1 mem
        -- kill
        C: QLS
        S: DATA $…
        S: q ready=0 …
        S: q/g ready=0 leased=0 delayed=0 dead=0
        S:
        C: PULL q
        S: ERR CONFLICT :…
        C: PUB q :y
        S: OK 1 mem
        C: PULL q/g 9
        S: MSG q/g <a> $1
        S: y
        S: END 1
        C: QDEL q/g
        S: OK
        -- restart
        C: QLS
        S: DATA $36
        S: q ready=0 leased=0 delayed=0 dead=0
        S:
        ",
    );
}

#[test]
fn who_has_read_first_is_known_after_a_kill() {
    disk(
        r"
        C: PUB q :x
        S: OK 1 disk
        C: PULL q
        S: MSG q <a> $1
        S: x
        S: END 1
        C: SYNC disk
        S: OK accepted=0 rejected=0 disk
        C: QSET other
        S: OK created
        -- kill
        C: PULL q/g
        S: END 0
        C: PULL q
        S: MSG q <b> $1
        S: x
        S: END 1
        ",
    );
}

/// Several groups settle at random, the broker is killed at random: no confirmed ack comes back, nothing is missed.
#[test]
fn groups_lose_and_repeat_nothing_when_the_broker_is_killed() {
    let dir = TempDir::new("groups");
    let launch = Launch::data(&dir.data()).arg("--set backoff=0 --set maxdeliver=0");
    let mut random = Random::new(Random::seed_from("RINGMQ_SEED"));
    let groups = ["q/a", "q/b", "q/c", "q"];
    let mut broker = launch.start();
    let mut client = broker.client();
    for group in groups {
        let from = if group == "q" { " from=first" } else { "" };
        assert_eq!(client.ask(&format!("PULL {group}{from}")), "END 0");
    }
    let mut next = 1u64;
    // By group: ids confirmed acked, and ids that may be.
    let mut acked = vec![std::collections::BTreeSet::new(); groups.len()];
    let mut unknown = acked.clone();
    for _ in 0..12 {
        for _ in 0..30 {
            let count = 1 + random.below(20);
            let lines: String = (0..count).map(|n| format!("m{}\n", next + n)).collect();
            let command = format!("MPUB q *{count}\n{}", lines.trim_end());
            assert_eq!(client.ask(&command), format!("OK {next} {count} disk"));
            next += count;
            let at = random.below(groups.len() as u64) as usize;
            let most = 1 + random.below(30);
            let taken = client
                .pull(&format!("{} {most}", groups[at]))
                .expect("it answers");
            let mut handles = Vec::new();
            for message in taken {
                let id = message.id();
                assert_eq!(message.body, format!("m{id}").into_bytes());
                assert!(!acked[at].contains(&id), "{} of {} again", id, groups[at]);
                if !random.once_in(5) {
                    unknown[at].insert(id);
                    handles.push((id, message.handle.clone()));
                }
            }
            if handles.is_empty() {
                continue;
            }
            let list: Vec<_> = handles.iter().map(|(_, handle)| handle.as_str()).collect();
            let answer = client.ask(&format!("ACK {}", list.join(" ")));
            assert_eq!(answer, format!("OK {}", handles.len()));
            for (id, _) in handles {
                unknown[at].remove(&id);
                acked[at].insert(id);
            }
        }
        if random.once_in(2) {
            broker.process.kill_running();
        } else {
            drop(client);
            broker.terminate();
        }
        broker = launch.start();
        client = broker.client();
    }
    for (at, group) in groups.iter().enumerate() {
        let mut left: std::collections::BTreeSet<u64> = (1..next).collect();
        left.retain(|id| !acked[at].contains(id));
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let taken = client.pull(&format!("{group} 1000")).expect("it answers");
            if taken.is_empty() {
                break;
            }
            let handles: Vec<_> = taken.iter().map(|message| message.handle.clone()).collect();
            seen.extend(taken.iter().map(crate::support::client::Message::id));
            client.ask(&format!("ACK {}", handles.join(" ")));
        }
        let missing: Vec<_> = left.difference(&seen).take(9).collect();
        let surplus: Vec<_> = seen.difference(&left).take(9).collect();
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{group}: missing {missing:?}, once too often {surplus:?}"
        );
    }
    let text = client.data("QGET q");
    assert!(text.contains("\nstored=0\n"), "{text}");
    eventually("the log is small again", Duration::from_secs(20), || {
        client.data("QGET q").contains("bytes=0")
    });
    broker.assert_well();
}

#[test]
fn cast_messages_reach_the_groups_of_a_bound_queue() {
    both(
        r"
        C: BIND news.# q
        S: OK
        C: PULL q/a
        S: END 0
        C: PULL q/b
        S: END 0
        C: CAST news.eu key=k :x
        S: OK 1 LEVEL
        C: CAST news.eu key=k :y
        S: OK 1 LEVEL
        C: PULL q/a,q/b 9
        S: MSG q/a <a> key=k $1
        S: x
        S: MSG q/b <b> key=k $1
        S: x
        S: END 2
        C: ACK <a>
        S: OK 1
        C: PULL q/a,q/b 9
        S: MSG q/a <c> key=k $1
        S: y
        S: END 1
        ",
    );
}
