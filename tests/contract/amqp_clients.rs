//! AMQP 0-9-1 against the real binary: what programs written for RabbitMQ rely on without saying so.

use std::time::{Duration, Instant};

use super::amqp::{are_several, launch, launch_at};
use crate::support::amqp::*;
use crate::support::{Broker, TempDir, eventually};
use ringmq::protocol::amqp::method::id;
use ringmq::protocol::amqp::table;

#[test]
fn an_answer_behind_a_reject_tells_that_the_dead_letter_is_there() {
    let dir = TempDir::new("amqp-clients");
    let broker = launch_at(&dir).start();
    let mut client = Client::open(broker.address);
    for target in ["dead", "copy"] {
        client.declare(target, DURABLE, b"");
        client.bind(target, "amq.fanout", "");
    }
    let to = texts(&[("x-dead-letter-exchange", "amq.fanout")]);
    client.declare("dies", DURABLE, &to);
    for nth in 0..20 {
        client.publish("", "dies", &nth.to_string());
        let (got, _) = client.get("dies", 0).expect("it was published before");
        client.reject(got.tag, false);
        // The disk has both copies before this is answered.
        for target in ["dead", "copy"] {
            let (dead, _) = client.get(target, NO_ACK).expect("it was rejected before");
            assert_eq!(dead.body(), nth.to_string());
        }
    }
}

/// A connection with a consumer of that priority, which may have so many messages at a time.
fn consumer(broker: &Broker, queue: &str, priority: &[u8], prefetch: u16) -> Client {
    let mut client = Client::open(broker.address);
    client.prefetch(prefetch, 0);
    client.send_consume(queue, "", 0, priority);
    client.expect(1, id::BASIC_CONSUME_OK);
    client
}

/// The argument `x-priority` as a signed 32-bit number.
fn priority(value: i32) -> Vec<u8> {
    [b"\x0ax-priorityI", &value.to_be_bytes()[..]].concat()
}

#[test]
fn a_consumer_of_a_higher_priority_is_served_as_long_as_it_may_have_more() {
    let broker = launch().start();
    let mut producer = Client::open(broker.address);
    producer.declare("q", 0, b"");
    // Lined up in another order than they are served in.
    let mut plain = consumer(&broker, "q", b"", 2);
    let mut low = consumer(&broker, "q", &priority(-5), 2);
    let mut high = consumer(&broker, "q", &priority(10), 2);
    let mut also_high = consumer(&broker, "q", &priority(10), 2);
    producer.select_confirms();
    let mut publish = |count: usize| {
        for nth in 0..count {
            producer.publish_safely("", "q", &nth.to_string());
        }
    };
    // One after another, each to whoever stands first.
    publish(4);
    let tags = [high.delivered().tag, high.delivered().tag];
    also_high.delivered();
    also_high.delivered();
    for client in [&mut high, &mut also_high, &mut plain, &mut low] {
        client.assert_silent();
    }
    publish(3);
    plain.delivered();
    plain.delivered();
    low.delivered();
    plain.assert_silent();
    // Who has room again is first again, before the low one that waits.
    high.ack(tags[0], false);
    high.assert_silent();
    publish(1);
    high.delivered();
    low.assert_silent();
    publish(1);
    low.delivered();
    // All at once is the same.
    publish(3);
    high.ack(0, true);
    for _ in 0..2 {
        high.delivered();
    }
    high.ack(0, true);
    high.delivered();
    // What is no number is refused.
    let mut client = Client::open(broker.address);
    client.send_consume("q", "", 0, &texts(&[("x-priority", "10")]));
    assert_eq!(client.expect_close(1).0, 406);
}

#[test]
fn what_a_full_queue_refuses_can_go_to_its_dead_letter_exchange() {
    let dir = TempDir::new("amqp-clients");
    for broker in [launch().start(), launch_at(&dir).start()] {
        let mut client = Client::open(broker.address);
        for queue in ["dead", "open"] {
            client.declare(queue, DURABLE, b"");
        }
        let mut arguments = numbers(&[("x-max-length", 2)]);
        arguments.extend(texts(&[
            ("x-overflow", "reject-publish-dlx"),
            ("x-dead-letter-exchange", ""),
            ("x-dead-letter-routing-key", "dead"),
        ]));
        client.declare("full", DURABLE, &arguments);
        // It does not hold up who does not ask for confirms.
        for body in ["1", "2", "3"] {
            client.publish("", "full", body);
        }
        let (dead, _) = client.get("dead", NO_ACK).expect("it was refused");
        assert_eq!(dead.body(), "3");
        let told = dead.content.headers();
        let text = |name: &[u8]| table::find(&told, name).and_then(|it| table::inner(it, b'S'));
        assert_eq!(text(b"x-first-death-queue"), Some(&b"full"[..]));
        assert_eq!(text(b"x-first-death-reason"), Some(&b"maxlen"[..]));
        // Who asks is told, and the message is there all the same.
        client.select_confirms();
        client.publish("", "full", "4");
        client.expect(1, id::BASIC_NACK);
        assert_eq!(
            client.get("dead", NO_ACK).expect("it was refused").0.body(),
            "4"
        );
        // Of several queues the others have it too.
        for queue in ["full", "open"] {
            client.bind(queue, "amq.fanout", "");
        }
        client.publish("amq.fanout", "", "5");
        client.expect(1, id::BASIC_NACK);
        for queue in ["dead", "open"] {
            assert_eq!(
                client.get(queue, NO_ACK).expect("it is there").0.body(),
                "5"
            );
        }
        assert_eq!((client.ready("full"), client.ready("dead")), (2, 0));
        assert_eq!(client.get("full", NO_ACK).expect("it waits").0.body(), "1");
        client.publish("amq.fanout", "", "6");
        assert!(!client.confirm().1);
        assert_eq!((client.ready("full"), client.ready("open")), (2, 1));
    }
}

#[test]
fn a_queue_that_drops_its_oldest_and_may_drop_none_is_full() {
    let broker = launch().start();
    let mut other = broker.client();
    assert_eq!(other.ask("QSET q maxlen=1 full=dropold"), "OK created");
    assert_eq!(other.ask("PUB q :leased"), "OK 1 mem");
    let handle = other.pull("q lease=1h").expect("it waits").remove(0).handle;
    // Who asks is told.
    let mut asking = Client::open(broker.address);
    asking.select_confirms();
    asking.publish("", "q", "refused");
    asking.expect(1, id::BASIC_NACK);
    // Who does not, waits until there is room.
    let mut waiting = Client::open(broker.address);
    waiting.publish("", "q", "taken");
    waiting.expect(0, id::CONNECTION_BLOCKED);
    assert_eq!(other.ask(&format!("ACK {handle}")), "OK 1");
    waiting.expect(0, id::CONNECTION_UNBLOCKED);
    let (got, left) = waiting.get("q", NO_ACK).expect("it was taken");
    assert_eq!((got.body(), left), ("taken", 0));
    // What can never be held is dropped for itself, confirmed or not.
    assert_eq!(other.ask("QSET q maxlen=none maxbytes=3"), "OK updated");
    asking.publish_safely("", "q", "too large");
    waiting.publish("", "q", "too large");
    assert!(waiting.get("q", NO_ACK).is_none());
}

#[test]
fn a_publisher_that_has_gone_does_not_wait_for_a_full_queue_for_ever() {
    let broker = launch().arg("--stall-timeout 1s").start();
    let mut client = Client::open(broker.address);
    let mut arguments = numbers(&[("x-max-length", 1)]);
    arguments.extend(texts(&[("x-overflow", "reject-publish")]));
    client.declare("q", 0, &arguments);
    let gone = |bodies: &[&str]| {
        let mut gone = Client::open(broker.address);
        for body in bodies {
            gone.publish("", "q", body);
        }
        gone.expect(0, id::CONNECTION_BLOCKED);
        gone.half_close();
        gone
    };
    // Room within the time: everything is taken.
    let mut first = gone(&["1", "2", "3"]);
    for body in ["1", "2", "3"] {
        let mut got = None;
        eventually("a message", Duration::from_secs(10), || {
            got = client.get("q", NO_ACK);
            got.is_some()
        });
        assert_eq!(got.expect("it came").0.body(), body);
    }
    while let Some(said) = first.next() {
        assert!(matches!(
            said.id,
            id::CONNECTION_BLOCKED | id::CONNECTION_UNBLOCKED
        ));
    }
    // None: the connection ends, and says why to who still listens.
    let began = Instant::now();
    let mut second = gone(&["4", "5"]);
    let (code, _) = second.expect_close(0);
    assert_eq!(code, 506);
    assert!(second.next().is_none());
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );
    assert_eq!(client.get("q", NO_ACK).expect("it was taken").0.body(), "4");
    assert!(client.get("q", NO_ACK).is_none());
}

#[test]
fn a_consumer_that_does_not_read_is_not_sent_to_and_holds_nobody_up() {
    let broker = launch().start();
    let mut client = Client::open(broker.address);
    client.declare("large", 0, b"");
    client.declare("small", 0, b"");
    let mut slow = Client::open(broker.address);
    slow.consume("large", "slow", NO_ACK);
    client.select_confirms();
    let body = "x".repeat(100_000);
    for _ in 0..300 {
        client.publish_safely("", "large", &body);
    }
    let began = Instant::now();
    client.publish_safely("", "small", "at once");
    assert_eq!(
        client.get("small", NO_ACK).expect("it waits").0.body(),
        "at once"
    );
    assert!(began.elapsed() < Duration::from_secs(2));
    let unsent = broker.client().unsent_bytes_max();
    // On several shards as much again is on its way from the queue's to the connection's.
    let most = (if are_several() { 3 } else { 2 }) << 20;
    assert!(unsent < most, "{unsent} bytes");
    for _ in 0..300 {
        assert_eq!(slow.delivered().body().len(), body.len());
    }
}

#[test]
fn a_flood_of_declares_is_answered_one_by_one_and_holds_nobody_up() {
    const QUEUES: usize = 20_000;
    let broker = launch().start();
    let mut flood = Client::open(broker.address);
    let mut other = broker.client();
    for nth in 0..QUEUES {
        flood.send_declare(&format!("flood-{nth}"), EXCLUSIVE, b"");
    }
    let began = Instant::now();
    assert_eq!(other.ask("PUB jobs :hi"), "OK 1 mem");
    assert!(began.elapsed() < Duration::from_secs(5));
    for nth in 0..QUEUES {
        let said = flood.expect(1, id::QUEUE_DECLARE_OK);
        let name = format!("flood-{nth}");
        assert_eq!(said.arguments[1..=name.len()], *name.as_bytes());
    }
    drop(flood);
    eventually("the end of all of them", Duration::from_secs(20), || {
        let stats = other.data("STATS");
        stats.lines().any(|line| line == "queues=1")
    });
}
