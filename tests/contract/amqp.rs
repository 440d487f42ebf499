//! AMQP 0-9-1 against the real binary: connections, queues, messages, consumers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::amqp::*;
use crate::support::{Broker, Launch, TempDir};
use ringmq::broker::headers;
use ringmq::protocol::amqp::PREAMBLE;
use ringmq::protocol::amqp::frame::Kind;
use ringmq::protocol::amqp::method::id;
use ringmq::protocol::amqp::table;

launches!();

fn memory() -> Broker {
    launch().start()
}

/// Says lines to the line protocol and reads as many answers as are asked for.
fn text(broker: &Broker, said: &str, lines: usize) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    let mut stream = TcpStream::connect(broker.address).expect("the broker listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("it is longer than 0");
    stream.write_all(said.as_bytes()).expect("the broker reads");
    let mut reader = BufReader::new(stream);
    (0..lines)
        .map(|_| {
            let mut line = String::new();
            reader.read_line(&mut line).expect("the broker answers");
            line.trim_end().to_owned()
        })
        .collect()
}

#[test]
fn another_version_is_told_which_one_is_spoken() {
    let broker = memory();
    let mut stream = TcpStream::connect(broker.address).expect("the broker listens");
    stream
        .write_all(b"AMQP\0\x01\0\0")
        .expect("the broker reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the broker answers");
    assert_eq!(answer, PREAMBLE);
}

#[test]
fn a_session_is_the_same_at_every_cut_of_its_bytes() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("q", 0, b"");
    client.select_confirms();
    let message = published("", "q", 0, &[0x10, 0, 2], b"body");
    for cut in 0..=message.len() {
        client.send_bytes(&message[..cut]);
        if cut > 0 && cut < message.len() {
            sleep(Duration::from_millis(2));
        }
        client.send_bytes(&message[cut..]);
        assert_eq!(client.confirm(), (cut as u64 + 1, false), "cut at {cut}");
    }
    assert_eq!(client.ready("q"), message.len() as u32 + 1);
    while let Some((got, _)) = client.get("q", NO_ACK) {
        assert_eq!(got.body(), "body");
        assert_eq!(got.content.properties, [0x10, 0, 2]);
    }
}

#[test]
fn a_consumer_with_a_prefetch_of_one_never_holds_a_second() {
    let dir = TempDir::new("amqp");
    let broker = launch_at(&dir).start();
    let mut producer = Client::open(broker.address);
    producer.declare("task_queue", DURABLE, b"");
    producer.select_confirms();
    let (mut slow, mut quick) = (Client::open(broker.address), Client::open(broker.address));
    for client in [&mut slow, &mut quick] {
        client.prefetch(1, 0);
        client.consume("task_queue", "", 0);
    }
    for nth in 0..10 {
        producer.publish_safely("", "task_queue", &nth.to_string());
    }
    let held = slow.delivered();
    let mut seen = vec![held.body().to_owned()];
    for _ in 0..9 {
        let got = quick.delivered();
        seen.push(got.body().to_owned());
        quick.ack(got.tag, false);
    }
    slow.assert_silent();
    seen.sort();
    assert_eq!(seen.join(""), "0123456789");
    // The slow one goes without a word: the other gets what it held.
    drop(slow);
    let got = quick.delivered();
    assert_eq!((got.body(), got.redelivered), (held.body(), true));
    quick.ack(got.tag, false);
    quick.assert_silent();
    assert_eq!(producer.ready("task_queue"), 0);
}

#[test]
fn what_was_confirmed_or_stood_before_an_answer_survives_a_kill() {
    let dir = TempDir::new("amqp");
    let launch = launch_at(&dir);
    let mut broker = launch.start();
    let mut client = Client::open(broker.address);
    let mut arguments = numbers(&[("x-max-priority", 5)]);
    arguments.extend(texts(&[("x-dead-letter-exchange", "graves")]));
    client.declare("kept", DURABLE, &arguments);
    client.declare("gone", 0, b"");
    client.declare("mine", DURABLE | EXCLUSIVE, b"");
    client.declare("grave", DURABLE, b"");
    client.exchange("graves", "fanout", DURABLE, b"");
    client.exchange("passing", "direct", 0, b"");
    client.bind("grave", "graves", "");
    client.bind("kept", "amq.topic", "a.#");
    client.bind("gone", "amq.topic", "a.#");
    client.select_confirms();
    client.publish_safely("amq.topic", "a.b", "confirmed");
    client.open_channel(2);
    for nth in 0..100 {
        client.publish("", "kept", &nth.to_string());
    }
    // Whoever reads this answer knows that what it sent before is safe.
    client.send(1, id::CHANNEL_CLOSE, |frame| {
        frame.short(200).shortstr(b"").long(0)
    });
    while client.next().expect("it is answered").id != id::CHANNEL_CLOSE_OK {}
    broker.process.kill_running();
    broker = launch.start();

    let mut client = Client::open(broker.address);
    for name in ["gone", "mine"] {
        client.send_declare(name, PASSIVE, b"");
        assert_eq!(client.expect_close(1).0, 404);
    }
    client.send_exchange("passing", "direct", PASSIVE, b"");
    assert_eq!(client.expect_close(1).0, 404);
    assert_eq!(client.declare("kept", DURABLE, &arguments).1, 101);
    client.send_declare("kept", DURABLE, b"");
    assert_eq!(client.expect_close(1).0, 406);
    let (first, left) = client.get("kept", 0).expect("it is kept");
    assert_eq!((first.body(), left), ("confirmed", 100));
    assert_eq!((&*first.exchange, &*first.key), ("amq.topic", "a.b"));
    client.reject(first.tag, false);
    client.consume("grave", "", 0);
    assert_eq!(client.delivered().body(), "confirmed");
    client.publish("amq.topic", "a", "routed");
    assert_eq!(client.ready("kept"), 101);
}

#[test]
fn every_property_comes_back_octet_by_octet_and_other_doors_see_headers() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("q", 0, b"");
    let mut inner = Vec::new();
    table::put_bool(&mut inner, b"in", true);
    let mut headers = texts(&[("color", "red")]);
    table::put_number(&mut headers, b"count", 7);
    table::put_inner(&mut headers, b"table", b'F', &inner);
    headers.extend_from_slice(b"\x01dD\x02\0\0\0\x05\x01vV\x01xx\0\0\0\x02\0\xff");
    let mut properties = vec![0xff, 0xfc, 4];
    properties.extend_from_slice(b"a/bc\x04gzip");
    properties.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    properties.extend_from_slice(&headers);
    properties.extend_from_slice(b"\x02\x03\x02id\x02re\x0560000\x01m\0\0\0\0\0\0\0\x09\x01t");
    properties.extend_from_slice(b"\x05guest\x03app\x01c");
    for _ in 0..2 {
        client.publish_with("", "q", 0, &properties, b"whole");
    }
    let (got, _) = client.get("q", NO_ACK).expect("it was published");
    assert_eq!(got.content.properties, properties);
    let lines = text(&broker, "PULL q ack=auto\n", 2);
    assert!(lines[0].contains("h.color=red h.count=7"), "{lines:?}");
    assert!(lines[0].contains("reply=re "), "{lines:?}");
    assert_eq!(lines[1], "whole");
    // And the other way.
    text(&broker, "PUB q h.x=1 reply=answers :text\n", 1);
    let (got, _) = client.get("q", 0).expect("it was published");
    assert_eq!((got.body(), &*got.key), ("text", "q"));
    let value = got.content.headers();
    assert_eq!(
        headers::find(&value, b"x"),
        Some(headers::Value::Text(b"1"))
    );
    client.reject(got.tag, true);
    let (again, _) = client.get("q", 0).expect("it went back");
    assert!(again.redelivered);
    let count = headers::find(&again.content.headers(), b"x-delivery-count")
        .and_then(|value| value.as_unsigned());
    assert_eq!(count, Some(1));
    client.reject(again.tag, true);
    assert!(text(&broker, "PULL q wait=20s\n", 1)[0].contains("try=3"));
}

#[test]
fn topics_of_the_line_protocol_are_the_exchange_of_topics() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("q", 0, b"");
    client.bind("q", "amq.topic", "news.*");
    assert_eq!(
        text(&broker, "BIND news.# archive\nCAST news.eu :cast\n", 2),
        ["OK", "OK 2 mem"]
    );
    client.publish("amq.topic", "news.us", "published");
    for queue in ["q", "archive"] {
        for want in ["cast", "published"] {
            let (got, _) = client.get(queue, NO_ACK).expect("both took it");
            assert_eq!(got.body(), want, "{queue}");
        }
    }
}

#[test]
fn confirms_wait_for_the_disk_and_are_for_many_at_once() {
    let dir = TempDir::new("amqp");
    let broker = launch_at(&dir).start();
    let mut client = Client::open(broker.address);
    client.declare("q", DURABLE, b"");
    client.select_confirms();
    let mut bytes = Vec::new();
    for _ in 0..5000 {
        bytes.extend(published("", "q", 0, &[0x10, 0, 2], &[7; 100]));
    }
    client.send_bytes(&bytes);
    let (mut confirmed, mut frames) = (0, 0);
    while confirmed < 5000 {
        let (tag, multiple) = client.confirm();
        assert!(tag == confirmed + 1 || (multiple && tag > confirmed));
        confirmed = tag;
        frames += 1;
    }
    assert!(frames < 2500, "{frames} confirms for 5000 messages");
    assert_eq!(client.ready("q"), 5000);
}

#[test]
fn a_full_queue_refuses_what_is_confirmed_and_holds_up_what_is_not() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    let mut arguments = numbers(&[("x-max-length", 2)]);
    arguments.extend(texts(&[("x-overflow", "reject-publish")]));
    client.declare("q", 0, &arguments);
    for body in ["1", "2", "3"] {
        client.publish("", "q", body);
    }
    client.expect(0, id::CONNECTION_BLOCKED);
    let mut other = Client::open(broker.address);
    other.select_confirms();
    other.publish("", "q", "4");
    let refused = other.expect(1, id::BASIC_NACK).arguments;
    assert_eq!(refused, [0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(other.get("q", NO_ACK).expect("it is full").0.body(), "1");
    client.expect(0, id::CONNECTION_UNBLOCKED);
    for want in ["2", "3"] {
        assert_eq!(other.get("q", NO_ACK).expect("it waits").0.body(), want);
    }
    // Without the argument the oldest makes room.
    other.declare("drops", 0, &numbers(&[("x-max-length", 2)]));
    for (nth, body) in ["1", "2", "3"].into_iter().enumerate() {
        other.publish("", "drops", body);
        assert_eq!(other.confirm().0, nth as u64 + 2);
    }
    assert_eq!(other.get("drops", NO_ACK).expect("it waits").0.body(), "2");
}

#[test]
fn dead_letters_take_the_declared_route_for_every_reason() {
    let dir = TempDir::new("amqp");
    let broker = launch_at(&dir).start();
    let mut client = Client::open(broker.address);
    client.exchange("graves", "topic", DURABLE, b"");
    client.declare("one", DURABLE, b"");
    client.declare("two", 0, b"");
    client.bind("one", "graves", "#");
    client.bind("two", "graves", "#");
    let route = |more: &[(&str, u64)]| {
        let mut arguments = texts(&[("x-dead-letter-exchange", "graves")]);
        arguments.extend(numbers(more));
        arguments
    };
    client.declare("rejected", DURABLE, &route(&[]));
    client.declare("expired", DURABLE, &route(&[("x-message-ttl", 30)]));
    client.declare("maxlen", DURABLE, &route(&[("x-max-length", 1)]));
    client.declare(
        "delivery_limit",
        DURABLE,
        &route(&[("x-delivery-limit", 1)]),
    );
    for queue in ["rejected", "expired", "maxlen", "delivery_limit"] {
        client.publish("", queue, queue);
    }
    client.publish("", "maxlen", "newer");
    let (got, _) = client.get("rejected", 0).expect("it is there");
    client.reject(got.tag, false);
    for _ in 0..2 {
        let (got, _) = client.get("delivery_limit", 0).expect("it is there");
        client.reject(got.tag, true);
    }
    assert!(client.get("delivery_limit", 0).is_none());
    let began = Instant::now();
    while client.ready("one").min(client.ready("two")) < 4 {
        assert!(began.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(10));
    }
    for grave in ["one", "two"] {
        let mut seen = Vec::new();
        while let Some((got, _)) = client.get(grave, NO_ACK) {
            let headers = got.content.headers();
            let text = |name: &[u8]| match headers::find(&headers, name) {
                Some(headers::Value::Text(text)) => String::from_utf8_lossy(text).into_owned(),
                other => panic!("{other:?}"),
            };
            assert_eq!((&*got.exchange, &*got.key), ("graves", got.body()));
            assert_eq!(text(b"x-first-death-queue"), got.body());
            assert_eq!(text(b"x-first-death-reason"), got.body());
            assert!(table::find(&headers, b"x-death").is_some());
            seen.push(got.body().to_owned());
        }
        seen.sort();
        assert_eq!(seen, ["delivery_limit", "expired", "maxlen", "rejected"]);
    }
    // A circle without a consumer ends.
    let mut circle = texts(&[
        ("x-dead-letter-exchange", ""),
        ("x-dead-letter-routing-key", "circle"),
    ]);
    circle.extend(numbers(&[("x-message-ttl", 10)]));
    client.declare("circle", 0, &circle);
    client.publish("", "circle", "round");
    sleep(Duration::from_millis(100));
    assert_eq!(client.ready("circle"), 0);
}

#[test]
fn a_dead_letter_has_the_priority_of_its_new_queue_after_a_restart_too() {
    let dir = TempDir::new("amqp");
    let launch = launch_at(&dir);
    let mut broker = launch.start();
    let mut client = Client::open(broker.address);
    let graves = ["one", "two", "three"];
    client.declare(
        "q",
        DURABLE,
        &texts(&[("x-dead-letter-exchange", "amq.fanout")]),
    );
    for grave in graves {
        client.declare(grave, DURABLE, &numbers(&[("x-max-priority", 5)]));
        client.bind(grave, "amq.fanout", "");
        client.publish("", grave, "earlier");
        assert_eq!(client.ready(grave), 1);
        let answers = text(&broker, &format!("QSET {grave} pri=5\n"), 1);
        assert_eq!(answers, ["OK updated"]);
    }
    client.publish("", "q", "dead");
    let (got, _) = client.get("q", 0).expect("it is there");
    client.reject(got.tag, false);
    let began = Instant::now();
    for grave in graves {
        while client.ready(grave) < 2 {
            assert!(began.elapsed() < Duration::from_secs(20));
            sleep(Duration::from_millis(10));
        }
    }
    broker.process.kill_running();
    broker = launch.start();
    let mut client = Client::open(broker.address);
    for grave in graves {
        let (first, left) = client.get(grave, 0).expect("it is kept");
        assert_eq!((first.body(), left), ("dead", 1), "{grave}");
    }
    broker.terminate();
}

#[test]
fn a_transaction_of_the_line_protocol_buries_by_the_route_too() {
    let dir = TempDir::new("amqp");
    let broker = launch_at(&dir).start();
    let mut client = Client::open(broker.address);
    for grave in ["one", "two", "three"] {
        client.declare(grave, DURABLE, b"");
        client.bind(grave, "amq.fanout", "");
    }
    let route = texts(&[("x-dead-letter-exchange", "amq.fanout")]);
    client.declare("q", DURABLE, &route);
    client.publish("", "q", "dies");
    client.publish("", "q", "lives");
    assert_eq!(client.ready("q"), 2);
    use std::io::{BufRead, BufReader};
    let stream = TcpStream::connect(broker.address).expect("the broker listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("it is longer than 0");
    let mut said = stream.try_clone().expect("a socket can be shared");
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    said.write_all(b"PULL q\n").expect("the broker reads");
    let first = lines.next().expect("a message comes");
    let handle = first.split(' ').nth(2).expect("it has a handle").to_owned();
    said.write_all(format!("BEGIN\nNACK {handle} dead=1\nPUB one :beside\nCOMMIT\n").as_bytes())
        .expect("the broker reads");
    let answers: Vec<String> = lines.by_ref().skip(2).take(4).collect();
    assert_eq!(answers[0], "OK", "{answers:?}");
    assert!(answers[3].starts_with("OK"), "{answers:?}");
    let began = Instant::now();
    let wanted = [("one", 2), ("two", 1), ("three", 1), ("q", 1)];
    while wanted
        .iter()
        .any(|(queue, count)| client.ready(queue) != *count)
    {
        assert!(began.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(10));
    }
    let (dead, _) = client.get("two", NO_ACK).expect("it died");
    assert_eq!(dead.body(), "dies");
    assert!(table::find(&dead.content.headers(), b"x-death").is_some());
}

#[test]
fn a_message_that_nobody_wants_comes_back_if_it_must_be_wanted() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.select_confirms();
    client.exchange("second", "direct", 0, b"");
    client.exchange(
        "first",
        "headers",
        0,
        &texts(&[("alternate-exchange", "second")]),
    );
    client.publish_with("first", "k", 1, &[0x10, 0, 1], b"lost");
    let said = client.expect(1, id::BASIC_RETURN);
    assert_eq!(said.arguments[..2], 312u16.to_be_bytes());
    let content = said.content.expect("it comes with it");
    assert_eq!(
        (&content.properties[..], &content.body[..]),
        (&[0x10, 0, 1][..], &b"lost"[..])
    );
    assert_eq!(client.confirm().0, 1);
    client.declare("q", 0, b"");
    client.bind("q", "second", "k");
    client.publish_with("first", "k", 1, &[0, 0], b"found");
    assert_eq!(client.confirm().0, 2);
    assert_eq!(
        client.get("q", NO_ACK).expect("it was routed").0.body(),
        "found"
    );
    // A large one comes back whole.
    let large = vec![b'x'; 300_000];
    client.publish_with("first", "none", 1, &[0, 0], &large);
    let said = client.expect(1, id::BASIC_RETURN);
    assert_eq!(said.content.expect("it comes with it").body, large);
    client.confirm();
}

#[test]
fn copies_go_where_the_headers_say() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    for queue in ["to", "copy", "secret"] {
        client.declare(queue, 0, b"");
    }
    let (mut cc, mut bcc, mut headers) = (Vec::new(), Vec::new(), texts(&[("own", "1")]));
    table::put_text_value(&mut cc, b"copy");
    table::put_text_value(&mut bcc, b"secret");
    table::put_text_value(&mut bcc, b"to");
    table::put_inner(&mut headers, b"CC", b'A', &cc);
    table::put_inner(&mut headers, b"BCC", b'A', &bcc);
    let mut properties = vec![0x20, 0];
    properties.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    properties.extend_from_slice(&headers);
    client.publish_with("", "to", 0, &properties, b"letter");
    for queue in ["to", "copy", "secret"] {
        let (got, left) = client.get(queue, NO_ACK).expect("each has one");
        assert_eq!((got.body(), &*got.key, left), ("letter", "to", 0));
        let seen = got.content.headers();
        assert!(table::find(&seen, b"CC").is_some() && table::find(&seen, b"BCC").is_none());
    }
    // What a queue can never hold makes room for itself.
    client.select_confirms();
    client.declare("none", 0, &numbers(&[("x-max-length", 0)]));
    client.publish_safely("", "none", "gone");
    assert_eq!(client.ready("none"), 0);
}

#[test]
fn no_octets_bring_the_broker_down() {
    let mut broker = memory();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut session = Vec::new();
    session.extend(published(
        "",
        "q",
        1,
        &[0x20, 0, 0, 0, 0, 3, 1, b'a', b'V'],
        b"body",
    ));
    for (id, fill) in [
        (id::QUEUE_DECLARE, &b"\0\0\x01q\0\0\0\0\0"[..]),
        (id::BASIC_CONSUME, b"\0\0\x01q\0\0\0\0\0\0"),
        (id::QUEUE_BIND, b"\0\0\x01q\x09amq.topic\x01#\0\0\0\0\0"),
        (id::BASIC_NACK, b"\0\0\0\0\0\0\0\x01\x03"),
        (id::BASIC_GET, b"\0\0\x01q\0"),
        (id::CONFIRM_SELECT, b"\0"),
    ] {
        let mut frame = vec![1, 0, 1];
        frame.extend_from_slice(&(fill.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(&id.0.to_be_bytes());
        frame.extend_from_slice(&id.1.to_be_bytes());
        frame.extend_from_slice(fill);
        frame.push(0xce);
        session.extend(frame);
    }
    session.extend(published("amq.topic", "k", 0, &[0x10, 0, 2], &[9; 40]));
    for _ in 0..300 {
        let mut bytes = session.clone();
        for _ in 0..1 + random() % 4 {
            let at = random() as usize % bytes.len();
            match random() % 3 {
                0 => bytes[at] = random() as u8,
                1 => bytes[at] ^= 1 << (random() % 8),
                _ => _ = bytes.remove(at),
            }
        }
        let mut client = Client::open(broker.address);
        client.send_bytes(&bytes);
        // It may wait for more, or have closed the connection.
        drop(client);
    }
    assert!(broker.process.ended().is_none(), "it still runs");
    let mut client = Client::open(broker.address);
    client.declare("well", 0, b"");
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    let broker = memory();
    let mut owner = Client::open(broker.address);
    owner.declare("mine", EXCLUSIVE, b"");
    owner.declare("q", 0, b"");
    let internal = 8;
    owner.exchange("inner", "direct", internal, b"");
    let mut client = Client::open(broker.address);
    let mut check = |code: u16, act: &dyn Fn(&mut Client)| {
        act(&mut client);
        let (got, why) = client.expect_close(1);
        assert_eq!(got, code, "{why}");
    };
    check(404, &|it| it.send_declare("none", PASSIVE, b""));
    check(405, &|it| it.send_declare("mine", EXCLUSIVE, b""));
    check(405, &|it| it.send_consume("mine", "", 0, b""));
    check(406, &|it| it.send_declare("q", AUTO_DELETE, b""));
    check(406, &|it| {
        it.send_declare("new", 0, &numbers(&[("x-expires", 0)]))
    });
    check(403, &|it| it.send_declare("amq.mine", 0, b""));
    check(403, &|it| it.send_exchange("", "direct", 0, b""));
    check(403, &|it| it.send_exchange("amq.mine", "direct", 0, b""));
    check(406, &|it| {
        it.send_exchange("amq.topic", "direct", DURABLE, b"")
    });
    check(404, &|it| it.publish("none", "k", "body"));
    check(403, &|it| it.publish("inner", "k", "body"));
    check(404, &|it| it.binding(id::QUEUE_BIND, "q", "none", "", b""));
    check(404, &|it| {
        it.binding(id::QUEUE_BIND, "none", "amq.topic", "", b"")
    });
    check(403, &|it| it.binding(id::QUEUE_BIND, "q", "", "", b""));
    check(404, &|it| it.send_consume("none", "", 0, b""));
    check(406, &|it| it.ack(9, false));
    check(406, &|it| it.ack(9, true));
    check(406, &|it| it.reject(1, true));
    check(406, &|it| {
        it.publish_with("", "q", 0, &[1, 0, 2, b'1', b'x'], b"expiration");
    });
    check(406, &|it| {
        it.publish_with("", "q", 0, &[0, 0x10, 1, b'x'], b"user")
    });
    check(406, &|it| {
        it.send(1, id::TX_COMMIT, |frame| frame);
    });
    // Larger than what is taken: what comes of it is read past.
    check(406, &|it| it.publish("", "q", &"x".repeat((1 << 20) + 1)));
    check(404, &|it| {
        it.send(1, id::QUEUE_PURGE, |frame| {
            frame.short(0).shortstr(b"none").octet(0)
        })
    });
    // These close the connection.
    let check = |code: u16, act: &dyn Fn(&mut Client)| {
        let mut client = Client::open(broker.address);
        act(&mut client);
        let (got, why) = client.expect_close(0);
        assert_eq!(got, code, "{why}");
        assert_eq!(client.next(), None);
    };
    check(504, &|it| {
        it.send(9, id::BASIC_QOS, |frame| frame.long(0).short(0).octet(0))
    });
    check(504, &|it| {
        it.send(1, id::CHANNEL_OPEN, |frame| frame.shortstr(b""))
    });
    // Beyond what was agreed on.
    for number in [2048, u16::MAX] {
        check(504, &|it| {
            it.send(number, id::CHANNEL_OPEN, |frame| frame.shortstr(b""))
        });
    }
    check(503, &|it| {
        it.send(0, id::CONNECTION_OPEN, |frame| {
            frame.shortstr(b"/").shortstr(b"").octet(0)
        })
    });
    check(501, &|it| it.send_bytes(b"\x07\0\0"));
    check(501, &|it| it.send_bytes(&[3, 0, 1, 0xff, 0xff, 0xff, 0xff]));
    check(501, &|it| it.send_bytes(&[8, 0, 0, 0, 0, 0, 0, 0xcd]));
    check(502, &|it| it.send(1, id::BASIC_QOS, |frame| frame.long(0)));
    check(505, &|it| it.send_bytes(&[3, 0, 1, 0, 0, 0, 1, b'x', 0xce]));
    check(505, &|it| {
        let whole = published("", "q", 0, &[0, 0], b"body");
        let method = 7 + u32::from_be_bytes(whole[3..7].try_into().expect("4 octets")) as usize + 1;
        it.send_bytes(&whole[..method]);
        it.send(1, id::BASIC_QOS, |frame| frame.long(0).short(0).octet(0));
    });
    check(540, &|it| {
        it.publish_with("", "q", 2, &[0, 0], b"immediate")
    });
    check(540, &|it| {
        it.send(1, id::BASIC_QOS, |frame| frame.long(9).short(0).octet(0))
    });
    check(540, &|it| {
        it.send(1, id::BASIC_RECOVER, |frame| frame.octet(0))
    });
    check(540, &|it| {
        it.send(1, id::CHANNEL_FLOW, |frame| frame.octet(0))
    });
    check(540, &|it| it.send(1, (60, 60), |frame| frame));
    check(540, &|it| {
        it.send_declare("s", DURABLE, &texts(&[("x-queue-type", "stream")]))
    });
    check(540, &|it| {
        it.send_consume("q", "", 0, &numbers(&[("x-stream-offset", 1)]))
    });
    check(540, &|it| {
        it.send_exchange("later", "x-delayed-message", 0, b"")
    });
    check(530, &|it| {
        it.consume("q", "same", 0);
        it.send_consume("q", "same", 0, b"");
    });
    let mut client = Client::bare(broker.address);
    client.send_bytes(PREAMBLE);
    client.expect(0, id::CONNECTION_START);
    client.send(0, id::CONNECTION_START_OK, |frame| {
        frame
            .longstr(b"")
            .shortstr(b"PLAIN")
            .longstr(b"\0a\0b")
            .shortstr(b"en_US")
    });
    client.expect(0, id::CONNECTION_TUNE);
    client.send(0, id::CONNECTION_TUNE_OK, |frame| {
        frame.short(0).long(0).short(0)
    });
    client.send(0, id::CONNECTION_OPEN, |frame| {
        frame.shortstr(b"other").shortstr(b"").octet(0)
    });
    assert_eq!(client.expect_close(0).0, 530);
}

#[test]
fn queues_go_with_their_consumers_their_connection_or_their_time() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    let mut other = Client::open(broker.address);
    let is_there = |client: &mut Client, queue: &str| {
        client.send_declare(queue, PASSIVE, b"");
        match client.next().expect("it is answered") {
            said if said.id == id::QUEUE_DECLARE_OK => true,
            said => {
                assert_eq!(said.id, id::CHANNEL_CLOSE);
                client.send(1, id::CHANNEL_CLOSE_OK, |frame| frame);
                client.open_channel(1);
                false
            }
        }
    };
    client.declare("auto", AUTO_DELETE, b"");
    client.consume("auto", "c", 0);
    assert!(is_there(&mut other, "auto"));
    client.call(
        1,
        id::BASIC_CANCEL,
        |frame| frame.shortstr(b"c").octet(0),
        id::BASIC_CANCEL_OK,
    );
    assert!(!is_there(&mut other, "auto"));
    client.declare("brief", 0, &numbers(&[("x-expires", 100)]));
    let (named, ..) = client.declare("", EXCLUSIVE, b"");
    assert!(named.starts_with("amq.gen-"));
    client.declare("mine", EXCLUSIVE, b"");
    // A consumer is told that its queue goes.
    other.declare("shared", 0, b"");
    other.consume("shared", "told", 0);
    client.delete("shared", 0);
    let said = other.expect(1, id::BASIC_CANCEL);
    assert_eq!(said.arguments, b"\x04told\x01");
    other.declare("shared", 0, b"");
    other.consume("shared", "told", 0);
    assert_eq!(text(&broker, "QDEL shared\n", 1), ["OK"]);
    other.expect(1, id::BASIC_CANCEL);
    drop(client);
    let began = Instant::now();
    while ["mine", "brief"]
        .iter()
        .any(|queue| is_there(&mut other, queue))
    {
        assert!(began.elapsed() < Duration::from_secs(20));
        sleep(Duration::from_millis(150));
    }
    // Deleted only as it is said.
    other.declare("full", 0, b"");
    other.publish("", "full", "1");
    other.send_delete("full", 2);
    assert_eq!(other.expect_close(1).0, 406);
    other.consume("full", "", 0);
    other.delivered();
    other.send_delete("full", 1);
    assert_eq!(other.expect_close(1).0, 406);
    assert_eq!(other.delete("full", 0), 1);
    assert_eq!(other.delete("full", 0), 0);
}

#[test]
fn a_prefetch_of_the_channel_is_shared_by_its_consumers() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("a", 0, b"");
    client.declare("b", 0, b"");
    for nth in 0..3 {
        client.publish("", "a", &format!("a{nth}"));
        client.publish("", "b", &format!("b{nth}"));
    }
    client.prefetch(2, 1);
    client.consume("a", "ca", 0);
    let first = client.delivered();
    client.delivered();
    client.consume("b", "cb", 0);
    client.assert_silent();
    client.ack(first.tag, false);
    let third = client.delivered();
    client.assert_silent();
    client.ack(third.tag, true);
    client.delivered();
    client.delivered();
    client.assert_silent();
    client.send(1, id::BASIC_RECOVER, |frame| frame.octet(1));
    client.expect(1, id::BASIC_RECOVER_OK);
    assert!(client.delivered().redelivered);
    assert!(client.delivered().redelivered);
    client.assert_silent();
}

#[test]
fn priorities_are_within_what_was_declared() {
    let broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("pri", 0, &numbers(&[("x-max-priority", 5)]));
    client.declare("flat", 0, b"");
    for queue in ["pri", "flat"] {
        for (body, pri) in [("a", 1), ("b", 9), ("c", 5), ("d", 3)] {
            client.publish_with("", queue, 0, &[8, 0, pri], body.as_bytes());
        }
    }
    let mut order = |queue: &str| {
        let mut order = String::new();
        while let Some((got, _)) = client.get(queue, NO_ACK) {
            order += got.body();
        }
        order
    };
    assert_eq!(order("pri"), "bcda");
    assert_eq!(order("flat"), "abcd");
}

#[test]
fn a_transaction_is_done_at_its_commit_or_not_at_all() {
    let dir = TempDir::new("amqp");
    let broker = launch_at(&dir).start();
    let mut client = Client::open(broker.address);
    let mut other = Client::open(broker.address);
    client.declare("in", DURABLE, b"");
    client.declare("out", DURABLE, b"");
    client.publish("", "in", "work");
    let (got, _) = client.get("in", 0).expect("it is there");
    client.call(1, id::TX_SELECT, |frame| frame, id::TX_SELECT_OK);
    for _ in 0..2 {
        client.publish("", "out", "result");
        client.ack(got.tag, false);
        client.call(1, id::TX_ROLLBACK, |frame| frame, id::TX_ROLLBACK_OK);
        assert_eq!(other.ready("out"), 0);
    }
    client.publish("", "out", "result");
    client.publish("", "in", "next");
    client.ack(got.tag, false);
    assert_eq!((other.ready("out"), other.ready("in")), (0, 0));
    client.call(1, id::TX_COMMIT, |frame| frame, id::TX_COMMIT_OK);
    assert_eq!((other.ready("out"), other.ready("in")), (1, 1));
    drop(client);
    sleep(Duration::from_millis(50));
    assert_eq!(
        other.get("in", NO_ACK).expect("it is there").0.body(),
        "next"
    );
    assert!(other.get("in", NO_ACK).is_none());
}

#[test]
fn answers_go_straight_to_who_has_asked() {
    let broker = memory();
    let mut asker = Client::open(broker.address);
    let mut worker = Client::open(broker.address);
    worker.declare("rpc", 0, b"");
    worker.consume("rpc", "", NO_ACK);
    let mut properties = vec![2, 0];
    properties.extend_from_slice(b"\x15amq.rabbitmq.reply-to");
    asker.publish_with("", "rpc", 0, &properties, b"too early");
    assert_eq!(asker.expect_close(1).0, 406);
    asker.consume("amq.rabbitmq.reply-to", "answers", NO_ACK);
    asker.publish_with("", "rpc", 0, &properties, b"question");
    let asked = worker.delivered();
    let length = usize::from(asked.content.properties[2]);
    let address = String::from_utf8(asked.content.properties[3..3 + length].to_vec())
        .expect("an address is text");
    assert!(address.starts_with("amq.rabbitmq.reply-to."));
    worker.publish_with("", &address, 1, &[0, 0], b"answer");
    let answer = asker.delivered();
    assert_eq!((answer.body(), &*answer.consumer), ("answer", "answers"));
    assert_eq!(worker.declare(&address, PASSIVE, b"").0, address);
    drop(asker);
    sleep(Duration::from_millis(50));
    worker.publish_with("", &address, 1, &[0, 0], b"too late");
    worker.expect(1, id::BASIC_RETURN);
}

#[test]
fn definitions_stand_in_checkpoints() {
    let dir = TempDir::new("amqp");
    let launch = launch_at(&dir).arg("--checkpoint 1M --segment 1M");
    let mut broker = launch.start();
    let mut client = Client::open(broker.address);
    client.exchange("inner", "headers", DURABLE, b"");
    let alternate = texts(&[("alternate-exchange", "inner")]);
    client.exchange("outer", "topic", DURABLE | 4, &alternate);
    let arguments = numbers(&[("x-message-ttl", 3_600_000), ("x-max-priority", 3)]);
    client.declare("kept", DURABLE | AUTO_DELETE, &arguments);
    client.declare("filler", DURABLE, &numbers(&[("x-max-length", 4)]));
    client.bind("kept", "outer", "a.*");
    client.binding(id::EXCHANGE_BIND, "inner", "outer", "b.#", b"");
    client.expect(1, id::EXCHANGE_BIND_OK);
    let wanted = texts(&[("x-match", "any"), ("color", "red")]);
    client.binding(id::QUEUE_BIND, "kept", "inner", "", &wanted);
    client.expect(1, id::QUEUE_BIND_OK);
    client.select_confirms();
    // So much that the log is compacted to checkpoints, and what was defined stands in no segment.
    for _ in 0..200 {
        client.publish_with("", "filler", 0, &[0, 0], &[7; 50_000]);
    }
    while client.confirm().0 < 200 {}
    for _ in 0..2 {
        broker.process.kill_running();
        broker = launch.start();
    }
    let mut client = Client::open(broker.address);
    client.exchange("outer", "topic", DURABLE | 4, &alternate);
    client.declare("kept", DURABLE | AUTO_DELETE, &arguments);
    let mut red = vec![0x20, 0];
    let headers = texts(&[("color", "red")]);
    red.extend_from_slice(&(headers.len() as u32).to_be_bytes());
    red.extend_from_slice(&headers);
    client.publish_with("outer", "a.b", 0, &[0, 0], b"by its key");
    client.publish_with("outer", "b.c", 0, &red, b"by its headers");
    client.publish_with("outer", "other", 0, &red, b"by the alternate");
    client.publish_with("outer", "b.c", 0, &[0, 0], b"nobody wants it");
    assert_eq!(client.ready("kept"), 3);
}

#[test]
fn one_consumer_is_active_at_a_time_where_that_was_declared() {
    let broker = memory();
    let mut first = Client::open(broker.address);
    let mut second = Client::open(broker.address);
    let mut single = Vec::new();
    table::put_bool(&mut single, b"x-single-active-consumer", true);
    first.declare("q", 0, &single);
    first.consume("q", "one", 0);
    second.consume("q", "two", 0);
    for nth in 0..4 {
        second.publish("", "q", &nth.to_string());
    }
    let tags: Vec<u64> = (0..4).map(|_| first.delivered().tag).collect();
    second.assert_silent();
    first.ack(tags[1], true);
    first.assert_silent();
    drop(first);
    let rest: Vec<String> = (0..2)
        .map(|_| second.delivered().body().to_owned())
        .collect();
    assert_eq!(rest, ["2", "3"]);
}

#[test]
fn who_stands_by_gets_nothing_either() {
    let broker = memory();
    let mut first = Client::open(broker.address);
    let mut second = Client::open(broker.address);
    let mut single = Vec::new();
    table::put_bool(&mut single, b"x-single-active-consumer", true);
    first.declare("q", 0, &single);
    first.prefetch(1, 0);
    first.consume("q", "one", 0);
    second.publish("", "q", "0");
    second.publish("", "q", "1");
    assert_eq!(first.delivered().body(), "0");
    assert_eq!(second.get("q", 0), None);
    assert_eq!(second.ready("q"), 1);
    drop(first);
    second.consume("q", "two", 0);
    assert_eq!(second.delivered().body(), "0");
}

#[test]
fn what_is_begun_on_many_channels_is_bounded() {
    let broker = launch().arg("--max-body 1M --max-batch-bytes 2M").start();
    let mut client = Client::open(broker.address);
    client.declare("q", 0, b"");
    let size = 200_000;
    let whole = published("", "q", 0, &[0, 0], &vec![5; size]);
    // The second frame of the body is left out.
    let begun = &whole[..whole.len() - (size - (128 * 1024 - 8)) - 8];
    for channel in 2..19u16 {
        client.open_channel(channel);
    }
    for channel in 2..19u16 {
        let mut bytes = begun.to_vec();
        let mut at = 0;
        while at < bytes.len() {
            let size = u32::from_be_bytes(bytes[at + 3..at + 7].try_into().expect("4 octets"));
            bytes[at + 1..at + 3].copy_from_slice(&channel.to_be_bytes());
            at += size as usize + 8;
        }
        client.send_bytes(&bytes);
        if channel == 10 {
            // So many are fine.
            client.assert_silent();
        }
    }
    assert_eq!(client.expect_close(0).0, 506);
}

#[test]
fn both_sides_give_signs_of_life() {
    let broker = memory();
    let mut silent = Client::open_with(broker.address, 1, &capabilities());
    let began = Instant::now();
    let mut beats = 0;
    while let Some((kind, ..)) = silent.any_frame() {
        assert_eq!(kind, Kind::Heartbeat);
        beats += 1;
    }
    // It was dropped, since it gave none itself.
    assert!(began.elapsed() >= Duration::from_millis(1500));
    assert!((2..=5).contains(&beats), "{beats}");
}

#[test]
fn what_was_taken_before_the_end_is_confirmed() {
    let dir = TempDir::new("amqp");
    let launch = launch_at(&dir);
    let queues = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let published: Vec<u8> = (0..6000)
        .flat_map(|nth| published("", queues[nth % queues.len()], 0, &[0, 0], b"body"))
        .collect();
    let (mut sent, mut confirmed) = (0, 0);
    for round in 0..6 {
        let mut broker = launch.start();
        let mut client = Client::open(broker.address);
        for queue in queues {
            client.declare(queue, DURABLE, b"");
        }
        client.select_confirms();
        client.send_bytes(&published);
        sent += 6000;
        sleep(Duration::from_millis(round));
        broker.process.signal(libc::SIGTERM);
        let mut last = 0;
        loop {
            let said = client.next().expect("the end is told");
            if said.id == id::CONNECTION_CLOSE {
                assert_eq!(said.arguments[..2], 320u16.to_be_bytes());
                break;
            }
            let tag: [u8; 8] = said.arguments[..8].try_into().expect("a tag");
            assert_eq!(said.id, id::BASIC_ACK);
            last = u64::from_be_bytes(tag);
        }
        confirmed += last;
        let status = broker.process.wait(Duration::from_secs(10));
        assert_eq!(status.expect("it ends").code(), Some(0));
    }
    let broker = launch.start();
    let mut client = Client::open(broker.address);
    let stored: u64 = queues
        .map(|queue| u64::from(client.ready(queue)))
        .iter()
        .sum();
    assert!(confirmed > 0 && confirmed <= sent);
    assert_eq!(stored, confirmed, "of {sent}");
}

#[test]
fn the_end_of_the_broker_is_told() {
    let mut broker = memory();
    let mut client = Client::open(broker.address);
    client.declare("q", 0, b"");
    client.consume("q", "c", 0);
    broker.terminate();
    let said = client.next().expect("it is told");
    assert!(matches!(said.id, id::BASIC_CANCEL | id::CONNECTION_CLOSE));
    let closed = match said.id {
        id::CONNECTION_CLOSE => said,
        _ => client.expect(0, id::CONNECTION_CLOSE),
    };
    assert_eq!(closed.arguments[..2], 320u16.to_be_bytes());
    assert_eq!(client.next(), None);
}

#[test]
fn what_one_channel_does_to_many_queues_is_what_it_does_to_one() {
    let dir = TempDir::new("amqp-many");
    let broker = launch_at(&dir).start();
    let mut first = Client::open(broker.address);
    first.exchange("news", "fanout", DURABLE, b"");
    let queues: Vec<String> = (0..8).map(|nth| format!("many-{nth}")).collect();
    for queue in &queues {
        first.declare(queue, DURABLE, b"");
        first.bind(queue, "news", "");
    }
    // Whatever shard a connection is at.
    for round in 0..6 {
        let mut client = Client::open(broker.address);
        client.send(1, id::TX_SELECT, |frame| frame);
        client.expect(1, id::TX_SELECT_OK);
        for way in ["rolled back", "committed"] {
            for queue in &queues {
                client.publish("", queue, &format!("{round} {way}"));
            }
            client.publish("news", "", &format!("{round} {way} news"));
            for queue in &queues {
                assert_eq!(client.ready(queue), 0, "{queue}, {round}");
            }
            let (said, answer) = match way {
                "committed" => (id::TX_COMMIT, id::TX_COMMIT_OK),
                _ => (id::TX_ROLLBACK, id::TX_ROLLBACK_OK),
            };
            client.send(1, said, |frame| frame);
            client.expect(1, answer);
        }
        // Tags of one channel are in one order, whatever queues the messages are of.
        let mut held = Vec::new();
        for queue in &queues {
            for body in ["committed", "committed news"] {
                let (got, _) = client.get(queue, 0).expect("it was committed");
                assert_eq!(got.body(), format!("{round} {body}"), "{queue}");
                held.push(got.tag);
            }
            assert_eq!(client.get(queue, 0), None, "{queue}");
        }
        assert_eq!(held, (1..=16).collect::<Vec<u64>>());
        client.ack(9, true);
        client.send(1, id::TX_ROLLBACK, |frame| frame);
        client.expect(1, id::TX_ROLLBACK_OK);
        client.ack(9, true);
        client.send(1, id::TX_COMMIT, |frame| frame);
        client.expect(1, id::TX_COMMIT_OK);
        client.open_channel(2);
        client.send(1, id::CHANNEL_CLOSE, |frame| {
            frame.short(200).shortstr(b"").long(0)
        });
        client.expect(1, id::CHANNEL_CLOSE_OK);
        for (nth, queue) in queues.iter().enumerate() {
            // The first nine were acked: four queues, and the first message of the fifth.
            let left = match nth {
                0..4 => 0,
                4 => 1,
                _ => 2,
            };
            assert_eq!(first.ready(queue), left, "{queue}, {round}");
            for _ in 0..left {
                let (got, _) = first.get(queue, 1).expect("it is ready");
                assert!(got.redelivered);
            }
        }
    }
}
