//! Clients of Redis at brokers of several shards, which break while they work.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::client::resp_command;
use crate::support::os::{self, Limit};
use crate::support::{Launch, Random, TempDir, eventually};

/// Lists on every shard.
const LISTS: [&str; 8] = ["q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7"];

/// One connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).expect("the broker listens");
        let time = Some(Duration::from_secs(60));
        stream.set_read_timeout(time).expect("it is longer than 0");
        Client(BufReader::new(stream))
    }

    fn send(&mut self, line: &str) {
        self.send_all(&[line]);
    }

    /// Sends commands in one piece.
    fn send_all(&mut self, lines: &[&str]) {
        let commands = lines.iter().flat_map(|line| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            resp_command(&words)
        });
        let sent = self.0.get_mut().write_all(&commands.collect::<Vec<u8>>());
        sent.expect("it listens");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }

    /// The next reply of one bulk, or of a key and one; `None` if there is nothing.
    fn popped(&mut self) -> Option<String> {
        match &*self.line() {
            "$-1" | "*-1" => None,
            "*2" => {
                let _key = (self.line(), self.line());
                self.popped()
            }
            bulk => {
                assert!(bulk.starts_with('$'), "{bulk}");
                Some(self.line())
            }
        }
    }

    /// Ends such that the broker sees a reset.
    fn reset(self) {
        let socket = socket2::Socket::from(self.0.into_inner());
        let linger = socket.set_linger(Some(Duration::ZERO));
        linger.expect("a socket takes it");
    }
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
        let mut pusher = Client::connect(broker.address);
        let mut wanted = BTreeSet::new();
        for nth in 0..400 {
            let list = LISTS[nth % LISTS.len()];
            let reply = pusher.ask(&format!("RPUSH {list} m{nth}"));
            assert!(reply.starts_with(':'), "{reply}");
            wanted.insert(format!("m{nth}"));
        }
        let mut done = BTreeSet::new();
        for _ in 0..60 {
            let mut client = Client::connect(broker.address);
            let mut pick = || LISTS[random.below(LISTS.len() as u64) as usize];
            let (one, two, three) = (pick(), pick(), pick());
            // In one piece: a second one could come behind the first reply, and show that it was read.
            client.send_all(&[
                &format!("LPOP {one}"),
                &format!("BRPOP {two} {three} 0.001"),
            ]);
            let own = [client.popped(), client.popped()];
            if random.below(2) == 0 {
                client.reset();
                continue;
            }
            // This command, for whatever shard, shows that both were read.
            match random.below(3) {
                0 => assert_eq!(client.ask("PING"), "+PONG"),
                1 => assert!(client.ask(&format!("LLEN {one}")).starts_with(':')),
                _ => assert!(client.ask("DBSIZE").starts_with(':')),
            }
            for body in own.into_iter().flatten() {
                assert!(done.insert(body.clone()), "{body} came twice");
            }
            client.reset();
        }
        // What was settled is settled after a start, what was open is there. A shard may not have heard of the last ones.
        let mut text = broker.client();
        eventually("nothing is leased", Duration::from_secs(20), || {
            text.data("STATS").contains("\nleased=0\n")
        });
        broker.process.kill_running();
        broker = launch.start();
        let mut client = Client::connect(broker.address);
        for list in LISTS {
            loop {
                client.send(&format!("LPOP {list}"));
                match client.popped() {
                    Some(body) => assert!(done.insert(body.clone()), "{body} came twice"),
                    None => break,
                }
            }
        }
        assert_eq!(done, wanted);
        assert_eq!(client.ask("DBSIZE"), ":0");
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
                        client.send(&line);
                        let next = client.popped();
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
    let mut pusher = Client::connect(broker.address);
    for nth in 0..500 {
        let list = LISTS[nth * 7 % LISTS.len()];
        pusher.ask(&format!("RPUSH {list} m{nth}"));
    }
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.join().expect("it works"));
    }
    let mut client = Client::connect(broker.address);
    eventually(
        "what broken clients had is there",
        Duration::from_secs(20),
        || {
            for list in LISTS {
                client.send(&format!("LPOP {list}"));
                all.extend(client.popped());
            }
            all.len() >= 500
        },
    );
    let wanted: BTreeSet<String> = (0..500).map(|nth| format!("m{nth}")).collect();
    assert_eq!(all.len(), 500, "each comes once to somebody who says so");
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), wanted);
    broker.assert_well();
}

#[test]
fn without_space_a_client_is_told_once_that_the_result_is_unknown() {
    let dir = TempDir::new("shards-resp-space");
    let mut broker = Launch::data(&dir.data()).arg("--shards 2").start();
    let body = "x".repeat(200_000);
    for list in LISTS {
        Client::connect(broker.address).ask(&format!("RPUSH {list} x"));
    }
    os::set_limit(broker.process.pid(), Limit::FileSize, Some(8 << 20));
    let mut unknown = 0;
    let mut is_refused = [false; 2];
    for round in 0..200 {
        let lists = [LISTS[round % 8], LISTS[(round + 1) % 8]];
        let mut client = Client::connect(broker.address);
        // What stands behind it on either shard is answered in its place or not at all.
        client.send_all(&[
            &format!("RPUSH {} {body}", lists[0]),
            "ECHO 1",
            &format!("RPUSH {} {body}", lists[1]),
            "ECHO 2",
        ]);
        for nth in 1..=2 {
            let pushed = client.line();
            if pushed.starts_with("-UNKNOWNRESULT ") {
                assert_eq!(client.line(), "", "it ends there");
                unknown += 1;
                break;
            }
            assert!(pushed.starts_with([':', '-']), "{pushed}");
            if pushed.starts_with('-') {
                assert!(pushed.starts_with("-DISK "), "{pushed}");
                let owner = ringmq::shard::shard_of(lists[nth - 1].as_bytes(), 2);
                is_refused[owner as usize] = true;
            }
            assert_eq!(
                (client.line(), client.line()),
                ("$1".into(), nth.to_string())
            );
        }
        if is_refused == [true; 2] {
            break;
        }
    }
    assert!(unknown > 0, "what was taken on cannot be made safe");
    assert_eq!(is_refused, [true; 2]);
    os::set_limit(broker.process.pid(), Limit::FileSize, None);
    for list in LISTS {
        eventually("pushes are taken again", Duration::from_secs(20), || {
            let mut client = Client::connect(broker.address);
            client.ask(&format!("RPUSH {list} healed")).starts_with(':')
        });
    }
    broker.assert_well();
}

#[test]
fn a_shutdown_answers_who_waits_at_any_shard() {
    let dir = TempDir::new("shards-resp-down");
    let launch = Launch::data(&dir.data()).arg("--shards 4");
    let mut broker = launch.start();
    let mut waiting = Vec::new();
    for list in LISTS {
        let mut client = Client::connect(broker.address);
        client.send(&format!("BLPOP {list} 0"));
        waiting.push(client);
    }
    let mut client = Client::connect(broker.address);
    client.send(&format!("BRPOP {} 0", LISTS.join(" ")));
    waiting.push(client);
    let mut popped = Vec::new();
    for nth in 0..8 {
        let mut client = Client::connect(broker.address);
        let lines = [format!("RPUSH kept{nth} a"), format!("LPOP kept{nth}")];
        client.send_all(&[&lines[0], &lines[1]]);
        assert_eq!(client.line(), ":1");
        assert_eq!(client.popped().as_deref(), Some("a"));
        popped.push(client);
    }
    thread::sleep(Duration::from_millis(200));
    broker.terminate();
    for mut client in waiting {
        assert_eq!(
            (client.line(), client.line()),
            ("*-1".into(), String::new())
        );
    }
    for mut client in popped {
        assert_eq!(client.line(), "");
    }
    // Nobody said that these replies were read: the messages are there again.
    let broker = launch.start();
    let mut client = Client::connect(broker.address);
    for nth in 0..8 {
        client.send(&format!("LPOP kept{nth}"));
        assert_eq!(client.popped().as_deref(), Some("a"));
    }
}
