//! Messages that go to queues of other shards.

use super::*;

#[test]
fn dead_letters_go_to_a_queue_of_another_shard() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let (near, far) = (name_on(0, 3, 0), name_on(1, 3, 0));
        let client = broker.connect((seed % 3) as usize);
        let said = broker.ask(
            client,
            &format!("QSET {near} dead={far} maxdeliver=1 maxlen=2\n"),
        );
        assert_eq!(said, "OK created\n");
        broker.ask(client, &format!("PUB {near} h.x=1 :one\nPUB {near} :two\n"));
        let got = broker.ask(client, &format!("PULL {near} 2\n"));
        let handles: Vec<&str> = got
            .lines()
            .filter_map(|line| line.split(' ').nth(2))
            .collect();
        // The first is rejected, the other has no more tries.
        let said = broker.ask(
            client,
            &format!("NACK {} dead=1 why=bad\nNACK {}\n", handles[0], handles[1]),
        );
        assert_eq!(said, "OK 1\nOK 1\n");
        // Neither counts for the limit of the queue that they left.
        assert_eq!(
            broker
                .ask(client, &format!("PUB {near} :3\nPUB {near} :4\n"))
                .matches("OK")
                .count(),
            2
        );
        let got = broker.ask(client, &format!("PULL {far} 9 ack=auto\n"));
        assert!(got.ends_with("END 2\n"), "{got}");
        for part in [
            "h.x=1",
            "h.dead-reason=rejected",
            "h.dead-why=bad",
            "h.dead-reason=tries",
            "\none\n",
            "\ntwo\n",
        ] {
            assert!(got.contains(part), "{part} of {got}");
        }
        assert!(
            got.contains(&format!("h.dead-queue={near} h.dead-id=")),
            "{got}"
        );
        let list = broker.ask(client, "QLS\n");
        assert!(
            list.contains(&format!("{near} ready=2 leased=0 delayed=0")),
            "{list}"
        );
        assert!(broker.outboxes_are_idle());
        // A target that was made so takes what comes, and returns nothing by itself.
        let settings = broker.ask(client, &format!("QGET {far}\n"));
        assert!(settings.contains("set.maxdeliver=0"), "{settings}");
    }
}

#[test]
fn a_queue_is_not_deleted_before_its_dead_have_gone() {
    for seed in 1..20 {
        let mut broker = Broker::new(2, seed);
        let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
        let client = broker.connect(0);
        broker.ask(client, &format!("QSET {near} dead={far}\nPUB {near} :x\n"));
        let handle = handle_of(&broker.ask(client, &format!("PULL {near}\n")));
        let said = broker.ask(
            client,
            &format!("NACK {handle} dead=1\nQDEL {near}\nPING\n"),
        );
        assert_eq!(said, "OK 1\nOK\nPONG\n");
        let got = broker.ask(client, &format!("PULL {far}\n"));
        assert!(got.ends_with("\nx\nEND 1\n"), "{got}");
    }
}

#[test]
fn dead_letter_queues_of_several_shards_never_go_in_a_circle() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let (a, b, c) = (&names[0], &names[1], &names[2]);
        let client = broker.connect((seed % 3) as usize);
        let said = broker.ask(
            client,
            &format!(
                "QSET {a} dead={b}\nQSET {b} dead={c}\nQSET {c} maxlen=9\nQSET {c} dead={a}\nPING\n"
            ),
        );
        let wanted = "OK created\nOK created\nOK created\nERR CONFLICT :dead= would lead back";
        assert!(
            said.starts_with(wanted) && said.ends_with("PONG\n"),
            "{said}"
        );
        let said = broker.ask(
            client,
            &format!("QSET {c} dead={c}\nQSET {b} dead=none\nQSET {c} dead={a}\n"),
        );
        assert!(
            said.starts_with("ERR CONFLICT") && said.ends_with("OK updated\nOK updated\n"),
            "{said}"
        );
    }
}

#[test]
fn of_two_that_would_close_a_circle_at_once_one_is_refused() {
    let mut done = 0;
    for seed in 1..60 {
        let mut broker = Broker::new(3, seed);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
        for at in 0..3 {
            let text = format!("QSET {} dead={}\n", names[at], names[(at + 1) % 3]);
            broker.send(clients[at], &text);
        }
        let said: Vec<String> = clients.iter().map(|client| broker.take(*client)).collect();
        let created = said.iter().filter(|text| *text == "OK created\n").count();
        assert!(created < 3, "seed {seed}: {said:?}");
        assert!(
            said.iter()
                .all(|text| text.starts_with("OK") || text.starts_with("ERR CONFLICT"))
        );
        done += created;
        // Whoever goes in the middle of it leaves no note.
        let late = broker.connect(0);
        broker.send(late, &format!("QSET {} dead={}\n", names[0], names[1]));
        broker.turn(0);
        broker.reset(late);
        broker.settle();
        let said = broker.ask(
            clients[2],
            &format!(
                "QSET {} dead=none\nQSET {} dead={}\n",
                names[0], names[1], names[0]
            ),
        );
        assert!(
            said.ends_with("OK updated\n") || said.ends_with("OK created\n"),
            "{said}"
        );
    }
    assert!(done > 0, "none is ever done");
}

#[test]
fn a_queue_counts_its_dead_letters_on_another_shard() {
    let mut broker = Broker::new(2, 9);
    let (near, far) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let client = broker.connect(0);
    broker.ask(
        client,
        &format!("QSET {near} dead={far}\nMPUB {near} *3\na\nb\nc\n"),
    );
    let got = broker.ask(client, &format!("PULL {near} 3\n"));
    let handles = got.lines().filter_map(|line| line.split(' ').nth(2));
    let handles: Vec<&str> = handles.collect();
    broker.ask(
        client,
        &format!("NACK {} dead=1\nPUB {far} :other\n", handles.join(" ")),
    );
    let dead = |broker: &mut Broker| {
        let text = broker.ask(client, &format!("QGET {near}\n"));
        let line = text.lines().find(|line| line.starts_with("dead="));
        line.expect("it is counted").to_owned()
    };
    assert_eq!(dead(&mut broker), "dead=3");
    broker.ask(client, &format!("PULL {far} ack=auto\n"));
    assert_eq!(dead(&mut broker), "dead=2");
    let list = broker.ask(client, "QLS\n");
    assert!(
        list.contains(&format!("{near} ready=0 leased=0 delayed=0 dead=2\n")),
        "{list}"
    );
    // What is put back is dead no more.
    assert_eq!(
        broker.ask(client, &format!("MOVE {far} {near} 1\n")),
        "OK 1\n"
    );
    assert_eq!(dead(&mut broker), "dead=1");
    broker.ask(client, &format!("QDEL {far}\n"));
    assert_eq!(dead(&mut broker), "dead=0");
}
