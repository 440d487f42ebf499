//! What the server sends can be read again: each line by its kind, every name and value to the
//! octets that were meant, and no line longer than a client has to expect.

use std::borrow::Cow;
use std::io::IoSlice;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use ringmq::broker::command::{Command, Typed};
use ringmq::broker::headers;
use ringmq::broker::id::{Handle, Level};
use ringmq::broker::reply::{Delivery, Error, ErrorCode, Payload, Reply};
use ringmq::buffer::send::{Pool, SendRing};
use ringmq::config::Limits;
use ringmq::protocol::text::decode::{Decoder, Step};
use ringmq::protocol::text::{SENT_LINE_BYTES_MAX, encode};

/// A line of the server, read as a client reads it.
#[derive(Debug, Default, PartialEq)]
struct Line {
    kind: String,
    tag: Option<Vec<u8>>,
    /// Fields without a key, in order.
    words: Vec<Vec<u8>>,
    /// `key=value`, values with their `%XX` decoded.
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// What stands behind ` :`.
    text: Option<Vec<u8>>,
    /// The octets behind a `$n`.
    body: Option<Vec<u8>>,
}

fn percent_decoded(value: &[u8]) -> Vec<u8> {
    let mut scratch = Vec::new();
    Typed(value).decoded(&mut scratch).to_vec()
}

/// Reads a stream of server lines with nothing but the grammar.
fn read(mut input: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    while !input.is_empty() {
        let end = input
            .iter()
            .position(|octet| *octet == b'\n')
            .expect("lines end with LF");
        assert!(end < SENT_LINE_BYTES_MAX, "a line of {end} bytes");
        let whole = &input[..end];
        input = &input[end + 1..];
        assert!(
            ["OK", "ER", "MS", "EN", "PO", "DA", "LA", "EX"]
                .iter()
                .any(|kind| whole.starts_with(kind.as_bytes()))
        );
        assert!(
            !whole.ends_with(b"\r") || whole.starts_with(b"PONG"),
            "a CR would be dropped"
        );
        let colon = whole.windows(2).position(|pair| pair == b" :");
        let mut line = Line {
            text: colon.map(|at| whole[at + 2..].to_vec()),
            ..Line::default()
        };
        let head = &whole[..colon.unwrap_or(whole.len())];
        for (index, word) in head.split(|octet| *octet == b' ').enumerate() {
            assert!(!word.is_empty(), "one space between words");
            match word {
                word if index == 0 => line.kind = String::from_utf8(word.to_vec()).expect("ASCII"),
                [b'@', tag @ ..] if index == 1 => line.tag = Some(tag.to_vec()),
                [b'$', digits @ ..] => {
                    let digits = std::str::from_utf8(digits).expect("ASCII");
                    let size: usize = digits.parse().expect("a size");
                    line.body = Some(input[..size].to_vec());
                    assert_eq!(input[size], b'\n');
                    input = &input[size + 1..];
                }
                word => match word.iter().position(|octet| *octet == b'=') {
                    Some(at) => {
                        let (key, value) = (
                            percent_decoded(&word[..at]),
                            percent_decoded(&word[at + 1..]),
                        );
                        line.fields.push((key, value));
                    }
                    None => line.words.push(word.to_vec()),
                },
            }
        }
        lines.push(line);
    }
    lines
}

fn printed(reply: &Reply<'_>, tag: Option<&[u8]>) -> String {
    let mut out = Vec::new();
    encode::reply(&mut out, tag, reply);
    read(&out);
    String::from_utf8(out).expect("cases are text")
}

fn check(reply: Reply<'_>, want: &str) {
    assert_eq!(printed(&reply, None), want);
    let (kind, rest) = want.split_at(want.find([' ', '\n']).expect("a line"));
    assert_eq!(printed(&reply, Some(b"t-1")), format!("{kind} @t-1{rest}"));
}

#[test]
fn every_reply() {
    check(Reply::Ok, "OK\n");
    check(Reply::Word("bye"), "OK bye\n");
    let receipt = |level, duplicate| Reply::Receipt {
        id: 7,
        level,
        duplicate,
    };
    check(receipt(Level::None, false), "OK 7 mem\n");
    check(receipt(Level::Os, false), "OK 7 os\n");
    check(receipt(Level::Disk, true), "OK 7 disk dup=1\n");
    check(receipt(Level::Quorum, false), "OK 7 quorum\n");
    let batch = |duplicate| Reply::BatchReceipt {
        first: u64::MAX,
        count: 3,
        level: Level::Disk,
        duplicate,
    };
    check(batch(false), "OK 18446744073709551615 3 disk\n");
    check(batch(true), "OK 18446744073709551615 3 disk dup=1\n");
    check(
        Reply::Count {
            count: 2,
            stale: b"",
        },
        "OK 2\n",
    );
    check(
        Reply::Count {
            count: 0,
            stale: b"1.1.1,x\ry",
        },
        "OK 0 stale=1.1.1,x?y\n",
    );
    check(
        Reply::QuietStale {
            count: 1,
            stale: b"h,-",
        },
        "ERR STALE done=1 stale=h,- :these are no live leases (any more)\n",
    );
    check(Reply::End { count: 0 }, "END 0\n");
    check(Reply::Pong(None), "PONG\n");
    check(Reply::Pong(Some(b" a b")), "PONG : a b\n");
    check(Reply::Data(b"a\nb\n"), "DATA $4\na\nb\n\n");
    check(
        Reply::Synced {
            accepted: 5,
            rejected: 0,
            level: Level::None,
        },
        "OK accepted=5 rejected=0 mem\n",
    );
    let hello = Reply::Hello {
        body_bytes_max: 1,
        line_bytes_max: 2,
        batch_count_max: 3,
        batch_bytes_max: 4,
        handles_max: 5,
        node: "a b",
    };
    let version = env!("CARGO_PKG_VERSION");
    check(
        hello,
        &format!(
            "OK proto=1 server=ringmq/{version} max_body=1 max_line=2 max_batch=3 \
             max_batch_bytes=4 max_handles=5 auth=0 node=a%20b\n"
        ),
    );
}

#[test]
fn errors_are_one_line_whatever_is_in_them() {
    let plain = Error::new(ErrorCode::NoQueue, "there is no queue x");
    check(Reply::Error(&plain), "ERR NOQUEUE :there is no queue x\n");
    let full = Error::new(ErrorCode::Full, "wait").retry(250);
    check(Reply::Error(&full), "ERR FULL retry=250 :wait\n");
    let mut odd = Error::new(ErrorCode::Stale, "a\nPUB b :c\r\u{7}");
    odd.fields = "done=1 stale=2".into();
    check(
        Reply::Error(&odd),
        "ERR STALE done=1 stale=2 :a PUB b :c  \n",
    );
    let long = Error::new(ErrorCode::Syntax, Cow::Owned("\u{e9}".repeat(100_000)));
    assert!(printed(&Reply::Error(&long), None).len() < 1100);
}

#[test]
fn lines_that_nobody_asked_for() {
    let mut out = Vec::new();
    encode::gone(&mut out, Some(b"s"), b"jobs", encode::Gone::Deleted);
    encode::gone(&mut out, None, b"jobs", encode::Gone::Drain);
    let handle = Handle {
        incarnation: 1,
        id: 20,
        serial: 300,
    };
    encode::expired(&mut out, handle);
    encode::receipt(&mut out, 10, Level::Os);
    let want = "END @s jobs gone=deleted\nEND jobs gone=drain\nEXPIRED 1.20.300\nOK 10 os\n";
    assert_eq!(String::from_utf8(out).expect("ASCII"), want);
}

fn delivery(source: &[u8]) -> Delivery<'_> {
    Delivery {
        source,
        handle: Some(Handle {
            incarnation: 1,
            id: 2,
            serial: 3,
        }),
        id: 2,
        tries: 1,
        timestamp_ms: None,
        key: None,
        reply: None,
        headers: b"",
        body: Payload::Slice(b"Hello, world"),
    }
}

fn sent(delivery: &Delivery<'_>, tag: Option<&[u8]>) -> Vec<u8> {
    let mut pool = Pool::new(2, 1 << 20, 1 << 21);
    let mut ring = SendRing::default();
    encode::message(&mut ring, &mut pool, tag, delivery);
    let mut slices = [IoSlice::new(b""); 8];
    let filled = ring.slices(&mut slices);
    let bytes: Vec<u8> = slices[..filled]
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .collect();
    assert_eq!(bytes.len(), ring.len());
    bytes
}

#[test]
fn messages() {
    let check = |delivery: &Delivery<'_>, tag, want: &str| {
        assert_eq!(String::from_utf8(sent(delivery, tag)).expect("text"), want);
    };
    let plain = delivery(b"jobs");
    check(&plain, None, "MSG jobs 1.2.3 $12\nHello, world\n");
    check(&plain, Some(b"t"), "MSG @t jobs 1.2.3 $12\nHello, world\n");
    let mut table = Vec::new();
    headers::push_text(&mut table, b"type", b"a b%");
    headers::push_text(&mut table, b"odd name", "\u{e9}\r".as_bytes());
    table.extend_from_slice(b"\x04listA\0\0\0\x01V\x04flagt\x01\x01ns\xff\xff");
    let full = Delivery {
        handle: None,
        tries: 2,
        timestamp_ms: Some(1500),
        key: Some(b"k=1 "),
        reply: Some(b"r"),
        headers: &table,
        body: Payload::Slice(b""),
        ..delivery(b"jobs")
    };
    check(
        &full,
        None,
        "MSG jobs - id=2 try=2 ts=1500 key=k=1%20 reply=r h.type=a%20b%25 \
         h.odd%20name=\u{e9}%0D h.flag=1 h.n=-1 $0\n\n",
    );
}

#[test]
fn large_shared_bodies_are_referenced_and_arrive_the_same() {
    for size in [16_383, 16_384, 100_000] {
        let body = Bytes::from(vec![7; size]);
        let shared = Delivery {
            body: Payload::Shared(body.clone()),
            ..delivery(b"q")
        };
        let copied = Delivery {
            body: Payload::Slice(&body),
            ..delivery(b"q")
        };
        assert_eq!(sent(&shared, None), sent(&copied, None));
        let mut pool = Pool::new(2, 1 << 20, 1 << 21);
        let mut ring = SendRing::default();
        encode::message(&mut ring, &mut pool, None, &shared);
        let mut slices = [IoSlice::new(b""); 4];
        let is_referenced = ring.slices(&mut slices) > 1;
        assert_eq!(is_referenced, size >= 16_384, "{size}");
    }
}

#[test]
fn headers_that_do_not_fit_a_line_are_left_out() {
    let mut table = Vec::new();
    headers::push_text(&mut table, b"first", b"1");
    headers::push_text(&mut table, b"huge", &[b'x'; 70_000]);
    for number in 0..300u32 {
        headers::push_text(&mut table, format!("n{number}").as_bytes(), &[b' '; 100]);
    }
    headers::push_text(&mut table, b"last", b"1");
    let name = [0xff; 255];
    let mut source = Vec::new();
    encode::typed(&mut source, &name);
    let key = [1; 30_000];
    let delivery = Delivery {
        headers: &table,
        key: Some(&key),
        ..delivery(&source)
    };
    let lines = read(&sent(&delivery, Some(&[b't'; 20])));
    let names: Vec<_> = lines[0]
        .fields
        .iter()
        .map(|(name, _)| name.as_slice())
        .collect();
    assert!(
        !names.contains(&&b"key"[..]),
        "90,000 bytes of key do not fit"
    );
    assert!(names.contains(&&b"h.first"[..]) && !names.contains(&&b"h.huge"[..]));
    assert!(names.len() > 150, "{}", names.len());
    assert_eq!(lines[0].body.as_deref(), Some(&b"Hello, world"[..]));
}

/// The longest options that are taken, printed in their longest form, all arrive.
#[test]
fn what_a_publish_may_carry_a_message_line_can_carry() {
    let limits = Limits::default();
    let publish = |octets: usize| {
        let value = "\u{1}".repeat(octets);
        format!(
            "PUB {} key={value} h.{}={value} reply=r :x\n",
            "q".repeat(255),
            "n".repeat(255)
        )
    };
    let is_taken = |octets: usize| {
        let line = publish(octets);
        matches!(
            Decoder::default().decode(line.as_bytes(), &limits).1,
            Step::Request(_)
        )
    };
    let most = (1..12_000)
        .rev()
        .find(|octets| is_taken(*octets))
        .expect("some are taken");
    assert!((10_000..10_240).contains(&most), "{most}");
    let line = publish(most);
    let mut decoder = Decoder::default();
    let (_, Step::Request(request)) = decoder.decode(line.as_bytes(), &limits) else {
        panic!("it was taken before");
    };
    let Command::Publish { options, .. } = request.command else {
        panic!("it is a publish");
    };
    let mut scratch = Vec::new();
    let mut table = Vec::new();
    for (name, value) in options.headers() {
        headers::push_text(&mut table, name, value.decoded(&mut scratch));
    }
    let key = options.key.expect("it has a key").0;
    let mut source = Vec::new();
    encode::typed(&mut source, &[0; 255]);
    let far = Handle {
        incarnation: u64::MAX,
        id: u64::MAX,
        serial: u64::MAX,
    };
    let delivery = Delivery {
        handle: Some(far),
        tries: u32::MAX,
        timestamp_ms: Some(u64::MAX),
        key: Some(key),
        reply: Some(b"r"),
        headers: &table,
        ..delivery(&source)
    };
    let lines = read(&sent(&delivery, Some(&[b't'; 20])));
    let keys: Vec<_> = lines[0].fields.iter().map(|(key, _)| key.len()).collect();
    assert_eq!(keys, [3, 2, 3, 5, 257], "try, ts, key, reply, header");
    assert_eq!(lines[0].fields[2].1, key);
}

/// Every handle of a full `ACK` is stale: the answer is a line too.
#[test]
fn the_longest_list_of_stale_handles_fits_a_line() {
    let limits = Limits::default();
    for size in [1, 60, 64, 65_000, 65_270, 65_279, 65_280, 65_281] {
        let count = (65_000 / size).clamp(1, limits.handles_max);
        let handles = vec!["h".repeat(size); count].join(" ");
        let line = format!("@{} ACK! {handles}\n", "t".repeat(20));
        let mut decoder = Decoder::default();
        let (_, Step::Request(request)) = decoder.decode(line.as_bytes(), &limits) else {
            assert!(size > 65_270, "{size}");
            continue;
        };
        let Command::Ack { handles } = request.command else {
            panic!("it is an ACK");
        };
        let stale = handles.iter().collect::<Vec<_>>().join(&b","[..]);
        for reply in [
            Reply::QuietStale {
                count: u64::MAX,
                stale: &stale,
            },
            Reply::Count {
                count: u64::MAX,
                stale: &stale,
            },
        ] {
            let mut out = Vec::new();
            encode::reply(&mut out, request.tag, &reply);
            assert_eq!(read(&out).len(), 1);
        }
    }
}

/// Many cases; `PROPTEST_CASES` can ask for more.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    ProptestConfig {
        cases: asked.cases.max(800),
        failure_persistence: None,
        ..asked
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_message_is_read_back(
        name in vec(any::<u8>(), 1..255),
        handle in proptest::option::of((any::<u64>(), any::<u64>(), any::<u64>())),
        tries in 1..5u32,
        timestamp_ms in proptest::option::of(any::<u64>()),
        key in proptest::option::of(vec(any::<u8>(), 1..30)),
        reply in proptest::option::of(vec(any::<u8>(), 1..30)),
        entries in vec((vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..20)), 0..5),
        body in vec(any::<u8>(), 0..60),
        tag in proptest::option::of("[a-zA-Z0-9_-]{1,20}"),
    ) {
        let mut table = Vec::new();
        for (name, value) in &entries {
            headers::push_text(&mut table, name, value);
        }
        let mut source = Vec::new();
        encode::typed(&mut source, &name);
        let delivery = Delivery {
            source: &source,
            handle: handle.map(|(incarnation, id, serial)| Handle { incarnation, id, serial }),
            id: 17,
            tries,
            timestamp_ms,
            key: key.as_deref(),
            reply: reply.as_deref(),
            headers: &table,
            body: Payload::Slice(&body),
        };
        let lines = read(&sent(&delivery, tag.as_deref().map(str::as_bytes)));
        let mut fields = Vec::new();
        let mut push = |key: &[u8], value: Vec<u8>| fields.push((key.to_vec(), value));
        if handle.is_none() {
            push(b"id", b"17".to_vec());
        }
        if tries > 1 {
            push(b"try", tries.to_string().into_bytes());
        }
        if let Some(timestamp_ms) = timestamp_ms {
            push(b"ts", timestamp_ms.to_string().into_bytes());
        }
        if let Some(key) = &key {
            push(b"key", key.clone());
        }
        if let Some(reply) = &reply {
            push(b"reply", reply.clone());
        }
        for (name, value) in &entries {
            push(&[b"h.", name.as_slice()].concat(), value.clone());
        }
        let handle = handle.map_or("-".to_owned(), |(a, b, c)| format!("{a}.{b}.{c}"));
        let want = Line {
            kind: "MSG".into(),
            tag: tag.map(String::into_bytes),
            words: vec![source.clone(), handle.into_bytes()],
            fields,
            text: None,
            body: Some(body.clone()),
        };
        prop_assert_eq!(&lines, &[want]);
        prop_assert_eq!(percent_decoded(&source), name);
    }

    /// A printed name can be typed, and means the same.
    #[test]
    fn any_name_is_typed_back(name in vec(any::<u8>(), 1..256)) {
        let mut line = b"QGET ".to_vec();
        encode::typed(&mut line, &name);
        line.push(b'\n');
        let limits = Limits::default();
        let mut decoder = Decoder::default();
        let (_, Step::Request(request)) = decoder.decode(&line, &limits) else {
            return Err(TestCaseError::fail("refused"));
        };
        let Command::QueueGet { source } = request.command else {
            return Err(TestCaseError::fail("another command"));
        };
        let mut scratch = Vec::new();
        prop_assert!(source.group.is_none());
        prop_assert_eq!(source.queue.decoded(&mut scratch), &name[..]);
    }

    /// Field tables of any octets are walked without a panic, and only whole entries are printed.
    #[test]
    fn any_field_table_is_sent(table in vec(prop_oneof![any::<u8>(), 0..6u8, Just(b'S'), Just(b'F')], 0..80)) {
        let lines = read(&sent(&Delivery { headers: &table, ..delivery(b"q") }, None));
        prop_assert!(lines[0].fields.len() <= headers::entries(&table).count());
        prop_assert_eq!(lines.len(), 1);
    }
}

#[test]
fn counted_receipts_are_those_written_one_by_one() {
    for level in [Level::None, Level::Os, Level::Disk, Level::Quorum] {
        for first in [1, 8, 95, 999_990, u64::MAX - 20] {
            let mut receipts = encode::Receipts::new(first, level);
            let (mut counted, mut single) = (Vec::new(), Vec::new());
            for id in first..first + 20 {
                receipts.write(&mut counted);
                encode::receipt(&mut single, id, level);
            }
            assert_eq!(
                String::from_utf8_lossy(&counted),
                String::from_utf8_lossy(&single)
            );
        }
    }
}
