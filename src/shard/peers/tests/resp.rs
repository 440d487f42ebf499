//! Clients of Redis at brokers of several shards.

use super::{Broker, name_on};

/// A command whose words are separated by spaces.
fn command(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let bulks = words
        .iter()
        .map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), bulks.collect::<String>())
}

impl Broker {
    pub(super) fn resp(&mut self, client: usize, line: &str) {
        self.send(client, &command(line));
    }

    /// What has come, each line end a space.
    pub(super) fn replies(&mut self, client: usize) -> String {
        self.take(client).replace("\r\n", " ").trim_end().to_owned()
    }

    pub(super) fn check(&mut self, client: usize, line: &str, want: &str) {
        self.resp(client, line);
        assert_eq!(self.replies(client), want, "{line}");
    }
}

#[test]
fn a_pipeline_is_answered_in_order_whatever_shards_it_is_for() {
    for shards in [2, 3] {
        for seed in 1..20 {
            let mut broker = Broker::new(shards, seed);
            broker.socket_bytes_max = 1 + seed as usize * 7;
            let client = broker.connect(0);
            let mut want = String::new();
            for nth in 0..300 {
                let name = name_on(nth % shards, shards, 0);
                let before = u64::from(nth / shards);
                broker.resp(client, &format!("RPUSH {name} v{nth}"));
                want += &format!(":{} ", before + 1);
                if nth % 7 == 0 {
                    broker.resp(client, &format!("ECHO {nth}"));
                    want += &format!("${} {nth} ", nth.to_string().len());
                }
                if nth % 11 == 0 {
                    broker.resp(client, &format!("LINDEX {name} 0"));
                    let first = format!("v{}", nth % shards);
                    want += &format!("${} {first} ", first.len());
                }
            }
            assert_eq!(broker.replies(client), want.trim_end());
        }
    }
}

#[test]
fn lists_of_another_shard_are_lists() {
    let mut broker = Broker::new(2, 5);
    let far = name_on(1, 2, 0);
    let mut clients = [broker.connect(0), broker.connect(1)];
    for _ in 0..2 {
        let [one, two] = clients;
        broker.check(one, &format!("RPUSH {far} a b c"), ":3");
        broker.check(two, &format!("LPUSH {far} z"), ":4");
        let all = "*4 $1 z $1 a $1 b $1 c";
        broker.check(one, &format!("LRANGE {far} 0 -1"), all);
        broker.check(one, &format!("TYPE {far}"), "+list");
        broker.check(one, &format!("LPOP {far}"), "$1 z");
        broker.check(two, &format!("RPOP {far} 2"), "*2 $1 c $1 b");
        broker.check(one, &format!("LLEN {far}"), ":1");
        let popped = format!("*2 ${} {far} *1 $1 a", far.len());
        broker.check(one, &format!("LMPOP 1 {far} LEFT COUNT 9"), &popped);
        broker.check(one, &format!("LPOP {far}"), "$-1");
        // In the version that was asked for last, where the command is run.
        broker.resp(one, "HELLO 3");
        broker.resp(one, &format!("LPOP {far} 2"));
        broker.resp(one, "RESET");
        broker.resp(one, &format!("LPOP {far} 2"));
        let said = broker.replies(one);
        assert!(said.ends_with("_ +RESET *-1"), "{said}");
        broker.check(one, &format!("LRANGE {far} 0 x"), {
            "-ERR value is not an integer or out of range"
        });
        clients.reverse();
    }
}

#[test]
fn a_pop_at_another_shard_is_settled_by_the_next_command_and_not_before() {
    for (shards, at) in [(2, 1), (3, 2), (2, 0)] {
        let mut broker = Broker::new(shards, 3 + u64::from(at));
        let far = name_on(at, shards, 0);
        let other = name_on(1, shards, 1);
        let watcher = broker.connect(0);
        broker.check(watcher, &format!("RPUSH {far} a b c d"), ":4");
        let dead = broker.connect(0);
        broker.resp(dead, &format!("LPOP {far}"));
        broker.resp(dead, &format!("LPOP {far}"));
        assert_eq!(broker.replies(dead), "$1 a $1 b");
        assert_eq!(broker.leased(), 2, "nothing shows that they were read");
        broker.reset(dead);
        broker.settle();
        assert_eq!(broker.leased(), 0);
        broker.check(watcher, &format!("LLEN {far}"), ":4");
        // A command of any kind, for any shard, shows it.
        for next in [
            "PING".to_owned(),
            format!("LLEN {other}"),
            "KEYS *".to_owned(),
        ] {
            let dead = broker.connect(0);
            broker.resp(dead, &format!("LPOP {far}"));
            broker.replies(dead);
            broker.resp(dead, &next);
            broker.settle();
            assert_eq!(broker.leased(), 0, "{next} was read behind it");
            broker.reset(dead);
        }
        broker.check(watcher, &format!("LRANGE {far} 0 -1"), "*1 $1 d");
    }
}

#[test]
fn what_a_socket_has_not_taken_is_not_settled() {
    let mut broker = Broker::new(2, 9);
    let far = name_on(1, 2, 0);
    let watcher = broker.connect(0);
    broker.check(watcher, &format!("RPUSH {far} a b c d e f g h"), ":8");
    let slow = broker.connect(0);
    // Its socket takes nothing while 8 pops and a command behind them come.
    broker.socket_bytes_max = 0;
    for _ in 0..8 {
        broker.resp(slow, &format!("LPOP {far}"));
        broker.settle();
    }
    broker.resp(slow, "PING");
    broker.settle();
    assert_eq!(broker.leased(), 8);
    // It takes the first reply and a piece of the second: then a command comes.
    broker.socket_bytes_max = 10;
    while broker.clients[slow].received.len() < 10 {
        let shard = broker.clients[slow].shard;
        broker.turn(shard);
    }
    broker.socket_bytes_max = 0;
    broker.resp(slow, "PING");
    broker.settle();
    assert!(broker.leased() >= 7, "{} are settled", 8 - broker.leased());
    broker.reset(slow);
    broker.socket_bytes_max = usize::MAX;
    broker.settle();
    assert_eq!(broker.leased(), 0);
    broker.resp(watcher, &format!("LLEN {far}"));
    let left = broker.replies(watcher);
    assert!(left == ":8" || left == ":7", "{left}");
}

#[test]
fn the_end_of_a_client_settles_what_its_tcp_has_acknowledged() {
    for at in [0, 1] {
        for is_acknowledged in [true, false] {
            let mut broker = Broker::new(2, 11);
            let name = name_on(at, 2, 0);
            let watcher = broker.connect(0);
            broker.check(watcher, &format!("RPUSH {name} a b"), ":2");
            let gone = broker.connect(0);
            broker.check(gone, &format!("LPOP {name}"), "$1 a");
            broker.check(gone, &format!("LLEN {}", name_on(1 - at, 2, 0)), ":0");
            broker.check(gone, &format!("LPOP {name}"), "$1 b");
            assert_eq!(broker.leased(), 1);
            broker.clients[gone].unacknowledged = usize::from(!is_acknowledged);
            broker.half_close(gone);
            broker.settle();
            assert_eq!(broker.clients[gone].closed, is_acknowledged);
            assert_eq!(broker.leased(), usize::from(!is_acknowledged));
            // It is asked for a while, and given up.
            for _ in 0..3 {
                broker.wait(2_000_000);
            }
            assert!(broker.clients[gone].closed);
            assert_eq!(broker.leased(), 0);
            let left = if is_acknowledged { ":0" } else { ":1" };
            broker.check(watcher, &format!("LLEN {name}"), left);
            // `QUIT` is an end as well.
            broker.check(watcher, &format!("RPUSH {name} c"), {
                if is_acknowledged { ":1" } else { ":2" }
            });
            let gone = broker.connect(0);
            broker.resp(gone, &format!("LPOP {name} 9"));
            broker.resp(gone, "QUIT");
            broker.settle();
            assert!(broker.clients[gone].closed);
            broker.check(watcher, &format!("LLEN {name}"), ":0");
            assert_eq!(broker.leased(), 0);
        }
    }
}

#[test]
fn what_waits_at_another_shard_waits_there() {
    let mut broker = Broker::new(2, 2);
    let far = name_on(1, 2, 0);
    let [first, second, pusher] = [0, 1, 0].map(|shard| broker.connect(shard));
    broker.resp(first, &format!("BLPOP {far} 0"));
    broker.resp(first, "PING");
    assert_eq!(broker.replies(first), "");
    broker.resp(second, &format!("BRPOP {far} 0.5"));
    assert_eq!(broker.replies(second), "");
    broker.check(pusher, &format!("RPUSH {far} a"), ":1");
    let length = far.len();
    assert_eq!(
        broker.replies(first),
        format!("*2 ${length} {far} $1 a +PONG")
    );
    broker.wait(600_000);
    assert_eq!(broker.replies(second), "*-1");
    // Another client ends it, whatever shard that is at.
    for (client, other) in [(first, second), (second, first)] {
        broker.resp(client, "CLIENT ID");
        let id = broker.replies(client);
        for (how, want) in [
            ("", "*-1"),
            (" ERROR", "-UNBLOCKED client unblocked via CLIENT UNBLOCK"),
        ] {
            broker.resp(client, &format!("BLPOP {far} 0"));
            broker.settle();
            let line = format!("CLIENT UNBLOCK {}{how}", &id[1..]);
            broker.check(other, &line, ":1");
            assert_eq!(broker.replies(client), want);
            broker.check(other, &line, ":0");
        }
    }
    // Who has ended its side waits for nothing.
    broker.resp(first, &format!("BLPOP {far} 0"));
    broker.settle();
    broker.half_close(first);
    assert_eq!(broker.replies(first), "*-1");
    assert!(broker.clients[first].closed);
}

#[test]
fn keys_of_every_shard_are_keys() {
    let mut broker = Broker::new(3, 4);
    let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
    let client = broker.connect(1);
    for name in &names {
        broker.check(client, &format!("RPUSH {name} x"), ":1");
    }
    let mut sorted = names.clone();
    sorted.sort();
    let listed: String = sorted
        .iter()
        .map(|it| format!(" ${} {it}", it.len()))
        .collect();
    broker.check(client, "KEYS *", &format!("*3{listed}"));
    broker.check(client, "SCAN 0 TYPE list", &format!("*2 $1 0 *3{listed}"));
    broker.check(client, "SCAN 7", {
        "-ERR no such cursor: every SCAN gives all keys at once"
    });
    broker.check(client, "DBSIZE", ":3");
    let [a, b, c] = [0, 1, 2].map(|at| names[at].as_str());
    broker.check(client, &format!("EXISTS {a} {b} none {c} {a}"), ":4");
    broker.check(client, &format!("DEL {a} none {c}"), ":2");
    broker.check(client, "KEYS *", &format!("*1 ${} {b}", b.len()));
    broker.resp(client, "INFO");
    let info = broker.replies(client);
    assert!(info.contains("connected_clients:1 "), "{info}");
    assert!(info.contains("db0:keys=1,expires=0"), "{info}");
    broker.resp(client, "CLIENT LIST");
    let list = broker.replies(client);
    assert_eq!(list.matches("door=resp").count(), 1, "{list}");
}

#[test]
fn a_transaction_of_several_shards_is_one_reply() {
    for seed in 1..20 {
        let mut broker = Broker::new(3, seed);
        broker.socket_bytes_max = 1 + seed as usize;
        let client = broker.connect(0);
        let [a, b, c] = [0, 1, 2].map(|shard| name_on(shard, 3, 0));
        let lines = [
            "MULTI".to_owned(),
            format!("RPUSH {a} 1 2"),
            format!("RPUSH {b} 1 2 3"),
            format!("LPOP {a}"),
            format!("BLPOP {c} 0"),
            "PING".to_owned(),
            format!("EXISTS {a} {b} {c}"),
            format!("LPOP {b} 2"),
            format!("BLPOP {c} {b} 0"),
            format!("BRPOP {c} {b} 0"),
            "EXEC".to_owned(),
            format!("LLEN {b}"),
        ];
        lines.iter().for_each(|line| broker.resp(client, line));
        let mut said = String::new();
        for _ in 0..10 {
            // What waits for no time waits for the next moment.
            said += &broker.take(client);
            broker.wait(10);
        }
        let queued = "+QUEUED ".repeat(9);
        let popped = format!("*2 ${} {b} $1 3", b.len());
        let want = format!("+OK {queued}*9 :2 :3 $1 1 *-1 +PONG :2 *2 $1 1 $1 2 {popped} *-1 :0 ");
        assert_eq!(said.replace("\r\n", " "), want);
    }
}

#[test]
fn what_is_pushed_does_not_stand_inside_a_transaction() {
    for seed in 1..30 {
        let mut broker = Broker::new(2, seed);
        let [near, far] = [0, 1].map(|shard| name_on(shard, 2, 0));
        let client = broker.connect(0);
        broker.resp(client, "HELLO 3");
        broker.resp(client, "SUBSCRIBE news");
        broker.replies(client);
        let publisher = broker.connect(1);
        for line in [
            "MULTI",
            &format!("RPUSH {far} x"),
            &format!("RPUSH {near} x"),
            &format!("LLEN {far}"),
            "EXEC",
        ] {
            broker.resp(client, line);
        }
        let mut given = 0;
        for _ in 0..40 {
            broker.resp(publisher, "PUBLISH news hi");
            broker.turn(1);
            broker.turn(0);
            given += 1;
        }
        let said = broker.replies(client);
        assert!(said.contains("*3 :1 :1 :1"), "{said}");
        let pushed = said.matches(">3 $7 message $4 news $2 hi").count();
        assert_eq!(pushed, given, "{said}");
    }
}

#[test]
fn more_commands_than_may_be_under_way_are_answered_in_order() {
    let mut broker = Broker::new(3, 7);
    broker.socket_bytes_max = 100;
    let client = broker.connect(0);
    let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
    let mut want = String::new();
    for nth in 0..4000 {
        broker.resp(client, &format!("RPUSH {} v", names[nth % 3]));
        want += &format!(":{} ", nth / 3 + 1);
    }
    assert_eq!(broker.replies(client), want.trim_end());
}

#[test]
fn pops_of_a_transaction_are_settled_together() {
    let mut broker = Broker::new(2, 6);
    let [near, far] = [0, 1].map(|shard| name_on(shard, 2, 0));
    let client = broker.connect(0);
    broker.check(client, &format!("RPUSH {near} a"), ":1");
    broker.check(client, &format!("RPUSH {far} b"), ":1");
    let lines = [
        "MULTI".to_owned(),
        format!("LPOP {far}"),
        format!("LPOP {near}"),
        format!("LRANGE {far} 0 -1"),
        "EXEC".to_owned(),
    ];
    lines.iter().for_each(|line| broker.resp(client, line));
    // All of it but the last octet is on the socket when a command comes.
    let whole = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n$1\r\nb\r\n$1\r\na\r\n*0\r\n".len();
    broker.socket_bytes_max = 1;
    while broker.clients[client].received.len() < whole - 1 {
        broker.turn(0);
        broker.turn(1);
    }
    broker.socket_bytes_max = 0;
    broker.resp(client, "PING");
    broker.settle();
    assert_eq!(broker.leased(), 2);
    broker.socket_bytes_max = usize::MAX;
    broker.settle();
    broker.resp(client, "PING");
    broker.settle();
    assert_eq!(broker.leased(), 0);
}

#[test]
fn what_is_published_comes_to_subscribers_of_every_shard() {
    let mut broker = Broker::new(3, 8);
    let subscribers: Vec<usize> = (0..3).map(|shard| broker.connect(shard)).collect();
    for client in &subscribers {
        broker.check(*client, "SUBSCRIBE news", "*3 $9 subscribe $4 news :1");
        broker.check(*client, "PSUBSCRIBE n*", "*3 $10 psubscribe $2 n* :2");
    }
    let publisher = broker.connect(2);
    let bound = name_on(1, 3, 0);
    let text = broker.connect(0);
    broker.ask(text, &format!("BIND news {bound}\n"));
    broker.check(publisher, "PUBLISH news hi", ":4");
    for client in &subscribers {
        let want = "*3 $7 message $4 news $2 hi *4 $8 pmessage $2 n* $4 news $2 hi";
        assert_eq!(broker.replies(*client), want);
    }
    broker.check(publisher, &format!("LPOP {bound}"), "$2 hi");
    // One that subscribes and publishes on one connection is told its own copy first.
    broker.resp(publisher, "HELLO 3");
    broker.resp(publisher, "SUBSCRIBE other");
    broker.replies(publisher);
    broker.resp(publisher, &format!("LLEN {bound}"));
    broker.resp(publisher, "PUBLISH other x");
    let said = broker.replies(publisher);
    assert_eq!(said, ":0 >3 $7 message $5 other $1 x :1");
}

#[test]
fn a_pop_of_lists_on_several_shards_takes_of_the_first_that_has_any() {
    for seed in 1..10 {
        let mut broker = Broker::new(3, seed);
        let names: Vec<String> = (0..3).map(|shard| name_on(shard, 3, 0)).collect();
        let [a, b, c] = [0, 1, 2].map(|at| names[at].as_str());
        let client = broker.connect(0);
        let all = format!("{c} none {a} {b}");
        broker.check(client, &format!("LMPOP 4 {all} LEFT COUNT 2"), "*-1");
        // It has made none of them.
        broker.check(client, "DBSIZE", ":0");
        broker.check(client, &format!("RPUSH {a} 1 2 3"), ":3");
        broker.check(client, &format!("RPUSH {b} 4"), ":1");
        let popped = |key: &str, bodies: &str| format!("*2 ${} {key} {bodies}", key.len());
        let want = popped(a, "*2 $1 3 $1 2");
        broker.check(client, &format!("LMPOP 4 {all} RIGHT COUNT 2"), &want);
        broker.check(client, &format!("BLPOP {all} 0"), &popped(a, "$1 1"));
        let want = popped(b, "*1 $1 4");
        broker.check(client, &format!("BLMPOP 0 4 {all} LEFT COUNT 5"), &want);
        assert_eq!(broker.leased(), 1, "the last one was not read yet");
        // Nothing is there: it waits for any, and takes no more than one.
        for (to, from) in [(c, client), (b, client), (a, client)] {
            let pusher = broker.connect(1);
            broker.resp(from, &format!("BRPOP {all} 0"));
            broker.resp(from, "PING");
            assert_eq!(broker.replies(from), "");
            broker.check(pusher, &format!("RPUSH {to} x y"), ":2");
            assert_eq!(broker.replies(from), popped(to, "$1 y +PONG"));
            // That command came before the reply.
            assert_eq!(broker.leased(), 1);
            broker.check(from, "PING", "+PONG");
            assert_eq!(broker.leased(), 0);
            broker.check(pusher, &format!("LPOP {to} 9"), "*1 $1 x");
            broker.half_close(pusher);
        }
        broker.resp(client, &format!("BLPOP {all} 0.5"));
        broker.resp(client, "HELLO 3");
        assert_eq!(broker.replies(client), "");
        broker.wait(600_000);
        assert!(broker.replies(client).starts_with("*-1 %7 $6 server"));
        // It can be unblocked, and refused.
        broker.resp(client, "CLIENT ID");
        let id = broker.replies(client)[1..].to_owned();
        let other = broker.connect(2);
        broker.resp(client, &format!("BLPOP {all} 0"));
        broker.settle();
        broker.check(other, &format!("CLIENT UNBLOCK {id} ERROR"), ":1");
        let unblocked = "-UNBLOCKED client unblocked via CLIENT UNBLOCK";
        assert_eq!(broker.replies(client), unblocked);
        broker.resp(other, &format!("XADD {b} * f v"));
        broker.replies(other);
        let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value";
        broker.check(client, &format!("BLPOP {a} {b} 0"), wrong);
        broker.check(client, &format!("LMPOP 2 {a} {b} LEFT"), wrong);
        // What is named before the stream counts, and nothing behind it.
        for (name, behind) in [(a, c), (c, a)] {
            broker.check(other, &format!("RPUSH {name} x"), ":1");
            broker.check(client, &format!("BLPOP {b} {name} 0"), wrong);
            broker.check(client, &format!("LMPOP 3 {behind} {b} {name} LEFT"), wrong);
            let popped = format!("*2 ${} {name} $1 x", name.len());
            broker.check(client, &format!("BLPOP {name} {b} {behind} 0"), &popped);
            broker.check(other, &format!("RPUSH {name} x"), ":1");
            let popped = format!("*2 ${} {name} *1 $1 x", name.len());
            let lmpop = format!("LMPOP 4 {behind} {name} {behind} {b} LEFT");
            broker.check(client, &lmpop, &popped);
            broker.check(
                client,
                &format!("BLMPOP 0 3 {name} {behind} {b} LEFT"),
                wrong,
            );
        }
        broker.check(client, &format!("BLPOP {a} {c} soon"), {
            "-ERR timeout is not a float or out of range"
        });
        broker.check(client, "PING", "+PONG");
        assert_eq!(broker.leased(), 0);
    }
}

#[test]
fn a_pop_of_several_shards_goes_back_with_its_client() {
    for at in [0, 1] {
        let mut broker = Broker::new(2, 7);
        let [near, far] = [0, 1].map(|shard| name_on(shard, 2, 0));
        let name = [&near, &far][at];
        let watcher = broker.connect(1);
        let dead = broker.connect(0);
        broker.resp(dead, &format!("BLPOP {near} {far} 0"));
        broker.settle();
        broker.check(watcher, &format!("RPUSH {name} x"), ":1");
        let popped = format!("*2 ${} {name} $1 x", name.len());
        assert_eq!(broker.replies(dead), popped);
        assert_eq!(broker.leased(), 1);
        broker.reset(dead);
        broker.settle();
        broker.check(watcher, &format!("LLEN {name}"), ":1");
        // One that goes while it waits gets nothing.
        broker.check(watcher, &format!("LPOP {name}"), "$1 x");
        let dead = broker.connect(0);
        broker.resp(dead, &format!("BLPOP {near} {far} 0"));
        broker.settle();
        broker.reset(dead);
        broker.settle();
        broker.check(watcher, &format!("RPUSH {name} y"), ":1");
        broker.check(watcher, &format!("LPOP {name}"), "$1 y");
    }
}

#[test]
fn who_waits_for_a_reply_only_is_not_unblocked() {
    let mut broker = Broker::new(2, 3);
    let [near, far] = [0, 1].map(|shard| name_on(shard, 2, 0));
    let [waiting, other] = [broker.connect(0), broker.connect(0)];
    broker.check(waiting, &format!("XGROUP CREATE {far} g 0 MKSTREAM"), "+OK");
    broker.resp(waiting, "CLIENT ID");
    let id = broker.replies(waiting)[1..].to_owned();
    let list = name_on(1, 2, 1);
    for (line, answer, reply) in [
        (format!("XREADGROUP GROUP g c STREAMS {far} >"), ":0", "*-1"),
        (
            format!("XREADGROUP GROUP g c BLOCK 0 STREAMS {far} >"),
            ":1",
            "*-1",
        ),
        (format!("LMPOP 2 {near} {list} LEFT"), ":0", "*-1"),
        (format!("BLMPOP 0 2 {near} {list} LEFT"), ":1", "*-1"),
        (format!("LPOP {list}"), ":0", "$-1"),
        (format!("BLPOP {list} 0"), ":1", "*-1"),
    ] {
        broker.resp(waiting, &line);
        broker.resp(other, &format!("CLIENT UNBLOCK {id}"));
        // The other shard does nothing meanwhile.
        for _ in 0..20 {
            broker.turn(0);
        }
        let said = std::mem::take(&mut broker.clients[other].received);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(said.trim_end(), answer, "{line}");
        assert_eq!(broker.replies(waiting), reply, "{line}");
    }
}

#[test]
fn a_publish_counts_those_that_its_pattern_means() {
    for shards in [1, 2] {
        let mut broker = Broker::new(shards, 5);
        let here = broker.connect(0);
        let there = broker.connect(shards as usize - 1);
        broker.resp(there, "PSUBSCRIBE news.e* x?");
        broker.replies(there);
        broker.check(here, "PUBLISH news.us hi", ":0");
        broker.check(here, "PUBLISH x hi", ":0");
        broker.check(here, "PUBLISH news.eu hi", ":1");
        assert_eq!(
            broker.replies(there),
            "*4 $8 pmessage $7 news.e* $7 news.eu $2 hi"
        );
        // The line protocol counts the same.
        let text = broker.connect(0);
        assert_eq!(
            broker.ask(text, "CAST news.us :hi\nCAST xy :hi\n"),
            "OK 0 mem\nOK 1 mem\n"
        );
        let stats = broker.ask(text, "STATS\n");
        assert!(
            stats.contains("\nlive_given_total=2\nlive_dropped_total=0\n"),
            "{stats}"
        );
    }
}
