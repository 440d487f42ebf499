//! The library's client against a real broker: what it is asked, what it hides, and that a broker
//! killed again and again under load neither loses nor doubles anything.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Broker, Launch, Random, TempDir, eventually, free_port};
use ringmq::client::{
    Client, Code, Error, Level, Message, Nack, Options, Publish, Pull, Reply, Settled, Subscribe,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

fn client(broker: &Broker) -> Client {
    Client::connect(&broker.address.to_string()).expect("the broker listens")
}

fn texts(messages: &[Message]) -> Vec<String> {
    let text = |message: &Message| message.text().into_owned();
    messages.iter().map(text).collect()
}

fn publish(client: &mut Client, queue: &str, body: &str) {
    client
        .publish(&Publish::new(queue, body))
        .expect("it is taken");
}

fn pull(client: &mut Client, queue: &str) -> Message {
    let pulled = client.pull(&Pull::new(queue).wait(LONG));
    pulled.expect("it answers").pop().expect("there is one")
}

#[test]
fn a_message_goes_there_and_back() {
    let dir = TempDir::new("client");
    let broker = Launch::data(&dir.data()).start();
    let mut client = client(&broker);
    let first = Publish::new("a queue", b"one\n\0two".to_vec())
        .key("user 7")
        .header("kind", "a b")
        .priority(3)
        .ttl(LONG)
        .reply_to("inbox");
    let receipt = client.publish(&first).expect("it is taken");
    assert_eq!((receipt.id, receipt.count), (1, 1));
    assert_eq!((receipt.level, receipt.is_duplicate), (Level::Disk, false));
    let batch = client.publish(&Publish::batch("a queue", ["x", "", "z\n"]));
    let batch = batch.expect("it is taken");
    assert_eq!((batch.id, batch.count), (2, 3));

    let pulled = client.pull(&Pull::new("a queue").count(10));
    let messages = pulled.expect("it answers");
    assert_eq!(texts(&messages), ["one\n\0two", "x", "", "z\n"]);
    let message = &messages[0];
    assert_eq!(message.source, "a%20queue");
    assert_eq!((message.id(), message.tries()), (Some(1), 1));
    assert_eq!(message.key(), Some(b"user 7".as_slice()));
    assert_eq!(message.header("kind"), Some(b"a b".as_slice()));
    assert_eq!(message.reply_to(), Some(b"inbox".as_slice()));
    assert!(message.published_ms() > Some(1_500_000_000_000));
    let touched = client.touch(message, Some(LONG)).expect("it answers");
    assert_eq!(touched, Settled::Confirmed);
    assert_eq!(client.ack(message).expect("it answers"), Settled::Confirmed);
    assert_eq!(client.ack(message).expect("it answers"), Settled::Stale);
    let nack = Nack::new().dead().why("no paper");
    let nacked = client.nack(&messages[1], &nack).expect("it answers");
    assert_eq!(nacked, Settled::Confirmed);
    for message in &messages[2..] {
        client.ack_nowait(message);
    }
    assert_eq!(client.flush().expect("it answers").confirmed, 2);
    let dead = pull(&mut client, "a queue.dead");
    assert_eq!(dead.header("dead-why"), Some(b"no paper".as_slice()));
    let left = client.pull(&Pull::new("a queue").wait(Duration::from_millis(50)));
    assert_eq!(left.expect("it answers"), []);
}

#[test]
fn refusals_have_their_code_and_their_time() {
    let broker = Launch::memory().start();
    let mut client = client(&broker);
    client.set("small", "maxlen=2").expect("it is taken");
    let refused = client.set("small", "maxlen=x").expect_err("no number");
    assert!(refused.to_string().contains("maxlen="), "{refused}");
    for body in ["a", "b", "c", "d"] {
        let sent = client.publish_nowait(&Publish::new("small", body));
        sent.expect("it is on its way");
    }
    let flushed = client.flush().expect("it answers");
    assert_eq!(flushed.confirmed, 2);
    assert_eq!(flushed.refused.len(), 2);
    assert_eq!(flushed.refused[0].1.code, Code::Full);
    let refused = client.publish(&Publish::new("small", "e"));
    let refused = refused.expect_err("it is full");
    assert!(refused.retry() > Some(Duration::ZERO), "{refused}");
    // A refusal that waited for is not told again.
    assert_eq!(client.flush().expect("it answers").refused, []);

    let gone = client.ask("QGET nowhere").expect_err("no such queue");
    let code = gone.refusal().map(|refusal| refusal.code.clone());
    assert_eq!(code, Some(Code::NoQueue));
    assert!(matches!(client.ask("PING :x"), Ok(Reply::Other(pong)) if pong == "PONG :x"));
    let told = client.ask("QGET small").expect("it answers");
    assert!(matches!(told, Reply::Data(data) if data.starts_with(b"ready=2\n")));
    for line in [
        "PUB q $5",
        "PULL q",
        "begin",
        "@1 PING",
        "PUB! q :x",
        "PING\nPING",
        "",
        "MPUB q *2",
    ] {
        let refused = client.ask(line);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{line:?}");
    }
    let large = client.publish(&Publish::new("small", vec![0; (1 << 20) + 1]));
    assert!(matches!(large, Err(Error::Invalid(_))), "{large:?}");
    let receive = client.receive(Duration::ZERO);
    assert!(matches!(receive, Err(Error::Invalid(_))), "no subscription");
}

#[test]
fn a_patient_publisher_waits_until_there_is_room() {
    let broker = Launch::memory().start();
    let addr = broker.address.to_string();
    let options = Options::new(&addr).window(50).patience(LONG);
    let mut patient = options.connect().expect("the broker listens");
    patient.set("small", "maxlen=20").expect("it is taken");
    let consumer = thread::spawn(move || {
        let mut client = Client::connect(&addr).expect("the broker listens");
        let mut seen = Vec::new();
        while seen.len() < 300 {
            let pulled = client.pull(&Pull::new("small").count(7).wait(LONG));
            for message in pulled.expect("it answers") {
                seen.push(message.text().parse::<u64>().expect("a number"));
                client.ack(&message).expect("it answers");
            }
        }
        seen
    });
    for number in 0..300 {
        let sent = patient.publish_nowait(&Publish::new("small", number.to_string()));
        sent.expect("it is on its way");
    }
    let flushed = patient.flush().expect("it answers");
    assert_eq!((flushed.confirmed, flushed.refused.len()), (300, 0));
    let mut seen = consumer.join().expect("it sees all");
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..300));
}

#[test]
fn a_subscription_beside_pulls_has_its_own_messages() {
    let broker = Launch::memory().start();
    let mut client = client(&broker);
    client
        .subscribe(&Subscribe::new("pushed").credit(2))
        .expect("it is taken");
    assert_eq!(client.receive(Duration::ZERO).expect("it answers"), None);
    for number in 0..5 {
        publish(&mut client, "pushed", &number.to_string());
        publish(&mut client, "pulled", &number.to_string());
    }
    for number in 0..5 {
        let pushed = client.receive(LONG).expect("it answers").expect("it comes");
        assert_eq!(
            (pushed.source.as_str(), pushed.text()),
            ("pushed", number.to_string().into())
        );
        let pulled = pull(&mut client, "pulled");
        assert_eq!(pulled.text(), number.to_string());
        client.ack_nowait(&pulled);
        client.ack_nowait(&pushed);
    }
    let start = Instant::now();
    let none = client.receive(Duration::from_millis(100));
    assert_eq!(none.expect("it answers"), None);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn questions_have_one_answer_or_a_reason_why_not() {
    let broker = Launch::memory().start();
    let mut client = client(&broker);
    let code = |error: Error| error.refusal().map(|refusal| refusal.code.clone());
    let second = Duration::from_secs(1);
    publish(&mut client, "sums", "no question");
    let nobody = client.request("sums", "1+1", second).expect_err("nobody");
    assert_eq!(code(nobody), Some(Code::NoConsumer));

    let mut service = Client::connect(&broker.address.to_string()).expect("it listens");
    let plain = pull(&mut service, "sums");
    let refused = service.reply(&plain, "2").expect_err("it is no question");
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    service.ack(&plain).expect("it answers");
    let service = thread::spawn(move || {
        let question = pull(&mut service, "sums");
        service
            .reply(&question, question.body.repeat(2))
            .expect("it is waited for");
        let twice = service.reply(&question, "3").expect_err("once is enough");
        service.ack(&question).expect("it answers");
        let late = pull(&mut service, "sums");
        thread::sleep(Duration::from_millis(200));
        let late = service.reply(&late, "too late").expect_err("nobody waits");
        [twice, late]
    });
    let answer = client
        .request("sums", b"1\n \0%\n", second)
        .expect("it answers");
    assert_eq!(answer.body, b"1\n \0%\n1\n \0%\n");
    let late = client.request("sums", "1", Duration::from_millis(50));
    assert_eq!(code(late.expect_err("it is late")), Some(Code::Timeout));
    let stale = service.join().expect("it does not panic");
    assert_eq!(stale.map(code), [Some(Code::Stale), Some(Code::Stale)]);
    let large = client.request("sums", vec![0; (1 << 20) + 1], second);
    assert!(matches!(large, Err(Error::Invalid(_))), "{large:?}");
}

#[test]
fn nobody_at_the_address_is_told_at_once_and_a_stranger_too() {
    let addr = format!("127.0.0.1:{}", free_port());
    let refused = Client::connect(&addr).expect_err("nobody listens");
    assert_eq!(refused.to_string(), format!("no broker answers at {addr}"));
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = stranger.local_addr().expect("it has one").to_string();
    thread::spawn(move || {
        let (mut stream, _) = stranger.accept().expect("somebody comes");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let refused = Client::connect(&addr).expect_err("no broker");
    assert!(matches!(refused, Error::Protocol(_)), "{refused}");
}

#[test]
fn a_broker_that_stays_away_is_an_error_and_what_it_missed_is_sent_later() {
    let dir = TempDir::new("away");
    let launch = Launch::data(&dir.data()).port(free_port());
    let mut broker = launch.start();
    let options = Options::new(&broker.address.to_string());
    let options = options.give_up_after(Duration::from_millis(200));
    let mut client = options.connect().expect("the broker listens");
    publish(&mut client, "jobs", "one");
    client
        .subscribe(&Subscribe::new("other"))
        .expect("it is taken");
    broker.process.kill();
    let start = Instant::now();
    let error = client.publish(&Publish::new("jobs", "two"));
    error.expect_err("nobody listens");
    let error = client.pull(&Pull::new("jobs"));
    error.expect_err("nobody listens");
    assert!(start.elapsed() < Duration::from_secs(10));
    let _broker = launch.start();
    assert_eq!(client.flush().expect("it is back").confirmed, 2);
    let pulled = client.pull(&Pull::new("jobs").count(9));
    assert_eq!(texts(&pulled.expect("it answers")), ["one", "two"]);
    publish(&mut client, "other", "three");
    let pushed = client.receive(LONG).expect("it answers");
    assert_eq!(pushed.expect("it was renewed").text(), "three");
}

/// A connection between a client and a broker that can be cut in either direction.
struct Between {
    addr: String,
    /// What the broker says stays here.
    deaf: Arc<AtomicBool>,
    /// Connections made, and the one to cut.
    current: Arc<std::sync::Mutex<Option<TcpStream>>>,
}

impl Between {
    fn new(broker: &Broker) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("it has one").to_string();
        let deaf = Arc::new(AtomicBool::new(false));
        let current = Arc::new(std::sync::Mutex::new(None));
        let (target, is_deaf, kept) = (broker.address, Arc::clone(&deaf), Arc::clone(&current));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(target).expect("the broker listens");
                let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
                *kept.lock().expect("nobody panics") = Some(copy(&client));
                is_deaf.store(false, Ordering::SeqCst);
                let (mut up, mut down) = (copy(&server), copy(&client));
                let from_client = copy(&client);
                thread::spawn(move || {
                    let _ = std::io::copy(&mut &from_client, &mut up);
                    let _ = up.shutdown(std::net::Shutdown::Both);
                });
                let is_deaf = Arc::clone(&is_deaf);
                thread::spawn(move || {
                    let mut lines = BufReader::new(server);
                    let mut line = Vec::new();
                    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
                        if !is_deaf.load(Ordering::SeqCst) && down.write_all(&line).is_err() {
                            break;
                        }
                        line.clear();
                    }
                    let _ = down.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Between {
            addr,
            deaf,
            current,
        }
    }

    fn cut(&self) {
        let current = self.current.lock().expect("nobody panics").take();
        let current = current.expect("there is a connection");
        let _ = current.shutdown(std::net::Shutdown::Both);
    }
}

#[test]
fn a_receipt_that_was_lost_is_no_second_message_and_a_lost_ack_no_second_delivery() {
    let broker = Launch::memory().start();
    let between = Between::new(&broker);
    let mut client = Client::connect(&between.addr).expect("it listens");
    publish(&mut client, "jobs", "one");
    // The broker takes these, and its receipts do not arrive.
    between.deaf.store(true, Ordering::SeqCst);
    for body in ["two", "three"] {
        let sent = client.publish_nowait(&Publish::new("jobs", body));
        sent.expect("it is on its way");
    }
    client.send();
    let ready = |ready: u64| {
        eventually("the broker has them", LONG, || {
            broker
                .client()
                .data("QGET jobs")
                .contains(&format!("ready={ready}\n"))
        });
    };
    ready(3);
    between.cut();
    let flushed = client.flush().expect("it is back");
    assert_eq!((flushed.confirmed, flushed.duplicates), (3, 2));
    let pulled = client.pull(&Pull::new("jobs").count(9));
    let mut messages = pulled.expect("it answers");
    assert_eq!(texts(&messages), ["one", "two", "three"]);

    // An ack before the cut, and one of a lease that ended with the connection.
    let three = messages.pop().expect("there are three");
    between.cut();
    ready(3);
    for message in &messages {
        client.ack(message).expect("it goes on");
    }
    let left = client
        .pull(&Pull::new("jobs").count(9))
        .expect("it answers");
    assert_eq!(texts(&left), ["three"], "what was acked is not shown again");
    assert_eq!(left[0].tries(), 2);
    assert_ne!(left[0].handle, three.handle);
    client.ack_nowait(&left[0]);
    let _ = client.flush().expect("it answers");
    let told = broker.client().data("QGET jobs");
    assert!(told.starts_with("ready=0\nleased=0\n"), "{told}");
}

#[test]
fn an_id_that_was_acked_in_a_queue_that_was_deleted_is_a_new_message() {
    let broker = Launch::memory().start();
    let mut client = client(&broker);
    for round in 0..3 {
        publish(&mut client, "jobs", &round.to_string());
        let message = pull(&mut client, "jobs");
        assert_eq!(message.text(), round.to_string());
        client.ack(&message).expect("it answers");
        // Times of publish are milliseconds.
        thread::sleep(Duration::from_millis(3));
        client.ask("QDEL jobs").expect("it is there");
    }
}

/// What a publisher and a consumer have done so far.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    published: AtomicU64,
    seen: AtomicU64,
}

#[test]
fn a_broker_killed_again_and_again_neither_loses_nor_doubles_anything() {
    let rounds = std::env::var("RINGMQ_CLIENT_ROUNDS")
        .map_or(15, |text| text.parse::<u64>().expect("a number of rounds"));
    let seed = Random::seed_from("RINGMQ_CLIENT_SEED");
    println!("RINGMQ_CLIENT_ROUNDS={rounds} RINGMQ_CLIENT_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = TempDir::new("client-kill");
    let launch = Launch::data(&dir.data())
        .arg("--segment 1M --checkpoint 1M")
        .port(free_port());
    let mut broker = launch.start();
    let addr = broker.address.to_string();
    let asked = broker.client().ask("QSET load maxdeliver=0 dedup=10m");
    assert_eq!(asked, "OK created");
    let progress = Arc::new(Progress::default());
    let publisher = thread::spawn({
        let (addr, progress) = (addr.clone(), Arc::clone(&progress));
        move || publish_until_told(&addr, &progress)
    });
    let consumer = thread::spawn({
        let progress = Arc::clone(&progress);
        move || consume_until_end(&addr, &progress)
    });
    for _ in 0..rounds {
        let marks = [&progress.published, &progress.seen].map(|mark| mark.load(Ordering::Relaxed));
        eventually("both get on", LONG, || {
            progress.published.load(Ordering::Relaxed) > marks[0] + 200
                && progress.seen.load(Ordering::Relaxed) > marks[1] + 200
        });
        thread::sleep(Duration::from_micros(random.below(5_000)));
        broker.process.kill_running();
        broker = launch.start();
    }
    progress.stop.store(true, Ordering::Relaxed);
    let (published, duplicates) = publisher.join().expect("it publishes");
    let (times, hidden) = consumer.join().expect("it consumes");
    println!("{published} published, {duplicates} resent in vain, {hidden} acks without effect");
    let lost = (0..published).filter(|number| !times.contains_key(number));
    assert_eq!(lost.collect::<Vec<_>>(), [] as [u64; 0], "lost");
    let twice = times.iter().filter(|(_, times)| **times != 1);
    assert_eq!(twice.collect::<Vec<_>>(), [], "more than once");
    assert_eq!(times.len() as u64, published);
    broker.terminate();
}

/// Numbers, many on the way, until it is told to stop, then `end`. How many, and how many of them the
/// broker had already when they were sent again.
fn publish_until_told(addr: &str, progress: &Progress) -> (u64, u64) {
    let mut client = Options::new(addr).window(64).connect().expect("it listens");
    let (mut count, mut duplicates) = (0, 0);
    while !progress.stop.load(Ordering::Relaxed) {
        for _ in 0..50 {
            let number = Publish::new("load", count.to_string());
            client.publish_nowait(&number).expect("it comes back");
            count += 1;
        }
        let flushed = client.flush().expect("it comes back");
        assert_eq!(flushed.refused, []);
        assert_eq!(flushed.confirmed, 50);
        duplicates += flushed.duplicates;
        progress.published.store(count, Ordering::Relaxed);
        // A backlog would only make the end longer.
        while count > progress.seen.load(Ordering::Relaxed) + 2000
            && !progress.stop.load(Ordering::Relaxed)
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
    publish(&mut client, "load", "end");
    (count, duplicates)
}

/// How often each number was seen, until `end` was and nothing more comes; and how many acks met an
/// ended lease or a broken connection.
fn consume_until_end(addr: &str, progress: &Progress) -> (BTreeMap<u64, u64>, u64) {
    let mut client = Client::connect(addr).expect("it listens");
    let subscribe = Subscribe::new("load").credit(100);
    client.subscribe(&subscribe).expect("it is taken");
    let mut times = BTreeMap::new();
    let (mut seen, mut without_effect, mut is_end) = (0, 0, false);
    loop {
        let wait = if is_end {
            Duration::from_millis(500)
        } else {
            LONG
        };
        let Some(message) = client.receive(wait).expect("it comes back") else {
            assert!(is_end, "nothing came for {wait:?}");
            let _ = client.flush().expect("it answers");
            let told = client.ask("QGET load").expect("it answers");
            let Reply::Data(told) = told else {
                panic!("{told:?}");
            };
            let told = String::from_utf8_lossy(&told).into_owned();
            assert!(told.starts_with("ready=0\nleased=0\n"), "{told}");
            return (times, without_effect);
        };
        match message.text().parse::<u64>() {
            Ok(number) => *times.entry(number).or_default() += 1,
            Err(_) => is_end = true,
        }
        seen += 1;
        progress.seen.store(seen, Ordering::Relaxed);
        // Both ways of settling.
        if seen % 8 == 0 {
            let settled = client.ack(&message).expect("it goes on");
            without_effect += u64::from(settled != Settled::Confirmed);
        } else {
            client.ack_nowait(&message);
        }
    }
}

#[test]
fn a_broker_that_drains_lets_a_consumer_finish_and_gets_the_rest_when_it_is_back() {
    let dir = TempDir::new("client-drain");
    let launch = Launch::data(&dir.data()).port(free_port());
    let mut broker = launch.start();
    let mut consumer = client(&broker);
    consumer
        .subscribe(&Subscribe::new("jobs").credit(1))
        .expect("it is taken");
    let mut publisher = client(&broker);
    publish(&mut publisher, "jobs", "one");
    publish(&mut publisher, "jobs", "two");
    let one = consumer.receive(LONG).expect("it comes").expect("in time");
    let drained = publisher.ask("DRAIN 20s").expect("it is taken");
    assert_eq!(drained, Reply::Ok(String::new()));
    let pulling = thread::spawn({
        let mut puller = client(&broker);
        move || pull(&mut puller, "others")
    });
    let waiting = consumer.receive(Duration::from_millis(200));
    assert_eq!(waiting.expect("the subscription has not failed"), None);
    let settled = consumer.ack(&one).expect("it answers");
    assert_eq!(settled, Settled::Confirmed, "its lease is still there");
    let status = broker.process.wait(LONG).expect("nothing is held");
    assert_eq!(status.code(), Some(0));
    let sender = thread::spawn(move || {
        publish(&mut publisher, "jobs", "three");
        publish(&mut publisher, "others", "four");
    });
    thread::sleep(Duration::from_millis(50));
    let _broker = launch.start();
    for body in ["two", "three"] {
        let message = consumer.receive(LONG).expect("it comes").expect("in time");
        assert_eq!(message.text(), body);
        consumer.ack(&message).expect("it answers");
    }
    sender.join().expect("both are taken");
    let four = pulling.join().expect("the pull has waited");
    assert_eq!(four.text(), "four");
}

#[test]
fn live_copies_come_and_what_a_slow_reader_misses_is_counted() {
    let broker = Launch::memory().arg("--max-send 16K").start();
    let mut reader = client(&broker);
    reader
        .subscribe(&Subscribe::live("news.*.a b"))
        .expect("it is taken");
    reader
        .subscribe(&Subscribe::live("news.#"))
        .expect("it is taken");
    let mut caster = client(&broker);
    let cast = caster.ask("CAST news.eu.a%20b h.by=ann :one");
    assert_eq!(cast.expect("it is taken"), Reply::Ok("1 mem".to_owned()));
    let one = reader.receive(LONG).expect("it comes").expect("in time");
    assert_eq!(
        (&*one.source, &*one.text(), one.handle.as_deref()),
        ("news.eu.a%20b", "one", None)
    );
    assert_eq!(one.header("by"), Some(b"ann".as_slice()));
    assert!(one.published_ms() > Some(1_500_000_000_000));
    // Far more than the broker and the system keep for one who does not read.
    let text = "x".repeat(10_000);
    let mut given = 0;
    let mut count = 0;
    while given == count {
        count += 1;
        assert!(count < 10_000, "somebody keeps all of it");
        let cast = caster.ask(&format!("CAST news.us :{count} {text}"));
        given += u64::from(cast.expect("it is taken") == Reply::Ok("1 mem".to_owned()));
    }
    // The LAG comes behind the last copy that there was room for.
    let mut seen = 0;
    let began = Instant::now();
    while reader.missed() == 0 {
        assert!(began.elapsed() < LONG, "{seen} came, and no LAG");
        let soon = reader.receive(Duration::from_millis(100));
        if let Some(message) = soon.expect("it is there") {
            seen += 1;
            assert!(message.text().starts_with(&format!("{seen} ")));
        }
    }
    let more = reader.receive(Duration::from_millis(100));
    assert_eq!(more.expect("it is there"), None);
    assert_eq!(seen + reader.missed(), count);
}

/// A group reads what another has read, and again what it has settled.
#[test]
fn groups_and_what_is_sought_again() {
    let mut broker = Launch::memory().start();
    let mut client = client(&broker);
    client.ask("QSET orders retain=1h").expect("it is made");
    for body in ["a", "b"] {
        client
            .publish(&Publish::new("orders", body))
            .expect("it is taken");
    }
    let bodies = |client: &mut Client, pull: &Pull| -> Vec<String> {
        let messages = client.pull(pull).expect("it answers");
        for message in &messages {
            assert_eq!(client.ack(message).expect("it answers"), Settled::Confirmed);
        }
        messages
            .iter()
            .map(|message| message.text().to_string())
            .collect()
    };
    let billing = Pull::new("orders/billing").count(9);
    assert_eq!(bodies(&mut client, &billing), ["a", "b"]);
    let late = Pull::new("orders/late").count(9).from("2");
    assert_eq!(bodies(&mut client, &late), ["b"]);
    client.forget_settled();
    client.ask("SEEK orders/billing to=first").expect("it goes");
    assert_eq!(bodies(&mut client, &billing), ["a", "b"]);
    broker.assert_well();
}
