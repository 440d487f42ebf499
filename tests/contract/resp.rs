//! RESP against a real broker: lists at both ends, waiting, safe pop, transactions, publish and subscribe.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::resp_command;
use crate::support::{Broker, Launch, TempDir};

/// Nothing in these tests takes longer, whatever else the machine does.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// One connection.
pub(crate) struct Resp(BufReader<TcpStream>);

impl Resp {
    pub(crate) fn connect(address: SocketAddr) -> Resp {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a socket takes it");
        stream
            .set_read_timeout(Some(ANSWER_MAX))
            .expect("it is longer than 0");
        Resp(BufReader::new(stream))
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// Sends a command whose words are separated by spaces.
    pub(crate) fn send(&mut self, line: &str) {
        self.send_words(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    }

    pub(crate) fn send_words(&mut self, words: &[&[u8]]) {
        self.send_raw(&resp_command(words));
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("a line comes");
        let line = String::from_utf8_lossy(&line).into_owned();
        let line = line.strip_suffix("\r\n");
        line.unwrap_or_else(|| panic!("no line: {line:?}"))
            .to_owned()
    }

    /// The next reply, as text: `+OK`, `:1`, `$octets`, `[a b]`, `{a b}`, `>[a b]`, `nil`, `nils`, `-ERR …`.
    pub(crate) fn reply(&mut self) -> String {
        let line = self.line();
        let (kind, rest) = line.split_at(1);
        let number = || rest.parse::<i64>().expect("a number");
        match kind {
            "+" | "-" | ":" => line,
            "_" => "nil".to_owned(),
            "$" if number() < 0 => "nil".to_owned(),
            "*" if number() < 0 => "nils".to_owned(),
            "$" => {
                let mut octets = vec![0; number() as usize + 2];
                self.0.read_exact(&mut octets).expect("a body comes");
                octets.truncate(octets.len() - 2);
                format!("${}", String::from_utf8_lossy(&octets))
            }
            "*" | ">" | "%" => {
                let count = number() * if kind == "%" { 2 } else { 1 };
                let values: Vec<_> = (0..count).map(|_| self.reply()).collect();
                let values = values.join(" ");
                match kind {
                    "*" => format!("[{values}]"),
                    ">" => format!(">[{values}]"),
                    _ => format!("{{{values}}}"),
                }
            }
            _ => panic!("what is {line:?}?"),
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.reply()
    }

    /// Asks, and compares.
    pub(crate) fn check(&mut self, line: &str, want: &str) {
        assert_eq!(self.ask(line), want, "{line}");
    }

    pub(crate) fn assert_silent(&mut self, time: Duration) {
        self.0
            .get_mut()
            .set_read_timeout(Some(time))
            .expect("above 0");
        let mut octet = [0];
        let found = self.0.read(&mut octet);
        let is_silent = matches!(&found, Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(is_silent, "{found:?} {octet:?}");
        let stream = self.0.get_mut();
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("above 0");
    }

    pub(crate) fn assert_closes(&mut self) {
        let mut more = Vec::new();
        match self.0.read_to_end(&mut more) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("it stays open: {error}"),
        }
        assert!(
            more.is_empty(),
            "there is more: {}",
            String::from_utf8_lossy(&more)
        );
    }

    pub(crate) fn half_close(&mut self) {
        let _ = self.0.get_mut().shutdown(Shutdown::Write);
    }

    /// Ends the connection such that the peer sees a reset, as a killed process that had not read everything.
    pub(crate) fn reset(self) {
        let socket = socket2::Socket::from(self.0.into_inner());
        socket
            .set_linger(Some(Duration::ZERO))
            .expect("a socket takes it");
    }
}

launches!();

pub(crate) fn memory() -> (Broker, Resp) {
    let broker = launch().start();
    let resp = Resp::connect(broker.address);
    (broker, resp)
}

/// The next line of the line protocol.
fn line_of(text: &mut crate::support::client::Client) -> String {
    text.line().expect("a line comes")
}

/// Waits until the list has so many.
fn await_length(resp: &mut Resp, key: &str, want: u64) {
    let began = Instant::now();
    loop {
        let found = resp.ask(&format!("LLEN {key}"));
        if found == format!(":{want}") {
            return;
        }
        assert!(
            began.elapsed() < ANSWER_MAX,
            "{key} has {found}, not {want}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_list_has_two_ends() {
    let (_broker, mut resp) = memory();
    resp.check("RPUSH k a b c", ":3");
    resp.check("LPUSH k z y", ":5");
    resp.check("LRANGE k 0 -1", "[$y $z $a $b $c]");
    resp.check("LRANGE k 1 2", "[$z $a]");
    resp.check("LRANGE k -2 9", "[$b $c]");
    resp.check("LRANGE none 0 -1", "[]");
    resp.check("LINDEX k 0", "$y");
    resp.check("LINDEX k -1", "$c");
    resp.check("LINDEX k 7", "nil");
    resp.check("LPOP k", "$y");
    resp.check("RPOP k", "$c");
    resp.check("RPOP k 2", "[$b $a]");
    resp.check("LPOP k 5", "[$z]");
    resp.check("LPOP k", "nil");
    resp.check("LPOP k 2", "nils");
    resp.check("LPOP none", "nil");
    resp.check("LLEN k", ":0");
    resp.check("RPUSHX k a", ":0");
    resp.check("LPUSHX none a", ":0");
    resp.check("RPUSH k a", ":1");
    resp.check("RPUSHX k b", ":2");
    resp.check("LPUSHX k c", ":3");
    resp.check("LMPOP 2 none k LEFT COUNT 2", "[$k [$c $a]]");
    resp.check("LMPOP 1 k RIGHT", "[$k [$b]]");
    resp.check("LMPOP 1 k RIGHT", "nils");
    resp.check("RPUSH k a", ":1");
    resp.check("DEL k none", ":1");
    resp.check("EXISTS k", ":0");
}

#[test]
fn bodies_are_any_octets_of_any_size() {
    let (_broker, mut resp) = memory();
    for size in [0usize, 1, 16_383, 16_384, 200_000, 1 << 20] {
        let body: Vec<u8> = (0..size).map(|at| b'a' + (at * 7 % 23) as u8).collect();
        resp.send_words(&[b"RPUSH", b"odd \xff name", &body, b"\r\n\0"]);
        assert_eq!(resp.reply(), ":2");
        resp.send_words(&[b"LPOP", b"odd \xff name"]);
        assert_eq!(resp.reply(), format!("${}", String::from_utf8_lossy(&body)));
        resp.send_words(&[b"LPOP", b"odd \xff name", b"3"]);
        assert_eq!(resp.reply(), "[$\r\n\0]");
    }
    // What is too large closes the connection, as what follows cannot be told from it.
    resp.send_raw(b"*3\r\n$5\r\nRPUSH\r\n$1\r\nk\r\n$1048577\r\n");
    assert!(resp.reply().starts_with("-ERR Protocol error"));
    resp.assert_closes();
}

#[test]
fn a_pop_of_many_lists_finds_nothing_where_nothing_may_be_taken() {
    let (broker, mut resp) = memory();
    let mut text = broker.client();
    resp.check("LMPOP 2 none other LEFT COUNT 5", "nils");
    // It has made none of them.
    assert!(text.ask("QGET none").starts_with("ERR NOQUEUE"));
    // There, and nothing in it.
    resp.check("RPUSH empty x", ":1");
    resp.check("LPOP empty", "$x");
    resp.check("LMPOP 1 empty LEFT", "nils");
    // Leased to somebody else, delayed, paused, and kept for the active consumer.
    assert_eq!(text.ask("PUB leased :x"), "OK 1 mem");
    let held = text.pull("leased lease=1d").expect("it is there");
    assert_eq!(text.ask("PUB later delay=1d :x"), "OK 1 mem");
    assert_eq!(text.ask("PUB halted :x"), "OK 1 mem");
    assert_eq!(text.ask("QSET halted pause=out"), "OK updated");
    assert_eq!(text.ask("QSET one single=1"), "OK created");
    assert_eq!(text.ask("PUB one :x"), "OK 1 mem");
    assert_eq!(text.ask("PUB one :y"), "OK 2 mem");
    assert_eq!(text.pull("one lease=1d").expect("it is there").len(), 1);
    let lists = "leased later halted one empty none";
    resp.check(&format!("LMPOP 6 {lists} LEFT COUNT 5"), "nils");
    resp.check(&format!("BLMPOP 0.03 6 {lists} RIGHT"), "nils");
    // The first that has something is taken from, and it alone.
    resp.check("RPUSH last a b c", ":3");
    resp.check(
        &format!("LMPOP 7 {lists} last LEFT COUNT 2"),
        "[$last [$a $b]]",
    );
    assert_eq!(
        text.ask(&format!("NACK {} delay=0", held[0].handle)),
        "OK 1"
    );
    resp.check(
        &format!("LMPOP 7 last {lists} LEFT COUNT 2"),
        "[$last [$c]]",
    );
    resp.check(&format!("LMPOP 6 {lists} LEFT"), "[$leased [$x]]");
    let mut three = Resp::connect(broker.address);
    assert!(three.ask("HELLO 3").starts_with("{$server"));
    three.check(&format!("LMPOP 6 {lists} LEFT"), "nil");
}

#[test]
fn what_is_not_supported_is_named_at_once() {
    let (_broker, mut resp) = memory();
    let unknown = resp.ask("SET a b");
    assert_eq!(
        unknown,
        "-ERR unknown command 'SET', with args beginning with: 'a' 'b' "
    );
    resp.check("LPOP", "-ERR wrong number of arguments for 'lpop' command");
    resp.check("LPOP k -1", "-ERR value is out of range, must be positive");
    resp.check(
        "BLPOP k soon",
        "-ERR timeout is not a float or out of range",
    );
    resp.check("BLPOP k -1", "-ERR timeout is negative");
    resp.check("LMPOP 0 k LEFT", "-ERR numkeys should be greater than 0");
    resp.check("LMPOP 9 k LEFT", "-ERR syntax error");
    resp.check(
        "LRANGE k 0 x",
        "-ERR value is not an integer or out of range",
    );
    resp.check("PING", "+PONG");
    resp.send_raw(b"*1\r\n$-5\r\n");
    resp.reply();
    resp.assert_closes();
}

#[test]
fn the_connection_and_the_server_tell_about_themselves() {
    let (_broker, mut resp) = memory();
    resp.check("PING hi", "$hi");
    resp.check("ECHO hi", "$hi");
    resp.check("SELECT 0", "+OK");
    assert!(resp.ask("SELECT 1").starts_with("-ERR"));
    let hello = resp.ask("HELLO");
    assert!(hello.starts_with("[$server $redis "), "{hello}");
    resp.check("CLIENT SETNAME me", "+OK");
    resp.check("CLIENT GETNAME", "$me");
    resp.check("CLIENT SETINFO LIB-NAME x", "+OK");
    assert!(
        resp.ask("CLIENT MAINT_NOTIFICATIONS ON")
            .starts_with("-ERR unknown subcommand")
    );
    assert!(resp.ask("CLIENT LIST").contains("name=me"));
    let hello = resp.ask("HELLO 3 AUTH default x SETNAME you");
    assert!(
        hello.starts_with("{$server $redis ") && hello.contains("$proto :3 $id :"),
        "{hello}"
    );
    resp.check("CLIENT GETNAME", "$you");
    resp.check("LPOP k", "nil");
    resp.check("HELLO 4", "-NOPROTO unsupported protocol version");
    resp.check("COMMAND DOCS", "{}");
    resp.check("CONFIG GET save", "{$save $}");
    resp.check("CONFIG GET resp.p?p", "{$resp.pop $safe}");
    assert!(resp.ask("INFO").contains("redis_version:7"));
    resp.check("RPUSH jobs a", ":1");
    resp.check("RPUSH mail a", ":1");
    resp.check("TYPE jobs", "+list");
    resp.check("TYPE none", "+none");
    resp.check("KEYS *", "[$jobs $mail]");
    resp.check("SCAN 0 MATCH j* COUNT 5", "[$0 [$jobs]]");
    resp.check("DBSIZE", ":2");
    resp.check("EXISTS jobs mail none jobs", ":3");
    resp.check("RESET", "+RESET");
    resp.check("CLIENT GETNAME", "nil");
    resp.check("QUIT", "+OK");
    resp.assert_closes();
}

#[test]
fn who_waits_is_served_in_the_order_of_arrival() {
    let (broker, mut resp) = memory();
    let mut waiting: Vec<Resp> = (0..5)
        .map(|_| {
            let mut one = Resp::connect(broker.address);
            one.send("BLPOP other k 0");
            one.assert_silent(Duration::from_millis(30));
            one
        })
        .collect();
    // A list on another shard may have something for who has just been served by the first one.
    for (line, served) in [
        ("RPUSH k 0 1 2", 0..3),
        ("RPUSH other 3", 3..4),
        ("RPUSH k 4", 4..5),
    ] {
        resp.check(line, &format!(":{}", served.len()));
        let key = line.split(' ').nth(1).expect("a key");
        for at in served {
            assert_eq!(waiting[at].reply(), format!("[${key} ${at}]"));
        }
    }
    let began = Instant::now();
    resp.check("BLPOP k 0.2", "nils");
    assert!(began.elapsed() >= Duration::from_millis(200));
    resp.check("BRPOP k 0.01", "nils");
    // What stands behind a pop that waits is run when it ends.
    waiting[0].send("BRPOP k 0");
    waiting[0].send("PING");
    waiting[0].assert_silent(Duration::from_millis(50));
    resp.check("LPUSH k x", ":1");
    assert_eq!(waiting[0].reply(), "[$k $x]");
    assert_eq!(waiting[0].reply(), "+PONG");
    waiting[1].send("BLMPOP 0 1 k LEFT COUNT 10");
    waiting[1].assert_silent(Duration::from_millis(30));
    resp.check("RPUSH k x y", ":2");
    assert_eq!(waiting[1].reply(), "[$k [$x $y]]");
}

#[test]
fn a_pop_that_waits_can_be_unblocked() {
    let (broker, mut resp) = memory();
    let mut other = Resp::connect(broker.address);
    let id = other.ask("CLIENT ID");
    let id = id.trim_start_matches(':');
    for (how, want) in [
        ("", "nils"),
        (" TIMEOUT", "nils"),
        (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK"),
    ] {
        other.send("BLPOP k 0");
        other.assert_silent(Duration::from_millis(30));
        resp.check(&format!("CLIENT UNBLOCK {id}{how}"), ":1");
        assert_eq!(other.reply(), want);
    }
    resp.check(&format!("CLIENT UNBLOCK {id}"), ":0");
    other.check("PING", "+PONG");
}

#[test]
fn what_a_dead_waiter_would_have_got_goes_to_another() {
    let (broker, mut resp) = memory();
    for is_reset in [false, true] {
        let mut dead = Resp::connect(broker.address);
        dead.send("BLPOP k 0");
        dead.assert_silent(Duration::from_millis(30));
        match is_reset {
            true => dead.reset(),
            false => drop(dead),
        }
        thread::sleep(Duration::from_millis(50));
        resp.check("RPUSH k a", ":1");
        resp.check("BLPOP k 5", "[$k $a]");
    }
}

#[test]
fn a_pop_is_settled_when_it_has_been_read_and_not_before() {
    let (broker, mut resp) = memory();
    resp.check("RPUSH k a b c d", ":4");
    // Nothing more comes of this client, and it is reset: both messages come back, in their order.
    let mut dead = Resp::connect(broker.address);
    dead.send_raw(&resp_command(&[b"LPOP", b"k"]).repeat(2));
    assert_eq!((dead.reply().as_str(), dead.reply().as_str()), ("$a", "$b"));
    dead.reset();
    await_length(&mut resp, "k", 4);
    resp.check("LRANGE k 0 -1", "[$a $b $c $d]");
    // The next command shows that the reply was read; the last pop is not shown to have been.
    let mut dead = Resp::connect(broker.address);
    dead.check("LPOP k", "$a");
    dead.check("LPOP k", "$b");
    dead.reset();
    await_length(&mut resp, "k", 3);
    // A client that ends its side in order has read what TCP has acknowledged.
    let mut gone = Resp::connect(broker.address);
    gone.check("RPOP k", "$d");
    drop(gone);
    thread::sleep(Duration::from_millis(100));
    resp.check("LRANGE k 0 -1", "[$b $c]");
    let mut gone = Resp::connect(broker.address);
    gone.send("LPOP k");
    gone.half_close();
    assert_eq!(gone.reply(), "$b");
    gone.assert_closes();
    let stats = broker.client().data("STATS q k");
    assert!(stats.contains("acked_total=3\n"), "{stats}");
    assert!(stats.contains("redelivered_total=3\n"), "{stats}");
    resp.check("LRANGE k 0 -1", "[$c]");
}

#[test]
fn pops_sent_ahead_are_settled_only_by_what_comes_after_their_replies() {
    let (broker, mut resp) = memory();
    let names: Vec<String> = (0..64).map(|at| format!("{at}")).collect();
    resp.check(&format!("RPUSH k {}", names.join(" ")), ":64");
    let mut dead = Resp::connect(broker.address);
    dead.send_raw(&resp_command(&[b"LPOP", b"k"]).repeat(64));
    for name in &names {
        assert_eq!(dead.reply(), format!("${name}"));
    }
    dead.reset();
    await_length(&mut resp, "k", 64);
    resp.check("LINDEX k 0", "$0");
    resp.check("LINDEX k -1", "$63");
}

#[test]
fn classic_pops_are_gone_when_they_are_sent() {
    let broker = launch().arg("--resp-pop classic").start();
    let mut resp = Resp::connect(broker.address);
    resp.check("RPUSH k a b", ":2");
    let mut dead = Resp::connect(broker.address);
    dead.check("LPOP k", "$a");
    dead.reset();
    thread::sleep(Duration::from_millis(50));
    resp.check("LRANGE k 0 -1", "[$b]");
    resp.check("BLPOP k 0", "[$k $b]");
}

#[test]
fn lists_survive_a_kill_at_both_ends() {
    let dir = TempDir::new("resp");
    let launch = launch_at(&dir);
    let mut broker = launch.start();
    let mut resp = Resp::connect(broker.address);
    for round in 0..3 {
        resp.check("RPUSH k 1 2", &format!(":{}", round * 3 + 2));
        resp.check("LPUSH k a b c", &format!(":{}", round * 3 + 5));
        // The second is open when the broker dies: it comes again.
        resp.check("LPOP k", "$c");
        resp.check("RPOP k", "$2");
        resp.send("PING");
        assert_eq!(resp.reply(), "+PONG");
        resp.check("LPOP k", "$b");
        broker.process.kill_running();
        broker = launch.start();
        resp = Resp::connect(broker.address);
        let listed = resp.ask("LRANGE k 0 -1");
        let want = match round {
            0 => "[$b $a $1]",
            1 => "[$b $a $b $a $1 $1]",
            _ => "[$b $a $b $a $b $a $1 $1 $1]",
        };
        assert_eq!(listed, want);
    }
    resp.check("RPOP k 3", "[$1 $1 $1]");
    resp.check("LPOP k 9", "[$b $a $b $a $b $a]");
}

#[test]
fn a_transaction_is_one_reply_and_its_pops_are_settled_as_one() {
    let (broker, mut resp) = memory();
    resp.check("MULTI", "+OK");
    resp.check("MULTI", "-ERR MULTI calls can not be nested");
    for line in [
        "RPUSH k a b",
        "LPOP k",
        "LLEN k",
        "BLPOP none 0",
        "LPOP k 5",
        "PING",
    ] {
        resp.check(line, "+QUEUED");
    }
    resp.check("EXEC", "[:2 $a :1 nils [$b] +PONG]");
    resp.check("EXEC", "-ERR EXEC without MULTI");
    resp.check("MULTI", "+OK");
    resp.check("RPUSH k a", "+QUEUED");
    resp.check("DISCARD", "+OK");
    resp.check("LLEN k", ":0");
    resp.check("MULTI", "+OK");
    resp.check("RPUSH k a", "+QUEUED");
    assert!(resp.ask("FROB").starts_with("-ERR unknown command"));
    resp.check("RPUSH k a", "+QUEUED");
    resp.check(
        "EXEC",
        "-EXECABORT Transaction discarded because of previous errors.",
    );
    resp.check("LLEN k", ":0");
    resp.check("MULTI", "+OK");
    resp.check("EXEC", "[]");
    resp.check("RPUSH k a b", ":2");
    let mut dead = Resp::connect(broker.address);
    let lines = [b"MULTI".as_slice(), b"LPOP k", b"LPOP k", b"EXEC"];
    for line in lines {
        dead.send_words(&line.split(|octet| *octet == b' ').collect::<Vec<_>>());
    }
    let replies: Vec<_> = (0..4).map(|_| dead.reply()).collect();
    assert_eq!(replies[3], "[$a $b]");
    dead.reset();
    await_length(&mut resp, "k", 2);
}

#[test]
fn a_transaction_on_disk_sees_its_own_pushes() {
    let dir = TempDir::new("resp-exec");
    let broker = launch_at(&dir).start();
    let mut resp = Resp::connect(broker.address);
    for _ in 0..3 {
        for line in [
            "MULTI",
            "RPUSH k a",
            "LPOP k",
            "LPUSH k b",
            "LRANGE k 0 -1",
            "RPOP k",
            "EXEC",
        ] {
            resp.send(line);
        }
        let replies: Vec<_> = (0..7).map(|_| resp.reply()).collect();
        assert_eq!(replies[6], "[:1 $a :1 [$b] $b]");
    }
}

#[test]
fn what_is_published_comes_to_who_has_subscribed() {
    let (broker, mut resp) = memory();
    let mut two = Resp::connect(broker.address);
    two.send("SUBSCRIBE news.eu plain");
    assert_eq!(two.reply(), "[$subscribe $news.eu :1]");
    assert_eq!(two.reply(), "[$subscribe $plain :2]");
    two.check("PSUBSCRIBE news.*", "[$psubscribe $news.* :3]");
    two.check("PING", "[$pong $]");
    assert!(two.ask("LPOP k").starts_with("-ERR Can't execute 'lpop'"));
    resp.check("PUBLISH news.eu hello", ":1");
    assert_eq!(two.reply(), "[$message $news.eu $hello]");
    assert_eq!(two.reply(), "[$pmessage $news.* $news.eu $hello]");
    resp.check("PUBLISH news.us.ny hi", ":1");
    assert_eq!(two.reply(), "[$pmessage $news.* $news.us.ny $hi]");
    resp.check("PUBLISH other x", ":0");
    two.check("PUNSUBSCRIBE", "[$punsubscribe $news.* :2]");
    two.check("UNSUBSCRIBE plain", "[$unsubscribe $plain :1]");
    resp.check("PUBLISH plain x", ":0");
    two.check("UNSUBSCRIBE", "[$unsubscribe $news.eu :0]");
    two.check("UNSUBSCRIBE", "[$unsubscribe nil :0]");
    two.check("LPOP k", "nil");
    // In version 3 other commands go on, and copies are told apart from replies.
    two.ask("HELLO 3");
    two.check("PSUBSCRIBE n?ws.[ab]", ">[$psubscribe $n?ws.[ab] :1]");
    two.check("RPUSH k v", ":1");
    resp.check("PUBLISH news.a 1", ":1");
    assert_eq!(two.reply(), ">[$pmessage $n?ws.[ab] $news.a $1]");
    two.check("LPOP k", "$v");
    // A queue that is bound takes what is published; what is cast by other doors comes too.
    let mut text = broker.client();
    text.send(b"BIND news.# archive\nCAST news.b :cast\n")
        .expect("it listens");
    assert_eq!(line_of(&mut text), "OK");
    assert_eq!(line_of(&mut text), "OK 2 mem");
    assert_eq!(two.reply(), ">[$pmessage $n?ws.[ab] $news.b $cast]");
    resp.check("LLEN archive", ":1");
}

#[test]
fn a_message_goes_in_by_any_door_and_comes_out_by_any_other() {
    let (broker, mut resp) = memory();
    let mut text = broker.client();
    text.send(b"PUB jobs $5\na\r\nb \nPULL jobs\n")
        .expect("it listens");
    assert_eq!(line_of(&mut text), "OK 1 mem");
    assert!(line_of(&mut text).starts_with("MSG jobs "));
    drop(text);
    await_length(&mut resp, "jobs", 1);
    resp.check("LPOP jobs", "$a\r\nb ");
    resp.check("RPUSH jobs x y", ":2");
    let mut text = broker.client();
    let pulled = text.pull("jobs 5 ack=auto").expect("they are there");
    let bodies: Vec<_> = pulled
        .iter()
        .map(|message| message.body.as_slice())
        .collect();
    assert_eq!(bodies, [b"x", b"y"]);
    // Its queues have no limit of deliveries; those that were made otherwise keep theirs.
    assert!(text.data("QGET jobs").contains("set.maxdeliver=5\n"));
    resp.check("RPUSH made.here x", ":1");
    assert!(text.data("QGET made.here").contains("set.maxdeliver=0\n"));
}

#[test]
fn a_pinned_listener_takes_commands_typed_by_hand() {
    let broker = launch().arg("--listen resp://127.0.0.1:0").start();
    let banner = broker.banner();
    let line = banner.first().expect("the second listener is told");
    let address = line
        .strip_prefix("listening on ")
        .and_then(|line| line.strip_suffix(" (resp only)"));
    let address = address
        .and_then(|text| text.parse().ok())
        .expect("an address");
    let mut resp = Resp::connect(address);
    resp.send_raw(b"RPUSH k 'a b' c\r\nLRANGE k 0 -1\n");
    assert_eq!(resp.reply(), ":2");
    assert_eq!(resp.reply(), "[$a b $c]");
    let mut http = Resp::connect(address);
    http.send_raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    http.assert_closes();
    // Elsewhere a line is the line protocol's.
    let mut text = Resp::connect(broker.address);
    text.send_raw(b"PING\r\n");
    let mut line = String::new();
    text.0.read_line(&mut line).expect("it answers");
    assert_eq!(line, "PONG\n");
}

#[test]
fn who_does_not_read_is_not_read_and_holds_nobody_up() {
    let (broker, mut resp) = memory();
    let body = vec![b'x'; 100_000];
    resp.send_words(&[b"RPUSH", b"large", &body]);
    assert_eq!(resp.reply(), ":1");
    let mut slow = Resp::connect(broker.address);
    slow.send_raw(&resp_command(&[b"LRANGE", b"large", b"0", b"-1"]).repeat(500));
    thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    resp.check("PING", "+PONG");
    assert!(began.elapsed() < Duration::from_secs(2));
    let unsent = broker.client().unsent_bytes_max();
    assert!(unsent < 2 << 20, "{unsent} bytes");
    for _ in 0..500 {
        assert_eq!(slow.reply().len(), body.len() + 3);
    }
}
