//! Commands for other shards: their order, their answers, their end.

use super::*;

#[test]
fn answers_come_in_the_order_of_the_commands() {
    for seed in 1..40 {
        let mut broker = Broker::new(3, seed);
        let client = broker.connect(0);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let (mut commands, mut wanted) = (String::new(), String::new());
        let mut counts = [0; 3];
        for nth in 0..300 {
            let shard = broker.chance(3) as usize;
            match broker.chance(4) {
                0 => {
                    commands += &format!("PING :{nth}\n");
                    wanted += &format!("PONG :{nth}\n");
                }
                1 => {
                    commands += &format!("NO{} x\n", names[shard]);
                    wanted += "ERR";
                    wanted += "\n";
                }
                _ => {
                    counts[shard] += 1;
                    commands += &format!("PUB {} :x\n", names[shard]);
                    wanted += &format!("OK {} mem\n", counts[shard]);
                }
            }
        }
        let said = broker.ask(client, &commands);
        let said: Vec<&str> = said
            .lines()
            .map(|line| if line.starts_with("ERR") { "ERR" } else { line })
            .collect();
        assert_eq!(said, wanted.lines().collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn leases_are_settled_at_their_shard_wherever_one_asks() {
    let mut broker = Broker::new(3, 5);
    let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
    let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
    let mut handles = Vec::new();
    for name in &names {
        broker.ask(clients[0], &format!("PUB {name} :x\nPUB {name} :y\n"));
        for _ in 0..2 {
            let said = broker.ask(clients[1], &format!("PULL {name}\n"));
            handles.push(handle_of(&said));
        }
    }
    let three = format!("{} {} {}", handles[0], handles[2], handles[4]);
    assert_eq!(broker.ask(clients[2], &format!("ACK {three}\n")), "OK 3\n");
    let again = format!("@t NACK {} x {three} delay=0\n", handles[1]);
    assert_eq!(
        broker.ask(clients[2], &again),
        format!("OK @t 1 stale=x,{}\n", three.replace(' ', ","))
    );
    let quiet = format!("TOUCH! {} {}\n", handles[3], handles[5]);
    assert_eq!(broker.ask(clients[0], &quiet), "");
    let quiet = format!("ACK! {} {}\n", handles[3], handles[0]);
    let stale = broker.ask(clients[0], &quiet);
    let wanted = format!("ERR STALE done=1 stale={} :", handles[0]);
    assert!(stale.starts_with(&wanted), "{stale}");
    // What its connection held goes back with it.
    broker.reset(clients[1]);
    let said = broker.ask(clients[0], &format!("PULL {} 9\n", names[2]));
    assert!(
        said.contains("try=2") && said.ends_with("END 1\n"),
        "{said}"
    );
}

#[test]
fn a_wait_elsewhere_keeps_later_commands_back() {
    let mut broker = Broker::new(2, 3);
    let (home, other) = (broker.connect(0), broker.connect(1));
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let wait = format!("PUB {near} :n\nPULL {far} wait=1h\nPUB {near} :x\nPING\n");
    assert_eq!(broker.ask(home, &wait), "OK 1 mem\n");
    assert_eq!(broker.ask(other, &format!("PUB {far} :y\n")), "OK 1 mem\n");
    let said = broker.take(home);
    assert!(said.ends_with("$1\ny\nEND 1\nOK 2 mem\nPONG\n"), "{said}");
    // An empty line ends it; so do its time, and the end of the input.
    let said = broker.ask(home, &format!("PULL {far} wait=1h\n"));
    assert_eq!(said, "");
    assert_eq!(broker.ask(home, "\nPING\n"), "END 0\nPONG\n");
    assert_eq!(broker.ask(home, &format!("PULL {far} wait=1s\nPING\n")), "");
    broker.wait(1_100_000);
    assert_eq!(broker.take(home), "END 0\nPONG\n");
    // A local one too, behind an answer from elsewhere.
    let said = broker.ask(home, &format!("PUB {far} :z\nPULL {near} 3 wait=1s\n"));
    assert!(
        said.starts_with("OK 2 mem\nMSG") && said.ends_with("END 2\n"),
        "{said}"
    );
    let said = broker.ask(home, &format!("PUB {far} :z\nPULL {near} wait=1s\nPING\n"));
    assert_eq!(said, "OK 3 mem\n");
    broker.wait(1_100_000);
    assert_eq!(broker.take(home), "END 0\nPONG\n");
    broker.send(
        home,
        &format!("@1 PULL {near} wait=1h\n@2 PULL {far}x wait=1h\nPUB {far} :w\n"),
    );
    broker.half_close(home);
    let said = broker.take(home);
    assert!(broker.clients[home].closed);
    assert!(
        said.contains("OK 4 mem\n") && said.contains("END @1 0\n"),
        "{said}"
    );
}

#[test]
fn what_stands_behind_output_that_is_not_read_is_run_after_the_peer_has_ended_its_side() {
    for seed in 1..20 {
        let mut broker = Broker::with(3, seed, |config| config.limits.send_bytes_max = 4000);
        let home = broker.connect(0);
        let names = [0, 1, 2].map(|shard| name_on(shard, 3, 1));
        let [near, far, further] = &names;
        let body = "x".repeat(1000);
        for _ in 0..10 {
            broker.ask(home, &format!("PUB {near} :{body}\n"));
        }
        broker.ask(home, &format!("PUB {far} :a\nPUB {further} :b\n"));
        let first = handle_of(&broker.ask(home, &format!("PULL {far}\n")));
        let second = handle_of(&broker.ask(home, &format!("PULL {further}\n")));
        broker.socket_bytes_max = 0;
        broker.send(home, &format!("PULL {near} 10\nACK {first} {second}\n"));
        broker.half_close(home);
        broker.socket_bytes_max = 700;
        let said = broker.take(home);
        assert!(said.ends_with("OK 2\n"), "{seed}: {said}");
        assert!(broker.clients[home].closed);
    }
}

#[test]
fn subscriptions_push_across_shards_within_their_credit() {
    let mut broker = Broker::new(3, 7);
    let (reader, writer) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(reader, &format!("@s SUB {far} credit=2\n"));
    assert_eq!(said, "OK @s\n");
    broker.ask(
        writer,
        &format!("PUB {far} :a\nPUB {far} :b\nPUB {far} :c\n"),
    );
    let said = broker.take(reader);
    assert_eq!(said.matches("MSG @s").count(), 2, "{said}");
    let next = broker.ask(reader, &format!("ACK {}\n", handle_of(&said)));
    assert!(next.contains("OK 1\n") && next.contains("\nc\n"), "{next}");
    // The tag is the connection's, wherever it is used.
    for command in [
        "PULL q0 wait=1h",
        "PULL q1 wait=1h",
        "PULL q2",
        "QLS",
        "PING",
    ] {
        let said = broker.ask(reader, &format!("@s {command}\n"));
        assert!(said.starts_with("ERR @s CONFLICT"), "{command}: {said}");
    }
    assert_eq!(broker.ask(reader, "CANCEL @s\n"), "OK 0\n");
    assert_eq!(
        broker.ask(reader, &format!("UNSUB {far}\n@s PING\n")),
        "OK\nPONG @s\n"
    );
    // One without a tag keeps untagged pulls away, wherever they are.
    assert_eq!(broker.ask(reader, &format!("SUB {far}\n")), "OK\n");
    for shard in 0..3 {
        let said = broker.ask(reader, &format!("PULL {}\n", name_on(shard, 3, 1)));
        assert!(said.starts_with("ERR CONFLICT"), "{said}");
    }
    assert_eq!(
        broker.ask(reader, &format!("UNSUB {far}\nPULL {far}x\n")),
        "OK\nEND 0\n"
    );
    let tagged = broker.ask(reader, &format!("@w PULL {far}y wait=1h\n"));
    assert_eq!(tagged, "");
    assert_eq!(broker.ask(reader, "CANCEL @w\n"), "END @w 0\nOK 1\n");
}

#[test]
fn casts_reach_queues_and_readers_of_every_shard() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
        for shard in 0..3 {
            let name = name_on(shard, 3, 0);
            assert_eq!(
                broker.ask(clients[0], &format!("BIND news.# {name}\n")),
                "OK\n"
            );
        }
        for client in &clients {
            assert_eq!(broker.ask(*client, "SUB news.* mode=live\n"), "OK\n");
        }
        let said = broker.ask(clients[1], "CAST news.x :hello\nPING\n");
        assert!(said.contains("MSG news.x - $5\nhello\n"), "{said}");
        let end = said.replace("MSG news.x - $5\nhello\n", "");
        assert_eq!(end, "OK 6 mem\nPONG\n", "seed {seed}");
        for client in [clients[0], clients[2]] {
            assert_eq!(broker.take(client), "MSG news.x - $5\nhello\n");
        }
        let said = broker.ask(
            clients[2],
            "CAST! news.y :a\nPUB! q0 :x\nPUB! q1 :x\nPUB! q2 :x\nSYNC\n",
        );
        assert!(said.ends_with("OK accepted=4 rejected=0 mem\n"), "{said}");
        let list = broker.ask(clients[2], "QLS\n");
        let names: Vec<&str> = list
            .lines()
            .skip(1)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(names.is_sorted() && names.len() >= 3, "{list}");
        broker.take(clients[0]);
        let large = "x".repeat(40_000);
        let said = broker.ask(
            clients[0],
            &format!("CAST none.x ${}\n{large}\n", large.len()),
        );
        assert_eq!(said, "OK 0 mem\n");
    }
}

#[test]
fn requests_are_answered_across_shards() {
    let mut broker = Broker::new(3, 9);
    let (asker, worker) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(asker, &format!("PUB {far} :first\nREQ {far} :x\n"));
    assert!(said.starts_with("OK 1 mem\nERR NOCONSUMER"), "{said}");
    assert_eq!(
        broker
            .ask(worker, &format!("@w SUB {far} credit=9\n"))
            .lines()
            .next(),
        Some("OK @w")
    );
    assert_eq!(broker.ask(asker, &format!("REQ {far} :what\nPING\n")), "");
    let said = broker.take(worker);
    let token = said.split("reply=").nth(1).expect("a token");
    let token = token.split(' ').next().expect("a token").to_owned();
    assert_eq!(broker.ask(worker, &format!("REP {token} :that\n")), "OK\n");
    let said = broker.take(asker);
    assert_eq!(said, format!("MSG {far} - $4\nthat\nEND 1\nPONG\n"));
    let said = broker.ask(worker, &format!("REP {token} :that\n"));
    assert!(said.starts_with("ERR STALE"), "{said}");
}

#[test]
fn statistics_are_of_the_whole_broker() {
    let mut broker = Broker::new(3, 11);
    let (one, two) = (broker.connect(0), broker.connect(1));
    for shard in 0..3 {
        let name = name_on(shard, 3, 0);
        broker.ask(
            one,
            &format!("HELLO name=one\nPUB {name} :x\nPULL {name}\n"),
        );
    }
    let text = broker.ask(two, "STATS\n");
    for line in [
        "shards=3",
        "connections=2",
        "leased=3",
        "published_total=3",
        "queues=3",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in {text}");
    }
    let text = broker.ask(two, "STATS conns\n");
    let row = text.lines().find(|line| line.contains("name=one"));
    let row = row.expect("it is listed");
    assert!(row.contains("leased=3"), "{text}");
    assert_eq!(text.matches("conn=").count(), 2, "{text}");
    let id = row["conn=".len()..].split(' ').next().expect("an id");
    let killed = broker.ask(two, &format!("KILL {id}\nKILL {id}\n"));
    assert!(killed.starts_with("OK\nERR STALE"), "{killed}");
    assert!(broker.clients[one].closed);
    let text = broker.ask(two, "STATS\n");
    assert!(
        text.contains("\nleased=0\n") && text.contains("\nconnections=1\n"),
        "{text}"
    );
}

#[test]
fn transactions_are_committed_where_their_queue_is() {
    let mut broker = Broker::new(2, 13);
    let client = broker.connect(0);
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    for name in [&near, &far] {
        let text = format!("BEGIN\nPUB {name} :a\nPUB {name} :b\nCOMMIT\nPULL {name} 5\n");
        let said = broker.ask(client, &text);
        assert!(
            said.starts_with("OK\nOK queued\nOK queued\nOK 2\nMSG"),
            "{said}"
        );
        assert!(said.ends_with("END 2\n"), "{said}");
    }
}

#[test]
fn a_slow_reader_stops_what_feeds_it_and_loses_nothing() {
    let mut broker = Broker::with(2, 17, |config| config.limits.send_bytes_max = 20_000);
    let client = broker.connect(0);
    let far = name_on(1, 2, 0);
    broker.socket_bytes_max = 700;
    let body = "x".repeat(900);
    let mut text = String::new();
    for nth in 0..300 {
        text += &format!("PUB {far} :{nth} {body}\nPULL {far} ack=auto\n");
    }
    let said = broker.ask(client, &text);
    assert_eq!(said.matches("END 1\n").count(), 300);
    let ids: Vec<&str> = said.lines().filter(|line| line.starts_with("OK")).collect();
    let wanted: Vec<String> = (1..=300).map(|id| format!("OK {id} mem")).collect();
    assert_eq!(ids, wanted);
    // A subscription whose reader reads nothing is given what fits the limits, and goes on later.
    broker.send(client, &format!("SUB {far} ack=auto\n"));
    broker.settle();
    broker.socket_bytes_max = 0;
    let writer = broker.connect(1);
    broker.socket_bytes_max = 1 << 20;
    broker.take(client);
    let mut text = String::new();
    for _ in 0..500 {
        text += &format!("PUB {far} :{body}\n");
    }
    broker.ask(writer, &text);
    let said = broker.take(client);
    assert_eq!(said.matches(&body).count(), 500);
}

#[test]
fn held_leases_outlive_a_connection_that_was_elsewhere() {
    let mut broker = Broker::new(2, 19);
    let client = broker.connect(0);
    let far = name_on(1, 2, 0);
    let said = broker.ask(client, &format!("PUB {far} :x\nPULL {far} hold=1\n"));
    broker.reset(client);
    let other = broker.connect(1);
    assert_eq!(broker.ask(other, &format!("PULL {far}\n")), "END 0\n");
    assert_eq!(
        broker.ask(other, &format!("ACK {}\n", handle_of(&said))),
        "OK 1\n"
    );
}

#[test]
fn quit_waits_for_every_answer() {
    let mut broker = Broker::new(3, 23);
    let client = broker.connect(0);
    let mut text = String::new();
    for shard in 0..3 {
        text += &format!("PUB {} :x\n", name_on(shard, 3, 0));
    }
    let said = broker.ask(client, &format!("{text}QUIT\nPING\n"));
    assert_eq!(said, "OK 1 mem\nOK 1 mem\nOK 1 mem\nOK bye\n");
    assert!(broker.clients[client].closed);
}

#[test]
fn a_shutdown_ends_all_shards_and_answers_first() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
        for client in &clients {
            for shard in 0..3 {
                broker.send(*client, &format!("PUB {} :x\n", name_on(shard, 3, 0)));
            }
        }
        let shard = broker.chance(3) as usize;
        for _ in 0..seed {
            broker.turn(shard);
        }
        let now = broker.now();
        broker.shards[shard].handle_shutdown(now);
        broker.settle();
        let finished = vec![Some(Stop::Finished); 3];
        assert_eq!(broker.stops, finished, "seed {seed}");
    }
    let mut broker = Broker::new(3, 31);
    let (one, two) = (broker.connect(0), broker.connect(1));
    let far = name_on(2, 3, 0);
    let said = broker.ask(one, &format!("PUB {far} :x\nPULL {far}\nSUB {far}\n"));
    assert_eq!(broker.ask(two, "DRAIN 30s\n"), "OK\n");
    assert_eq!(broker.take(one), format!("END {far} gone=drain\n"));
    assert_eq!(broker.stops, [None, None, None]);
    assert_eq!(
        broker.ask(two, &format!("PUB {far} :x\n"))[..12],
        *"ERR DRAINING"
    );
    assert_eq!(
        broker.ask(one, &format!("ACK {}\n", handle_of(&said))),
        "OK 1\n"
    );
    broker.settle();
    assert_eq!(broker.stops, vec![Some(Stop::Finished); 3]);
}

#[test]
fn a_wait_here_does_not_let_later_answers_overtake() {
    let (near, other, far) = (name_on(2, 3, 0), name_on(2, 3, 1), name_on(0, 3, 0));
    for seed in 1..200 {
        let mut broker = Broker::new(3, seed);
        let client = broker.connect(2);
        broker.send(
            client,
            &format!("PUB {far} :x\nPUB {near} :x\nPUB {far} :y\n"),
        );
        broker.turn(2);
        broker.send(client, &format!("PING\nPULL {other} wait=3s\n"));
        let said = broker.take(client);
        assert_eq!(said, "OK 1 mem\nOK 1 mem\nOK 2 mem\nPONG\n", "seed {seed}");
    }
}
