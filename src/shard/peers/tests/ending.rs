//! The end of a broker of several shards, and the failure of one of them.

use super::*;

/// A consumer of a queue on shard 1, and one who asks there by two requests; all are told what comes of it.
fn asked(broker: &mut Broker, consumer: usize, asker: usize) -> (usize, usize) {
    let queue = name_on(1, 3, 0);
    let (consumer, asker) = (broker.connect(consumer), broker.connect(asker));
    assert_eq!(broker.ask(consumer, &format!("SUB {queue}\n")), "OK\n");
    let asks = format!("@a REQ {queue} timeout=1h :x\nREQ {queue} timeout=1h :y\n");
    assert_eq!(broker.ask(asker, &asks), "");
    assert_eq!(broker.take(consumer).matches("MSG ").count(), 2);
    (consumer, asker)
}

#[test]
fn who_waits_for_an_answer_is_told_that_the_broker_goes_down() {
    for seed in 1..60 {
        let mut broker = Broker::new(3, seed);
        let (_, asker) = asked(&mut broker, (seed % 3) as usize, (seed / 3 % 3) as usize);
        let now = broker.now();
        broker.shards[(seed / 9 % 3) as usize].handle_shutdown(now);
        let said = broker.take(asker);
        let told = |start: &str| said.lines().any(|line| line.starts_with(start));
        assert!(told("ERR @a DRAINING "), "seed {seed}: {said}");
        assert!(told("ERR DRAINING "), "seed {seed}: {said}");
        assert_eq!(broker.stops, vec![Some(Stop::Finished); 3], "seed {seed}");
    }
}

#[test]
fn when_the_log_fails_the_end_of_a_request_is_unknown() {
    for seed in 1..60 {
        let mut broker = Broker::new(3, seed);
        // The shard of the queue tells the asker at once; its consumer is closed before him or after.
        let (_, asker) = asked(&mut broker, (seed % 3) as usize, 1);
        broker.shards[1].fail("a disk that failed".to_owned());
        broker.turn(1);
        let said = String::from_utf8_lossy(&broker.clients[asker].received);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "seed {seed}: {said}");
        assert!(lines[0].starts_with("ERR @a UNKNOWNRESULT :"), "{said}");
        assert!(lines[1].starts_with("ERR UNKNOWNRESULT :"), "{said}");
        assert!(broker.clients[asker].closed, "seed {seed}");
    }
}

#[test]
fn when_the_log_fails_a_pull_ends_with_nothing() {
    for shards in [1, 2] {
        let mut broker = Broker::new(shards, 3);
        let near = name_on(0, shards, 0);
        let text = broker.connect(0);
        let pulls = format!("@a PULL {near} wait=1h\nPULL {near},other wait=1h\n");
        assert_eq!(broker.ask(text, &pulls), "");
        let [resp, gone] = [broker.connect(0), broker.connect(0)];
        broker.resp(resp, &format!("BLPOP {near} 0"));
        assert_eq!(broker.replies(resp), "");
        broker.shards[0].fail("a disk that failed".to_owned());
        broker.turn(0);
        assert_eq!(broker.clients[text].received, b"END @a 0\nEND 0\n");
        assert_eq!(broker.clients[resp].received, b"*-1\r\n");
        assert_eq!(broker.clients[gone].received, b"");
        assert!(matches!(broker.stops[0], Some(Stop::Failed(_))));
    }
}

#[test]
fn what_was_sent_before_a_shutdown_is_run_on_all_shards_before_they_end() {
    const ROUNDS: usize = 4;
    for seed in 1..60 {
        let mut broker = Broker::new(3, seed);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let home = (seed % 3) as usize;
        let client = broker.connect(home);
        broker.settle();
        // Behind an answer of all shards the next is not looked at: that is kept.
        let [a, b, c] = [&names[0], &names[1], &names[2]];
        let round = format!("PUB {a} :1\nQLS\nBEGIN\nPUB {a} :2\nPUB {b} :3\nPUB {c} :4\nCOMMIT\n");
        broker.send(client, &round.repeat(ROUNDS));
        while !broker.clients[client].inbound.is_empty() {
            broker.turn(home);
        }
        let now = broker.now();
        broker.shards[(seed / 3 % 3) as usize].handle_shutdown(now);
        // No time passes: nothing is given up.
        let said = broker.take(client);
        assert_eq!(broker.stops, vec![Some(Stop::Finished); 3], "seed {seed}");
        let done = said.lines().filter(|line| *line == "OK 3").count();
        assert_eq!(done, ROUNDS, "seed {seed}: {said}");
        assert!(broker.clients[client].closed, "seed {seed}");
    }
}

#[test]
fn a_shutdown_that_waits_for_others_is_woken_when_it_waits_no_longer() {
    let mut broker = Broker::new(2, 3);
    let client = broker.connect(0);
    broker.settle();
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let commit = format!("BEGIN\nPUB {near} :x\nPUB {far} :y\nCOMMIT\n");
    broker.send(client, &commit);
    // The other shard is busy with something else for long.
    for _ in 0..10 {
        broker.turn(0);
    }
    assert!(broker.shards[0].is_committing());
    let now = broker.now();
    broker.shards[0].handle_shutdown(now);
    for _ in 0..10 {
        broker.turn(0);
    }
    let until_us = broker.now_us + 1_000_000;
    while broker.now_us < until_us {
        assert!(!broker.shards[0].has_passed_on());
        let due = broker.shards[0].poll_timeout();
        broker.now_us = due.expect("nothing else wakes it").max(broker.now_us + 1);
        broker.turn(0);
    }
    assert_eq!(broker.now_us, until_us);
    assert!(broker.shards[0].has_passed_on());
    broker.settle();
    assert_eq!(broker.stops, vec![Some(Stop::Finished); 2]);
}

#[test]
fn what_stands_behind_output_that_is_being_read_is_run_before_the_end() {
    let mut behind = 0;
    for seed in 1..40 {
        let mut broker = Broker::with(2, seed, |config| config.limits.send_bytes_max = 4096);
        let far = name_on(1, 2, 0);
        let client = broker.connect(0);
        broker.socket_bytes_max = 0;
        broker.send(
            client,
            &format!("{}PUB {far} :x\nQLS\nPUB {far} :y\n", "HELP\n".repeat(6)),
        );
        broker.settle();
        if !broker.clients[client].inbound.is_empty() {
            // The rest is not with the broker yet.
            continue;
        }
        behind += 1;
        let now = broker.now();
        broker.shards[(seed % 2) as usize].handle_shutdown(now);
        broker.settle();
        assert_eq!(broker.stops, vec![None; 2], "seed {seed}");
        broker.socket_bytes_max = 500;
        let said = broker.take(client);
        assert_eq!(said.matches("DATA ").count(), 7, "seed {seed}: {said}");
        assert!(
            said.contains("\nOK 1 mem\n") && said.ends_with("OK 2 mem\n"),
            "seed {seed}"
        );
        assert_eq!(broker.stops, vec![Some(Stop::Finished); 2], "seed {seed}");
    }
    assert!(behind > 10, "{behind} seeds");
}

#[test]
fn who_does_not_read_holds_up_the_end_for_a_second() {
    let mut broker = Broker::with(2, 2, |config| config.limits.send_bytes_max = 4096);
    let client = broker.connect(0);
    broker.socket_bytes_max = 0;
    broker.send(client, &"HELP\n".repeat(6));
    broker.settle();
    let now = broker.now();
    broker.shards[0].handle_shutdown(now);
    broker.wait(999_000);
    assert_eq!(broker.stops, vec![None; 2]);
    broker.wait(2_000);
    assert_eq!(broker.stops, vec![Some(Stop::Finished); 2]);
}
