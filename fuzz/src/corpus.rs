//! Writes the inputs that the targets begin with.

use std::path::Path;

use ringmq::protocol::amqp::PREAMBLE;
use ringmq::protocol::amqp::encode::Frame;
use ringmq::protocol::amqp::method::id;
use ringmq::protocol::amqp::table;

/// Each is put behind an octet that says how it is cut.
const TEXT: &[&[u8]] = &[
    b"PUB jobs :hello\nPULL jobs 3 wait=1s lease=5s\nACK 1.1.1 1.2.2\n",
    b"PUB jobs pri=3 key=k once=o ttl=1h delay=5s h.a=b $5\r\nhello\r\n",
    b"MPUB q *3\none\n\nthree\nMPUB q $12\n3\nabc\n1\nx\n\nPING :x\n",
    b"@7 PULL a,b/g 10 from=first ack=auto\n@8 SUB news.# mode=live\nCANCEL @7\n\n",
    b"QSET q durable=disk lease=30s maxdeliver=5 dead=q.dead deadon=tries,ttl backoff=1s..5m maxlen=3\n",
    b"BEGIN\nPUB! a :x\nNACK 1.1.1 delay=1s dead=1 why=bad\nCOMMIT\nREQ q timeout=2s :x\nREP t.1 :y\n",
    b"FROB q $5\nPUB a\nPUB q $1e3\nPUB q $99999\n",
    b"CAST a.b :x\nBIND a.* q\nMOVE a b 3\nDEL q 1 2\nPEEK q 2 state=dead from=7\nSEEK q/g to=@17\nPURGE q state=all\n",
];
const RESP: &[&[u8]] = &[
    b"*3\r\n$5\r\nRPUSH\r\n$4\r\njobs\r\n$5\r\nhello\r\n*1\r\n$4\r\nPING\r\n",
    b"*4\r\n$5\r\nBLPOP\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\n0\r\n*0\r\n*-1\r\n",
    b"PING\r\nset 'a b' \"c\" d\n",
    b"*1\r\n$0\r\n\r\n*2\r\n$1000\r\n",
];
const HTTP: &[&[u8]] = &[
    b"GET /queues/a?n=3&wait=1s HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.0\r\n\r\n",
    b"POST /queue HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"POST /queue/a%20b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"POST /q HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /q HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
];

fn amqp() -> Vec<Vec<u8>> {
    let mut headers = Vec::new();
    table::put_text(&mut headers, b"a", b"text");
    table::put_number(&mut headers, b"n", 7);
    table::put_bool(&mut headers, b"b", true);
    table::put_time(&mut headers, b"t", 1_700_000_000);
    let inner = headers.clone();
    table::put_inner(&mut headers, b"f", b'F', &inner);
    let mut values = Vec::new();
    table::put_text_value(&mut values, b"v");
    table::put_inner(&mut headers, b"l", b'A', &values);
    let mut session = PREAMBLE.to_vec();
    let mut methods = Vec::new();
    for out in [&mut session, &mut methods] {
        Frame::method(out, 0, id::CONNECTION_START_OK)
            .longstr(&headers)
            .shortstr(b"PLAIN")
            .longstr(b"\0a\0b")
            .shortstr(b"en_US")
            .end();
        Frame::method(out, 0, id::CONNECTION_TUNE_OK)
            .short(9)
            .long(4096)
            .short(60)
            .end();
        Frame::method(out, 0, id::CONNECTION_OPEN)
            .shortstr(b"/")
            .shortstr(b"")
            .octet(0)
            .end();
        Frame::method(out, 1, id::CHANNEL_OPEN).shortstr(b"").end();
        Frame::method(out, 1, id::QUEUE_DECLARE)
            .short(0)
            .shortstr(b"q")
            .octet(2)
            .longstr(&headers)
            .end();
        Frame::method(out, 1, id::BASIC_ACK)
            .longlong(7)
            .octet(1)
            .end();
    }
    let mut contents = Vec::new();
    Frame::method(&mut contents, 1, id::BASIC_PUBLISH)
        .short(0)
        .shortstr(b"")
        .shortstr(b"q")
        .octet(1)
        .end();
    // Every property there is.
    let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0xff, 0xfc];
    for text in [&b"text/plain"[..], b"utf-8"] {
        header.push(text.len() as u8);
        header.extend_from_slice(text);
    }
    table::put(&mut header, &headers);
    header.extend_from_slice(&[2, 5]);
    for text in [&b"id"[..], b"reply", b"60000", b"m"] {
        header.push(text.len() as u8);
        header.extend_from_slice(text);
    }
    header.extend_from_slice(&7u64.to_be_bytes());
    for text in [&b"type"[..], b"guest", b"app", b"c"] {
        header.push(text.len() as u8);
        header.extend_from_slice(text);
    }
    for (kind, payload) in [(2u8, &header[..]), (3, b"hello"), (3, &headers), (8, b"")] {
        contents.extend_from_slice(&[kind, 0, u8::from(kind != 8)]);
        contents.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        contents.extend_from_slice(payload);
        contents.push(0xce);
    }
    vec![session, methods, contents]
}

fn write(directory: &Path, inputs: &[impl AsRef<[u8]>], is_cut: bool) {
    std::fs::create_dir_all(directory).expect("the directory can be made");
    for (number, input) in inputs.iter().enumerate() {
        for (name, how) in [("whole", 255), ("octets", 0), ("pieces", 7)] {
            let mut octets = match is_cut {
                true => vec![how],
                false => Vec::new(),
            };
            octets.extend_from_slice(input.as_ref());
            std::fs::write(directory.join(format!("{name}-{number}")), octets)
                .expect("the file can be written");
        }
    }
}

/// Writes them into the directory that `RINGMQ_FUZZ_SEEDS` names, one directory for each target.
///
/// # Panics
/// If nothing is named, or nothing can be written there.
pub fn write_all() {
    let directory = std::env::var("RINGMQ_FUZZ_SEEDS").expect("RINGMQ_FUZZ_SEEDS=<directory>");
    let directory = Path::new(&directory);
    write(&directory.join("text"), TEXT, true);
    write(&directory.join("resp"), RESP, true);
    write(&directory.join("http"), HTTP, true);
    write(&directory.join("amqp"), &amqp(), true);
    // Nothing is damaged, a little of each kind is, and much.
    let damages: Vec<Vec<u8>> = (0..24u8)
        .map(|kind| {
            let changes = usize::from(kind) / 6;
            let change = |at: usize| [kind.wrapping_mul(5) ^ at as u8, at as u8 * 9, 77, kind, 3];
            (0..changes).flat_map(change).collect()
        })
        .collect();
    write(&directory.join("log"), &damages, false);
}
