//! HTTP, RESP and AMQP when things go wrong: clients that stop in the middle, a disk without space, a broker that
//! goes down.

use std::time::{Duration, Instant};

use ringmq::protocol::amqp::PREAMBLE;
use ringmq::protocol::amqp::encode::Frame;
use ringmq::protocol::amqp::method::id;

use crate::support::amqp;
use crate::support::client::resp_command;
use crate::support::http::Http;
use crate::support::os::{self, Limit};
use crate::support::{Launch, TempDir, eventually};

/// Everything that comes until the broker closes.
fn rest(address: std::net::SocketAddr, sent: &[u8]) -> String {
    let mut client = crate::support::client::Client::connect(address);
    client.send(sent).expect("it listens");
    String::from_utf8_lossy(&client.rest()).into_owned()
}

#[test]
fn who_stops_in_the_middle_is_told_and_closed() {
    let broker = Launch::memory().arg("--stall-timeout 300ms").start();
    let began = Instant::now();
    let head = b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Le".as_slice();
    let small = b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhel";
    let large = [
        b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n".as_slice(),
        &[b'x'; 50_000],
    ]
    .concat();
    let chunks =
        b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    for sent in [head, small, &large, chunks] {
        let answer = rest(broker.address, sent);
        assert!(
            answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
            "{answer}"
        );
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
    }
    for sent in [
        "*2",
        "*2\r\n$4\r\nLPOP\r\n$4\r\njo",
        "*3\r\n$5\r\nRPUSH\r\n$1\r\na\r\n$900000\r\nxxx",
    ] {
        let answer = rest(broker.address, sent.as_bytes());
        assert!(
            answer.starts_with("-ERR the rest of the command did not come in time"),
            "{answer}"
        );
    }
    // Nothing of it was run; who is between two requests may stay as long as it likes.
    let mut http = Http::connect(broker.address);
    assert_eq!(http.ask("GET", "/queues", b"").text(), "{\"queues\":[]}\n");
    http.assert_silent(Duration::from_millis(1500));
    assert_eq!(http.ask("GET", "/healthz", b"").status, 200);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_large_body_that_is_only_announced_takes_no_memory() {
    let broker = Launch::memory()
        .arg("--max-body 512M --max-batch-bytes 512M")
        .start();
    let mut waiting = Vec::new();
    let before = os::resident_bytes(broker.process.pid());
    for _ in 0..50 {
        let mut http = Http::connect(broker.address);
        http.send(
            b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000000\r\n\r\nx",
        );
        waiting.push(http);
        let mut resp = Http::connect(broker.address);
        resp.send(b"*1000000\r\n$5\r\nRPUSH\r\n$500000000\r\nx");
        waiting.push(resp);
    }
    let mut http = Http::connect(broker.address);
    assert_eq!(http.ask("GET", "/healthz", b"").status, 200);
    let grown = os::resident_bytes(broker.process.pid()).saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes for 100 announcements");
}

#[test]
fn without_space_every_door_says_that_the_result_is_unknown_and_heals() {
    let dir = TempDir::new("doors-limit");
    let broker = Launch::data(&dir.data()).start();
    let mut http = Http::connect(broker.address);
    let body = vec![b'x'; 200_000];
    assert_eq!(http.ask("POST", "/queue/other", b"x").status, 200);
    os::set_limit(broker.process.pid(), Limit::FileSize, Some(8 << 20));
    let push = resp_command(&[b"RPUSH", b"jobs", &body]);
    let mut confirmed = 0;
    let last = loop {
        let response = http.ask("POST", "/queue/jobs", &body);
        if response.status != 200 {
            break response;
        }
        confirmed += 1;
        assert!(confirmed < 50, "{confirmed} messages fit 8 MiB");
    };
    assert_eq!(last.status, 500);
    assert!(last.text().contains("\"UNKNOWNRESULT\""), "{}", last.text());
    http.assert_closes();
    let mut http = Http::connect(broker.address);
    let refused = http.ask("POST", "/queue/jobs", &body);
    assert_eq!((refused.status, refused.field("retry-after")), (503, "1"));
    assert!(refused.text().contains("\"DISK\""), "{}", refused.text());
    let refused = rest(
        broker.address,
        &[&push[..], b"*1\r\n$4\r\nQUIT\r\n"].concat(),
    );
    assert!(refused.starts_with("-DISK "), "{refused}");
    let ready = http.ask("GET", "/readyz", b"");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("disk is full"), "{}", ready.text());
    os::set_limit(broker.process.pid(), Limit::FileSize, None);
    eventually("publishes are taken again", Duration::from_secs(10), || {
        http.ask("POST", "/queue/other", b"healed").status == 200
    });
    assert_eq!(http.ask("GET", "/readyz", b"").status, 200);
}

#[test]
fn a_shutdown_answers_who_waits() {
    let dir = TempDir::new("doors-down");
    let launch = Launch::data(&dir.data());
    let mut broker = launch.start();
    let mut http = Http::connect(broker.address);
    http.request("GET", "/queue/jobs?wait=60s", b"");
    let mut resp = crate::support::client::Client::connect(broker.address);
    resp.send(&resp_command(&[b"BLPOP", b"jobs", b"0"]))
        .expect("it listens");
    let mut popped = crate::support::client::Client::connect(broker.address);
    popped
        .send(
            &[
                resp_command(&[b"RPUSH", b"kept", b"a"]),
                resp_command(&[b"LPOP", b"kept"]),
            ]
            .concat(),
        )
        .expect("it listens");
    http.assert_silent(Duration::from_millis(200));
    broker.terminate();
    assert_eq!(http.response(false).status, 204);
    http.assert_closes();
    assert_eq!(resp.rest(), b"*-1\r\n");
    assert_eq!(popped.rest(), b":1\r\n$1\r\na\r\n");
    // Nobody said that this reply was read: the message is there again.
    let broker = launch.start();
    let mut http = Http::connect(broker.address);
    assert_eq!(http.ask("GET", "/queue/kept", b"").text(), "a");
}

/// What clients of a door say, one command after another.
fn transcripts() -> [Vec<u8>; 2] {
    let words: &[&[&[u8]]] = &[
        &[b"HELLO", b"3"],
        &[b"RPUSH", b"k", b"a", b"b", b"c"],
        &[b"LPUSH", b"k", b"z"],
        &[b"LRANGE", b"k", b"0", b"-1"],
        &[b"MULTI"],
        &[b"LPOP", b"k"],
        &[b"RPOP", b"k", b"2"],
        &[b"EXEC"],
        &[b"SUBSCRIBE", b"news"],
        &[b"PSUBSCRIBE", b"n*"],
        &[b"PUBLISH", b"news", b"hi"],
        &[b"XADD", b"s", b"MAXLEN", b"~", b"9", b"*", b"f", b"v"],
        &[b"XGROUP", b"CREATE", b"s", b"g", b"0"],
        &[
            b"XREADGROUP",
            b"GROUP",
            b"g",
            b"c",
            b"COUNT",
            b"2",
            b"STREAMS",
            b"s",
            b">",
        ],
        &[b"XAUTOCLAIM", b"s", b"g", b"d", b"0", b"0"],
        &[b"XRANGE", b"s", b"-", b"+"],
        &[b"LMPOP", b"2", b"q", b"k", b"LEFT"],
        &[b"BLPOP", b"k", b"q", b"0.01"],
        &[b"SCAN", b"0", b"MATCH", b"*"],
        &[b"CLIENT", b"LIST"],
        &[b"DEL", b"k", b"s"],
    ];
    let resp = words.iter().flat_map(|words| resp_command(words)).collect();
    let http = b"POST /queue/a?pri=3&h.x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello\
        POST /queue/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
        GET /queue/a?wait=1s HTTP/1.1\r\nHost: localhost\r\n\r\nGET /queue/a?n=5 HTTP/1.1\r\nHost: localhost\r\n\r\n\
        POST /nack?delay=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n1.1.1HEAD /queue/a HTTP/1.1\r\nHost: localhost\r\n\r\n\
        GET /queues HTTP/1.1\r\nHost: localhost\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    [resp, http]
}

/// What a client of AMQP says with queues on every shard, two exchanges, confirms, consumers, gets, a transaction.
fn amqp_transcript() -> Vec<u8> {
    let mut out = PREAMBLE.to_vec();
    let start_ok = Frame::method(&mut out, 0, id::CONNECTION_START_OK);
    let start_ok = start_ok.longstr(b"").shortstr(b"PLAIN");
    start_ok.longstr(b"\0guest\0guest").shortstr(b"en_US").end();
    let tune_ok = Frame::method(&mut out, 0, id::CONNECTION_TUNE_OK);
    tune_ok.short(0).long(0).short(0).end();
    let open = Frame::method(&mut out, 0, id::CONNECTION_OPEN);
    open.shortstr(b"/").shortstr(b"").octet(0).end();
    for channel in 1..4 {
        Frame::method(&mut out, channel, id::CHANNEL_OPEN)
            .shortstr(b"")
            .end();
    }
    for (name, kind) in [("e", "topic"), ("f", "fanout")] {
        let declare = Frame::method(&mut out, 1, id::EXCHANGE_DECLARE).short(0);
        let declare = declare.shortstr(name.as_bytes()).shortstr(kind.as_bytes());
        declare.octet(0).longstr(b"").end();
    }
    for queue in ["a", "b", "c", "d"] {
        let dead = amqp::texts(&[("x-dead-letter-exchange", "f")]);
        let arguments: &[u8] = if queue == "a" { &dead } else { b"" };
        let queue = queue.as_bytes();
        let declare = Frame::method(&mut out, 1, id::QUEUE_DECLARE).short(0);
        declare.shortstr(queue).octet(0).longstr(arguments).end();
        for (exchange, key) in [(b"e", &b"#"[..]), (b"f", b"")] {
            let bind = Frame::method(&mut out, 1, id::QUEUE_BIND).short(0);
            let bind = bind.shortstr(queue).shortstr(exchange).shortstr(key);
            bind.octet(0).longstr(b"").end();
        }
    }
    Frame::method(&mut out, 2, id::CONFIRM_SELECT)
        .octet(0)
        .end();
    Frame::method(&mut out, 3, id::TX_SELECT).end();
    for channel in 1..4 {
        for (exchange, key) in [("", "a"), ("", "b"), ("e", "k"), ("", "none")] {
            let mut message = amqp::published(exchange, key, 1, &[0, 0], b"body");
            // Each of its frames is of that channel.
            let mut at = 0;
            while at < message.len() {
                message[at + 1..at + 3].copy_from_slice(&u16::to_be_bytes(channel));
                let size = message[at + 3..at + 7].try_into().expect("four octets");
                at += u32::from_be_bytes(size) as usize + 8;
            }
            out.extend(message);
        }
    }
    let qos = Frame::method(&mut out, 1, id::BASIC_QOS).long(0);
    qos.short(3).octet(1).end();
    for queue in [b"a", b"c"] {
        let consume = Frame::method(&mut out, 1, id::BASIC_CONSUME).short(0);
        let consume = consume.shortstr(queue).shortstr(queue).octet(0);
        consume.longstr(b"").end();
        let get = Frame::method(&mut out, 3, id::BASIC_GET).short(0);
        get.shortstr(queue).octet(0).end();
    }
    let reject = Frame::method(&mut out, 3, id::BASIC_NACK).longlong(0);
    reject.octet(1).end();
    Frame::method(&mut out, 3, id::TX_COMMIT).end();
    let ack = Frame::method(&mut out, 1, id::BASIC_ACK).longlong(0);
    ack.octet(1).end();
    Frame::method(&mut out, 1, id::BASIC_CANCEL)
        .shortstr(b"a")
        .octet(0)
        .end();
    for queue in [b"a", b"b"] {
        let delete = Frame::method(&mut out, 2, id::QUEUE_DELETE).short(0);
        delete.shortstr(queue).octet(0).end();
    }
    let close = Frame::method(&mut out, 0, id::CONNECTION_CLOSE).short(200);
    close.shortstr(b"bye").long(0).end();
    out
}

#[test]
fn mutated_clients_of_amqp_do_no_harm() {
    let seed = crate::support::Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let transcript = amqp_transcript();
    for shards in [1, 2, 4] {
        let arg = format!("--shards {shards} --stall-timeout 1s");
        let mut broker = Launch::memory().arg(&arg).start();
        let mut random = crate::support::Random::new(seed);
        let talk = |bytes: &[u8]| {
            let mut client = crate::support::client::Client::connect(broker.address);
            // The broker may close before everything is sent.
            let _ = client.send(bytes);
            client.half_close();
            client.rest()
        };
        let answer = talk(&transcript);
        // `connection.close-ok` is the last word.
        assert!(
            answer.ends_with(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, 0xce]),
            "shards {shards}: {answer:?}"
        );
        for _ in 0..300 {
            let mut bytes = transcript.clone();
            for _ in 0..1 + random.below(4) {
                random.garble(&mut bytes);
            }
            talk(&bytes);
        }
        broker.assert_well();
    }
}

#[test]
fn mutated_clients_do_no_harm() {
    let mut broker = Launch::memory().start();
    let seed = crate::support::Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let mut random = crate::support::Random::new(seed);
    for transcript in transcripts() {
        let mut client = crate::support::client::Client::connect(broker.address);
        client.send(&transcript).expect("it listens");
        client.half_close();
        let answer = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!answer.contains("-ERR") && answer.len() > 500, "{answer}");
        for _ in 0..300 {
            let mut bytes = transcript.clone();
            for _ in 0..1 + random.below(4) {
                random.garble(&mut bytes);
            }
            let mut client = crate::support::client::Client::connect(broker.address);
            // The broker may close before everything is sent.
            let _ = client.send(&bytes);
            client.half_close();
            client.rest();
        }
    }
    broker.assert_well();
}
