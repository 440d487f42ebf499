//! `PULL` of queues on several shards.

use super::*;

/// Three names, one on each shard.
fn names() -> [String; 3] {
    [name_on(0, 3, 0), name_on(1, 3, 0), name_on(2, 3, 0)]
}

#[test]
fn messages_come_in_the_order_of_the_queues_named() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let [a, b, c] = names();
        let home = broker.connect((seed % 3) as usize);
        broker.ask(
            home,
            &format!("PUB {a} :a\nPUB {b} :b1\nPUB {b} :b2\nPUB {c} :c\n"),
        );
        let got = broker.ask(home, &format!("PULL {b},{a},{c} 3\nPING :next\n"));
        let bodies: Vec<&str> = got
            .lines()
            .filter(|line| !line.starts_with("MSG"))
            .collect();
        assert_eq!(
            bodies,
            ["b1", "b2", "a", "END 3", "PONG :next"],
            "seed {seed}"
        );
        let got = broker.ask(home, &format!("@t PULL {a},{b},{c} 5\nPULL {a},{b}\n"));
        assert!(got.contains("MSG @t") && got.contains("END @t 1"), "{got}");
        assert!(got.contains("END 0"), "{got}");
        assert_eq!(broker.leased(), 4, "nothing is kept that was not given");
    }
}

#[test]
fn a_wait_is_woken_by_whichever_queue_has_something() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let [a, b, c] = names();
        let home = broker.connect((seed % 3) as usize);
        let other = broker.connect((seed / 3 % 3) as usize);
        let names = [&a, &b, &c];
        let woken = names[(seed % 3) as usize];
        let text = format!("PULL {a},{b},{c} 2 wait=10s\nPING\n");
        assert_eq!(broker.ask(home, &text), "");
        broker.ask(other, &format!("PUB {woken} :x\n"));
        let got = broker.take(home);
        let lines: Vec<&str> = got.lines().skip(1).collect();
        assert!(got.starts_with(&format!("MSG {woken} ")), "{got}");
        assert_eq!(lines, ["x", "END 1", "PONG"]);
        // The watches are gone: what comes later is anyone's, at its first try.
        for name in names {
            broker.ask(other, &format!("PUB {name} :y\n"));
            let got = broker.ask(other, &format!("PULL {name}\n"));
            assert!(got.contains("y\nEND 1") && !got.contains("try="), "{got}");
        }
        assert_eq!(broker.leased(), 4);
    }
}

#[test]
fn on_a_tie_the_first_named_is_taken_and_the_other_goes_back_untried() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let [a, b, c] = names();
        let home = broker.connect(0);
        let other = broker.connect(1);
        broker.ask(home, &format!("@1 PULL {c},{b},{a} wait=10s\n"));
        broker.ask(other, &format!("PUB {a} :a\nPUB {b} :b\nPUB {c} :c\n"));
        let got = broker.take(home);
        assert!(got.ends_with("END @1 1\n"), "{got}");
        assert_eq!(broker.leased(), 1);
        let rest = broker.ask(other, &format!("PULL {a},{b},{c} 9\n"));
        assert!(
            rest.ends_with("END 2\n") && !rest.contains("try="),
            "{rest}"
        );
    }
}

#[test]
fn a_wait_ends_by_time_by_cancel_and_by_an_empty_line() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let [a, b, _] = names();
        let home = broker.connect((seed % 3) as usize);
        broker.ask(home, &format!("PULL {a},{b} wait=1s\n"));
        broker.wait(999_000);
        assert_eq!(broker.take(home), "");
        broker.wait(1_000);
        assert_eq!(broker.take(home), "END 0\n");
        broker.ask(home, &format!("@t PULL {a},{b} wait=1s\n"));
        let used = broker.ask(home, &format!("@t PULL {a}\n"));
        assert!(used.starts_with("ERR @t CONFLICT"), "{used}");
        assert_eq!(
            broker.ask(home, "CANCEL @t\nCANCEL @t\n"),
            "END @t 0\nOK 1\nOK 0\n"
        );
        assert_eq!(
            broker.ask(home, &format!("PULL {a},{b} wait=1s\n\nPING\n")),
            "END 0\nPONG\n"
        );
        let both = broker.ask(home, &format!("@t PULL {a},{b} wait=1s\nCANCEL @t\n"));
        assert_eq!(both, "END @t 0\nOK 1\n");
        broker.ask(home, &format!("PUB {a} :1\nPUB {b} :2\n"));
        let got = broker.ask(home, &format!("PULL {a},{b} 2\n"));
        assert!(got.ends_with("END 2\n") && !got.contains("try="), "{got}");
    }
}

#[test]
fn one_who_waited_longer_is_served_first() {
    for seed in 1..30 {
        let mut broker = Broker::new(3, seed);
        let [a, b, _] = names();
        let (first, second) = (broker.connect(2), broker.connect(0));
        broker.ask(first, &format!("PULL {b},{a} wait=10s\n"));
        broker.ask(second, &format!("PULL {a} wait=10s\n"));
        broker.ask(second, "");
        let publisher = broker.connect(1);
        broker.ask(publisher, &format!("PUB {a} :1\n"));
        assert!(broker.take(first).ends_with("END 1\n"), "seed {seed}");
        assert_eq!(broker.take(second), "", "seed {seed}");
        broker.ask(publisher, &format!("PUB {a} :2\n"));
        assert!(broker.take(second).ends_with("END 1\n"), "seed {seed}");
    }
}

#[test]
fn a_connection_that_goes_leaves_nothing_kept() {
    for seed in 1..40 {
        let mut broker = Broker::new(3, seed);
        let [a, b, c] = names();
        let (home, other) = (broker.connect(0), broker.connect(1));
        broker.ask(home, &format!("PULL {b},{c} wait=10s\n"));
        broker.send(other, &format!("PUB {b} :1\nPUB {c} :2\n"));
        for _ in 0..seed {
            let shard = broker.chance(3) as usize;
            broker.turn(shard);
        }
        broker.reset(home);
        broker.take(other);
        let got = broker.ask(other, &format!("PULL {a},{b},{c} 3\n"));
        assert!(got.ends_with("END 2\n"), "seed {seed}: {got}");
        assert_eq!(broker.leased(), 2, "seed {seed}");
    }
}

#[test]
fn a_half_closed_one_is_given_what_is_ready() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let [a, b, c] = names();
        let other = broker.connect(1);
        broker.ask(other, &format!("PUB {c} :x\n"));
        let (one, two) = (broker.connect(0), broker.connect(0));
        broker.send(one, &format!("PULL {a},{b},{c} wait=10s hold=1\n"));
        broker.half_close(one);
        assert!(broker.take(one).ends_with("x\nEND 1\n"));
        broker.send(two, &format!("PULL {a},{b},{c} wait=10s\n"));
        broker.half_close(two);
        assert_eq!(broker.take(two), "END 0\n");
        assert!(broker.clients[one].closed && broker.clients[two].closed);
        assert_eq!(broker.leased(), 1, "it is held");
    }
}

#[test]
fn a_refused_part_refuses_the_whole() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        let [a, b, _] = names();
        let home = broker.connect((seed % 3) as usize);
        broker.ask(home, &format!("PUB {a} :1\nPULL {b}/g\n"));
        let got = broker.ask(home, &format!("PULL {a},{b}\nPING\n"));
        assert!(got.starts_with("ERR CONFLICT"), "{got}");
        assert!(got.ends_with("PONG\n"), "{got}");
        assert_eq!(broker.leased(), 0);
        let got = broker.ask(home, &format!("PULL {a}\n"));
        assert!(got.ends_with("END 1\n") && !got.contains("try="), "{got}");
    }
}

#[test]
fn an_offer_that_is_not_taken_in_time_goes_back() {
    let mut broker = Broker::new(2, 3);
    let (a, b) = (name_on(0, 2, 0), name_on(1, 2, 0));
    let (home, other) = (broker.connect(0), broker.connect(1));
    broker.ask(home, &format!("@w PULL {a},{b} wait=10s\n"));
    broker.send(other, &format!("PUB {b} :x\n"));
    // The home's shard does nothing for a while.
    for _ in 0..20 {
        broker.turn(1);
    }
    broker.now_us += 200_000;
    broker.turn(1);
    broker.send(other, &format!("PULL {b}\n"));
    for _ in 0..20 {
        broker.turn(1);
    }
    let got = broker.take(other);
    assert!(
        got.ends_with("x\nEND 1\n") && !got.contains("try="),
        "{got}"
    );
    assert_eq!(broker.take(home), "");
    broker.ask(other, &format!("PUB {b} :y\n"));
    let got = broker.take(home);
    assert!(
        got.ends_with("y\nEND @w 1\n") && !got.contains("try="),
        "{got}"
    );
}

#[test]
fn a_drain_and_a_deleted_queue_are_no_trouble() {
    let mut broker = Broker::new(3, 5);
    let [a, b, c] = names();
    let (home, other) = (broker.connect(0), broker.connect(1));
    broker.ask(other, &format!("PUB {b} :x\nQDEL {b}\n"));
    broker.ask(home, &format!("@w PULL {a},{b},{c} wait=10s ack=auto\n"));
    broker.ask(other, &format!("QDEL {b}\nQDEL {c}\n"));
    broker.ask(other, &format!("PUB {b} :y\n"));
    let got = broker.take(home);
    assert!(got.ends_with("y\nEND @w 1\n"), "{got}");
    broker.ask(home, &format!("PULL {a},{b} wait=10s\n"));
    broker.ask(other, &format!("QSET {a} pause=out\nPUB {a} :no\n"));
    assert_eq!(broker.take(home), "");
    broker.ask(other, "DRAIN\n");
    assert_eq!(broker.take(home), "END 0\n");
}
