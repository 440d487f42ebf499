//! REQ and REP: one question, one answer, and what is said when there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use crate::script::{disk, memory};
use crate::support::client::Client;
use crate::support::{Launch, TempDir};

#[test]
fn a_request_is_answered_once() {
    for level in ["none", "os", "disk"] {
        let script = r"
            C2: QSET sums durable=LEVEL
            S2: OK created
            C2: SUB sums
            S2: OK
            C: REQ sums h.kind=plus pri=3 :1+1
            S2: MSG sums <h> reply=<t> h.kind=plus $3
            S2: 1+1
            C2: REP <t> :2
            S2: OK
            S: MSG sums - $1
            S: 2
            S: END 1
            C2: REP <t> :2
            S2: ERR STALE :…
            # the answer is no ack
            C2: QGET sums
            S2: DATA $…
            S2: ready=0
            S2: leased=1
            S2: …
            S2: set.pause=none
            S2:
            C2: ACK <h>
            S2: OK 1
            C2: QGET sums
            S2: DATA $…
            S2: ready=0
            S2: leased=0
            S2: …
            S2: set.pause=none
            S2:
            ";
        disk(&script.replace("LEVEL", level));
    }
}

#[test]
fn counted_bodies_and_tags_on_both_sides() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        C: @a REQ q $5
        C+ a\r\nb!\r\n
        C: @b REQ q $0
        C:
        C: PING
        S: PONG
        C2: @p PULL q 2 ack=auto
        S2: MSG @p q - id=1 reply=<one> $5
        S2: a…
        S2: b!
        S2: MSG @p q - id=2 reply=<two> $0
        S2:
        S2: END @p 2
        C2: @r REP <two> $3
        C2+ x\ny\n
        S2: OK @r
        C2: REP! <one> :
        C2: PING
        S2: PONG
        S: MSG @b q - $3
        S: x
        S: y
        S: END @b 1
        S: MSG @a q - $0
        S:
        S: END @a 1
        ",
    );
}

#[test]
fn nobody_could_answer() {
    memory(
        r"
        C: REQ nowhere :x
        S: ERR NOQUEUE :…
        C: QSET q
        S: OK created
        C: REQ q :x
        S: ERR NOCONSUMER :…
        # one that has pulled counts until it is closed
        C2: PULL q
        S2: END 0
        C: REQ q timeout=50ms :x
        S: ERR TIMEOUT :…
        C2: (close)
        -- 100ms
        C: REQ q :x
        S: ERR NOCONSUMER :…
        # one that has a SUB counts until it ends that
        C3: SUB q
        S3: OK
        C3: UNSUB q
        S3: OK
        C: REQ q :x
        S: ERR NOCONSUMER :…
        C: QGET q
        S: DATA $…
        S: ready=0
        S: …
        S: set.pause=none
        S:
        ",
    );
}

#[test]
fn the_last_consumer_goes_and_the_requester_is_told_at_once() {
    memory(
        r"
        C2: SUB q
        S2: OK
        -- mark
        C: REQ q timeout=1m :x
        S2: MSG q <h> reply=<t> $1
        S2: x
        C2: (close)
        S: ERR NOCONSUMER :…
        # by UNSUB as well
        C3: SUB q
        S3: OK
        S3: MSG q <i> try=2 reply=<t> $1
        S3: x
        C: @1 REQ q timeout=1m :y
        C: @2 REQ q timeout=1m :z
        S3: MSG q <j> reply=<u> $1
        S3: y
        S3: MSG q <k> reply=<v> $1
        S3: z
        C3: REP <t> :late
        S3: ERR STALE :…
        C3: UNSUB q
        S3: OK
        S: ERR @1 NOCONSUMER :…
        S: ERR @2 NOCONSUMER :…
        C3: REP <u> :late
        S3: ERR STALE :…
        # and by QDEL
        C3: PULL q
        S3: END 0
        C: @3 REQ q timeout=1m :w
        -- 50ms
        C4: QDEL q
        S4: OK
        S: ERR @3 NOCONSUMER :…
        -- at most 10s
        ",
    );
}

#[test]
fn another_consumer_takes_over() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        C3: @p PULL q wait=1m
        C3: PING
        S3: PONG
        C2: SUB q
        S2: OK
        C: REQ q timeout=1m :x
        S3: MSG @p q <h> reply=<t> $1
        S3: x
        S3: END @p 1
        C3: (close)
        S2: MSG q <i> try=2 reply=<t> $1
        S2: x
        C2: REP <t> :done
        S2: OK
        S: MSG q - $4
        S: done
        S: END 1
        ",
    );
}

#[test]
fn a_timeout_comes_in_time_and_takes_the_request_away() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        -- mark
        C: REQ q timeout=200ms :x
        S: ERR TIMEOUT :…
        -- at least 200ms
        -- at most 2s
        C2: PULL q
        S2: END 0
        # in a consumer's hands too, when it gives it back
        C: @t REQ q timeout=200ms :y
        C2: PULL q wait=1s
        S2: MSG q <h> reply=<t> $1
        S2: y
        S2: END 1
        S: ERR @t TIMEOUT :…
        C2: REP <t> :late
        S2: ERR STALE :…
        C2: NACK <h> delay=0
        S2: OK 1
        C2: PULL q
        S2: END 0
        # two seconds if nothing is said
        -- mark
        C: REQ q :z
        S: ERR TIMEOUT :…
        -- at least 2s
        -- at most 6s
        ",
    );
}

#[test]
fn an_untagged_request_holds_later_commands() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        C: REQ q timeout=1m :x
        C: PING :after
        C: PUB other :1
        -- 50ms
        C2: QLS other
        S2: DATA $0
        S2:
        C2: PULL q
        S2: MSG q <h> reply=<t> $1
        S2: x
        S2: END 1
        C2: REP <t> :y
        S2: OK
        S: MSG q - $1
        S: y
        S: END 1
        S: PONG :after
        S: OK 1 mem
        ",
    );
}

#[test]
fn cancel_ends_a_request() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        C: @t REQ q timeout=1m :x
        C: @t PING
        S: ERR @t CONFLICT :…
        C: @t SUB q
        S: ERR @t CONFLICT :…
        C: CANCEL @t
        S: ERR @t TIMEOUT :…
        S: OK 1
        C: CANCEL @t
        S: OK 0
        C2: PULL q
        S2: MSG q <h> reply=<t> $1
        S2: x
        S2: END 1
        C2: REP <t> :y
        S2: ERR STALE :…
        ",
    );
}

#[test]
fn an_untagged_request_beside_an_untagged_subscription_is_refused() {
    memory(
        r"
        C: SUB q
        S: OK
        C: REQ q :x
        S: ERR CONFLICT :…
        C: @1 REQ q timeout=1m :x
        S: MSG q <h> reply=<t> $1
        S: x
        C: REP <t> :y
        S: MSG @1 q - $1
        S: y
        S: END @1 1
        S: OK
        ",
    );
}

#[test]
fn a_reply_address_of_a_publish_is_passed_through() {
    memory(
        r"
        C: PUB q reply=to%20me :x
        S: OK 1 mem
        C: PULL q
        S: MSG q <h> reply=to%20me $1
        S: x
        S: END 1
        C: REP to%20me :y
        S: ERR STALE :…
        # so a request can be handed on
        C: SUB q
        S: OK
        C2: REQ q timeout=1m :deep
        S: MSG q <i> reply=<t> $4
        S: deep
        C: PUB helpers reply=<t> :deeper
        S: OK 1 mem
        C3: PULL helpers
        S3: MSG helpers <j> reply=<t> $6
        S3: deeper
        S3: END 1
        C3: REP <t> :found
        S3: OK
        S2: MSG q - $5
        S2: found
        S2: END 1
        ",
    );
}

#[test]
fn what_is_no_request_or_answer_is_refused() {
    memory(
        r"
        C: REQ
        S: ERR SYNTAX :REQ needs a queue…
        C: REQ q
        S: ERR SYNTAX :the body is missing: type REQ q :hello…
        C: REQ q hello you
        S: ERR SYNTAX :the body starts with a colon, as in REQ q :hello you
        C: REQ q *1
        C: PING :inside
        S: ERR SYNTAX :…
        C: REQ! q :x
        S: ERR SYNTAX :REQ is never quiet…
        C: REQ q timeout=0 :x
        S: ERR SYNTAX :…
        C: REQ q timeout=-1 :x
        S: ERR SYNTAX :…
        C: REQ q timeout=1s timeout=2s :x
        S: ERR SYNTAX :…
        C: REQ q reply=me :x
        S: ERR UNKNOWN :REQ has no option reply=; it takes timeout= pri= key= h.…
        C: REQ q ttl=1s :x
        S: ERR UNKNOWN :…
        C: REQ q.* :x
        S: ERR NAME :…
        C: REP
        S: ERR SYNTAX :REP needs the reply= of a request…
        C: REP token
        S: ERR SYNTAX :the body is missing: type REP token :hello…
        C: REP token hello
        S: ERR SYNTAX :the body starts with a colon, as in REP token :hello
        C: REP token x=1 :y
        S: ERR UNKNOWN :REP takes no options such as x=
        C: REP to%ken :y
        S: ERR SYNTAX :…
        C: REP 0123456789abcdef0123456789abcdef :y
        S: ERR STALE :…
        C: @x REP - $2
        C: ab
        S: ERR @x STALE :…
        C: REP! - :y
        S: ERR STALE :…
        C: REP - *1
        C: PING :inside
        S: ERR SYNTAX :…
        ",
    );
}

#[test]
fn a_queue_that_takes_nothing_refuses_a_request() {
    memory(
        r"
        C: SUB other
        S: OK
        C2: PULL q
        S2: END 0
        C: QSET q pause=in
        S: OK updated
        C: @1 REQ q :x
        S: ERR @1 PAUSED retry=… :…
        C: QSET q pause=none maxlen=1
        S: OK updated
        C: @2 REQ q timeout=1m :x
        C: @3 REQ q timeout=1m :x
        S: ERR @3 FULL retry=… :…
        C: PUB q :x
        S: ERR FULL retry=… :…
        ",
    );
}

#[test]
fn what_is_sent_before_a_half_close_is_answered() {
    memory(
        r"
        C2: PULL q
        S2: END 0
        C: @1 REQ q timeout=1m :x
        C: REQ q timeout=100ms :y
        C: PING
        C: (half-close)
        S: ERR TIMEOUT :…
        S: PONG
        C2: PULL q
        S2: MSG q <h> reply=<t> $1
        S2: x
        S2: END 1
        C2: REP <t> :z
        S2: OK
        S: MSG @1 q - $1
        S: z
        S: END @1 1
        S: (closes)
        ",
    );
}

#[test]
fn a_requester_that_goes_leaves_nobody_to_answer() {
    memory(
        r"
        C2: SUB q
        S2: OK
        C3: @1 REQ q timeout=1m :x
        S2: MSG q <i> reply=<u> $1
        S2: x
        C3: QUIT
        S3: OK bye
        S3: ERR @1 TIMEOUT :…
        S3: (closes)
        C2: REP <u> :y
        S2: ERR STALE :…
        ",
    );
}

#[test]
fn requests_in_a_logged_queue_keep_their_place_and_end_with_the_run() {
    disk(
        r"
        C2: PULL q
        S2: END 0
        C: PUB q :one
        S: OK 1 disk
        C: @r REQ q timeout=1m :two
        C: PUB q :three
        S: OK 3 disk
        C: @s REQ q timeout=1m :four
        C2: PULL q 9
        S2: MSG q <a> $3
        S2: one
        S2: MSG q <b> reply=<t> $3
        S2: two
        S2: MSG q <c> $5
        S2: three
        S2: MSG q <d> reply=<u> $4
        S2: four
        S2: END 4
        C2: ACK <a> <b>
        S2: OK 2
        C2: NACK <d> delay=0
        S2: OK 1
        C2: PULL q
        S2: MSG q <e> try=2 reply=<u> $4
        S2: four
        S2: END 1
        C2: PEEK q 9 state=leased
        S2: MSG q - id=3 $5
        S2: three
        S2: MSG q - id=4 try=2 reply=<u> $4
        S2: four
        S2: END 2
        -- kill
        C: PULL q 9
        S: MSG q <f> $5
        S: three
        S: END 1
        C: PUB q :five
        S: OK … disk
        -- restart
        C: PULL q wait=10s
        S: MSG q <f2> try=2 $5
        S: three
        S: END 1
        C: PULL q wait=10s
        S: MSG q <g> $4
        S: five
        S: END 1
        C: QLS
        S: DATA $…
        S: q ready=0 leased=2 delayed=0 dead=0
        S:
        ",
    );
}

#[test]
fn requests_are_deleted_purged_and_moved_but_never_become_dead_letters() {
    disk(
        r"
        C2: PULL q
        S2: END 0
        C: @a REQ q timeout=1m :a
        C: @b REQ q timeout=1m :b
        C: @c REQ q timeout=1m :c
        C: @d REQ q timeout=1m :d
        -- 50ms
        C2: DEL q 2
        S2: OK 1
        C2: PULL q
        S2: MSG q <h> reply=<t> $1
        S2: a
        S2: END 1
        C2: NACK <h> dead=1
        S2: OK 1
        C2: QLS #
        S2: DATA $…
        S2: q ready=2 leased=0 delayed=0 dead=0
        S2:
        C2: MOVE q r 1
        S2: OK 1
        C2: PURGE q
        S2: OK 1
        C2: PULL r
        S2: MSG r <i> reply=<u> $1
        S2: c
        S2: END 1
        C2: REP <u> :z
        S2: OK
        S: MSG @c q - $1
        S: z
        S: END @c 1
        C2: QDEL r
        S2: OK
        C2: QDEL q
        S2: OK
        S: ERR @a NOCONSUMER :…
        S: ERR @b NOCONSUMER :…
        S: ERR @d NOCONSUMER :…
        ",
    );
}

#[test]
fn a_shutdown_answers_who_waits() {
    let dir = TempDir::new("request");
    let mut broker = Launch::data(&dir.data()).start();
    let mut consumer = Client::connect(broker.address);
    assert_eq!(consumer.ask("PULL q"), "END 0");
    let mut requester = Client::connect(broker.address);
    requester
        .send(b"@1 REQ q timeout=1h :x\nREQ q timeout=1h :y\n")
        .expect("it is read");
    while !consumer.ask("PULL q").starts_with("MSG") {}
    broker.terminate();
    let said: BTreeSet<String> = (0..2)
        .map(|_| requester.line().expect("each is answered"))
        .map(|line| line.split(" :").next().unwrap_or_default().to_owned())
        .collect();
    let want = ["ERR @1 DRAINING retry=100", "ERR DRAINING retry=100"];
    assert_eq!(said, want.map(str::to_owned).into());
}

#[test]
fn a_requester_whose_connection_breaks_leaves_nobody_to_answer() {
    let broker = Launch::memory().start();
    let mut consumer = Client::connect(broker.address);
    assert_eq!(consumer.ask("PULL q"), "END 0");
    let mut requester = Client::connect(broker.address);
    requester
        .send(b"@1 REQ q timeout=1h :x\nREQ q timeout=1h :y\n")
        .expect("it is read");
    let mut pulled = Vec::new();
    let mut tokens = Vec::new();
    while tokens.len() < 2 {
        consumer.send(b"PULL q wait=10s\n").expect("it is read");
        let head = consumer.line().expect("it is answered");
        let token = head.split(' ').find_map(|word| word.strip_prefix("reply="));
        tokens.push(token.expect("a request has a token").to_owned());
        pulled.push(consumer.counted(&head).expect("a body"));
        assert_eq!(consumer.line().expect("it is answered"), "END 1");
    }
    assert_eq!(pulled, [b"x", b"y"]);
    requester.reset();
    let gone = |consumer: &mut Client| consumer.data("STATS").contains("\nrequests=0\n");
    crate::support::eventually(
        "the requests go",
        std::time::Duration::from_secs(10),
        || gone(&mut consumer),
    );
    for token in tokens {
        let answer = consumer.ask(&format!("REP {token} :late"));
        assert!(answer.starts_with("ERR STALE "), "{answer}");
    }
}

/// Ten thousand requests of four connections are under way at once, answered by three consumers in
/// an order of their own; each answer reaches the one who asked.
#[test]
fn ten_thousand_requests_at_once_are_told_apart() {
    const EACH: usize = 2_500;
    let dir = TempDir::new("request");
    let broker = Launch::data(&dir.data()).start();
    let address = broker.address;
    let mut watch = Client::connect(address);
    assert_eq!(watch.ask("QSET q"), "OK created");
    let mut consumers: Vec<Client> = (0..3).map(|_| Client::connect(address)).collect();
    for consumer in &mut consumers {
        assert_eq!(consumer.ask("PULL q"), "END 0");
    }
    let requesters: Vec<_> = (0..4)
        .map(|who| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                let asked: String = (0..EACH)
                    .map(|nth| format!("@{nth} REQ q timeout=2m :{who}/{nth}\n"))
                    .collect();
                client.send(asked.as_bytes()).expect("it is read");
                let mut answers = BTreeMap::new();
                while answers.len() < EACH {
                    let head = client.line().expect("it is answered");
                    let tag = head.strip_prefix("MSG @").expect("a message");
                    let tag = tag.split(' ').next().expect("a tag").to_owned();
                    let body = client.counted(&head).expect("a body");
                    let body = String::from_utf8(body).expect("it is text");
                    assert_eq!(client.line().expect("an end"), format!("END @{tag} 1"));
                    assert_eq!(answers.insert(tag.clone(), body), None, "{tag} twice");
                }
                for (tag, body) in answers {
                    assert_eq!(body, format!("answer to {who}/{tag}"));
                }
            })
        })
        .collect();
    // All of them are under way before the first is answered.
    while !watch
        .data("STATS")
        .contains(&format!("\nrequests={}\n", 4 * EACH))
    {}
    let answering: Vec<_> = consumers
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                loop {
                    client.send(b"PULL q 700 ack=auto\n").expect("it is read");
                    let mut asked = Vec::new();
                    loop {
                        let head = client.line().expect("it is answered");
                        if head.starts_with("END") {
                            break;
                        }
                        let token = head.split(' ').find_map(|word| word.strip_prefix("reply="));
                        let token = token.expect("a request has a token").to_owned();
                        let body = client.counted(&head).expect("a body");
                        asked.push((token, String::from_utf8(body).expect("it is text")));
                    }
                    if asked.is_empty() {
                        return;
                    }
                    asked.sort();
                    let replies: String = asked
                        .iter()
                        .map(|(token, body)| format!("REP {token} :answer to {body}\n"))
                        .collect();
                    client.send(replies.as_bytes()).expect("it is read");
                    for _ in &asked {
                        assert_eq!(client.line().expect("it is answered"), "OK");
                    }
                }
            })
        })
        .collect();
    for thread in requesters.into_iter().chain(answering) {
        thread.join().expect("nothing went wrong");
    }
    assert!(watch.data("STATS").contains("\nrequests=0\n"));
}
