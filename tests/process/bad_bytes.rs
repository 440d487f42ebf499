//! Bytes that no client should send: the broker answers or closes, runs nothing that stands inside
//! a refused body, allocates nothing because a length was announced, and serves everybody else.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::{Broker, Launch, Random, eventually, os};

/// Checks that bytes are whole lines of known kinds with their counted bodies, and returns the
/// lines. The last one may be cut off when the connection was reset.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    // What begins as another protocol does is refused in its own words.
    if bytes.starts_with(b"HTTP/1.1 4") {
        return lines;
    }
    if bytes.starts_with(b"-ERR ") {
        // Octets that happen to begin as RESP are no commands of it either.
        let text = String::from_utf8_lossy(bytes);
        assert!(text.lines().all(|line| line.starts_with("-ERR ")), "{text}");
        return lines;
    }
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|octet| *octet == b'\n') {
        // A PONG gives any octets back.
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        let known = ["OK", "ER", "MS", "EN", "PO", "DA", "LA", "EX"];
        assert!(known.iter().any(|kind| line.starts_with(kind)), "{line:?}");
        rest = &rest[end + 1..];
        if line.starts_with("MSG ") || line.starts_with("DATA ") {
            let count = line
                .rsplit(" $")
                .next()
                .and_then(|n| n.parse::<usize>().ok());
            let count = count.unwrap_or_else(|| panic!("no length in {line:?}"));
            rest = rest.get(count + 1..).unwrap_or_default();
        }
        lines.push(line);
    }
    lines
}

/// Sends bytes on a connection of their own and returns every line that comes back.
fn answers(broker: &Broker, bytes: &[u8]) -> Vec<String> {
    let mut client = broker.client();
    // The broker may close before everything is sent.
    let _ = client.send(bytes);
    client.half_close();
    lines_of(&client.rest())
}

const TRANSCRIPT: &[u8] = b"HELLO 1 name=t\nPUB jobs $12\nHello, world\nPUB jobs pri=3 key=a \
    h.x=1 :inline\r\nMPUB jobs *3\none\ntwo\n\nMPUB jobs $11\n3\nabc\n2\nde\n\n@7 PULL jobs 2\nPEEK jobs 5\n\
    PUB! jobs :quiet\nSYNC\nQSET jobs lease=5s\nQGET jobs\nNACK 1.1.1 1.2.2\nSTATS\nPING :x\nACK - 9.9.9\nPULL jobs 3 ack=auto\nPURGE jobs\nQUIT\n";

#[test]
fn garbage_gets_an_error_or_a_close() {
    let mut broker = Launch::memory().start();
    let seed = Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..300 {
        let count = random.below(3000) as usize;
        let mut bytes = random.bytes(count);
        if random.once_in(2) {
            // Printable garbage gets further into the parser.
            for octet in &mut bytes {
                *octet = b" \n$*:@!=.%/,-0123456789PUBLACKMSGpull"[*octet as usize % 37];
            }
        }
        answers(&broker, &bytes);
    }
    broker.assert_well();
}

#[test]
fn mutated_transcripts_do_no_harm() {
    let mut broker = Launch::memory().start();
    let seed = Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..400 {
        let mut bytes = b"SUB jobs credit=2\nCREDIT jobs 5\nUNSUB jobs\n".to_vec();
        bytes.extend_from_slice(TRANSCRIPT);
        for _ in 0..1 + random.below(4) {
            random.garble(&mut bytes);
        }
        answers(&broker, &bytes);
    }
    broker.assert_well();
}

#[test]
fn one_byte_at_a_time_gives_the_same_answers() {
    let whole = {
        let broker = Launch::memory().start();
        answers(&broker, TRANSCRIPT)
    };
    assert!(whole.len() > 20, "{whole:#?}");
    let broker = Launch::memory().start();
    let mut client = broker.client();
    for octet in TRANSCRIPT {
        client.send(&[*octet]).expect("the broker reads on");
    }
    client.half_close();
    let bytewise = lines_of(&client.rest());
    assert_eq!(kinds(&whole), kinds(&bytewise));
}

/// Lines without what may differ between two brokers: handles, lengths of figures.
fn kinds(lines: &[String]) -> Vec<String> {
    let is_handle = |word: &str| word.matches('.').count() == 2 && !word.contains('=');
    let kind = |line: &String| {
        let words = line
            .split(' ')
            .filter(|word| !is_handle(word) && !word.starts_with('$'));
        words.collect::<Vec<_>>().join(" ")
    };
    lines.iter().map(kind).collect()
}

#[test]
fn nothing_inside_a_refused_body_is_run() {
    let mut broker = Launch::memory().arg("--max-body 1K").start();
    let trap = "PUB canary :sings\nQSET canary lease=1s\n".repeat(100);
    let lines = trap.lines().count();
    let framed = [
        format!("NONSENSE q ${}\n{trap}\n", trap.len()),
        format!("NONSENSE q *{lines}\n{trap}"),
        format!("PUB q no-such-option=1 ${}\n{trap}\n", trap.len()),
        format!("PUB bad%name% ${}\n{trap}\n", trap.len()),
        format!("PUB q ${}\n{trap}\n", trap.len()),
        format!("MPUB q delay=never *{lines}\n{trap}"),
        format!("ACK 1.1.1 ${}\n{trap}\n", trap.len()),
        "PUB q pri=1000 :PUB canary :sings\n".to_owned(),
        "NONSENSE :PUB canary :sings\n".to_owned(),
    ];
    for text in framed {
        let mut client = broker.client();
        client.send(text.as_bytes()).expect("the broker reads");
        let answer = client.line().expect("an answer");
        assert!(
            answer.starts_with("ERR "),
            "{answer} for {:?}",
            &text[..40.min(text.len())]
        );
        assert_eq!(
            client.ask("PING :in step"),
            "PONG :in step",
            "after {answer}"
        );
    }
    let mut client = broker.client();
    assert!(client.ask("QGET canary").starts_with("ERR NOQUEUE"));
    broker.assert_well();
}

#[test]
fn lengths_that_are_none_close_the_connection() {
    let mut broker = Launch::memory().start();
    for length in [
        "-1",
        "+1",
        "0x10",
        "1e3",
        "",
        "1 ",
        "99999999999",
        "9223372036854775808",
    ] {
        let text = format!("PUB q ${}\nPUB canary :sings\n", length.trim_end());
        let lines = answers(&broker, text.as_bytes());
        let last = lines.last().map(String::as_str).unwrap_or_default();
        assert!(last.starts_with("ERR PROTO"), "${length}: {lines:?}");
    }
    let wrong_end = answers(&broker, b"PUB q $3\nabcdef\nPUB canary :sings\n");
    assert!(
        wrong_end[0].starts_with("ERR PROTO") && wrong_end.len() == 1,
        "{wrong_end:?}"
    );
    assert!(
        broker
            .client()
            .ask("QGET canary")
            .starts_with("ERR NOQUEUE")
    );
    broker.assert_well();
}

#[test]
fn an_announced_gibibyte_allocates_nothing() {
    let mut broker = Launch::memory().start();
    broker.assert_well();
    let before = os::resident_bytes(broker.process.pid());
    let mut clients = Vec::new();
    for announced in [1u64 << 30, 1 << 31, 1 << 32, 9_999_999_999] {
        for (verb, limit) in [("PUB q", 1 << 20), ("MPUB q", 32 << 20)] {
            let mut client = broker.client();
            let text = format!("{verb} ${announced}\nsome of it");
            client.send(text.as_bytes()).expect("the broker reads");
            // Over 64 times its limit a body is not even read past.
            if announced > 64 * limit {
                let answer = client.line().expect("an answer before the body");
                assert!(answer.starts_with("ERR TOOBIG"), "{answer}");
                assert!(
                    client.rest().is_empty(),
                    "and then the connection is closed"
                );
            }
            clients.push(client);
        }
    }
    // Within their limits bodies are waited for, and nothing is reserved for them either.
    for _ in 0..500 {
        let mut client = broker.client();
        client
            .send(b"PUB q $1000000\nsome of it")
            .expect("the broker reads");
        clients.push(client);
    }
    broker.assert_well();
    let grown = os::resident_bytes(broker.process.pid()).saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes more because of announcements"
    );
}

#[test]
fn a_body_over_the_limit_is_read_past() {
    let broker = Launch::memory().start();
    let mut client = broker.client();
    let mut bytes = b"PUB q $3000000\n".to_vec();
    bytes.extend(vec![b'\n'; 3_000_000]);
    bytes.extend(b"\nPUB q :small\n");
    client.send(&bytes).expect("the broker reads past it");
    assert!(client.line().expect("an answer").starts_with("ERR TOOBIG"));
    assert_eq!(client.line().expect("an answer"), "OK 1 mem");
}

#[test]
fn an_endless_line_is_an_error_and_a_close() {
    let mut broker = Launch::memory().start();
    let before = os::resident_bytes(broker.process.pid());
    for start in ["", "PUB q :", "@tag PULL "] {
        let mut client = broker.client();
        let mut stream = client.stream().try_clone().expect("descriptors are left");
        let chunk = vec![b'a'; 64 << 10];
        let mut sent = 0usize;
        let begun = stream.write_all(start.as_bytes());
        assert!(begun.is_ok());
        while sent < 64 << 20 && stream.write_all(&chunk).is_ok() {
            sent += chunk.len();
        }
        assert!(sent < 64 << 20, "64 MiB of one line were taken");
        // A reset may have overtaken the answer.
        for line in lines_of(&client.rest()) {
            let mut words = line.split(' ').filter(|word| !word.starts_with('@'));
            assert_eq!(
                (words.next(), words.next()),
                (Some("ERR"), Some("LINE")),
                "{line}"
            );
        }
    }
    let grown = os::resident_bytes(broker.process.pid()).saturating_sub(before);
    assert!(
        grown < 64 << 20,
        "{grown} bytes more because of endless lines"
    );
    broker.assert_well();
}

#[test]
fn a_line_just_too_long_is_told() {
    let broker = Launch::memory().start();
    let mut client = broker.client();
    let line = format!("PUB q :{}\n", "a".repeat(70 << 10));
    client.send(line.as_bytes()).expect("the broker reads");
    let answer = client
        .line()
        .expect("the error arrives although the line was not read");
    assert!(answer.starts_with("ERR LINE"), "{answer}");
    assert!(client.line().is_err(), "and then the connection is closed");
}

#[test]
fn who_never_reads_is_not_read_and_delays_nobody() {
    let mut broker = Launch::memory().start();
    let mut publisher = broker.client();
    let body = vec![b'x'; 10_000];
    for _ in 0..2_000 {
        let receipt = publisher.publish("jobs", &body).expect("a receipt");
        assert!(receipt.starts_with("OK "), "{receipt}");
    }
    let mut stats = broker.client();
    let before = os::resident_bytes(broker.process.pid());
    let mut lazy: Vec<Client> = (0..5).map(|_| broker.client()).collect();
    for client in &mut lazy {
        // The broker stops reading some time; what it does not take is not sent.
        let stream = client.stream();
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("a valid timeout");
        let _ = client.send("PULL jobs\n".repeat(10_000).as_bytes());
    }
    let mut slowest = Duration::ZERO;
    for n in 0..200 {
        let start = Instant::now();
        assert_eq!(stats.ask(&format!("PING :{n}")), format!("PONG :{n}"));
        let receipt = stats.publish("quick", b"y").expect("a receipt");
        assert!(receipt.starts_with("OK "), "{receipt}");
        slowest = slowest.max(start.elapsed());
    }
    assert!(
        slowest < Duration::from_secs(1),
        "the others waited {slowest:?}"
    );
    let grown = os::resident_bytes(broker.process.pid()).saturating_sub(before);
    assert!(
        grown < 48 << 20,
        "{grown} bytes more for five clients that do not read"
    );
    for client in lazy {
        client.reset();
    }
    // Their leases come back at once.
    let mut client = broker.client();
    eventually(
        "all messages are ready again",
        Duration::from_secs(10),
        || {
            let data = client.data("QGET jobs");
            data.split_whitespace().any(|word| word == "ready=2000")
        },
    );
    broker.assert_well();
}

#[test]
fn resets_in_the_middle_of_a_frame_leave_nothing_behind() {
    let mut broker = Launch::memory().start();
    broker.assert_well();
    let files = os::open_files(broker.process.pid());
    let seed = Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let mut random = Random::new(seed);
    for _ in 0..1000 {
        let mut client = broker.client();
        let at = 1 + random.below(TRANSCRIPT.len() as u64 - 1) as usize;
        client.send(&TRANSCRIPT[..at]).expect("the broker reads");
        if random.once_in(4) {
            client.send(b"\nPUB q $900000\nhalf a bod").ok();
        }
        client.reset();
    }
    eventually(
        "every descriptor is closed",
        Duration::from_secs(10),
        || os::open_files(broker.process.pid()) <= files,
    );
    broker.assert_well();
}

#[test]
fn a_frame_that_stalls_closes_its_connection_and_an_idle_one_stays() {
    let broker = Launch::memory().arg("--stall-timeout 300ms").start();
    let mut idle = broker.client();
    assert_eq!(idle.ask("PING :x"), "PONG :x");
    let mut waiting = broker.client();
    waiting
        .send(b"PULL jobs wait=20s\n")
        .expect("the broker reads");
    for start in [
        "PUB jobs $100\nhalf",
        "PUB jobs :hal",
        "MPUB jobs *3\none\n",
    ] {
        let begun = Instant::now();
        let mut client = broker.client();
        client.send(start.as_bytes()).expect("the broker reads");
        let lines = lines_of(&client.rest());
        assert!(begun.elapsed() >= Duration::from_millis(250), "{start:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{start:?}");
        assert!(
            lines.iter().all(|line| line.starts_with("ERR PROTO")),
            "{lines:?}"
        );
    }
    assert_eq!(idle.ask("PING :still"), "PONG :still");
    assert_eq!(idle.ask("PUB jobs :served"), "OK 1 mem");
    let messages = waiting.pulled().expect("who waits is not in a frame");
    assert_eq!(messages[0].body, b"served");
}

#[test]
fn a_consumer_that_dies_gives_its_message_back_at_once() {
    let broker = Launch::memory().start();
    let mut publisher = broker.client();
    assert_eq!(publisher.ask("PUB jobs :work"), "OK 1 mem");
    for round in 0..4 {
        let mut dying = broker.client();
        let messages = dying.pull("jobs lease=60s").expect("an answer");
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].tries, 1);
        let mut next = broker.client();
        next.send(b"PULL jobs wait=10s lease=60s\n")
            .expect("the broker reads");
        let start = Instant::now();
        if round % 2 == 0 {
            drop(dying);
        } else {
            dying.reset();
        }
        let again = next.pulled().expect("the message comes back");
        assert_eq!(again.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!((again[0].tries, &again[0].body[..]), (2, &b"work"[..]));
        assert_eq!(next.ask(&format!("ACK {}", again[0].handle)), "OK 1");
        assert_eq!(
            next.ask(&format!("ACK {}", messages[0].handle)),
            format!("OK 0 stale={}", messages[0].handle)
        );
        assert!(publisher.ask("PUB jobs :work").starts_with("OK "));
    }
}
