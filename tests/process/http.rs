//! HTTP on brokers of several shards when things go wrong: a disk without space, a broker that goes down, bytes that mean
//! nothing, and many clients at once.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::Http;
use crate::support::os::{self, Limit};
use crate::support::{Broker, Launch, Random, TempDir, eventually};
use ringmq::shard::shard_of;

/// Connections enough to have some at each shard.
fn clients(broker: &Broker) -> Vec<Http> {
    (0..8).map(|_| Http::connect(broker.address)).collect()
}

#[test]
fn without_space_the_result_is_unknown_at_every_shard_and_it_heals() {
    let dir = TempDir::new("http-limit");
    let broker = Launch::data(&dir.data()).arg("--shards 2").start();
    let body = vec![b'x'; 200_000];
    for http in &mut clients(&broker) {
        assert_eq!(http.ask("POST", "/queue/jobs", b"x").status, 200);
    }
    os::set_limit(broker.process.pid(), Limit::FileSize, Some(8 << 20));
    // Of these one is at each shard.
    let others = [0, 1].map(|shard| {
        let mut names = (0..).map(|nth| format!("other{nth}"));
        let found = names.find(|name| shard_of(name.as_bytes(), 2) == shard);
        found.expect("every second one is")
    });
    // All of them wait for the same log, wherever they are.
    let mut waiting = clients(&broker);
    let mut unknown = 0;
    for _ in 0..50 {
        for http in &mut waiting {
            http.request("POST", "/queue/jobs", &body);
            for other in &others {
                http.request("GET", &format!("/queue/{other}"), b"");
            }
        }
        let told: Vec<_> = waiting
            .iter_mut()
            .map(|http| http.response(false))
            .collect();
        for (http, told) in waiting.iter_mut().zip(&told) {
            match told.status {
                200 | 503 => {
                    assert_eq!(http.response(false).status, 204);
                    assert_eq!(http.response(false).status, 204);
                }
                // Nothing that was asked behind it is answered.
                500 => {
                    assert!(told.text().contains("\"UNKNOWNRESULT\""), "{}", told.text());
                    assert_eq!(told.field("connection"), "close");
                    http.assert_closes();
                    unknown += 1;
                }
                other => panic!("{other}: {}", told.text()),
            }
        }
        if unknown > 0 {
            break;
        }
    }
    assert!(unknown > 0, "space has no end");
    for http in &mut clients(&broker) {
        let refused = http.ask("POST", "/queue/jobs", &body);
        assert_eq!((refused.status, refused.field("retry-after")), (503, "1"));
        let ready = http.ask("GET", "/readyz", b"");
        assert_eq!(ready.text(), "not ready: the disk is full\n");
        assert_eq!(ready.status, 503);
    }
    os::set_limit(broker.process.pid(), Limit::FileSize, None);
    let mut http = Http::connect(broker.address);
    eventually("publishes are taken again", Duration::from_secs(20), || {
        http.ask("POST", "/queue/jobs", b"healed").status == 200
    });
    assert_eq!(http.ask("GET", "/readyz", b"").status, 200);
}

#[test]
fn a_shutdown_answers_who_waits_at_any_shard() {
    for shards in [2, 4] {
        let dir = TempDir::new("http-down");
        let mut broker = Launch::data(&dir.data())
            .arg(&format!("--shards {shards}"))
            .start();
        let mut waiting = clients(&broker);
        for http in &mut waiting {
            http.request("GET", "/queue/jobs?wait=60s", b"");
        }
        waiting[7].assert_silent(Duration::from_millis(200));
        broker.terminate();
        for http in &mut waiting {
            assert_eq!(http.response(false).status, 204);
            http.assert_closes();
        }
    }
}

/// Most of what can be asked, in one go.
fn transcript() -> Vec<u8> {
    let mut sent = Vec::new();
    for queue in ["a", "b", "c", "d"] {
        for request in [
            format!("POST /queue/{queue}?pri=3&h.x=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"),
            format!("POST /queue/{queue} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            format!("GET /queue/{queue}?wait=50ms HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET /queue/{queue}?n=5 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("HEAD /queue/{queue} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            "POST /nack?delay=0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 11\r\n\r\n1.1.1 2.1.1".to_owned(),
            "GET /queues HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
            "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        ] {
            sent.extend_from_slice(request.as_bytes());
        }
    }
    sent
}

#[test]
fn mutated_clients_do_no_harm_to_several_shards() {
    let mut broker = Launch::memory().arg("--shards 3").start();
    let seed = Random::seed_from("RINGMQ_SEED");
    println!("RINGMQ_SEED={seed}");
    let mut random = Random::new(seed);
    let transcript = transcript();
    for nth in 0..300 {
        let mut bytes = transcript.clone();
        let count = if nth == 0 { 0 } else { 1 + random.below(4) };
        for _ in 0..count {
            random.garble(&mut bytes);
        }
        let mut client = broker.client();
        // The broker may close before everything is sent.
        let _ = client.send(&bytes);
        client.half_close();
        let answer = client.rest();
        if nth == 0 {
            let answer = String::from_utf8_lossy(&answer);
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 36, "{answer}");
        }
    }
    broker.assert_well();
}

#[test]
fn many_clients_at_once_lose_nothing() {
    let dir = TempDir::new("http-load");
    let broker = Launch::data(&dir.data())
        .arg("--shards 2 --set durable=os")
        .start();
    let address = broker.address;
    let workers = (0..12).map(|worker| {
        thread::spawn(move || {
            let mut http = Http::connect(address);
            let began = Instant::now();
            let mut count = 0;
            while began.elapsed() < Duration::from_secs(2) {
                let queue = format!("/queue/load{}", (worker + count) % 5);
                let posted = http.ask("POST", &queue, b"x");
                assert_eq!(posted.status, 200, "{}", posted.text());
                let taken = http.ask("GET", &format!("{queue}?wait=10s"), b"");
                assert_eq!(taken.status, 200, "as many are taken as there are");
                let settled = http.ask("POST", "/ack", taken.field("x-ringmq-handle").as_bytes());
                assert_eq!(settled.text(), "{\"count\":1,\"stale\":[]}\n");
                count += 1;
            }
            count
        })
    });
    let workers: Vec<_> = workers.collect();
    let counts = workers
        .into_iter()
        .map(|worker| worker.join().expect("all is well"));
    let total: usize = counts.sum();
    let mut http = Http::connect(broker.address);
    let listed = http.ask("GET", "/queues", b"").text();
    assert_eq!(
        listed.matches("\"ready\":0,\"leased\":0,").count(),
        5,
        "{listed}"
    );
    let metrics = http.ask("GET", "/metrics", b"").text();
    let acked = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("ringmq_messages_acked_total{"));
    let acked = acked.map(|line| {
        line.rsplit(' ')
            .next()
            .and_then(|it| it.parse::<usize>().ok())
    });
    assert_eq!(acked.map(|it| it.expect("a number")).sum::<usize>(), total);
}
