//! Queues that have to do with each other, on one shard and on two: what a client sees is the same.

use std::time::Duration;

use crate::support::client::Client;
use crate::support::{Launch, TempDir, eventually};
use ringmq::shard::shard_of;

/// A name that two shards keep on that one.
fn name_on(shard: u32, stem: &str) -> String {
    let mut names = (0..).map(|nth| format!("{stem}{nth}"));
    let found = names.find(|name| shard_of(name.as_bytes(), 2) == shard);
    found.expect("every second one is")
}

/// What a `PEEK` shows, line by line.
fn peek(client: &mut Client, arguments: &str) -> String {
    let asked = format!("PEEK {arguments}\n");
    client.send(asked.as_bytes()).expect("it listens");
    let mut text = String::new();
    loop {
        let line = client.line().expect("it answers");
        text += &format!("{line}\n");
        if !line.starts_with("MSG ") {
            return text;
        }
        let body = client.counted(&line).expect("a body follows");
        text += &format!("{}\n", String::from_utf8_lossy(&body));
    }
}

/// Connections enough to have some at each shard.
fn clients(launch: Launch, run: impl FnOnce(&mut [Client])) {
    let broker = launch.start();
    let mut clients: Vec<Client> = (0..8).map(|_| broker.client()).collect();
    run(&mut clients);
}

#[test]
fn dead_letters_on_another_shard_are_shown_as_on_one() {
    let (near, other, far) = (name_on(0, "near"), name_on(0, "other"), name_on(1, "far"));
    let mut shown = Vec::new();
    let dirs = [1, 2].map(|_| TempDir::new("shards-peek"));
    let logged = |shards: usize| Launch::data(&dirs[shards - 1].data());
    for shards in [1, 2] {
        for launch in [Launch::memory(), logged(shards)] {
            clients(launch.arg(&format!("--shards {shards}")), |clients| {
                let first = &mut clients[0];
                first.ask(&format!("QSET {far} durable=disk"));
                assert_eq!(
                    peek(first, &format!("{near} state=dead"))[..12],
                    *"ERR NOQUEUE "
                );
                for queue in [&near, &other] {
                    assert_eq!(first.ask(&format!("QSET {queue} dead={far}")), "OK created");
                    for nth in 1..=4 {
                        let options = ["", "h.colour=dark%20red ", "key=k ", ""][nth - 1];
                        first.ask(&format!("PUB {queue} {options}:{queue} {nth}"));
                    }
                    first.ask(&format!("PUB {queue} :{}", "x".repeat(20_000)));
                    let got = first
                        .pull(&format!("{queue} 5 lease=1h"))
                        .expect("they are ready");
                    for message in &got {
                        let asked = format!("NACK {} dead=1 why=no", message.handle);
                        assert_eq!(first.ask(&asked), "OK 1");
                    }
                    // What is on its way is not there yet.
                    eventually("all of them", Duration::from_secs(20), || {
                        peek(first, &format!("{queue} 9 state=dead")).ends_with("END 5\n")
                    });
                }
                let questions = [
                    format!("{near} 9 state=dead"),
                    format!("{near} 2 state=dead from=2"),
                    format!("{other} state=dead"),
                    format!("{far} 9 state=dead"),
                    format!("{near}/nobody state=dead"),
                ];
                for client in clients.iter_mut() {
                    let said: Vec<String> = questions.iter().map(|it| peek(client, it)).collect();
                    assert!(
                        said[0].ends_with("END 5\n") && !said[0].contains(&other),
                        "{said:?}"
                    );
                    assert!(said[1].ends_with("END 2\n"), "{said:?}");
                    shown.push(said);
                    // What stands behind it is answered behind it.
                    let asked = format!("@7 PEEK {near} state=dead\nPING\n");
                    client.send(asked.as_bytes()).expect("it listens");
                    let line = client.line().expect("it answers");
                    assert!(line.starts_with(&format!("MSG @7 {far} - id=1 ")), "{line}");
                    client.counted(&line).expect("a body follows");
                    assert_eq!(client.line().expect("it answers"), "END @7 1");
                    assert_eq!(client.line().expect("it answers"), "PONG");
                }
                // What has gone there has gone.
                let first = &mut clients[0];
                assert_eq!(first.ask(&format!("QDEL {far}")), "OK");
                assert_eq!(peek(first, &format!("{near} 9 state=dead")), "END 0\n");
            });
        }
    }
    assert_eq!(shown.len(), 32);
    for said in &shown {
        assert_eq!(*said, shown[0], "it is the same everywhere");
    }
}

#[test]
fn a_weaker_dead_letter_queue_is_refused_wherever_it_is() {
    let (near, far) = (name_on(0, "near"), name_on(1, "far"));
    let mut said = Vec::new();
    let dirs = [1, 2].map(|_| TempDir::new("shards-weaker"));
    for shards in [1, 2] {
        let launch = Launch::data(&dirs[shards - 1].data());
        clients(launch.arg(&format!("--shards {shards}")), |clients| {
            for client in clients.iter_mut() {
                let asked = [
                    format!("QSET {far} durable=os"),
                    format!("QSET {near} durable=disk dead={far}"),
                    format!("QSET {near} durable=os dead={far}"),
                    format!("QDEL {near}"),
                    format!("QDEL {far}"),
                ];
                let answers: Vec<String> = asked.iter().map(|text| client.ask(text)).collect();
                assert_eq!(answers[0], "OK created");
                assert!(answers[1].starts_with("ERR CONFLICT :"), "{answers:?}");
                assert_eq!(
                    answers[2], "OK created",
                    "what was refused has made nothing"
                );
                said.push(answers);
            }
        });
    }
    for answers in &said {
        assert_eq!(*answers, said[0], "it is the same everywhere");
    }
}
