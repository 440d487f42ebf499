//! What a producer or a consumer pipelines is run in runs. They change nothing: the same commands, each
//! with an option or a tag that says nothing new, are run one by one and have the same answers and the
//! same effect.

use crate::support::Launch;
use crate::support::TempDir;
use crate::support::client::Client;

const COUNT: usize = 1_200;

/// Bodies of all kinds of sizes; some are typed on their line, some lines end with CR LF.
fn publish(queue: &str, option: &str, n: usize) -> Vec<u8> {
    let size = match n % 100 {
        0 => 0,
        50 => 16_383,
        51 => 16_384,
        52 => 20_000,
        _ => n % 300,
    };
    let mut body = format!("{n}:").into_bytes();
    body.resize(body.len() + size, b'a' + (n % 26) as u8);
    let end = if n.is_multiple_of(7) { "\r\n" } else { "\n" };
    let mut out = format!("PUB {queue}{option} ").into_bytes();
    if n.is_multiple_of(3) && size < 1000 {
        out.push(b':');
        out.extend_from_slice(&body);
    } else {
        out.extend_from_slice(format!("${}{end}", body.len()).as_bytes());
        out.extend_from_slice(&body);
    }
    out.extend_from_slice(end.as_bytes());
    out
}

/// Everything is sent at once; the answers, and what is in the queue and in its dead-letter queue.
fn outcome(client: &mut Client, queue: &str, option: &str, settings: &str) -> Vec<String> {
    assert_eq!(
        client.ask(&format!("QSET {queue} {settings}")),
        "OK created"
    );
    if settings.contains("retain") {
        // A group of its own beside the bare name.
        assert_eq!(client.ask(&format!("PULL {queue}/other")), "END 0");
    }
    let mut stream = client.stream().try_clone().expect("a socket");
    let queue_name = queue.to_owned();
    let option = option.to_owned();
    let sender = std::thread::spawn(move || {
        let all: Vec<u8> = (0..COUNT)
            .flat_map(|n| {
                let mut one = publish(&queue_name, &option, n);
                if n % 400 == 399 {
                    // What is in between is answered in its place.
                    one.extend_from_slice(b"PING\n");
                }
                one
            })
            .collect();
        std::io::Write::write_all(&mut stream, &all).expect("the broker reads");
    });
    let mut outcome: Vec<String> = (0..COUNT + COUNT / 400)
        .map(|_| client.line().expect("an answer"))
        // When to try again depends on the moment.
        .map(|line| line.split(" retry=").next().unwrap_or_default().to_owned())
        .collect();
    sender.join().expect("it has sent all");
    for source in [
        queue.to_owned(),
        format!("{queue}.dead"),
        format!("{queue}/other"),
    ] {
        // What goes to the dead-letter queue may be on its way.
        loop {
            let messages = client.pull(&format!("{source} 10000 wait=50ms"));
            let messages = messages.unwrap_or_default();
            if messages.is_empty() {
                break;
            }
            for message in messages {
                let body = String::from_utf8_lossy(&message.body);
                outcome.push(format!("{} {} {body}", source.len(), message.id()));
            }
        }
    }
    outcome
}

#[test]
fn a_run_of_publishes_does_what_the_same_publishes_do_one_by_one() {
    let dir = TempDir::new("runs");
    let broker = Launch::data(&dir.data()).start();
    let mut kinds = Vec::new();
    for level in ["none", "os", "disk"] {
        for rest in [
            "",
            "maxlen=500",
            "maxbytes=100000",
            "pri=3",
            "ttl=1h",
            "pause=in",
            "fair=key",
            "retain=1h",
            "rate=1000000/s",
        ] {
            kinds.push(format!("durable={level} {rest}"));
        }
    }
    // At the other levels it depends on the moment what may be dropped.
    kinds.push("durable=none maxlen=500 full=dropold deadon=full".to_owned());
    for (number, settings) in kinds.iter().enumerate() {
        let mut client = broker.client();
        // Names of one length: the length of a line is of no matter then.
        let runs = outcome(&mut client, &format!("a{number:03}"), "", settings);
        let mut client = broker.client();
        let single = outcome(&mut client, &format!("b{number:03}"), " delay=0", settings);
        for (n, (run, single)) in runs.iter().zip(&single).enumerate() {
            let cut = |line: &String| line.chars().take(80).collect::<String>();
            assert!(
                run == single,
                "{settings}, line {n}: {} and one by one {}",
                cut(run),
                cut(single)
            );
        }
        assert_eq!(runs.len(), single.len(), "{settings}");
        assert!(runs.iter().any(|line| line.starts_with("PONG")));
    }
}

/// Pulls everything, acks it in one pipeline that also names stale and foolish handles, and tells the
/// answers, without tags and numbers, and what is left.
fn acked(client: &mut Client, queue: &str, tag: &str, settings: &str) -> Vec<String> {
    const MESSAGES: usize = 1_000;
    assert_eq!(
        client.ask(&format!("QSET {queue} {settings}")),
        "OK created"
    );
    client
        .send(format!("MPUB {queue} *{MESSAGES}\n").as_bytes())
        .expect("it reads");
    for n in 0..MESSAGES {
        client.send(format!("{n}\n").as_bytes()).expect("it reads");
    }
    assert!(client.line().expect("an answer").starts_with("OK "));
    let messages = client
        .pull(&format!("{queue} {MESSAGES} lease=60s"))
        .expect("an answer");
    assert_eq!(messages.len(), MESSAGES);
    let mut sent = Vec::new();
    for (n, message) in messages.iter().enumerate() {
        let handle = &message.handle;
        match n % 50 {
            // Left.
            7 => {}
            8 => sent.extend([handle.clone(), handle.clone()]),
            9 => sent.push(format!("0{handle}")),
            10 => sent.push(format!("{handle}0")),
            11 => sent.push(handle.replacen('.', "..", 1)),
            12 => sent.push("99999999999999999999999.1.1".to_owned()),
            13 => sent.push(format!("{} {}", handle, messages[n - 1].handle)),
            14 => sent.push(format!("000000000000000000000000{handle}")),
            15 => sent.push(format!("{handle}\r")),
            _ => sent.push(handle.clone()),
        }
    }
    let lines: String = sent
        .iter()
        .map(|handles| format!("{tag}ACK {handles}\n"))
        .collect();
    client.send(lines.as_bytes()).expect("it reads");
    let mut outcome: Vec<String> = sent
        .iter()
        .map(|_| client.line().expect("an answer"))
        .map(|line| line.replace(tag.trim_end(), "").replace("  ", " "))
        .map(|line| line.split_inclusive(' ').map(without_handles).collect())
        .collect();
    outcome.push(client.data(&format!("QLS {queue}")).replace(queue, ""));
    outcome
}

/// A word, its numbers behind `stale=` left out.
fn without_handles(word: &str) -> String {
    match word.split_once("stale=") {
        Some((_, handles)) => format!("stale={}", handles.split(',').count()),
        None => word.to_owned(),
    }
}

#[test]
fn a_run_of_acks_does_what_the_same_acks_do_one_by_one() {
    let dir = TempDir::new("ackruns");
    let broker = Launch::data(&dir.data()).start();
    for (number, settings) in [
        "durable=none",
        "durable=os",
        "durable=disk",
        "durable=none fair=key",
    ]
    .iter()
    .enumerate()
    {
        let runs = acked(&mut broker.client(), &format!("a{number}"), "", settings);
        let single = acked(&mut broker.client(), &format!("b{number}"), "@t ", settings);
        for (n, (run, single)) in runs.iter().zip(&single).enumerate() {
            assert_eq!(run, single, "{settings}, ack {n}");
        }
        assert!(runs.iter().any(|line| line.starts_with("OK 0 stale=")));
        assert!(runs.iter().filter(|line| *line == "OK 1").count() > 800);
    }
}

/// Casts in one pipeline; the casts' answers, and what each subscriber got.
fn cast(
    broker: &crate::support::Broker,
    topic: &str,
    option: &str,
    subscriptions: &[&str],
) -> Vec<String> {
    let mut caster = broker.client();
    let mut subscribers: Vec<Client> = subscriptions.iter().map(|_| broker.client()).collect();
    for (subscriber, subscription) in subscribers.iter_mut().zip(subscriptions) {
        for pattern in subscription.split('+') {
            match pattern.strip_prefix("own ") {
                Some(pattern) => assert_eq!(caster.ask(pattern), "OK"),
                None => assert!(subscriber.ask(pattern).starts_with("OK")),
            }
        }
    }
    let mut stream = caster.stream().try_clone().expect("a socket");
    let all: Vec<u8> = (0..COUNT)
        .flat_map(|n| {
            let mut line = publish(topic, option, n);
            line.splice(..4, *b"CAST ");
            line
        })
        .collect();
    let sender = std::thread::spawn(move || {
        std::io::Write::write_all(&mut stream, &all).expect("the broker reads");
    });
    let mut outcome = Vec::new();
    let mut answers = 0;
    while answers < COUNT {
        let line = caster.line().expect("an answer");
        if line.starts_with("MSG ") {
            caster.counted(&line).expect("a body");
            continue;
        }
        outcome.push(line);
        answers += 1;
    }
    sender.join().expect("it has sent all");
    for subscriber in &mut subscribers {
        // A barrier: what was cast before stands before its answer.
        subscriber.send(b"PING\n").expect("it reads");
        loop {
            let line = subscriber.line().expect("a message");
            if line == "PONG" {
                break;
            }
            let body = subscriber.counted(&line).expect("a body");
            let line = line.replace(topic, "topic");
            outcome.push(format!("{line} {}", String::from_utf8_lossy(&body)));
        }
    }
    outcome
}

#[test]
fn a_run_of_casts_does_what_the_same_casts_do_one_by_one() {
    let dir = TempDir::new("castruns");
    let broker = Launch::data(&dir.data()).start();
    let kinds: &[&[&str]] = &[
        &[],
        &["SUB news.* mode=live"],
        &[
            "SUB news.* mode=live",
            "SUB # mode=live+SUB news.# mode=live",
        ],
        &["SUB news.* mode=live", "@t SUB news.* mode=live"],
        &["SUB news.* mode=live", "BIND news.* archive"],
        &["SUB news.* mode=live", "own SUB news.* mode=live"],
    ];
    for (number, subscriptions) in kinds.iter().enumerate() {
        let runs = cast(&broker, &format!("news.a{number}"), "", subscriptions);
        let single = cast(
            &broker,
            &format!("news.b{number}"),
            " delay=0",
            subscriptions,
        );
        for (n, (run, single)) in runs.iter().zip(&single).enumerate() {
            let cut = |line: &String| line.chars().take(80).collect::<String>();
            assert!(
                run == single,
                "{subscriptions:?}, line {n}: {} and one by one {}",
                cut(run),
                cut(single)
            );
        }
        assert_eq!(runs.len(), single.len(), "{subscriptions:?}");
    }
}

#[test]
fn who_does_not_read_a_run_of_casts_is_told_how_many_it_has_missed() {
    let broker = Launch::memory().start();
    let (mut caster, mut lazy, mut eager) = (broker.client(), broker.client(), broker.client());
    for subscriber in [&mut lazy, &mut eager] {
        assert_eq!(subscriber.ask("SUB news mode=live"), "OK");
    }
    let body = "x".repeat(1000);
    let mut given = 0;
    for _ in 0..40 {
        let batch = format!("CAST news :{body}\n").repeat(500);
        caster.send(batch.as_bytes()).expect("it reads");
        for _ in 0..500 {
            let answer = caster.line().expect("an answer");
            given += answer
                .strip_prefix("OK ")
                .and_then(|rest| rest.strip_suffix(" mem"))
                .and_then(|n| n.parse::<usize>().ok())
                .expect("a count");
        }
        // The other one reads, and misses nothing by that.
        for _ in 0..500 {
            let line = eager.line().expect("a message");
            assert_eq!(eager.counted(&line).expect("a body"), body.as_bytes());
        }
    }
    let given = given - 40 * 500;
    assert!(given < 40 * 500, "its output is bounded");
    lazy.send(b"PING\n").expect("it reads");
    let (mut seen, mut missed) = (0, 0);
    loop {
        let line = lazy.line().expect("a line");
        match line.strip_prefix("LAG news dropped=") {
            Some(count) => missed += count.parse::<usize>().expect("a count"),
            None if line == "PONG" => break,
            None => {
                lazy.counted(&line).expect("a body");
                seen += 1;
            }
        }
    }
    assert_eq!((seen, seen + missed), (given, 40 * 500));
}
