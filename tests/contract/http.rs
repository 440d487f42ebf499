//! HTTP/1.1 against a real broker: every route, what a request may look like, and what is refused.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::Http;
use crate::support::{Broker, Launch, TempDir};

/// The same holds for a broker of several shards, whichever of them has taken the connection.
const SHARDS: [u32; 4] = [1, 2, 2, 4];

fn start(launch: Launch, shards: u32) -> Broker {
    launch.arg(&format!("--shards {shards}")).start()
}

fn memory(run: impl Fn(Broker, Http)) {
    for shards in SHARDS {
        let broker = start(Launch::memory(), shards);
        let http = Http::connect(broker.address);
        run(broker, http);
    }
}

#[test]
fn what_tornado_posts_is_taken_as_it_is() {
    memory(|broker, mut http| {
        // Head and body in two segments, a content type that does not mean anything.
        http.send(
        b"POST /queue HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1:7766\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 13\r\nAccept-Encoding: gzip\r\n\r\n",
    );
        thread::sleep(Duration::from_millis(50));
        http.send(b"a=b&c=%20 d+e");
        let response = http.response(false);
        assert_eq!(response.status, 200);
        assert_eq!(response.text(), "Message received successfully");
        assert_eq!(response.field("x-ringmq-level"), "mem");
        http.assert_closes();
        let mut http = Http::connect(broker.address);
        let response = http.ask("GET", "/queue/queue", b"");
        assert_eq!(response.text(), "a=b&c=%20 d+e");
    });
}

#[test]
fn a_message_is_published_pulled_and_acked() {
    memory(|_broker, mut http| {
        let posted = http.ask(
            "POST",
            "/queue/jobs?pri=3&key=k%201&h.color=red&once=a",
            b"hello",
        );
        assert_eq!(posted.status, 200);
        assert_eq!(
            posted.text(),
            "{\"id\":1,\"level\":\"mem\",\"duplicate\":false}\n"
        );
        let again = http.ask("POST", "/queue/jobs?once=a", b"hello");
        assert_eq!(
            again.text(),
            "{\"id\":1,\"level\":\"mem\",\"duplicate\":true}\n"
        );
        let message = http.ask("GET", "/queue/jobs", b"");
        assert_eq!((message.status, message.text().as_str()), (200, "hello"));
        assert_eq!(message.field("x-ringmq-queue"), "jobs");
        assert_eq!(message.field("x-ringmq-id"), "1");
        assert_eq!(message.field("x-ringmq-try"), "1");
        assert_eq!(message.field("x-ringmq-key"), "k 1");
        assert_eq!(message.field("x-ringmq-h-color"), "red");
        let handle = message.field("x-ringmq-handle").to_owned();
        let touched = http.ask("POST", "/touch?lease=1m", handle.as_bytes());
        assert_eq!(touched.text(), "{\"count\":1,\"stale\":[]}\n");
        let acked = http.ask("POST", "/ack", handle.as_bytes());
        assert_eq!(
            (acked.status, acked.text().as_str()),
            (200, "{\"count\":1,\"stale\":[]}\n")
        );
        let stale = http.ask("POST", "/ack", handle.as_bytes());
        assert_eq!(stale.status, 410);
        assert_eq!(
            stale.text(),
            format!("{{\"count\":0,\"stale\":[\"{handle}\"]}}\n")
        );
        let none = http.ask("GET", "/queue/jobs", b"");
        assert_eq!((none.status, none.body.len()), (204, 0));
    });
}

#[test]
fn a_lease_outlives_its_connection_and_a_nack_ends_it() {
    memory(|broker, mut http| {
        http.ask("POST", "/queue/jobs", b"x");
        let first = http.ask("GET", "/queue/jobs", b"");
        drop(http);
        thread::sleep(Duration::from_millis(50));
        let mut http = Http::connect(broker.address);
        assert_eq!(http.ask("GET", "/queue/jobs", b"").status, 204);
        let handle = first.field("x-ringmq-handle");
        let nacked = http.ask("POST", &format!("/nack?delay=0&handle={handle}"), b"");
        assert_eq!(nacked.text(), "{\"count\":1,\"stale\":[]}\n");
        let again = http.ask("GET", "/queue/jobs?lease=100ms", b"");
        assert_eq!(again.field("x-ringmq-try"), "2");
        let third = http.ask("GET", "/queue/jobs?wait=10s", b"");
        assert_eq!(third.field("x-ringmq-try"), "3");
        let last = http.ask("GET", "/queue/other?ack=auto", b"");
        assert_eq!(last.status, 204);
    });
}

#[test]
fn several_messages_come_as_json() {
    memory(|_broker, mut http| {
        for body in [
            b"one".as_slice(),
            b"\xff\x00",
            "\"zw\u{f6}lf\"\n".as_bytes(),
        ] {
            http.ask("POST", "/queue/a%20b?h.n=1", body);
        }
        let found = http.ask("GET", "/queue/a%20b?n=10&group=g&from=first", b"");
        assert_eq!(found.field("content-type"), "application/json");
        let text = found.text();
        assert!(
            text.starts_with("{\"messages\":[\n{\"queue\":\"a%20b/g\",\"handle\":\""),
            "{text}"
        );
        for want in [
            ",\"id\":1,\"try\":1,\"time_ms\":",
            ",\"headers\":{\"n\":\"1\"},\"body\":\"one\"}",
            ",\"body_base64\":\"/wA=\"}",
            ",\"body\":\"\\\"zw\u{f6}lf\\\"\\n\"}]}\n",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        let none = http.ask("GET", "/queue/empty?n=5", b"");
        assert_eq!(
            (none.status, none.text().as_str()),
            (200, "{\"messages\":[]}\n")
        );
    });
}

#[test]
fn a_request_waits_for_a_message_and_those_behind_it_wait_for_the_request() {
    memory(|broker, mut http| {
        http.request("GET", "/queue/jobs?wait=20s", b"");
        http.request("GET", "/healthz", b"");
        http.assert_silent(Duration::from_millis(100));
        let mut other = Http::connect(broker.address);
        other.ask("POST", "/queue/jobs", b"late");
        assert_eq!(http.response(false).text(), "late");
        assert_eq!(http.response(false).text(), "ok\n");
        let began = Instant::now();
        assert_eq!(http.ask("GET", "/queue/jobs?wait=100ms", b"").status, 204);
        assert!(began.elapsed() >= Duration::from_millis(100));
        // One that ends its side is told at once that there is nothing.
        http.request("GET", "/queue/jobs?wait=20s", b"");
        http.half_close();
        assert_eq!(http.response(false).status, 204);
        http.assert_closes();
        assert!(began.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_waiting_request_that_is_gone_takes_no_message() {
    memory(|broker, mut http| {
        http.request("GET", "/queue/jobs?wait=20s", b"");
        http.assert_silent(Duration::from_millis(50));
        drop(http);
        let mut http = Http::connect(broker.address);
        thread::sleep(Duration::from_millis(50));
        http.ask("POST", "/queue/jobs", b"x");
        let found = http.ask("GET", "/queue/jobs", b"");
        assert_eq!(
            (found.text().as_str(), found.field("x-ringmq-try")),
            ("x", "1")
        );
    });
}

#[test]
fn queues_are_listed_and_told_of() {
    memory(|_broker, mut http| {
        http.ask("POST", "/queue/a", b"12345");
        http.ask("POST", "/queue/b?delay=1h", b"1");
        let listed = http.ask("GET", "/queues", b"").text();
        assert_eq!(
            listed,
            "{\"queues\":[\n{\"name\":\"a\",\"ready\":1,\"leased\":0,\"delayed\":0,\"dead\":0},\n{\"name\":\"b\",\"ready\":0,\"leased\":0,\"delayed\":1,\"dead\":0}]}\n"
        );
        let some = http.ask("GET", "/queues?pattern=b", b"").text();
        assert!(!some.contains("\"a\"") && some.contains("\"b\""), "{some}");
        let one = http.ask("GET", "/queues/a", b"").text();
        assert!(
            one.contains("\n\"ready\":1,\n") && one.contains("\"bytes\":5"),
            "{one}"
        );
        assert!(one.contains("\"set.lease\":\"30s\""), "{one}");
        assert_eq!(http.ask("GET", "/queues/none", b"").status, 404);
        // HEAD takes nothing, but tells whether there is such a queue.
        let head = http.ask("HEAD", "/queue/a", b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert!(
            head.field("content-length")
                .parse::<u32>()
                .expect("a number")
                > 0
        );
        assert_eq!(http.ask("HEAD", "/queue/none", b"").status, 404);
        assert_eq!(http.ask("GET", "/queue/a", b"").text(), "12345");
    });
}

#[test]
fn refusals_are_told_by_status_and_word() {
    memory(|_broker, mut http| {
        let mut check = |method: &str, target: &str, status: u16, want: &str| {
            let found = http.ask(method, target, b"x");
            assert_eq!(found.status, status, "{method} {target}: {}", found.text());
            assert!(found.text().contains(want), "{target}: {}", found.text());
        };
        check("GET", "/nothing", 404, "no such page");
        check("GET", "/queue/a/b", 404, "no such page");
        check("GET", "/ack", 405, "POST");
        check("DELETE", "/queue/a", 405, "GET, HEAD, POST");
        check("POST", "/queues", 405, "GET, HEAD");
        check("POST", "/queue/a?frob=1", 400, "\"UNKNOWN\"");
        check("POST", "/queue/a?pri=999", 400, "pri=");
        check("POST", "/queue/:a", 400, "NAME");
        check("POST", "/queue/", 400, "\"error\"");
        check("GET", "/queue/a?n=0", 400, "SYNTAX");
        check("GET", "/queue/a?frob=1", 400, "no parameter frob");
        check("GET", "/queue/a?wait=soon", 400, "wait=");
        check("POST", "/ack", 410, "stale");
        check("POST", "/nack?frob=1", 400, "UNKNOWN");
        let allow = http.ask("DELETE", "/queue/a", b"");
        assert_eq!(allow.field("allow"), "GET, HEAD, POST");
    });
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    for shards in SHARDS {
        let broker = start(Launch::memory().arg("--set maxlen=1"), shards);
        let mut http = Http::connect(broker.address);
        assert_eq!(http.ask("POST", "/queue/a", b"1").status, 200);
        let full = http.ask("POST", "/queue/a", b"2");
        assert_eq!((full.status, full.field("retry-after")), (429, "1"));
        assert!(full.text().contains("\"FULL\""), "{}", full.text());
    }
}

#[test]
fn bodies_of_every_length_and_framing_come_through() {
    memory(|_broker, mut http| {
        for size in [0usize, 1, 16_383, 16_384, 300_000, 1 << 20] {
            let body: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            assert_eq!(http.ask("POST", "/queue/a", &body).status, 200);
            assert_eq!(http.ask("GET", "/queue/a?ack=auto", b"").body, body);
            let mut chunked =
                b"POST /queue/a HTTP/1.1\r\nHost: [::1]:1\r\nTransfer-Encoding: chunked\r\n\r\n"
                    .to_vec();
            for chunk in body.chunks(7777) {
                chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                chunked.extend_from_slice(chunk);
                chunked.extend_from_slice(b"\r\n");
            }
            chunked.extend_from_slice(b"0\r\n\r\n");
            http.send(&chunked);
            assert_eq!(http.response(false).status, 200);
            assert_eq!(http.ask("GET", "/queue/a?ack=auto", b"").body, body);
        }
        http.send(
        b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    );
        assert_eq!(http.response(false).status, 100);
        http.send(b"hello");
        assert_eq!(http.response(false).status, 200);
    });
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_sent() {
    memory(|broker, mut http| {
        http.send(
        b"POST /queue/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n",
    );
        assert_eq!(http.response(false).status, 413);
        http.assert_closes();
        for (request, status) in [
            ("POST /queue/a HTTP/1.1\r\nHost: localhost\r\n\r\n", 411),
            (
                "POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nPUB a :x\n",
                400,
            ),
            (
                "POST /queue/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\n\r\n", 400),
        ] {
            let mut http = Http::connect(broker.address);
            http.send(request.as_bytes());
            let response = http.response(false);
            assert_eq!(response.status, status, "{request}");
            if status == 400 {
                assert_eq!(response.field("connection"), "close");
                http.assert_closes();
            }
        }
        let mut http = Http::connect(broker.address);
        assert_eq!(http.ask("GET", "/queues", b"").text(), "{\"queues\":[]}\n");
    });
}

#[test]
fn browsers_and_other_names_are_kept_out() {
    memory(|broker, mut http| {
        let mut check = |fields: &str, status: u16| {
            http.send(format!("GET /healthz HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes());
            assert_eq!(http.response(false).status, status, "{fields}");
        };
        check("Host: localhost:7766", 200);
        check("Host: rebound.example.com", 421);
        check("Host: localhost\r\nOrigin: http://evil.example.com", 403);
        check("Host: localhost:7766\r\nOrigin: http://localhost:7766", 200);
        check("Host: localhost:7766\r\nOrigin: http://localhost:8080", 403);
        check("Host: localhost\r\nOrigin: null", 403);
        // Nothing of a refused request was done.
        http.send(
        b"POST /queue HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a\r\nContent-Length: 1\r\n\r\nx",
    );
        assert_eq!(http.response(false).status, 403);
        let mut http = Http::connect(broker.address);
        assert_eq!(http.ask("GET", "/queue/queue", b"").status, 204);
    });
}

#[test]
fn receipts_of_a_disk_queue_come_when_it_is_safe_and_in_order() {
    for shards in SHARDS {
        let dir = TempDir::new("http");
        let launch = Launch::data(&dir.data()).arg(&format!("--shards {shards}"));
        let mut broker = launch.start();
        let mut http = Http::connect(broker.address);
        for body in 0..100 {
            http.request("POST", "/queue/a", format!("{body}").as_bytes());
        }
        http.request("GET", "/queues/a", b"");
        for id in 1..=100 {
            let text = http.response(false).text();
            assert_eq!(
                text,
                format!("{{\"id\":{id},\"level\":\"disk\",\"duplicate\":false}}\n")
            );
        }
        assert!(http.response(false).text().contains("\"ready\":100,"));
        broker.process.kill_running();
        let broker = launch.start();
        let mut http = Http::connect(broker.address);
        for body in 0..100 {
            let found = http.ask("GET", "/queue/a?ack=auto", b"");
            assert_eq!(found.text(), format!("{body}"));
        }
    }
}

#[test]
fn a_pinned_listener_takes_nothing_else() {
    for shards in SHARDS {
        let mut launch = Launch::memory().arg("--listen http://127.0.0.1:0");
        launch = launch.arg("--listen text://127.0.0.1:0");
        let broker = start(launch, shards);
        let pinned: Vec<SocketAddr> = ["http", "text"]
            .into_iter()
            .zip(broker.banner())
            .map(|(word, line)| {
                let address = line.strip_suffix(&format!(" ({word} only)"));
                let address = address.and_then(|line| line.strip_prefix("listening on "));
                address
                    .and_then(|text| text.parse().ok())
                    .expect("an address")
            })
            .collect();
        let (any, http, text) = (broker.address, pinned[0], pinned[1]);
        assert_eq!(Http::connect(any).ask("GET", "/healthz", b"").status, 200);
        assert_eq!(Http::connect(http).ask("GET", "/healthz", b"").status, 200);
        let mut refused = Http::connect(text);
        refused.request("GET", "/healthz", b"");
        refused.assert_closes();
        let mut refused = Http::connect(http);
        refused.send(b"PUB a :x\nPUB a :y\n");
        refused.assert_closes();
        assert_eq!(Http::connect(any).ask("HEAD", "/queue/a", b"").status, 404);
    }
}

/// Parses the text format of Prometheus: every line is a comment or a sample of the metric described last.
fn parse_metrics(text: &str) -> Vec<(String, f64)> {
    let mut described = String::new();
    let mut kind = String::new();
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            described = rest.split(' ').next().unwrap_or_default().to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, what) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, described, "HELP and TYPE go together");
            assert!(["counter", "gauge", "histogram"].contains(&what), "{line}");
            assert!(what != "counter" || name.ends_with("_total"), "{line}");
            kind = what.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').expect("a brace")),
            None => (series, ""),
        };
        let suffix = name.strip_prefix(described.as_str()).expect("its metric");
        let fits = match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            _ => suffix.is_empty(),
        };
        assert!(fits, "{line}");
        assert!(
            name.bytes()
                .all(|octet| octet.is_ascii_lowercase() || octet == b'_')
        );
        for label in labels.split("\",").filter(|label| !label.is_empty()) {
            let (name, _) = label.split_once("=\"").expect("a label and a value");
            assert!(
                name.bytes().all(|octet| octet.is_ascii_lowercase()),
                "{line}"
            );
        }
        samples.push((series.to_owned(), value.parse().expect("a number")));
    }
    let mut names: Vec<_> = samples.iter().map(|(series, _)| series).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "no series comes twice");
    samples
}

#[test]
fn metrics_are_well_formed_and_count() {
    for shards in SHARDS {
        let dir = TempDir::new("metrics");
        let broker = start(Launch::data(&dir.data()), shards);
        let mut http = Http::connect(broker.address);
        for _ in 0..3 {
            http.ask("POST", "/queue/a%22b", b"hello");
        }
        http.ask("GET", "/queue/a%22b?ack=auto", b"");
        http.ask("POST", "/queue/jobs?frob=1", b"");
        let page = http.ask("GET", "/metrics", b"");
        assert_eq!(
            page.field("content-type"),
            "text/plain; version=0.0.4; charset=utf-8"
        );
        let samples = parse_metrics(&page.text());
        let value = |series: &str| {
            let found = samples.iter().find(|(name, _)| name == series);
            found.unwrap_or_else(|| panic!("no {series}")).1
        };
        assert_eq!(
            value("ringmq_messages_published_total{queue=\"a%22b\"}"),
            3.0
        );
        assert_eq!(value("ringmq_messages_acked_total{queue=\"a%22b\"}"), 1.0);
        assert_eq!(
            value("ringmq_queue_messages{queue=\"a%22b\",state=\"ready\"}"),
            2.0
        );
        assert_eq!(
            value("ringmq_queue_bytes{queue=\"a%22b\",where=\"log\"}"),
            10.0
        );
        assert_eq!(value("ringmq_errors_total{code=\"UNKNOWN\"}"), 1.0);
        assert_eq!(value("ringmq_messages_rejected_total{code=\"FULL\"}"), 0.0);
        assert_eq!(value("ringmq_connections"), 1.0);
        assert!(value("ringmq_bytes_in_total") > 100.0);
        assert!(value("ringmq_fsync_seconds_count") >= 1.0);
        assert!(value("ringmq_fsync_seconds_sum") > 0.0);
        assert_eq!(
            value("ringmq_fsync_seconds_bucket{le=\"+Inf\"}"),
            value("ringmq_fsync_seconds_count")
        );
        assert!(value("ringmq_log_bytes") > 0.0);
        let head = http.ask("HEAD", "/metrics", b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
    }
}

#[test]
fn readiness_tells_what_is_wrong() {
    for shards in SHARDS {
        // Each has its share.
        let budget = format!("--memory-budget {}M", 16 * shards);
        let broker = start(Launch::memory().arg(&budget), shards);
        let mut http = Http::connect(broker.address);
        let ready = http.ask("GET", "/readyz", b"");
        assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
        let body = vec![b'x'; 1 << 20];
        let mut statuses = (0..20).map(|_| http.ask("POST", "/queue/a", &body).status);
        assert!(statuses.any(|status| status == 503), "memory ends");
        let full = http.ask("GET", "/readyz", b"");
        assert_eq!(full.status, 503);
        assert_eq!(full.text(), "not ready: the memory budget is used up\n");
        assert_eq!(http.ask("GET", "/healthz", b"").status, 200);
    }
}

/// The buckets of a histogram with their upper ends, its sum and its count.
fn histogram(http: &mut Http, name: &str) -> (Vec<(f64, f64)>, f64, f64) {
    let samples = parse_metrics(&http.ask("GET", "/metrics", b"").text());
    let value = |series: String| {
        let found = samples.iter().find(|(name, _)| *name == series);
        found.unwrap_or_else(|| panic!("no {series}")).1
    };
    let start = format!("{name}_bucket{{le=\"");
    let buckets = samples.iter().filter_map(|(series, count)| {
        let end = series.strip_prefix(&start)?.strip_suffix("\"}")?;
        Some((end.parse().expect("a number"), *count))
    });
    let (sum, count) = (value(format!("{name}_sum")), value(format!("{name}_count")));
    (buckets.collect(), sum, count)
}

#[test]
fn histograms_tell_how_long_messages_wait_and_are_worked_on() {
    let dirs = [1, 2].map(|_| TempDir::new("histograms"));
    for (launch, shards) in [
        (Launch::memory(), 1),
        (Launch::data(&dirs[0].data()), 1),
        (Launch::memory(), 2),
        (Launch::data(&dirs[1].data()), 2),
    ] {
        let broker = start(launch, shards);
        let mut http = Http::connect(broker.address);
        let (dwell, service) = ("ringmq_dwell_seconds", "ringmq_service_seconds");
        assert_eq!(histogram(&mut http, dwell).2, 0.0);
        http.ask("POST", "/queue/jobs", b"one");
        thread::sleep(Duration::from_millis(70));
        let got = http.ask("GET", "/queue/jobs", b"");
        thread::sleep(Duration::from_millis(50));
        let handle = got.field("x-ringmq-handle").to_owned();
        assert_eq!(histogram(&mut http, service).2, 0.0);
        // What is given back was not worked on to the end, and what comes again did not wait since its publish.
        http.ask("POST", "/nack?delay=0", handle.as_bytes());
        let again = http.ask("GET", "/queue/jobs", b"");
        thread::sleep(Duration::from_millis(40));
        http.ask("POST", "/ack", again.field("x-ringmq-handle").as_bytes());
        for (name, least) in [(dwell, 0.069), (service, 0.04)] {
            let (buckets, sum, count) = histogram(&mut http, name);
            assert_eq!(count, 1.0, "{name}");
            assert!((least..10.0).contains(&sum), "{name}: {sum}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1.0)));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
            for (end, count) in buckets {
                assert_eq!(count, f64::from(u8::from(end >= sum)), "{name} to {end}");
            }
        }
        // Of many that are handed out at once one is measured.
        let mut line = crate::support::client::Client::connect(broker.address);
        line.send(b"MPUB runs *100\n").expect("it listens");
        line.send(&b"x\n".repeat(100)).expect("it listens");
        line.send(b"PULL runs 100 wait=10s\nQUIT\n")
            .expect("it listens");
        let said = String::from_utf8(line.rest()).expect("it is text");
        assert!(said.contains("END 100"), "{said}");
        let measured = histogram(&mut http, dwell).2;
        assert!((2.0..100.0).contains(&measured), "{measured}");
        let (_, sum, turns) = histogram(&mut http, "ringmq_loop_turn_seconds");
        assert!(turns >= 10.0 && sum > 0.0, "{turns} turns in {sum} s");
    }
}

#[test]
fn who_does_not_read_is_not_read_and_holds_nobody_up() {
    const MESSAGES: usize = 300;
    memory(|broker, mut http| {
        let body = vec![b'x'; 100_000];
        for _ in 0..MESSAGES {
            assert_eq!(http.ask("POST", "/queue/large", &body).status, 200);
        }
        let mut slow = Http::connect(broker.address);
        for _ in 0..MESSAGES {
            slow.request("GET", "/queue/large?ack=auto", b"");
        }
        thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        assert_eq!(http.ask("POST", "/queue/small", b"hi").status, 200);
        assert_eq!(http.ask("GET", "/queue/small", b"").text(), "hi");
        assert!(began.elapsed() < Duration::from_secs(2));
        let unsent = broker.client().unsent_bytes_max();
        assert!(unsent < 2 << 20, "{unsent} bytes");
        let left = broker.client().ask("QGET large");
        assert!(!left.contains(" ready=0 "), "nothing is held back: {left}");
        for _ in 0..MESSAGES {
            let response = slow.response(false);
            assert_eq!((response.status, response.body.len()), (200, body.len()));
        }
    });
}

#[test]
fn a_connection_uses_every_queue_wherever_it_is() {
    for shards in [2, 4] {
        let broker = start(Launch::memory(), shards);
        let mut clients: Vec<Http> = (0..8).map(|_| Http::connect(broker.address)).collect();
        let names: Vec<String> = (0..8).map(|nth| format!("many{nth}")).collect();
        for http in &mut clients {
            let mut handles = Vec::new();
            for name in &names {
                let body = name.repeat(5_000);
                assert_eq!(
                    http.ask("POST", &format!("/queue/{name}"), body.as_bytes())
                        .status,
                    200
                );
                let found = http.ask("GET", &format!("/queue/{name}?wait=1s"), b"");
                assert_eq!(found.text(), body);
                handles.push(found.field("x-ringmq-handle").to_owned());
            }
            handles.insert(3, "1.1.99".to_owned());
            let settled = http.ask("POST", "/ack", handles.join(" ").as_bytes());
            assert_eq!(settled.text(), "{\"count\":8,\"stale\":[\"1.1.99\"]}\n");
            let settled = http.ask("POST", "/nack?delay=5s", handles.join(",").as_bytes());
            assert_eq!(settled.status, 410);
            let stale: Vec<String> = handles.iter().map(|it| format!("\"{it}\"")).collect();
            let wanted = format!("{{\"count\":0,\"stale\":[{}]}}\n", stale.join(","));
            assert_eq!(settled.text(), wanted);
        }
        let listed = clients[5].ask("GET", "/queues", b"").text();
        assert_eq!(
            listed.matches("\"ready\":0,\"leased\":0").count(),
            8,
            "{listed}"
        );
    }
}

#[test]
fn metrics_show_the_first_thousand_queues_of_all_shards() {
    for shards in [1, 3] {
        let broker = start(Launch::memory(), shards);
        let mut line = broker.client();
        for nth in 0..1_100 {
            line.send(format!("QSET many{nth:04}\n").as_bytes())
                .expect("it listens");
        }
        for _ in 0..1_100 {
            assert_eq!(line.line().expect("it answers"), "OK created");
        }
        let mut http = Http::connect(broker.address);
        let samples = parse_metrics(&http.ask("GET", "/metrics", b"").text());
        let value = |series: &str| {
            samples
                .iter()
                .find(|(name, _)| name == series)
                .expect("it is there")
                .1
        };
        assert_eq!(value("ringmq_queues"), 1_100.0);
        assert_eq!(value("ringmq_queues_without_series"), 100.0);
        let queues = samples.iter().filter_map(|(series, _)| {
            series
                .strip_prefix("ringmq_queue_consumers{queue=\"")?
                .strip_suffix("\"}")
        });
        let wanted: Vec<String> = (0..1_000).map(|nth| format!("many{nth:04}")).collect();
        assert!(
            queues.eq(wanted.iter().map(String::as_str)),
            "{shards} shards"
        );
    }
}
