//! `MOVE` to a queue of another shard.

use super::*;

fn ready(broker: &mut Broker, client: usize, name: &str) -> String {
    let text = broker.ask(client, &format!("QGET {name}\n"));
    let lines = text.lines().filter(|line| {
        ["ready=", "leased=", "delayed=", "locked="]
            .iter()
            .any(|key| line.starts_with(key))
    });
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn messages_move_to_a_queue_of_another_shard_in_order() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let (near, far) = (name_on(0, 3, 0), name_on(2, 3, 0));
        let client = broker.connect((seed % 3) as usize);
        for number in 0..50 {
            broker.send(
                client,
                &format!("PUB {near} key=k{} h.n={number} :{number}\n", number % 3),
            );
        }
        let said = broker.ask(client, &format!("MOVE {near} {far} 20\nPING\n"));
        assert!(said.ends_with("OK 20\nPONG\n"), "{said}");
        assert_eq!(
            ready(&mut broker, client, &near),
            "ready=3 leased=0 delayed=0 locked=27"
        );
        let got = broker.ask(
            client,
            &format!("MOVE {near} {far}\nPULL {far} 99 ack=auto\n"),
        );
        assert!(
            got.starts_with("OK 30\n") && got.ends_with("END 50\n"),
            "{got}"
        );
        let bodies: Vec<&str> = got
            .lines()
            .filter(|line| line.parse::<u32>().is_ok())
            .collect();
        let wanted: Vec<String> = (0..50).map(|number| number.to_string()).collect();
        assert_eq!(bodies, wanted);
        assert!(got.contains("key=k1 h.n=49"), "what it had it keeps: {got}");
        assert!(broker.outboxes_are_idle());
    }
}

#[test]
fn what_the_target_refuses_stays_where_it_was() {
    for seed in 1..20 {
        let mut broker = Broker::new(2, seed);
        let (near, far) = (name_on(1, 2, 0), name_on(0, 2, 0));
        let client = broker.connect((seed % 2) as usize);
        broker.ask(client, &format!("QSET {far} maxlen=5\n"));
        for number in 0..9 {
            broker.send(client, &format!("PUB {near} :{number}\n"));
        }
        // A try of the first one is remembered, wherever it goes from here.
        let handle = handle_of(&broker.ask(client, &format!("PULL {near}\n")));
        broker.ask(client, &format!("NACK {handle} delay=0\n"));
        let said = broker.ask(client, &format!("MOVE {near} {far}\nMOVE {near} {far}\n"));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "OK 5");
        assert!(lines[1].starts_with("ERR FULL retry="), "{said}");
        assert_eq!(
            ready(&mut broker, client, &near),
            "ready=4 leased=0 delayed=0"
        );
        let got = broker.ask(client, &format!("PULL {near} 9\n"));
        assert!(
            got.contains("\n5\n") && got.ends_with("\n8\nEND 4\n"),
            "{got}"
        );
        assert!(
            !got.contains("try="),
            "a move that is refused is no try: {got}"
        );
        let got = broker.ask(client, &format!("PULL {far} 9\n"));
        assert!(
            got.ends_with("\n4\nEND 5\n") && !got.contains("try="),
            "{got}"
        );
        broker.ask(client, &format!("QSET {far} pause=in\nPUB {near} :x\n"));
        let said = broker.ask(client, &format!("MOVE {near} {far}\n"));
        assert!(said.starts_with("ERR PAUSED"), "{said}");
        assert!(broker.outboxes_are_idle());
    }
}

#[test]
fn what_expires_on_its_way_to_a_queue_that_refuses_it_is_gone() {
    let mut broker = Broker::new(2, 9);
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let client = broker.connect(0);
    broker.ask(client, &format!("QSET {far} maxlen=2\nPUB {far} :x\n"));
    broker.ask(client, &format!("PUB {near} :a\nPUB {near} ttl=5ms :b\n"));
    broker.send(client, &format!("MOVE {near} {far}\n"));
    // Both are under way when the time of the second ends.
    for _ in 0..200 {
        if broker.leaving() == 2 {
            break;
        }
        let shard = broker.chance(2) as usize;
        broker.turn(shard);
    }
    assert_eq!(broker.leaving(), 2);
    broker.now_us += 6_000;
    broker.turn(0);
    assert_eq!(broker.leaving(), 2);
    assert_eq!(broker.take(client), "OK 1\n");
    broker.wait(1_000);
    let left = ready(&mut broker, client, &near);
    assert_eq!(left, "ready=0 leased=0 delayed=0");
}

#[test]
fn a_move_of_nothing_makes_its_target_and_one_that_is_left_goes_on() {
    let mut broker = Broker::new(2, 7);
    let (near, far) = (name_on(1, 2, 0), name_on(0, 2, 0));
    let client = broker.connect(0);
    let said = broker.ask(
        client,
        &format!("QSET {near}\nMOVE {near} {far}\nMOVE {near}2 {far}\n"),
    );
    assert!(said.starts_with("OK created\nOK 0\nERR NOQUEUE"), "{said}");
    assert!(
        broker
            .ask(client, "QLS\n")
            .contains(&format!("{far} ready=0"))
    );
    // Many pieces; whoever asked for it goes away in the middle.
    for _ in 0..3000 {
        broker.send(client, &format!("PUB! {near} :x\n"));
    }
    broker.settle();
    let other = broker.connect(1);
    broker.send(other, &format!("MOVE {near} {far}\n"));
    for turn in 0..40 {
        broker.turn(turn % 2);
    }
    broker.reset(other);
    broker.settle();
    let count = |text: String| -> u64 {
        let number = text
            .strip_prefix("ready=")
            .and_then(|rest| rest.split(' ').next());
        number
            .and_then(|number| number.parse().ok())
            .expect("a count")
    };
    let left = count(ready(&mut broker, client, &near));
    let there = count(ready(&mut broker, client, &far));
    assert_eq!(left + there, 3000, "{left} and {there}");
    assert_eq!(
        broker.ask(client, &format!("MOVE {near} {far}\n")),
        format!("OK {left}\n")
    );
    assert!(broker.outboxes_are_idle());
}

#[test]
fn a_request_that_moves_is_still_answered() {
    let mut broker = Broker::new(2, 3);
    let (near, far) = (name_on(1, 2, 0), name_on(0, 2, 0));
    let (asker, worker) = (broker.connect(0), broker.connect(1));
    broker.ask(worker, &format!("SUB {near} credit=0\n"));
    broker.send(asker, &format!("REQ {near} timeout=5s :what\n"));
    broker.settle();
    assert_eq!(
        broker.ask(worker, &format!("MOVE {near} {far}\n")),
        "OK 1\n"
    );
    let got = broker.ask(worker, &format!("@p PULL {far}\n"));
    let token = got
        .split("reply=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let token = token.unwrap_or_else(|| panic!("{got}"));
    assert_eq!(broker.ask(worker, &format!("REP {token} :that\n")), "OK\n");
    assert!(broker.take(asker).ends_with("\nthat\nEND 1\n"));
    // And one that is not answered goes when its time is over.
    broker.send(asker, &format!("REQ {near} timeout=1s :what\n"));
    broker.settle();
    assert_eq!(
        broker.ask(worker, &format!("MOVE {near} {far}\n")),
        "OK 1\n"
    );
    broker.wait(2_000_000);
    assert!(broker.take(asker).starts_with("ERR TIMEOUT"));
    let text = ready(&mut broker, asker, &far);
    assert!(text.starts_with("ready=0"), "{text}");
}
