//! The line protocol's decoder, case by case: every input in one piece, cut at every place, one
//! byte at a time, and with CR LF for LF where that may not matter.

use crate::ways::{Way, run};
use bytes::Bytes;
use ringmq::broker::command::{Command, Request};
use ringmq::config::Limits;
use ringmq::protocol::text::decode::{Decoder, Step};

fn limits() -> Limits {
    Limits {
        line_bytes_max: 600,
        body_bytes_max: 100,
        batch_count_max: 10,
        batch_bytes_max: 300,
        handles_max: 5,
        ..Limits::default()
    }
}

/// The steps of `input`, the same however it is cut. `want` is one step a line; an error may be
/// given without its text.
fn check_with(limits: &Limits, input: &[u8], want: &str) {
    let whole = run(&[input], limits, Way::Decode);
    let fits = |step: &str, want: &str| step == want || step.starts_with(&format!("{want} :"));
    let wanted: Vec<_> = want.split('\n').filter(|line| !line.is_empty()).collect();
    let same = whole.len() == wanted.len()
        && whole
            .iter()
            .zip(&wanted)
            .all(|(step, want)| fits(step, want));
    assert!(
        same,
        "{}\n got {whole:#?}\nwant {wanted:#?}",
        input.escape_ascii()
    );
    for way in [Way::Decode, Way::Space, Way::General] {
        for cut in 0..=input.len() {
            let (front, back) = input.split_at(cut);
            let steps = run(&[front, back], limits, way);
            assert_eq!(
                steps,
                whole,
                "{} cut at {cut}, {way:?}",
                input.escape_ascii()
            );
        }
        let bytes: Vec<_> = input.chunks(1).collect();
        assert_eq!(
            run(&bytes, limits, way),
            whole,
            "{} by the byte",
            input.escape_ascii()
        );
    }
}

fn check(input: &str, want: &str) {
    check_with(&limits(), input.as_bytes(), want);
}

/// One line without a body: the same with either line end, in front of and behind another command.
fn line(input: &str, want: &str) {
    check(&format!("{input}\n"), want);
    check(&format!("{input}\r\n"), want);
    check(
        &format!("PING\n{input}\nPING\n"),
        &format!("PING\n{want}\nPING"),
    );
}

/// The exact text of a refusal.
fn refused(input: &str, text: &str) {
    let steps = run(&[input.as_bytes(), b"\n"], &limits(), Way::Decode);
    assert_eq!(steps, [format!("ERR {text}")], "{input}");
}

#[test]
fn publishes() {
    line("PUB jobs :Hello, world", "PUB jobs :Hello, world");
    line("pub jobs :x", "PUB jobs :x");
    line("Pub! jobs :x", "PUB! jobs :x");
    line("@a-B_9 PUB jobs :x", "@a-B_9 PUB jobs :x");
    line("PUB jobs :", "PUB jobs :");
    line("PUB jobs : a  b ", "PUB jobs : a  b ");
    line("PUB jobs ::", "PUB jobs ::");
    line("PUB jobs :$5", "PUB jobs :$5");
    line("PUB jobs :x *5", "PUB jobs :x *5");
    line("  PUB   jobs   :x", "PUB jobs :x");
    line("PUB a:b :c", "PUB a:b :c");
    line("PUB %00%ff :c", "PUB %00%ff :c");
    check("PUB jobs :a\rb\r\r\n", "PUB jobs :a\\rb\\r");
    check("PUB jobs $5\nhello\n", "PUB jobs :hello");
    check("PUB jobs $5\r\nhello\r\n", "PUB jobs :hello");
    check("PUB jobs $5  \nhello\n", "PUB jobs :hello");
    check("PUB! jobs $5\nhello\n", "PUB! jobs :hello");
    check("PUB jobs $0\n\n", "PUB jobs :");
    check("PUB jobs $0\n\r\n", "PUB jobs :");
    check("PUB jobs $0000000001\nx\n", "PUB jobs :x");
    check("PUB jobs $7\na\r\nPUB\n\n", "PUB jobs :a\\r\\nPUB\\n");
    check("PUB jobs $2\n\r\n\nPING\n", "PUB jobs :\\r\\n\nPING");
    check("PUB jobs $1\n\r\r\nPING\n", "PUB jobs :\\r\nPING");
    check(
        "PUB a :x\nPUB b $1\ny\nPUB c :z\n",
        "PUB a :x\nPUB b :y\nPUB c :z",
    );
    line(
        "PUB q pri=255 delay=1s :x",
        "PUB q delay=1000000us pri=255 :x",
    );
    line("PUB q at=@1000 :x", "PUB q at=1000000us :x");
    line("PUB q at=1970-01-01T00:00:02Z :x", "PUB q at=2000000us :x");
    line(
        "PUB q ttl=5 key=a%20b once=x:y sync=none :x",
        "PUB q ttl=5000us key=a%20b once=x:y sync=none :x",
    );
    line(
        "PUB q sync=os reply=r/1,2 :x",
        "PUB q sync=os reply=r/1,2 :x",
    );
    line(
        "PUB q h.a=1 h.A_b-c.d= h.x==%0a :x",
        "PUB q h.a=1 h.A_b-c.d= h.x==%0a :x",
    );
    line("PUB pri=1 q :x", "PUB q pri=1 :x");
    check("PUB q h.a=1 $2\nhi\n", "PUB q h.a=1 :hi");
}

#[test]
fn publishes_that_are_refused() {
    line("PUB", "ERR SYNTAX");
    line("PUB jobs", "ERR SYNTAX");
    line("PUB :x", "ERR SYNTAX");
    line("PUB a b :x", "ERR SYNTAX");
    line("PUB a/b :x", "ERR NAME");
    line("PUB a,b :x", "ERR NAME");
    line("PUB @b :x", "ERR NAME");
    line("PUB caf\u{e9} :x", "ERR NAME");
    line(
        &format!("PUB {} :x", "a".repeat(255)),
        &format!("PUB {} :x", "a".repeat(255)),
    );
    line(&format!("PUB {} :x", "a".repeat(256)), "ERR NAME");
    line("PUB q pri=256 :x", "ERR SYNTAX");
    line("PUB q pri= :x", "ERR SYNTAX");
    line("PUB q pri=1 pri=1 :x", "ERR SYNTAX");
    line("PUB q PRI=1 :x", "ERR SYNTAX");
    line("PUB q =1 :x", "ERR SYNTAX");
    line("PUB q at=5 :x", "ERR SYNTAX");
    line("PUB q at=-5s :x", "ERR SYNTAX");
    line("PUB q delay=1 at=@5 :x", "ERR SYNTAX");
    line("PUB q key= :x", "ERR SYNTAX");
    line("PUB q key=% :x", "ERR SYNTAX");
    line("PUB q key=%zz :x", "ERR SYNTAX");
    line("PUB q sync=memory :x", "ERR SYNTAX");
    line("PUB q sync=quorum :x", "ERR UNKNOWN");
    line("PUB q foo=1 :x", "ERR UNKNOWN");
    line("PUB q h.=1 :x", "ERR SYNTAX");
    line("PUB q h.a=1 h.b=2 h.a=3 :x", "ERR SYNTAX");
    line("PUB q h.a%20=1 :x", "ERR SYNTAX");
    line(&format!("PUB q h.{}=1 :x", "n".repeat(256)), "ERR SYNTAX");
    check("PUB q *2\nPUB a :x\nPUB b :y\nPING\n", "ERR SYNTAX\nPING");
    check("PUB q/g $9\nPUB a :x\n\nPING\n", "ERR NAME\nPING");
    line("PUB q $5 pri=1", "ERR SYNTAX");
    let many: String = (0..30).map(|n| format!("h.n{n}= ")).collect();
    line(&format!("PUB q {many}:x"), &format!("PUB q {many}:x"));
    line(&format!("PUB q {many}h.n7= :x"), "ERR SYNTAX");
}

#[test]
fn batches() {
    check("MPUB q *2\na\nb\n", "MPUB q Lines[a|b]");
    check("mpub! q *2\r\na\r\nb\r\n", "MPUB! q Lines[a|b]");
    check(
        "MPUB q pri=3 *1\n:x $5\nPING\n",
        "MPUB q pri=3 Lines[:x $5]\nPING",
    );
    check("MPUB q *3\n\n\r\n\r\r\n", "MPUB q Lines[||\\r]");
    check(
        "@t MPUB q *2\nPING\nQUIT\nPING\n",
        "@t MPUB q Lines[PING|QUIT]\nPING",
    );
    check("MPUB q $3\n1\n\n\n", "ERR SYNTAX");
    check("MPUB q $4\n1\na\n\n", "MPUB q Counted[a]");
    check(
        "MPUB q once=b $11\n0\n\n5\na\nb\rc\n\r\n",
        "MPUB q once=b Counted[|a\\nb\\rc]",
    );
    check("MPUB q $4\n2\na\n\nPING\n", "ERR SYNTAX\nPING");
    check("MPUB q $9\n3\nabc\n1\nx\nPING\n", "ERR SYNTAX\nPING");
    check("MPUB q *0\nPING\n", "ERR SYNTAX\nPING");
    check("MPUB q $0\n\nPING\n", "ERR SYNTAX\nPING");
    line("MPUB q :x", "ERR SYNTAX");
    line("MPUB q", "ERR SYNTAX");
    line("MPUB", "ERR SYNTAX");
    line("MPUB q 5", "ERR SYNTAX");
    check("MPUB *1\nPUB q :x\n", "ERR SYNTAX");
    check("MPUB q every=5 *1\nPUB q :x\n", "ERR UNKNOWN");
    check("MPUB q *2\na\nunfinished", "...");
    check("MPUB q $4\n1\na", "...");
}

#[test]
fn pulls() {
    line("PULL jobs", "PULL jobs");
    line("pop jobs", "PULL jobs");
    line("PULL jobs 10", "PULL jobs 10");
    line("PULL jobs 007", "PULL jobs 7");
    line("PULL jobs 1", "PULL jobs");
    line(
        "PULL a,b,c 4294967295 wait=10s",
        "PULL a,b,c 4294967295 wait=10000000us",
    );
    line(
        "@7 PULL a lease=5m ack=auto hold=1 bytes=64K ts=1",
        "@7 PULL a lease=300000000us ack=auto hold=1 bytes=65536 ts=1",
    );
    line("PULL a wait=0 hold=0 ts=0", "PULL a");
    line("PULL a ", "PULL a");
    for bad in [
        "PULL",
        "PULL a 0",
        "PULL a -1",
        "PULL a +1",
        "PULL a 4294967296",
        "PULL a 1 2",
        "PULL a 1e3",
        "PULL a 0x10",
        "PULL a wait=",
        "PULL a wait=-1",
        "PULL a wait=5x",
        "PULL a lease=0",
        "PULL a ack=manual",
        "PULL a hold=yes",
        "PULL a bytes=1k",
        "PULL a wait=1 wait=2",
        "PULL a :body",
        "PULL! a",
        "pop! a",
        "PULL a b",
    ] {
        line(bad, "ERR SYNTAX");
    }
    for bad in ["PULL a,", "PULL ,a", "PULL a,,b", "PULL a b,c=", "PULL #"] {
        let code = if bad.ends_with('=') { "SYNTAX" } else { "NAME" };
        line(bad, &format!("ERR {code}"));
    }
    line("PULL a,b,c,d,e", "PULL a,b,c,d,e");
    line("PULL a,b,c,d,e,f", "ERR TOOBIG");
    line("PULL a/g", "PULL a/g");
    line("PULL a/", "ERR NAME");
    line("PULL a/b/c", "ERR NAME");
    line("PULL a from=first", "PULL a from=first");
    line("PULL a from=x", "ERR SYNTAX");
    line("PULL a timeout=1", "ERR UNKNOWN");
    check("PULL a $4\nPING\nPING\n", "ERR SYNTAX\nPING");
}

#[test]
fn settles() {
    line("ACK 1.1.1", "ACK 1.1.1");
    line("ACK! 1.1.1", "ACK! 1.1.1");
    line("ACK 1.1.1 1.2.2  1.3.3", "ACK 1.1.1 1.2.2 1.3.3");
    line(
        "ACK garbage - 1.1 99 \u{e9}",
        "ACK garbage - 1.1 99 \\xc3\\xa9",
    );
    line("ACK X=1 1.1.1", "ACK X=1 1.1.1");
    line("ACK a b c d e", "ACK a b c d e");
    line("ACK 1 2 3 4 5 6", "ERR TOOBIG");
    line("ACK", "ERR SYNTAX");
    line("ACK ", "ERR SYNTAX");
    line("ACK 1.1.1 delay=5", "ERR UNKNOWN");
    line("ACK 1.1.1 :x", "ERR SYNTAX");
    line(
        &format!("ACK {}", "1".repeat(344)),
        &format!("ACK {}", "1".repeat(344)),
    );
    line(&format!("ACK {}", "1".repeat(345)), "ERR TOOBIG");
    line(&format!("ACK x{}", "1".repeat(345)), "ERR TOOBIG");
    line("NACK 1.1.1", "NACK 1.1.1");
    line(
        "NACK! 1.1.1 x delay=5s dead=1 why=a%20b",
        "NACK! 1.1.1 x delay=5000000us dead=1 why=a%20b",
    );
    line("NACK delay=0 1.1.1 x", "NACK 1.1.1 x delay=0us");
    line("NACK delay=0 1.1.1 x dead=0", "NACK 1.1.1 x delay=0us");
    line("NACK 1.1.1 delay=0 x", "ERR SYNTAX");
    line("NACK delay=0", "ERR SYNTAX");
    line("NACK x lease=5", "ERR UNKNOWN");
    line("NACK x dead=2", "ERR SYNTAX");
    line("TOUCH 1.1.1", "TOUCH 1.1.1");
    line("TOUCH! 1.1.1 lease=1m", "TOUCH! 1.1.1 lease=60000000us");
    line("TOUCH 1.1.1 lease=0", "ERR SYNTAX");
    line("TOUCH 1.1.1 delay=5", "ERR UNKNOWN");
}

#[test]
fn casts_bindings_requests_and_answers() {
    line("CAST a.b :x", "CAST a.b :x");
    line("@t CAST! a pri=2 h.x=y :b c", "@t CAST! a pri=2 h.x=y :b c");
    check("CAST a $3\na\nb\n", "CAST a :a\\nb");
    line("CAST a.* :x", "ERR NAME");
    line("CAST a", "ERR SYNTAX");
    line("CAST a b", "ERR SYNTAX");
    line("BIND a.# q", "BIND a.# q");
    line("BIND! * q", "BIND! * q");
    line("UNBIND *.%2A.a q", "UNBIND *.%2A.a q");
    line("DRAIN", "DRAIN");
    line("drain! 30s", "DRAIN! 30000000us");
    line("DRAIN 0", "DRAIN 0us");
    line("DRAIN 1s 1s", "ERR SYNTAX");
    line("DRAIN x", "ERR SYNTAX");
    line("DRAIN :x", "ERR SYNTAX");
    line("BIND q *", "ERR NAME");
    line("BIND a.#", "ERR SYNTAX");
    line("BIND a b c", "ERR SYNTAX");
    line("BIND a# q", "ERR NAME");
    line("BIND a b :c", "ERR SYNTAX");
    line("REQ q :x", "REQ q timeout=2000000us :x");
    line(
        "REQ q timeout=5 pri=1 key=k h.a=b :x",
        "REQ q timeout=5000us pri=1 key=k h.a=b :x",
    );
    check("@t REQ q $0\n\n", "@t REQ q timeout=2000000us :");
    line("REQ! q :x", "ERR SYNTAX");
    line("REQ q timeout=0 :x", "ERR SYNTAX");
    line("REQ q ttl=1 :x", "ERR UNKNOWN");
    line("REQ q", "ERR SYNTAX");
    line("REP t :x", "REP t :x");
    check("REP! t $2\r\nab\r\n", "REP! t :ab");
    line("REP t x :x", "ERR SYNTAX");
    line("REP t a=b :x", "ERR UNKNOWN");
    line("REP t", "ERR SYNTAX");
    line("REP", "ERR SYNTAX");
}

#[test]
fn subscriptions() {
    line("SUB q", "SUB q");
    line(
        "SUB q credit=5 lease=1s ack=auto ts=1",
        "SUB q credit=5 lease=1000000us ack=auto ts=1",
    );
    line("SUB q credit=0", "SUB q credit=0");
    line("@s SUB q", "@s SUB q");
    line("SUB! q", "ERR SYNTAX");
    line("SUB", "ERR SYNTAX");
    line("SUB a b", "ERR SYNTAX");
    line("SUB a,b", "ERR NAME");
    line("SUB q/g", "SUB q/g");
    line("SUB q from=new", "SUB q from=new");
    line("SUB q mode=live", "SUB q mode=live");
    line("@s SUB a.*.# mode=live ts=1", "@s SUB a.*.# mode=live ts=1");
    line("SUB mode=live *.a", "SUB *.a mode=live");
    line("SUB a.#", "ERR NAME");
    line("SUB a# mode=live", "ERR NAME");
    line("SUB q mode=x", "ERR SYNTAX");
    line("SUB q mode=live credit=1", "ERR SYNTAX");
    line("UNSUB a.#", "UNSUB a.#");
    line("UNSUB *", "UNSUB *");
    line("UNSUB *.a#.*", "ERR NAME");
    line("SUB q wait=5", "ERR UNKNOWN");
    line("CREDIT q 5", "CREDIT q 5");
    line(
        "CREDIT! q 0",
        "CREDIT q 0".replace("CREDIT", "CREDIT!").as_str(),
    );
    line("CREDIT q", "ERR SYNTAX");
    line("CREDIT q x", "ERR SYNTAX");
    line("CREDIT q 1 2", "ERR SYNTAX");
    line("CREDIT q/g 1", "CREDIT q/g 1");
    line("UNSUB q", "UNSUB q");
    line("UNSUB", "ERR SYNTAX");
    line("UNSUB q x", "ERR SYNTAX");
    line("CANCEL @7", "CANCEL @7");
    line("@8 CANCEL @7", "@8 CANCEL @7");
    line("CANCEL", "ERR SYNTAX");
    line("CANCEL 7", "ERR SYNTAX");
    line("CANCEL @", "ERR SYNTAX");
    line("CANCEL @7 @8", "ERR SYNTAX");
}

#[test]
fn queues() {
    line("QSET q", "QSET q");
    line(
        "QSET q lease=1m maxdeliver=3",
        "QSET q lease_us: Some(60000000), maxdeliver: Some(3)",
    );
    line("QSET! q pri=1", "QSET! q pri: Some(1)");
    line("QSET q durable=none", "QSET q durable: Some(None)");
    line("QSET q durable=quorum", "ERR UNKNOWN");
    line(
        "QSET q retain=1d",
        "QSET q retain: Some(Retain { age_us: Some(86400000000), bytes: None })",
    );
    line("QSET q retain=5", "ERR SYNTAX");
    line("QSET q rate=5", "ERR SYNTAX");
    line("QSET q fair=all", "ERR SYNTAX");
    line("QSET q single=2", "ERR SYNTAX");
    line("QSET q dead=a/b", "ERR NAME");
    line("QSET q pri=x", "ERR SYNTAX");
    line("QSET", "ERR SYNTAX");
    line("QSET a b", "ERR SYNTAX");
    line("QGET q", "QGET q");
    line("QGET", "ERR SYNTAX");
    line("QGET! q", "ERR SYNTAX");
    line("QGET q/g", "QGET q/g");
    line("QLS", "QLS");
    line("QLS *", "QLS *");
    line("QLS *.eu", "QLS *.eu");
    line("QLS jobs.#", "QLS jobs.#");
    line("QLS jobs*", "ERR NAME");
    line("QLS a b", "ERR SYNTAX");
    line("QDEL q", "QDEL q");
    line("QDEL! q", "QDEL! q");
    line("QDEL q/g", "QDEL q/g");
    line("QDEL q x=1", "ERR UNKNOWN");
    line(
        "DEL q 1 22 9999999999999999999",
        "DEL q 1 22 9999999999999999999",
    );
    line("DEL q 99999999999999999999", "ERR SYNTAX");
    line("DEL q", "ERR SYNTAX");
    line("DEL q 1.1.1", "ERR SYNTAX");
    line("DEL q 1 2 3 4 5 6", "ERR TOOBIG");
    line("PURGE q", "PURGE q");
    line("PURGE q state=dead", "PURGE q state=Dead");
    line("PURGE q state=gone", "ERR SYNTAX");
    line("PURGE q 5", "ERR SYNTAX");
    line("PURGE q from=5", "ERR UNKNOWN");
    line("PEEK q", "PEEK q 1 state=Ready from=0");
    line(
        "PEEK q 5 state=delayed from=17",
        "PEEK q 5 state=Delayed from=17",
    );
    line("PEEK q 0", "ERR SYNTAX");
    line("PEEK q from=first", "ERR SYNTAX");
    line("PEEK! q", "ERR SYNTAX");
    line("MOVE a.dead a", "MOVE a.dead a");
    line("MOVE! a.dead a 5", "MOVE! a.dead a 5");
    line("MOVE a", "ERR SYNTAX");
    line("MOVE a b c", "ERR SYNTAX");
    line("MOVE a b/c", "ERR NAME");
    line("MOVE a/b c", "MOVE a/b c");
}

#[test]
fn the_rest() {
    line("", "empty");
    line("   ", "empty");
    line("PING", "PING");
    line("PING :", "PING :");
    line("PING :a b", "PING :a b");
    line("PING x", "ERR SYNTAX");
    line("PING!", "ERR SYNTAX");
    check("PING $1\nx\n", "ERR SYNTAX");
    line("@x PING", "@x PING");
    line("QUIT", "QUIT");
    line("quit!", "QUIT!");
    line("QUIT now", "ERR SYNTAX");
    line("HELP", "HELP");
    line("help pub", "HELP pub");
    line("HELP a b", "ERR SYNTAX");
    line("HELLO", "HELLO 1");
    line("HELLO 1 name=me expired=1", "HELLO 1 name=me expired=1");
    line("HELLO 2", "HELLO 2");
    line("HELLO x", "ERR SYNTAX");
    line("SYNC", "SYNC");
    line("SYNC disk", "SYNC disk");
    line("SYNC quorum", "ERR UNKNOWN");
    line("SYNC now", "ERR SYNTAX");
    line("STATS", "STATS");
    line("STATS q jobs", "STATS q jobs");
    line("STATS conns", "STATS conns");
    line("begin", "BEGIN");
    line("@7 COMMIT!", "@7 COMMIT!");
    line("ABORT", "ABORT");
    line("BEGIN x", "ERR SYNTAX");
    line("COMMIT x=1", "ERR UNKNOWN");
    line("ABORT :x", "ERR SYNTAX");
    line(
        "PUB q every=1h once=a pri=2 :x",
        "PUB q every=3600000000us name=a pri=2 :x",
    );
    check(
        "PUB q once=a every=0 $3\na\nb\n",
        "PUB q every=0us name=a  :a\\nb",
    );
    line("PUB q every=1h :x", "ERR SYNTAX");
    line("PUB q every=9999us once=a :x", "ERR SYNTAX");
    line("STATS nodes", "ERR UNKNOWN");
    line("STATS q", "ERR SYNTAX");
    line("STATS jobs", "ERR SYNTAX");
    line("STATS!", "ERR SYNTAX");
}

#[test]
fn verbs_that_are_unknown_or_not_built() {
    for verb in [
        "AUTH",
        "ROUTE",
        "FOO",
        "PUBS",
        "P\u{fc}B",
        "ABCDEFGHIJKLM",
        "123",
        "!",
        "PUB!!",
    ] {
        line(verb, "ERR UNKNOWN");
        line(&format!("@t {verb}! a b=c :PUB x :y"), "@t ERR UNKNOWN");
        check(
            &format!("{verb} x $12\nPUB evil :x\n\r\nPING\n"),
            "ERR UNKNOWN\nPING",
        );
        check(
            &format!("@t {verb} *2\nPUB evil :x\nQUIT\nPING\n"),
            "@t ERR UNKNOWN\nPING",
        );
    }
    refused(
        "ROUTE news :x",
        "UNKNOWN :ROUTE is not built yet: HELP lists what is",
    );
}

#[test]
fn tags() {
    line(
        &format!("@{} PING", "t".repeat(20)),
        &format!("@{} PING", "t".repeat(20)),
    );
    line(&format!("@{} PING", "t".repeat(21)), "ERR SYNTAX");
    line("@ PING", "ERR SYNTAX");
    line("@a.b PING", "ERR SYNTAX");
    line("@a", "@a ERR SYNTAX");
    line("@a :x", "@a ERR SYNTAX");
    line(":x", "ERR SYNTAX");
    check("@a $1\nx\nPING\n", "@a ERR SYNTAX\nPING");
    check("@a! *1\nx\nPING\n", "ERR SYNTAX\nPING");
    check("*1\nx\nPING\n", "ERR SYNTAX\nPING");
}

#[test]
fn a_stream_out_of_step_is_closed() {
    for token in [
        "$",
        "$-1",
        "$+1",
        "$0x10",
        "$1e3",
        "$10000000000",
        "$1:",
        "*x",
        "**",
        "*-1",
        "*1e3",
        "*#",
        "$9223372036854775808",
        "$2147483648x",
    ] {
        check(&format!("PUB q {token}\nPING\n"), "FATAL PROTO");
        check(&format!("@t FOO {token}\r\nPING\n"), "@t FATAL PROTO");
        check(&format!("{token}\n"), "FATAL PROTO");
    }
    check("PUB q $3\nabcPING\nPING\n", "FATAL PROTO");
    check("@t PUB q $3\nabc\rPING\n", "@t FATAL PROTO");
    check("PUB q $3\nabc\r\rPING\n", "FATAL PROTO");
    check("@t FOO $3\nabcd\nPING\n", "@t FATAL PROTO");
    check("MPUB q $4\n1\na\nx\n", "FATAL PROTO");
    check("PUB q $0\nx\nPING\n", "FATAL PROTO");
    check("PUB q $00000000001\nx\nPING\n", "FATAL PROTO");
    check("MPUB q *00000000001\nx\nPING\n", "FATAL PROTO");
}

#[test]
fn limits_hold_at_their_edges() {
    let body = "b".repeat(100);
    line(&format!("PUB q :{body}"), &format!("PUB q :{body}"));
    line(&format!("PUB q :{body}b"), "ERR TOOBIG");
    check(&format!("PUB q $100\n{body}\n"), &format!("PUB q :{body}"));
    check(
        &format!("@t PUB q $101\n{body}b\nPING\n"),
        "@t ERR TOOBIG\nPING",
    );
    check(&format!("PUB q $101\n{body}b\nPING\n"), "ERR TOOBIG\nPING");
    check("PUB q $6400\n", "...");
    check("@t PUB q $6401\nPING\n", "@t FATAL TOOBIG");
    check("PUB q $9999999999\nPING\n", "FATAL TOOBIG");
    check("PUB a b $6401\nPING\n", "FATAL TOOBIG");
    check("FOO $19200\nPING\n", "...");
    check("FOO $19201\nPING\n", "FATAL TOOBIG");
    check(
        &format!("MPUB q *2\n{body}\n{body}\r\n"),
        &format!("MPUB q Lines[{body}|{body}]"),
    );
    check(
        &format!("@t MPUB q *2\na\n{body}b\nPING\n"),
        "@t ERR TOOBIG\nPING",
    );
    check(
        &format!("MPUB q *2\n{body}b\nPUB q :x\nPING\n"),
        "ERR TOOBIG\nPING",
    );
    let fits = format!(
        "MPUB q *3\n{body}\n{}\n{}\n",
        "c".repeat(99),
        "d".repeat(98)
    );
    check(
        &fits,
        &format!("MPUB q Lines[{body}|{}|{}]", "c".repeat(99), "d".repeat(98)),
    );
    check(
        &format!(
            "MPUB q *3\n{body}\n{}\n{}\nPING\n",
            "c".repeat(99),
            "d".repeat(99)
        ),
        "ERR TOOBIG\nPING",
    );
    check(
        "MPUB q *10\n1\n2\n3\n4\n5\n6\n7\n8\n9\n0\n",
        "MPUB q Lines[1|2|3|4|5|6|7|8|9|0]",
    );
    check(
        "MPUB q *11\n1\n2\n3\n4\n5\n6\n7\n8\n9\n0\nPUB q :x\nPING\n",
        "ERR TOOBIG\nPING",
    );
    check("MPUB q *640\n", "...");
    check("@t MPUB q *641\nPING\n", "@t FATAL TOOBIG");
    check("FOO *9999999999\nPING\n", "FATAL TOOBIG");
    check(
        &format!("MPUB q $105\n100\n{body}\n\nPING\n"),
        &format!("MPUB q Counted[{body}]\nPING"),
    );
    check(
        &format!("MPUB q $106\n101\n{body}b\n\nPING\n"),
        "ERR TOOBIG\nPING",
    );
    check(
        &format!("MPUB q $44\n{}\nPING\n", "1\na\n".repeat(11)),
        "ERR TOOBIG\nPING",
    );
    check(
        &format!("MPUB q $301\n{}\nPING\n", "x".repeat(301)),
        "ERR TOOBIG\nPING",
    );
}

#[test]
fn lines_of_a_batch_may_pass_by_64_times_over_their_limit() {
    let limits = Limits {
        body_bytes_max: 3,
        batch_bytes_max: 5,
        ..limits()
    };
    let one = |length: usize| format!("@t MPUB q *2\n{}\nPUB q :x\nPING\n", "x".repeat(length));
    check_with(&limits, one(192).as_bytes(), "@t ERR TOOBIG\nPING");
    check_with(&limits, one(193).as_bytes(), "@t FATAL TOOBIG");
    let many = |count: usize| format!("MPUB q *{count}\n{}PING\n", "ab\n".repeat(count));
    check_with(&limits, many(106).as_bytes(), "ERR TOOBIG\nPING");
    check_with(&limits, many(107).as_bytes(), "FATAL TOOBIG");
}

#[test]
fn endless_lines_are_closed_at_their_edge() {
    let head = "PUB q :";
    let roomy = Limits {
        body_bytes_max: 5000,
        ..limits()
    };
    let body = |length: usize| "x".repeat(length - head.len());
    let fits = body(600);
    check_with(
        &roomy,
        format!("{head}{fits}\n").as_bytes(),
        &format!("PUB q :{fits}"),
    );
    check_with(
        &roomy,
        format!("{head}{fits}\r\n").as_bytes(),
        &format!("PUB q :{fits}"),
    );
    check_with(
        &roomy,
        format!("{head}{}\nPING\n", body(601)).as_bytes(),
        "FATAL LINE",
    );
    check_with(
        &roomy,
        format!("{head}{}\r\nPING\n", body(601)).as_bytes(),
        "FATAL LINE",
    );
    check_with(
        &roomy,
        format!("{head}{}\r\r\nPING\n", body(600)).as_bytes(),
        "FATAL LINE",
    );
    check_with(&roomy, format!("{head}{}\r", body(600)).as_bytes(), "...");
    check_with(
        &roomy,
        format!("{head}{}", body(601)).as_bytes(),
        "FATAL LINE",
    );
    check_with(
        &roomy,
        format!("@t PUB {}", "x".repeat(700)).as_bytes(),
        "@t FATAL LINE",
    );
    check_with(&roomy, " ".repeat(601).as_bytes(), "FATAL LINE");
}

#[test]
fn errors_teach() {
    refused(
        "PUB jobs hello",
        "SYNTAX :the body starts with a colon, as in PUB jobs :hello",
    );
    refused(
        "PUB jobs hello big world",
        "SYNTAX :the body starts with a colon, as in PUB jobs :hello big world",
    );
    refused("FOO", "UNKNOWN :there is no verb FOO: HELP lists them");
    refused(
        "ACK",
        "SYNTAX :ACK needs a handle, as in ACK 1.1.1 (the handle in the MSG line)",
    );
    refused(
        "SUB q wait=1",
        "UNKNOWN :SUB has no option wait=; it takes credit= lease= from= ack=auto ts=1 mode=live",
    );
    refused(
        "SEEK q to=soon",
        "SYNTAX :to= is first, new, a message id such as 17, an age such as -5m, or a time such as \
         2026-01-31T09:00:00Z or @1769850000000 (unix ms), not soon",
    );
    refused("QGET q x=1", "UNKNOWN :QGET takes no options such as x=");
    refused(
        "PULL! q",
        "SYNTAX :PULL is never quiet, since it answers with more than OK: leave out the !",
    );
    refused(
        "PULL q pri=\u{7}",
        "UNKNOWN :PULL has no option pri=; it takes wait= lease= from= ack=auto hold=1 bytes= ts=1",
    );
    refused("ACK x :y", "SYNTAX :ACK takes no body: ACK handle [handle]");
}

#[test]
fn large_bodies_are_collected_exactly() {
    let limits = Limits::default();
    let body: Vec<u8> = (0..200_000u32).map(|n| (n * 7 % 251) as u8).collect();
    for size in [16_383, 16_384, 16_385, 65_535, 65_536, 131_073, 200_000] {
        for end in ["\n", "\r\n"] {
            let mut input = format!("PING\nPUB q $%{end}")
                .replace('%', &size.to_string())
                .into_bytes();
            input.extend_from_slice(&body[..size]);
            input.extend_from_slice(end.as_bytes());
            input.extend_from_slice(b"PING\n");
            let want = run(&[&input], &limits, Way::Decode);
            assert_eq!(want.len(), 3);
            assert_eq!(want[1], format!("PUB q :{}", body[..size].escape_ascii()));
            for way in [Way::Decode, Way::Space] {
                for step in [997, 4096, 16_384, 70_000] {
                    let pieces: Vec<_> = input.chunks(step).collect();
                    assert!(
                        run(&pieces, &limits, way) == want,
                        "{size} by {step}, {way:?}"
                    );
                }
                for cut in [
                    17,
                    18,
                    19,
                    20,
                    21,
                    input.len() - 7,
                    input.len() - 6,
                    input.len() - 5,
                ] {
                    let (front, back) = input.split_at(cut);
                    assert!(run(&[front, back], &limits, way) == want, "{size} at {cut}");
                }
            }
            let bytes: Vec<_> = input.chunks(1).collect();
            assert!(
                run(&bytes, &limits, Way::Space) == want,
                "{size} by the byte"
            );
        }
    }
}

#[test]
fn a_collected_request_that_could_not_be_run_comes_again() {
    let limits = Limits::default();
    let text = "x".repeat(20_000);
    let inputs = [
        format!("@7 PUB! q pri=2 $20000\n{text}\nPING\n"),
        format!("MPUB q *3\n{text}\n\nz\nPING\n"),
        format!("MPUB q $20007\n20000\n{text}\n\nPING\n"),
    ];
    for input in inputs {
        let mut decoder = Decoder::default();
        let (front, back) = input.as_bytes().split_at(19_000);
        let (used, step) = decoder.decode(front, &limits);
        assert_eq!((used, matches!(step, Step::Incomplete)), (19_000, true));
        let (used, first) = decoder.decode(back, &limits);
        let want = format!("{first:?}");
        let body = match first {
            Step::Request(Request {
                command: Command::Publish { body, .. } | Command::PublishBatch { data: body, .. },
                ..
            }) => Bytes::copy_from_slice(body.as_slice()),
            other => panic!("{other:?}"),
        };
        for _ in 0..3 {
            decoder.again(body.clone());
            assert!(!decoder.in_frame() && decoder.memory() > body.len());
            let (none, again) = decoder.decode(b"", &limits);
            assert_eq!((none, format!("{again:?}")), (0, want.clone()));
        }
        let (used_next, next) = decoder.decode(&back[used..], &limits);
        assert_eq!(used + used_next, back.len());
        assert!(format!("{next:?}").contains("Ping"), "{next:?}");
    }
}

#[test]
fn an_announcement_takes_no_memory() {
    use ringmq::protocol::text::decode::Decoder;
    let limits = Limits::default();
    for line in [
        "PUB q $1048576\n",
        "MPUB q $33554432\n",
        "MPUB q *1048576\n",
        "FOO $2147483648\n",
    ] {
        let mut decoder = Decoder::default();
        let (consumed, _) = decoder.decode(line.as_bytes(), &limits);
        assert_eq!(consumed, line.len());
        assert!(decoder.body_space().is_none());
        assert!(decoder.memory() < 300, "{line} {}", decoder.memory());
        decoder.decode(&[b'x'; 100], &limits);
        let space = decoder.body_space().map_or(0, |space| space.len());
        assert!(space <= 16 << 10, "{line} {space}");
        assert!(decoder.memory() <= 17 << 10, "{line} {}", decoder.memory());
    }
}

#[test]
fn a_million_lines_land_as_one_batch() {
    let mut input = b"MPUB jobs *1000000\n".to_vec();
    for number in 1..=1_000_000 {
        input.extend_from_slice(format!("{number}\n").as_bytes());
    }
    let mut decoder = ringmq::protocol::text::decode::Decoder::default();
    let limits = Limits::default();
    let mut found = None;
    for piece in input.chunks(64 << 10) {
        let (consumed, step) = decoder.decode(piece, &limits);
        assert_eq!(consumed, piece.len());
        if let ringmq::protocol::text::decode::Step::Request(request) = step
            && let ringmq::broker::command::Command::PublishBatch {
                count, body_bytes, ..
            } = request.command
        {
            found = Some((count, body_bytes));
        }
    }
    assert_eq!(found, Some((1_000_000, 5_888_896)));
    decoder.decode(b"", &limits);
    assert_eq!(decoder.memory(), 0);
}
