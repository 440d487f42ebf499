//! CAST, BIND, UNBIND and live subscriptions: who gets what is cast, and what is said of it.

use std::io::Write;
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::script::{disk, disk_with, memory};
use crate::support::client::Client;
use crate::support::{Broker, Launch, eventually};

#[test]
fn nobody_is_no_error() {
    disk(
        r"
        C: CAST news.eu :hi
        S: OK 0 mem
        C: @t CAST news.eu $2
        C: hi
        S: OK @t 0 mem
        C: CAST! news.eu :hi
        C: SYNC
        S: OK accepted=1 rejected=0 mem
        # nothing is stored under a topic
        C: QLS
        S: DATA $0
        S:
        ",
    );
}

#[test]
fn every_bound_queue_gets_one_copy() {
    disk(
        r"
        C: BIND news.# archive
        S: OK
        C: BIND news.*.sport archive
        S: OK
        C: BIND news.eu.sport archive
        S: OK
        C: BIND #.sport mail
        S: OK
        C: BIND other mail
        S: OK
        C: CAST news.eu.sport pri=2 h.a=b :goal
        S: OK 2 disk
        C: CAST news :head
        S: OK 1 disk
        C: CAST sport :tennis
        S: OK 1 disk
        C: CAST oth :x
        S: OK 0 mem
        C: PULL archive,mail 10
        S: MSG archive <a> h.a=b $4
        S: goal
        S: MSG archive <b> $4
        S: head
        S: MSG mail <c> h.a=b $4
        S: goal
        S: MSG mail <d> $6
        S: tennis
        S: END 4
        C: ACK <a> <b> <c> <d>
        S: OK 4
        ",
    );
}

#[test]
fn the_level_is_the_weakest_of_those_that_took_it() {
    disk(
        r"
        C: QSET a durable=disk
        S: OK created
        C: QSET b durable=os
        S: OK created
        C: QSET c durable=none
        S: OK created
        C: BIND t a
        S: OK
        C: CAST t :1
        S: OK 1 disk
        C: CAST t sync=os :1
        S: OK 1 os
        C: BIND t b
        S: OK
        C: CAST t :2
        S: OK 2 os
        C: BIND t c
        S: OK
        C: CAST t :3
        S: OK 3 mem
        # each refuses for itself what it cannot promise
        C: CAST t sync=disk :4
        S: OK 1 disk refused=2
        C: CAST t sync=os :5
        S: OK 2 os refused=1
        C: CAST t sync=none :6
        S: OK 3 mem
        C: CAST! t :7
        C: CAST! t sync=os :8
        C: SYNC
        S: OK accepted=1 rejected=1 mem
        C: QLS
        S: DATA $…
        S: a ready=9 leased=0 delayed=0 dead=0
        S: b ready=6 leased=0 delayed=0 dead=0
        S: c ready=3 leased=0 delayed=0 dead=0
        S:
        ",
    );
}

#[test]
fn each_queue_takes_or_refuses_for_itself() {
    disk(
        r"
        C: QSET small maxlen=1
        S: OK created
        C: QSET ring maxlen=1 full=dropold
        S: OK created
        C: QSET shut pause=in
        S: OK created
        C: BIND t small
        S: OK
        C: BIND t ring
        S: OK
        C: BIND t shut
        S: OK
        C: CAST t :one
        S: OK 2 disk refused=1
        C: CAST t :two
        S: OK 1 disk refused=2
        C: UNBIND t ring
        S: OK
        C: CAST t :three
        S: OK 0 mem refused=2
        C: PULL small,ring 10
        S: MSG small <a> $3
        S: one
        S: MSG ring <b> $3
        S: two
        S: END 2
        C: STATS q small
        S: DATA $…
        S: …
        S: rejected_total=2
        S: …
        S: next_id=2
        S:
        ",
    );
}

#[test]
fn options_hold_for_each_queue_by_its_own_settings() {
    disk(
        r"
        C: QSET low pri=1
        S: OK created
        C: QSET high pri=9
        S: OK created
        C: BIND t low
        S: OK
        C: BIND t high
        S: OK
        C: CAST t :plain
        S: OK 2 disk
        C: CAST t pri=5 :said
        S: OK 2 disk
        C: CAST t delay=1h :later
        S: OK 2 disk
        C: CAST t ttl=50ms :soon
        S: OK 2 disk
        -- 100ms
        C: CAST t once=x :once
        S: OK 2 disk
        C: PURGE high state=delayed
        S: OK 1
        C: CAST t once=x :again
        S: OK 2 disk
        C: PULL low 10
        S: MSG low <a> $4
        S: said
        S: MSG low <b> $5
        S: plain
        S: MSG low <c> $4
        S: once
        S: END 3
        C: PULL high 10
        S: MSG high <d> $5
        S: plain
        S: MSG high <e> $4
        S: once
        S: MSG high <f> $4
        S: said
        S: END 3
        # a restart reads the very same
        -- kill
        C: QLS
        S: DATA $…
        S: high ready=3 leased=0 delayed=0 dead=0
        S: low ready=3 leased=0 delayed=1 dead=0
        S:
        C: PULL high wait=10s
        S: MSG high <d2> $5
        S: plain
        S: END 1
        C: PULL high wait=10s
        S: MSG high <e2> $4
        S: once
        S: END 1
        C: PULL high wait=10s
        S: MSG high <f2> $4
        S: said
        S: END 1
        C: PULL low wait=10s
        S: MSG low <a2> $4
        S: said
        S: END 1
        C: PULL low wait=10s
        S: MSG low <b2> $5
        S: plain
        S: END 1
        C: PULL low wait=10s
        S: MSG low <c2> $4
        S: once
        S: END 1
        C: CAST t once=x :again
        S: OK 2 disk
        ",
    );
}

#[test]
fn bodies_of_all_sizes_reach_queues_of_all_levels() {
    for size in [0, 1, 511, 512, 5_000, 40_000, 1_000_000] {
        disk(&format!(
            r"
            C: QSET a durable=none
            S: OK created
            C: QSET b durable=none
            S: OK created
            C: BIND t.# a
            S: OK
            C: BIND t.# b
            S: OK
            C: BIND t.# c
            S: OK
            C: BIND t.# d
            S: OK
            C: CAST t $3
            C: abc
            S: OK 4 mem
            C: CAST t.u ${size}
            C: {{x*{size}}}
            S: OK 4 mem
            C: PULL a 2
            S: MSG a <a> $3
            S: abc
            S: MSG a <b> ${size}
            S: {{x*{size}}}
            S: END 2
            C: ACK <b> <a>
            S: OK 2
            C: QDEL c
            S: OK
            C: PULL b,d 2 ack=auto
            S: MSG b - id=1 $3
            S: abc
            S: MSG b - id=2 ${size}
            S: {{x*{size}}}
            S: END 2
            C: PULL d 2 ack=auto wait=10s
            S: MSG d - id=1 $3
            S: abc
            S: MSG d - id=2 ${size}
            S: {{x*{size}}}
            S: END 2
            "
        ));
    }
}

#[test]
fn a_cast_is_seen_by_the_connection_that_sent_it() {
    disk(
        r"
        C: BIND t a
        S: OK
        C: BIND t b
        S: OK
        C: QSET b durable=os
        S: OK updated
        C: CAST! t :x
        C: PULL a
        S: MSG a <a> $1
        S: x
        S: END 1
        C: CAST t :y
        C: PULL b 2
        S: OK 2 os
        S: MSG b <b> $1
        S: x
        S: MSG b <c> $1
        S: y
        S: END 2
        ",
    );
}

#[test]
fn bindings_are_listed_and_go_with_the_queue() {
    disk(
        r"
        C: BIND news.# q
        S: OK
        C: BIND news.# q
        S: OK
        C: BIND a.%2A.#.#.*.x%2Cy q
        S: OK
        C: QGET q
        S: DATA $…
        S: …
        S: bindings=a.%2A.#.*.x%2Cy,news.#
        S: set.durable=disk
        S: …
        S: set.pause=none
        S:
        C: UNBIND a.%2A.#.*.x%2cy q
        S: OK
        C: UNBIND a.%2A.#.*.x%2cy q
        S: ERR CONFLICT :q is not bound to a.%2A.#.*.x%2Cy; QGET q tells what it is bound to
        C: QDEL q
        S: OK
        C: CAST news.eu :x
        S: OK 0 mem
        C: UNBIND news.# q
        S: ERR NOQUEUE :…
        C: PUB q :new
        S: OK 1 disk
        C: CAST news.eu :x
        S: OK 0 mem
        C: QGET q
        S: DATA $…
        S: …
        S: bindings=
        S: set.durable=disk
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn bindings_outlive_a_kill_and_a_restart_those_of_none_queues_too() {
    disk(
        r"
        C: QSET m durable=none
        S: OK created
        C: BIND t.# m
        S: OK
        C: BIND t.# d
        S: OK
        C: BIND gone.# d
        S: OK
        C: UNBIND gone.# d
        S: OK
        C: BIND t.x deleted
        S: OK
        C: QDEL deleted
        S: OK
        C: CAST t.x :1
        S: OK 2 mem
        -- kill
        C: CAST t.x :2
        S: OK 2 mem
        C: CAST gone.x :3
        S: OK 0 mem
        C: UNBIND t.# m
        S: OK
        -- restart
        C: CAST t.x :4
        S: OK 1 disk
        C: PULL d 9 wait=10s ack=auto
        S: MSG d - id=1 $1
        S: 1
        S: …
        S: END …
        ",
    );
}

/// Checkpoints and recycled segments: a small log goes around many times.
#[test]
fn bindings_and_shared_messages_outlive_checkpoints() {
    let mut script = String::from(
        r"
        C: BIND t.# keep
        S: OK
        C: BIND t.# other
        S: OK
        C: QSET m durable=none
        S: OK created
        C: BIND t.first m
        S: OK
        C: CAST t.first $20000
        C: {f*20000}
        S: OK 3 mem
        C: PURGE other
        S: OK 1
        ",
    );
    for nth in 0..300 {
        script += &format!(
            r"
            C: CAST t.{nth} $20000
            C: {{x*20000}}
            S: OK 2 disk
            C: PURGE other
            S: OK 1
            "
        );
        if nth % 2 == 0 {
            script += r"
            C: DEL keep ID
            S: OK 1
            "
            .replace("ID", &(nth + 2).to_string())
            .as_str();
        }
    }
    script += r"
        -- kill
        C: QLS
        S: DATA $…
        S: keep ready=151 leased=0 delayed=0 dead=0
        S: m ready=0 leased=0 delayed=0 dead=0
        S: other ready=0 leased=0 delayed=0 dead=0
        S:
        C: PULL keep wait=10s
        S: MSG keep <a> $20000
        S: {f*20000}
        S: END 1
        C: CAST t.first :x
        S: OK 3 mem
        ";
    disk_with("--segment 1M", &script);
}

#[test]
fn what_is_no_topic_pattern_or_queue_is_refused() {
    memory(
        r"
        C: CAST
        S: ERR SYNTAX :CAST needs a topic, as in CAST news.eu :hello
        C: CAST news.eu
        S: ERR SYNTAX :the body is missing: type CAST news.eu :hello…
        C: CAST news.eu hello
        S: ERR SYNTAX :the body starts with a colon, as in CAST news.eu :hello
        C: CAST news.* :x
        S: ERR NAME :CAST goes to one topic…
        C: CAST # :x
        S: ERR NAME :CAST goes to one topic…
        C: CAST a/b :x
        S: ERR NAME :…
        C: CAST a *1
        C: PING :inside
        S: ERR SYNTAX :…
        C: CAST a nosuch=1 $12
        C: PING :inside
        S: ERR UNKNOWN :…
        C: CAST a every=1h :x
        S: ERR UNKNOWN :…
        C: CAST a delay=1s at=@1 :x
        S: ERR SYNTAX :…
        C: BIND
        S: ERR SYNTAX :BIND needs a pattern and a queue, as in BIND news.# archive
        C: BIND news.#
        S: ERR SYNTAX :BIND needs a pattern and a queue…
        C: BIND q news.#
        S: ERR NAME :the pattern stands first and then the name of a queue…
        C: BIND q *.eu
        S: ERR NAME :the pattern stands first…
        C: BIND news# q
        S: ERR NAME :in a pattern * and # stand for whole words…
        C: BIND news.# q r
        S: ERR SYNTAX :r is one argument too many…
        C: BIND news.# q x=1
        S: ERR UNKNOWN :BIND takes no options such as x=
        C: BIND news.# q :x
        S: ERR SYNTAX :BIND takes no body…
        C: BIND news.# a/b
        S: ERR NAME :…
        C: UNBIND news.#
        S: ERR SYNTAX :UNBIND needs a pattern and a queue…
        C: UNBIND *.eu
        S: ERR SYNTAX :…
        C: UNBIND news.# q
        S: ERR NOQUEUE :…
        C: QSET q
        S: OK created
        C: UNBIND news.# q
        S: ERR CONFLICT :…
        C: QLS
        S: DATA $…
        S: q …
        S:
        ",
    );
}

#[test]
fn live_copies_come_with_their_topic_and_nothing_to_ack() {
    memory(
        r"
        C: SUB news.# mode=live
        S: OK
        C2: CAST news.eu pri=3 key=k reply=r h.a=b%20c :hi
        S2: OK 1 mem
        S: MSG news.eu - key=k reply=r h.a=b%20c $2
        S: hi
        C2: @t CAST news $5
        C2+ a\r\nb!\n
        S2: OK @t 1 mem
        S: MSG news - $5
        S: a…
        S: b!
        C2: CAST sport :x
        S2: OK 0 mem
        C: UNSUB news.#
        S: OK
        C2: CAST news.eu :x
        S2: OK 0 mem
        C: UNSUB news.#
        S: ERR CONFLICT :this connection has no SUB on news.#; SUB news.# mode=live begins one
        C: QLS
        S: DATA $0
        S:
        ",
    );
}

#[test]
fn one_copy_for_each_connection_under_the_oldest_of_its_patterns() {
    disk(
        r"
        C: @a SUB news.# mode=live
        S: OK @a
        C: @b SUB news.eu mode=live ts=1
        S: OK @b
        C: SUB # mode=live
        S: OK
        C2: SUB *.eu mode=live ts=1
        S2: OK
        C3: BIND news.* q
        S3: OK
        C3: CAST news.eu :1
        S: MSG @a news.eu - $1
        S: 1
        S2: MSG news.eu - ts=… $1
        S2: 1
        S3: OK 3 disk
        C: UNSUB news.#
        S: OK
        C3: CAST news.eu :2
        S: MSG @b news.eu - ts=… $1
        S: 2
        S2: MSG news.eu - ts=… $1
        S2: 2
        S3: OK 3 disk
        # a second SUB changes the options
        C: @b SUB news.eu mode=live
        S: OK @b
        C3: CAST news.eu :3
        S: MSG @b news.eu - $1
        S: 3
        S2: MSG news.eu - ts=… $1
        S2: 3
        S3: OK 3 disk
        C: @b SUB other mode=live
        S: ERR @b CONFLICT :…
        C: @b PING
        S: ERR @b CONFLICT :…
        C: @b SUB news.eu
        S: ERR @b CONFLICT :…
        C: CANCEL @b
        S: OK 0
        C2: (close)
        -- 100ms
        C3: CAST news.eu :4
        S: MSG @b news.eu - $1
        S: 4
        S3: OK 2 disk
        ",
    );
}

#[test]
fn a_connection_sees_what_it_casts_before_the_receipt() {
    disk(
        r"
        C: SUB t mode=live
        S: OK
        C: BIND t q
        S: OK
        C: CAST t :x
        S: MSG t - $1
        S: x
        S: OK 2 disk
        # an untagged subscription, and what cannot be beside it
        C: PULL q
        S: ERR CONFLICT :…
        C: PEEK q
        S: ERR CONFLICT :…
        C: REQ q :x
        S: ERR CONFLICT :…
        C: @p PULL q
        S: MSG @p q <h> $1
        S: x
        S: END @p 1
        # a name names a queue's subscription first, then a live one
        C: SUB t
        S: OK
        C: UNSUB t
        S: OK
        C: CAST t :y
        S: MSG t - $1
        S: y
        S: OK 2 disk
        C: UNSUB t
        S: OK
        C: UNSUB t
        S: ERR CONFLICT :…
        C: PULL q ack=auto
        S: MSG q - id=2 $1
        S: y
        S: END 1
        ",
    );
}

#[test]
fn live_subscriptions_end_with_the_input() {
    memory(
        r"
        C: SUB # mode=live
        S: OK
        C: (half-close)
        S: (closes)
        C2: CAST x :y
        S2: OK 0 mem
        ",
    );
}

#[test]
fn what_is_no_live_subscription_is_refused() {
    memory(
        r"
        C: SUB news.#
        S: ERR NAME :a SUB of a pattern has mode=live…
        C: SUB news.# mode=dead
        S: ERR SYNTAX :mode= is live…
        C: SUB mode=live
        S: ERR SYNTAX :SUB needs a queue…
        C: SUB news# mode=live
        S: ERR NAME :…
        C: SUB a/b mode=live
        S: ERR NAME :…
        C: SUB news.# mode=live credit=1
        S: ERR SYNTAX :mode=live keeps nothing…
        C: SUB news.# mode=live ack=auto
        S: ERR SYNTAX :…
        C: SUB news.# mode=live lease=1s
        S: ERR SYNTAX :…
        C: SUB! news.# mode=live
        S: ERR SYNTAX :SUB is never quiet…
        C: SUB news.# mode=live mode=live
        S: ERR SYNTAX :…
        C: UNSUB news.*
        S: ERR CONFLICT :…
        C: UNSUB news.*a.*
        S: ERR NAME :…
        C: UNSUB *
        S: ERR CONFLICT :…
        C: CREDIT news.# 5
        S: ERR NAME :…
        C: PULL news.#
        S: ERR NAME :…
        ",
    );
}

/// Reads what a live subscription says until its end; every gap in the numbers must have been told by
/// a `LAG` of just that size. Returns how many came and how many were told to be missing.
fn read_numbers(client: &mut Client, tag: &str, pattern: &str) -> (u64, u64) {
    let (mut received, mut missing) = (0, 0);
    let lag = format!("LAG{tag} {pattern} dropped=");
    loop {
        let line = client.line().expect("it is not disconnected");
        if line.starts_with("OK") {
            return (received, missing);
        }
        if let Some(count) = line.strip_prefix(&lag) {
            missing += count.parse::<u64>().expect("a number");
            continue;
        }
        assert!(line.starts_with(&format!("MSG{tag} t.")), "{line}");
        let body = client.counted(&line).expect("a body");
        let number = String::from_utf8(body).expect("it is text");
        let number: u64 = number.trim_end_matches('.').parse().expect("a number");
        assert_eq!(number, received + missing, "a gap that nobody was told of");
        received += 1;
    }
}

fn cast_numbers(broker: &Broker, from: u64, count: u64, size: usize) {
    let mut caster = Client::connect(broker.address);
    for number in from..from + count {
        let body = format!("{number}{}", ".".repeat(size));
        caster
            .send(format!("CAST! t.{} ${}\n{body}\n", number % 3, body.len()).as_bytes())
            .expect("it is read");
    }
    let synced = caster.ask("SYNC");
    assert_eq!(synced, format!("OK accepted={count} rejected=0 mem"));
}

/// A reader on a thread of its own; the other half of its connection ends it.
fn reader(broker: &Broker, tag: &'static str, pattern: &'static str) -> (TcpStream, Reading) {
    let mut client = Client::connect(broker.address);
    subscribe(&mut client, tag, pattern);
    read_on(client, tag, pattern)
}

type Reading = JoinHandle<(u64, u64)>;

fn subscribe(client: &mut Client, tag: &str, pattern: &str) {
    let command = format!("{} SUB {pattern} mode=live", tag.trim_start());
    assert_eq!(client.ask(command.trim_start()), format!("OK{tag}"));
    // A second pattern of the same connection brings no second copy.
    assert_eq!(client.ask("@twin SUB #.2 mode=live"), "OK @twin");
}

fn read_on(mut client: Client, tag: &'static str, pattern: &'static str) -> (TcpStream, Reading) {
    let other_half = client
        .stream()
        .try_clone()
        .expect("a socket has two halves");
    let reading = thread::spawn(move || read_numbers(&mut client, tag, pattern));
    (other_half, reading)
}

#[test]
fn slow_readers_are_told_exactly_what_they_missed() {
    for size in [10, 3_000, 50_000] {
        let broker = Launch::memory().start();
        let count = 60_000_000 / (size as u64 + 40);
        let fast = reader(&broker, "", "t.*");
        let (mut slow, mut late) = (broker.client(), broker.client());
        subscribe(&mut slow, " @s", "t.#");
        subscribe(&mut late, " @l", "#");
        // Nobody reads for these two meanwhile.
        cast_numbers(&broker, 0, count / 2, size);
        let late = read_on(late, " @l", "#");
        let mut control = broker.client();
        eventually("it has caught up", Duration::from_secs(60), || {
            let stats = control.data("STATS conns");
            let live = stats
                .lines()
                .filter(|line| line.contains(" subscriptions=2 "));
            live.filter(|line| line.contains(" unsent_bytes=0 "))
                .count()
                == 2
        });
        cast_numbers(&broker, count / 2, count - count / 2, size);
        let slow = read_on(slow, " @s", "t.#");
        for ((mut other_half, reading), pattern, must_miss) in
            [(fast, "t.*", false), (late, "#", true), (slow, "t.#", true)]
        {
            let ended = other_half.write_all(format!("UNSUB {pattern}\n").as_bytes());
            ended.expect("it is read");
            let (received, missing) = reading.join().expect("every gap was told");
            assert_eq!(received + missing, count, "{pattern} {size}");
            assert!(missing > 0 || !must_miss, "{pattern} {size}");
        }
        let stats = control.data("STATS");
        let total = |name: &str| -> u64 {
            let line = stats.lines().find_map(|line| line.strip_prefix(name));
            line.expect("it is told").parse().expect("a number")
        };
        let (given, dropped) = (total("live_given_total="), total("live_dropped_total="));
        assert_eq!(given + dropped, 3 * count);
    }
}

/// Half a gigabyte for readers that do not read: their output is bounded, together too.
#[test]
fn live_copies_stay_within_the_memory_budget() {
    let broker = Launch::memory().arg("--memory-budget 64M").start();
    let mut readers: Vec<Client> = (0..200).map(|_| broker.client()).collect();
    for client in &mut readers {
        assert_eq!(client.ask("SUB t.# mode=live"), "OK");
    }
    let count = 3_000;
    cast_numbers(&broker, 0, count, 1_000);
    let mut control = broker.client();
    let stats = control.data("STATS conns");
    let unsent = stats.lines().filter_map(|line| {
        let at = line
            .split(' ')
            .find_map(|word| word.strip_prefix("unsent_bytes="));
        at.and_then(|bytes| bytes.parse::<u64>().ok())
    });
    let unsent: u64 = unsent.sum();
    assert!(unsent <= 64 << 20, "{unsent}");
    for mut client in readers {
        client.send(b"UNSUB t.#\n").expect("it is read");
        let (received, missing) = read_numbers(&mut client, "", "t.#");
        assert_eq!(received + missing, count);
    }
    assert_eq!(control.ask("PUB q :there is memory again"), "OK 1 mem");
}
