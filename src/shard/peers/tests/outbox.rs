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
        assert!(
            broker
                .shards
                .iter()
                .all(|shard| shard.engine.outbox.is_idle())
        );
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
