//! Clients of Redis at brokers of several shards, which break while they work.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::support::client::{Client, resp_command};
use crate::support::{Launch, Random, TempDir, eventually};

/// Lists on every shard.
const LISTS: [&str; 8] = ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7"];

fn send(client: &mut Client, line: &str) {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    client.send(&resp_command(&words)).expect("it listens");
}

/// The next reply of one bulk, or of a key and one; `None` if there is nothing.
fn popped(client: &mut Client) -> Option<String> {
    let head = client.line().expect("it answers");
    match head.trim_end() {
        "$-1" | "*-1" => None,
        "*2" => {
            client.line().expect("the key's length");
            client.line().expect("the key");
            popped(client)
        }
        bulk => {
            assert!(bulk.starts_with('$'), "{bulk}");
            let body = client.line().expect("a body");
            Some(body.trim_end().to_owned())
        }
    }
}

fn ask(client: &mut Client, line: &str) -> String {
    send(client, line);
    client.line().expect("it answers").trim_end().to_owned()
}

#[test]
fn what_broken_clients_have_popped_comes_again_and_what_was_read_does_not() {
    for shards in [2, 4] {
        let seed = Random::seed_from("RINGMQ_SEED");
        println!("{shards} shards, RINGMQ_SEED={seed}");
        let mut random = Random::new(seed);
        let dir = TempDir::new("shards-resp");
        let launch = Launch::data(&dir.data()).arg(&format!("--shards {shards}"));
        let mut broker = launch.start();
        let mut pusher = broker.client();
        let mut wanted = BTreeSet::new();
        for nth in 0..400 {
            let list = LISTS[nth % LISTS.len()];
            let reply = ask(&mut pusher, &format!("RPUSH {list} m{nth}"));
            assert!(reply.starts_with(':'), "{reply}");
            wanted.insert(format!("m{nth}"));
        }
        let mut done = BTreeSet::new();
        for _ in 0..60 {
            let mut client = broker.client();
            let mut pick = || LISTS[random.below(LISTS.len() as u64) as usize];
            let (one, two, three) = (pick(), pick(), pick());
            send(&mut client, &format!("LPOP {one}"));
            send(&mut client, &format!("BRPOP {two} {three} 0.001"));
            let own = [popped(&mut client), popped(&mut client)];
            if random.below(2) == 0 {
                client.reset();
                continue;
            }
            // This command, for whatever shard, shows that both were read.
            match random.below(3) {
                0 => assert_eq!(ask(&mut client, "PING"), "+PONG"),
                1 => assert!(ask(&mut client, &format!("LLEN {one}")).starts_with(':')),
                _ => assert!(ask(&mut client, "DBSIZE").starts_with(':')),
            }
            for body in own.into_iter().flatten() {
                assert!(done.insert(body.clone()), "{body} came twice");
            }
            client.reset();
        }
        // What was settled is settled after a start, what was open is there.
        broker.process.kill_running();
        broker = launch.start();
        let mut client = broker.client();
        for list in LISTS {
            loop {
                send(&mut client, &format!("LPOP {list}"));
                match popped(&mut client) {
                    Some(body) => assert!(done.insert(body.clone()), "{body} came twice"),
                    None => break,
                }
            }
        }
        assert_eq!(done, wanted);
        assert_eq!(ask(&mut client, "DBSIZE"), ":0");
        drop(broker);
    }
}

#[test]
fn pops_go_on_while_clients_come_and_break() {
    let mut broker = Launch::memory().arg("--shards 4").start();
    let address = broker.address;
    let workers: Vec<_> = (0..4)
        .map(|nth| {
            thread::spawn(move || {
                let mut random = Random::new(nth + 1);
                let mut done = Vec::new();
                let mut idle = 0;
                while idle < 3 {
                    let mut client = Client::connect(address);
                    let first = random.below(8) as usize;
                    let lists: Vec<_> = (0..8).map(|at| LISTS[(first + at) % 8]).collect();
                    let line = format!("BLPOP {} 0.3", lists.join(" "));
                    let mut last = None;
                    for _ in 0..20 {
                        send(&mut client, &line);
                        let next = popped(&mut client);
                        // The one before is settled now.
                        done.extend(last.take());
                        idle = if next.is_some() { 0 } else { idle + 1 };
                        last = next;
                        if random.below(8) == 0 {
                            break;
                        }
                    }
                    client.reset();
                }
                done
            })
        })
        .collect();
    let mut pusher = broker.client();
    for nth in 0..500 {
        let list = LISTS[nth * 7 % LISTS.len()];
        ask(&mut pusher, &format!("RPUSH {list} m{nth}"));
    }
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.join().expect("it works"));
    }
    let mut client = broker.client();
    eventually(
        "what broken clients had is there",
        Duration::from_secs(20),
        || {
            for list in LISTS {
                send(&mut client, &format!("LPOP {list}"));
                all.extend(popped(&mut client));
            }
            all.len() >= 500
        },
    );
    let wanted: BTreeSet<String> = (0..500).map(|nth| format!("m{nth}")).collect();
    assert_eq!(all.len(), 500, "each comes once to somebody who says so");
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), wanted);
    broker.assert_well();
}
