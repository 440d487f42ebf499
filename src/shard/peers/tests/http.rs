//! HTTP: what a client is told is the same on any number of shards, and wherever it is connected.

use super::*;

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn post(target: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn status_of(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}

fn body_of(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn field<'a>(response: &'a str, name: &str) -> &'a str {
    let (_, value) = response.split_once(&format!("{name}: ")).expect(name);
    value.split("\r\n").next().unwrap_or_default()
}

/// Runs the same with one shard and with several, from each of them: it must be told the same.
fn check(run: impl Fn(&mut Broker, usize) -> Vec<String>) {
    let wanted = run(&mut Broker::new(1, 1), 0);
    for shards in [2, 3] {
        for home in 0..shards {
            let mut broker = Broker::new(shards, u64::from(shards + home) + 1);
            let found = run(&mut broker, home as usize);
            for (nth, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                assert_eq!(found, wanted, "answer {nth} on {shards} from {home}");
            }
            assert_eq!(found.len(), wanted.len());
        }
    }
}

/// Handles are others in each broker, and so are lengths of bodies with handles.
fn without(mut text: String, handles: &[String]) -> String {
    for (nth, handle) in handles.iter().enumerate() {
        text = text.replace(handle.as_str(), &format!("<{nth}>"));
    }
    let lines = text.split_inclusive('\n');
    lines
        .filter(|line| !line.starts_with("Content-Length: "))
        .collect()
}

#[test]
fn every_route_tells_the_same() {
    check(|broker, home| {
        let client = broker.connect(home);
        let mut told = Vec::new();
        let names = [0, 1, 2].map(|shard| name_on(shard, 3, 0));
        let mut handles = Vec::new();
        for name in &names {
            told.push(broker.ask(
                client,
                &post(&format!("/queue/{name}?pri=3&h.a=b&once=1"), "x"),
            ));
            told.push(broker.ask(client, &post(&format!("/queue/{name}?once=1"), "x")));
            told.push(broker.ask(client, &post(&format!("/queue/{name}"), "second")));
            told.push(broker.ask(client, &get(&format!("/queues/{name}"))));
            let taken = broker.ask(client, &get(&format!("/queue/{name}?lease=1m")));
            handles.push(field(&taken, "X-RingMQ-Handle").to_owned());
            told.push(taken);
            told.push(broker.ask(
                client,
                &get(&format!("/queue/{name}?n=5&group=g&from=first&ack=auto")),
            ));
            told.push(broker.ask(client, &get(&format!("/queue/{name}?n=0"))));
            told.push(broker.ask(client, &get(&format!("/queue/{name}?frob=0"))));
            told.push(broker.ask(client, &post(&format!("/queue/{name}?frob=0"), "x")));
            let head = get(&format!("/queue/{name}")).replace("GET", "HEAD");
            told.push(broker.ask(client, &head));
            told.push(broker.ask(client, &head.replace(name.as_str(), "nobody")));
        }
        told.push(broker.ask(client, &post("/queue", "for nobody in particular")));
        told.push(broker.ask(client, &get("/queues")));
        told.push(broker.ask(client, &get("/queues?pattern=q*&pattern=x")));
        for pattern in ["q0", "#", ":a", "$5", "*", "", "a=b"] {
            told.push(broker.ask(client, &get(&format!("/queues?pattern={pattern}"))));
        }
        for page in [
            "/",
            "/healthz",
            "/readyz",
            "/queues/none",
            "/nothing",
            "/queue/a/b",
        ] {
            told.push(broker.ask(client, &get(page)));
        }
        let all = handles.join("\n");
        told.push(broker.ask(client, &post("/touch?lease=5m", &all)));
        told.push(broker.ask(client, &post("/nack?delay=1500us&why=a%20b", &handles[0])));
        told.push(broker.ask(
            client,
            &post("/ack", &format!("{} x, 1.1.99\n{all}", handles[0])),
        ));
        told.push(broker.ask(client, &post("/ack", &all)));
        told.push(broker.ask(
            client,
            &post(
                &format!("/ack?handle={}&handle={}", handles[1], handles[2]),
                "",
            ),
        ));
        told.into_iter()
            .map(|text| without(text, &handles))
            .collect()
    });
}

#[test]
fn what_is_no_handle_is_stale_and_harms_nobody() {
    check(|broker, home| {
        let client = broker.connect(home);
        let mut told = Vec::new();
        for odd in [
            ":x", "$5", "$", "*3", "*x", "@a", "-", "\u{b}", "1.2", "ACK!", "a:b", "\u{e9}",
        ] {
            let handles = [0, 1, 2].map(|shard| {
                let name = name_on(shard, 3, 0);
                broker.ask(client, &post(&format!("/queue/{name}"), "x"));
                let taken = broker.ask(client, &get(&format!("/queue/{name}")));
                field(&taken, "X-RingMQ-Handle").to_owned()
            });
            let [one, two, three] = &handles;
            for page in ["touch", "nack", "ack"] {
                let body = format!("{one} {odd}\n{two},{three} {odd}");
                told.push(without(
                    broker.ask(client, &post(&format!("/{page}"), &body)),
                    &handles,
                ));
                let body = format!("{odd} {two}");
                told.push(without(
                    broker.ask(client, &post(&format!("/{page}"), &body)),
                    &handles,
                ));
            }
            told.push(broker.ask(client, &post("/ack", odd)));
        }
        told
    });
}

/// Requests for queues everywhere, and pages.
fn pipeline() -> (String, usize) {
    let [a, b, c] = [0, 1, 2].map(|shard| name_on(shard, 3, 0));
    let mut sent = String::new();
    let mut count = 0;
    for request in [
        post(&format!("/queue/{a}"), "1"),
        post(&format!("/queue/{b}"), "22"),
        get(&format!("/queue/{b}?ack=auto")),
        post(&format!("/queue/{c}?frob=1"), "333"),
        get("/healthz"),
        post(&format!("/queue/{b}"), "4"),
        format!(
            "POST /queue/{c} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        ),
        get("/queues"),
        get(&format!("/queue/{c}?n=3&ack=auto")),
        get(&format!("/queues/{b}")),
        get("/readyz"),
        post("/nack", "1.1.1 2.1.1 3.1.1"),
        get(&format!("/queue/{a}?ack=auto")),
        get(&format!("/queue/{a}?ack=auto")),
    ] {
        sent += &request;
        count += 1;
    }
    (sent, count)
}

#[test]
fn pipelined_requests_are_answered_in_their_order_wherever_they_are_cut() {
    let (sent, count) = pipeline();
    let wanted = {
        let mut broker = Broker::new(1, 1);
        let client = broker.connect(0);
        broker.ask(client, &sent)
    };
    assert_eq!(wanted.matches("HTTP/1.1 ").count(), count, "{wanted}");
    for cut in 0..=sent.len() {
        let mut broker = Broker::new(3, cut as u64 + 1);
        let client = broker.connect(cut % 3);
        broker.send(client, &sent[..cut]);
        broker.settle();
        broker.send(client, &sent[cut..]);
        assert_eq!(broker.take(client), wanted, "cut at {cut}");
    }
    for seed in 1..40 {
        let mut broker = Broker::new(3, seed);
        broker.socket_bytes_max = 1 + seed as usize * 7;
        let client = broker.connect(seed as usize % 3);
        broker.send(client, &sent);
        broker.half_close(client);
        assert_eq!(broker.take(client), wanted, "seed {seed}");
        assert!(broker.clients[client].closed, "seed {seed}");
    }
}

#[test]
fn the_last_request_of_a_connection_ends_it_and_none_behind_it_is_run() {
    for far in [0, 1] {
        let mut broker = Broker::new(2, 7);
        let name = name_on(far, 2, 0);
        let close = |request: String| request.replace("Host:", "Connection: close\r\nHost:");
        for request in [
            post(&format!("/queue/{name}"), "x"),
            get(&format!("/queue/{name}")),
            get(&format!("/queue/{name}?n=2")),
            get(&format!("/queue/{name}?wait=1s")),
            get("/queues"),
            get("/metrics"),
            get("/readyz"),
            post("/ack", "2.1.1 3.1.1"),
        ] {
            let client = broker.connect(0);
            let behind = post(&format!("/queue/{name}"), "never");
            broker.send(client, &(close(request.clone()) + &behind));
            broker.wait(1_100_000);
            let told = broker.take(client);
            assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{request}\n{told}");
            assert!(told.contains("Connection: close\r\n"), "{told}");
            assert!(broker.clients[client].closed, "{request}");
        }
        // Its lease outlives the connection that has closed.
        let client = broker.connect(1);
        let listed = broker.ask(client, &get("/queues"));
        let wanted = format!("{{\"name\":\"{name}\",\"ready\":0,\"leased\":1,");
        assert!(listed.contains(&wanted), "{listed}");
        let guests = broker
            .shards
            .iter()
            .map(|shard| shard.peers.as_ref().expect("several").guests());
        assert!(
            guests.sum::<usize>() <= 1,
            "guests go with their connections"
        );
    }
}

#[test]
fn a_wait_elsewhere_ends_with_a_message_its_time_or_its_client() {
    let mut broker = Broker::new(2, 3);
    let (home, other) = (broker.connect(0), broker.connect(1));
    let far = name_on(1, 2, 0);
    let wait = get(&format!("/queue/{far}?wait=10s"));
    // An empty line is what some clients send behind a body, and ends nothing here.
    assert_eq!(broker.ask(home, &format!("{wait}\r\n")), "");
    assert_eq!(broker.ask(home, &format!("\n\r\n{}", get("/healthz"))), "");
    assert_eq!(
        status_of(&broker.ask(other, &post(&format!("/queue/{far}"), "late"))),
        "200"
    );
    let told = broker.take(home);
    assert!(told.contains("\r\n\r\nlateHTTP/1.1 200 OK\r\n"), "{told}");
    assert!(told.ends_with("\r\n\r\nok\n"), "{told}");
    assert_eq!(broker.ask(home, &(wait.clone() + &get("/healthz"))), "");
    broker.wait(10_100_000);
    let told = broker.take(home);
    assert!(
        told.starts_with("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK"),
        "{told}"
    );
    // One that is gone takes nothing with it.
    assert_eq!(broker.ask(home, &wait), "");
    broker.reset(home);
    let home = broker.connect(0);
    assert_eq!(broker.ask(home, &wait), "");
    broker.half_close(home);
    assert_eq!(broker.take(home), "HTTP/1.1 204 No Content\r\n\r\n");
    assert!(broker.clients[home].closed);
    broker.ask(other, &post(&format!("/queue/{far}"), "next"));
    let told = broker.ask(other, &get(&format!("/queue/{far}")));
    assert_eq!(
        (body_of(&told), field(&told, "X-RingMQ-Try")),
        ("next", "1")
    );
}

#[test]
fn what_was_not_sent_whole_goes_back_and_what_was_stays_leased() {
    for shards in [1, 2] {
        for is_sent in [false, true] {
            let mut broker = Broker::new(shards, 5);
            let name = name_on(1, 2, 0);
            let (home, other) = (broker.connect(0), broker.connect(0));
            broker.ask(other, &post(&format!("/queue/{name}"), &"x".repeat(50_000)));
            broker.socket_bytes_max = if is_sent { 1000 } else { 0 };
            broker.send(home, &get(&format!("/queue/{name}?lease=1m")));
            broker.settle();
            broker.socket_bytes_max = usize::MAX;
            broker.reset(home);
            let told = broker.ask(other, &get(&format!("/queue/{name}")));
            let wanted = if is_sent { "204" } else { "200" };
            assert_eq!(status_of(&told), wanted, "{shards} shards");
            broker.wait(61_000_000);
            let told = broker.ask(other, &get(&format!("/queue/{name}")));
            assert_eq!(status_of(&told), "200", "{shards} shards");
        }
    }
}

#[test]
fn large_bodies_come_through_and_fill_no_mail() {
    let mut broker = Broker::with(2, 9, |config| config.limits.body_bytes_max = 4 << 20);
    let far = name_on(1, 2, 0);
    let body = "0123456789abcdef".repeat(3 << 16);
    // More than may be on the way between two shards.
    let clients: Vec<usize> = (0..9).map(|_| broker.connect(0)).collect();
    for client in &clients {
        broker.send(*client, &post(&format!("/queue/{far}"), &body));
        broker.send(*client, &get(&format!("/queue/{far}?ack=auto")));
    }
    // Some go while theirs is on its way.
    let gone: Vec<usize> = (0..4).map(|_| broker.connect(0)).collect();
    for client in &gone {
        broker.send(*client, &post(&format!("/queue/{far}?delay=1h"), &body));
    }
    for _ in 0..2000 {
        broker.turn(0);
    }
    for client in gone {
        broker.reset(client);
    }
    for client in clients {
        let told = broker.take(client);
        assert!(told.starts_with("HTTP/1.1 200 OK"), "{}", &told[..500]);
        assert!(told.ends_with(&body));
    }
    let peers = broker.shards[0].peers.as_ref().expect("there are two");
    assert_eq!(peers.outstanding, [0, 0]);
}

#[test]
fn metrics_of_all_shards_are_one_page() {
    let mut broker = Broker::new(3, 11);
    let clients: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
    let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
    for (client, name) in clients.iter().zip(names.iter().cycle().skip(1)) {
        for _ in 0..2 {
            broker.ask(*client, &post(&format!("/queue/{name}"), "hello"));
        }
        broker.ask(*client, &get(&format!("/queue/{name}?ack=auto")));
        broker.ask(*client, &post(&format!("/queue/{name}?frob=1"), "hello"));
    }
    let told = broker.ask(clients[1], &get("/metrics"));
    assert!(
        told.contains("\r\nContent-Type: text/plain; version=0.0.4"),
        "{told}"
    );
    let value = |series: &str| {
        let mut lines = body_of(&told).lines();
        let found = lines.find_map(|line| line.strip_prefix(&format!("{series} ")));
        found
            .unwrap_or_else(|| panic!("no {series} in {told}"))
            .to_owned()
    };
    for name in &names {
        assert_eq!(
            value(&format!(
                "ringmq_messages_published_total{{queue=\"{name}\"}}"
            )),
            "2"
        );
        assert_eq!(
            value(&format!("ringmq_messages_acked_total{{queue=\"{name}\"}}")),
            "1"
        );
    }
    assert_eq!(value("ringmq_connections"), "3");
    assert_eq!(value("ringmq_connections_total"), "3");
    // Each is counted where it came in, and nowhere else.
    assert_eq!(value("ringmq_commands_total"), "13");
    assert_eq!(value("ringmq_errors_total{code=\"UNKNOWN\"}"), "3");
    assert_eq!(value("ringmq_queues"), "3");
    assert_eq!(value("ringmq_uptime_seconds"), "0");
    assert_eq!(value("ringmq_dwell_seconds_count"), "3");
    assert_eq!(value("ringmq_dwell_seconds_bucket{le=\"+Inf\"}"), "3");
    let heads: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let mut once = heads.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), heads.len(), "each is told of once");
}

#[test]
fn a_request_for_queues_of_several_shards_is_refused() {
    let mut broker = Broker::new(2, 13);
    let client = broker.connect(0);
    let [near, far] = [0, 1].map(|shard| name_on(shard, 2, 0));
    let told = broker.ask(
        client,
        &(get(&format!("/queue/{near},{far}")) + &get("/healthz")),
    );
    assert_eq!(status_of(&told), "400");
    assert!(
        told.contains("ask for one queue") && told.ends_with("ok\n"),
        "{told}"
    );
}

#[test]
fn a_shutdown_answers_who_waits_elsewhere() {
    let mut broker = Broker::new(2, 15);
    let client = broker.connect(0);
    let far = name_on(1, 2, 0);
    assert_eq!(
        broker.ask(client, &get(&format!("/queue/{far}?wait=1h"))),
        ""
    );
    let now = broker.now();
    broker.shards[0].handle_shutdown(now);
    assert_eq!(broker.take(client), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(broker.stops, [Some(Stop::Finished), Some(Stop::Finished)]);
}

#[test]
fn a_client_that_goes_before_its_request_was_run_leaves_nothing_on_its_way() {
    for goes in [false, true] {
        let mut broker = Broker::new(3, 17);
        broker.turn(2);
        // The queue's shard does not know yet that this one has started, and serves nobody.
        let mut late = std::mem::take(&mut broker.mail[2][1]);
        assert_eq!(late.len(), 1);
        let client = broker.connect(0);
        let far = name_on(1, 3, 0);
        let told = broker.ask(client, &post(&format!("/queue/{far}"), "hello"));
        assert_eq!(told, "");
        let outstanding = |broker: &Broker| {
            let peers = broker.shards[0].peers.as_ref().expect("there are others");
            peers.outstanding.clone()
        };
        let bytes = format!("/queue/{far}hello").len();
        assert_eq!(outstanding(&broker), [0, bytes, 0]);
        if goes {
            broker.reset(client);
        }
        broker.settle();
        late.append(&mut broker.mail[2][1]);
        broker.mail[2][1] = late;
        let told = broker.take(client);
        assert_eq!(told.starts_with("HTTP/1.1 200 OK"), !goes, "{told}");
        assert_eq!(outstanding(&broker), [0, 0, 0]);
    }
}
