//! Streams over RESP: entries, groups and their consumers.

use std::time::Duration;

use super::resp::{Resp, are_several, launch_at, memory};
use crate::support::TempDir;

/// Entries of a stream with their ids cut away.
fn without_ids(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let bare = word.trim_start_matches('[');
        let is_id = bare.strip_prefix('$').is_some_and(|id| {
            let id = id.trim_end_matches(']');
            id.split_once('-')
                .is_some_and(|(ms, number)| ms.len() == 13 && number.parse::<u64>().is_ok())
        });
        match is_id {
            true => word.replace(bare, "*"),
            false => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_stream_is_read_by_groups_and_acked() {
    let (broker, mut resp) = memory();
    let first = resp.ask("XADD s * kind a size 1");
    let (ms, number) = first
        .strip_prefix('$')
        .and_then(|id| id.split_once('-'))
        .expect("an id");
    assert!(ms.parse::<u64>().is_ok() && number == "1", "{first}");
    resp.check("TYPE s", "+stream");
    assert!(resp.ask("XADD s 5-1 a b").starts_with("-ERR an entry's id"));
    assert!(resp.ask("XADD s * a").starts_with("-ERR wrong number"));
    resp.check("XADD none NOMKSTREAM * a b", "nil");
    resp.check("XGROUP CREATE none g 0", "-ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option to create an empty stream automatically.");
    resp.check("XGROUP CREATE s g 0", "+OK");
    resp.check(
        "XGROUP CREATE s g 0",
        "-BUSYGROUP Consumer Group name already exists",
    );
    resp.check("XGROUP CREATE s late $", "+OK");
    resp.ask("XADD s * body hello");
    resp.check("XLEN s", ":2");
    let read = resp.ask("XREADGROUP GROUP g alice COUNT 10 STREAMS s >");
    assert_eq!(
        without_ids(&read),
        "[[$s [[* [$kind $a $size $1]] [* [$body $hello]]]]]"
    );
    resp.check("XREADGROUP GROUP g bob STREAMS s >", "nils");
    let late = resp.ask("XREADGROUP GROUP late bob STREAMS s >");
    assert_eq!(without_ids(&late), "[[$s [[* [$body $hello]]]]]");
    assert!(
        resp.ask("XREADGROUP GROUP no bob STREAMS s >")
            .starts_with("-NOGROUP")
    );
    // Another connection of the consumer finds what it has pending.
    let mut two = Resp::connect(broker.address);
    assert!(two.ask("HELLO 3").starts_with("{$server"));
    let own = two.ask("XREADGROUP GROUP g alice STREAMS s 0");
    assert_eq!(
        without_ids(&own),
        "{$s [[* [$kind $a $size $1]] [* [$body $hello]]]}"
    );
    two.check("XREADGROUP GROUP g bob STREAMS s 0", "{$s []}");
    let summary = resp.ask("XPENDING s g");
    assert!(
        summary.starts_with(&format!("[:2 {first} ")) && summary.ends_with(" [[$alice $2]]]"),
        "{summary}"
    );
    let listed = resp.ask("XPENDING s g - + 10");
    assert!(
        listed.starts_with(&format!("[[{first} $alice :")),
        "{listed}"
    );
    resp.check("XPENDING s g - + 10 bob", "[]");
    let first = first.trim_start_matches('$').to_owned();
    resp.check(&format!("XACK s g {first} 1-99"), ":1");
    resp.check(&format!("XACK s g {first}"), ":0");
    // Acked by everybody or not, an entry stays until it is deleted.
    resp.check("XLEN s", ":2");
    let range = resp.ask("XRANGE s - +");
    assert_eq!(
        without_ids(&range),
        "[[* [$kind $a $size $1]] [* [$body $hello]]]"
    );
    let range = resp.ask(&format!("XRANGE s ({first} + COUNT 5"));
    assert_eq!(without_ids(&range), "[[* [$body $hello]]]");
    // Who is idle loses what it has, and its try counts.
    let claimed = resp.ask("XAUTOCLAIM s g bob 0 0-0 COUNT 5");
    assert_eq!(without_ids(&claimed), "[$0-0 [[* [$body $hello]]] []]");
    resp.check("XAUTOCLAIM s g carol 3600000 0", "[$0-0 [] []]");
    let listed = resp.ask("XPENDING s g IDLE 0 - + 10");
    assert!(
        listed.contains(" $bob :") && listed.ends_with(" :2]]"),
        "{listed}"
    );
    resp.check(&format!("XDEL s {first} {first}"), ":1");
    resp.check("XLEN s", ":1");
    resp.check("XGROUP CREATECONSUMER s g dave", ":1");
    resp.check("XGROUP DELCONSUMER s g bob", ":1");
    let again = resp.ask("XREADGROUP GROUP g dave STREAMS s >");
    assert_eq!(without_ids(&again), "[[$s [[* [$body $hello]]]]]");
    resp.check("XGROUP DESTROY s g", ":1");
    resp.check("XGROUP DESTROY s g", ":0");
    resp.check("DEL s", ":1");
    resp.check("XLEN s", ":0");
}

#[test]
fn a_reader_of_a_stream_waits_and_other_doors_take_part() {
    let (broker, mut resp) = memory();
    resp.check("XGROUP CREATE s g $ MKSTREAM", "+OK");
    let mut two = Resp::connect(broker.address);
    two.send("XREADGROUP GROUP g c BLOCK 0 STREAMS s >");
    two.assert_silent(Duration::from_millis(50));
    let mut text = broker.client();
    assert_eq!(text.ask("PUB s h.kind=x :from text"), "OK 1 mem");
    assert_eq!(
        without_ids(&two.reply()),
        "[[$s [[* [$kind $x $body $from text]]]]]"
    );
    resp.check("XREADGROUP GROUP g d BLOCK 50 STREAMS s >", "nils");
    resp.ask("XADD s * body two kind y");
    let pulled = text
        .pull("s/mail from=first")
        .expect("a group of another door");
    assert_eq!(pulled[0].body, b"from text");
    resp.check(
        "RPUSH s x",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    );
    resp.check(
        "LPOP s",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    );
    resp.check("RPUSH list x", ":1");
    resp.check(
        "XADD list * a b",
        "-WRONGTYPE Operation against a key holding the wrong kind of value",
    );
    for number in 0..20 {
        resp.ask(&format!("XADD cut MAXLEN ~ 5 * n {number}"));
    }
    resp.check("XLEN cut", ":5");
    let range = resp.ask("XRANGE cut - + COUNT 1");
    assert_eq!(without_ids(&range), "[[* [$n $15]]]");
}

#[test]
fn streams_survive_a_kill() {
    let dir = TempDir::new("resp-streams");
    let launch = launch_at(&dir);
    let mut broker = launch.start();
    let mut resp = Resp::connect(broker.address);
    resp.check("XGROUP CREATE s g 0 MKSTREAM", "+OK");
    let ids: Vec<String> = (0..4)
        .map(|number| resp.ask(&format!("XADD s * n {number}"))[1..].to_owned())
        .collect();
    let read = resp.ask("XREADGROUP GROUP g c COUNT 3 STREAMS s >");
    assert_eq!(
        without_ids(&read),
        "[[$s [[* [$n $0]] [* [$n $1]] [* [$n $2]]]]]"
    );
    resp.check(&format!("XACK s g {} {}", ids[0], ids[2]), ":2");
    resp.check(&format!("XDEL s {}", ids[0]), ":1");
    broker.process.kill_running();
    broker = launch.start();
    let mut resp = Resp::connect(broker.address);
    let listed = resp.ask("XRANGE s - +");
    for id in &ids[1..] {
        assert!(listed.contains(id.as_str()), "{listed}");
    }
    resp.check("XLEN s", ":3");
    // Leases end with the broker: what was pending is given out again, what was acked is not.
    resp.check("XPENDING s g", "[:0 nil nil nils]");
    let read = resp.ask("XREADGROUP GROUP g c STREAMS s >");
    assert_eq!(without_ids(&read), "[[$s [[* [$n $1]] [* [$n $3]]]]]");
}

#[test]
fn several_streams_are_read_at_once() {
    let (broker, mut resp) = memory();
    for stream in ["a", "b", "c", "d"] {
        resp.check(&format!("XGROUP CREATE {stream} g 0 MKSTREAM"), "+OK");
    }
    for number in 1..=3 {
        resp.ask(&format!("XADD a * n {number}"));
        resp.ask(&format!("XADD c * m {number}"));
    }
    resp.ask("XADD d * k 1");
    // At most so many of each, in the order asked for, and nothing of a stream that has nothing.
    let read = resp.ask("XREADGROUP GROUP g alice COUNT 2 STREAMS c b a > > >");
    assert_eq!(
        without_ids(&read),
        "[[$c [[* [$m $1]] [* [$m $2]]]] [$a [[* [$n $1]] [* [$n $2]]]]]"
    );
    let mut three = Resp::connect(broker.address);
    assert!(three.ask("HELLO 3").starts_with("{$server"));
    let read = three.ask("XREADGROUP GROUP g bob STREAMS a b c > > >");
    assert_eq!(without_ids(&read), "{$a [[* [$n $3]]] $c [[* [$m $3]]]}");
    three.check("XREADGROUP GROUP g bob STREAMS a b c > > >", "nil");
    // What each has pending is its own in each group.
    for (stream, pending) in [("a", "$alice $2"), ("c", "$alice $2")] {
        let summary = resp.ask(&format!("XPENDING {stream} g"));
        assert!(
            summary.contains(&format!("[{pending}] [$bob $1]")),
            "{summary}"
        );
    }
    // What is pending and what is new in one: what is pending is told even if there is nothing.
    let read = resp.ask("XREADGROUP GROUP g alice BLOCK 0 COUNT 1 STREAMS a b c d 0 > > >");
    assert_eq!(
        without_ids(&read),
        "[[$a [[* [$n $1]]]] [$d [[* [$k $1]]]]]"
    );
    resp.check(
        "XREADGROUP GROUP g carol BLOCK 0 STREAMS a b c > 0 >",
        "[[$b []]]",
    );
    // What the other groups have read does not go when one consumer does.
    resp.check("XGROUP DELCONSUMER a g bob", ":1");
    let read = resp.ask("XREADGROUP GROUP g dave STREAMS c a > >");
    assert_eq!(without_ids(&read), "[[$a [[* [$n $3]]]]]");
    // One that is missing refuses all of it, and nothing was taken.
    resp.ask("XADD b * n 1");
    for line in [
        "XREADGROUP GROUP g eve STREAMS b none > >",
        "XREADGROUP GROUP no eve STREAMS b > ",
    ] {
        let refused = resp.ask(line.trim_end());
        assert!(refused.starts_with("-NOGROUP"), "{refused}");
    }
    assert!(
        resp.ask("XREADGROUP GROUP g eve STREAMS b c > x")
            .starts_with("-ERR Invalid stream ID")
    );
    assert!(
        resp.ask("XREADGROUP GROUP g eve STREAMS b c >")
            .starts_with("-ERR Unbalanced")
    );
    let read = resp.ask("XREADGROUP GROUP g eve NOACK STREAMS b c > >");
    assert_eq!(without_ids(&read), "[[$b [[* [$n $1]]]]]");
    resp.check("XPENDING b g", "[:0 nil nil nils]");
}

#[test]
fn a_reader_of_several_streams_waits_for_any() {
    let (broker, mut resp) = memory();
    for stream in ["a", "b"] {
        resp.check(&format!("XGROUP CREATE {stream} g 0 MKSTREAM"), "+OK");
    }
    let mut waiting = Resp::connect(broker.address);
    for (stream, other) in [("a", "b"), ("b", "a")] {
        waiting.send("XREADGROUP GROUP g c BLOCK 0 COUNT 5 STREAMS a b > >");
        waiting.assert_silent(Duration::from_millis(30));
        resp.ask(&format!("XADD {stream} * n 1"));
        let want = format!("[[${stream} [[* [$n $1]]]]]");
        assert_eq!(without_ids(&waiting.reply()), want);
        let pending = resp.ask(&format!("XPENDING {stream} g - + 10 c"));
        assert!(pending.contains("$c :"), "{pending}");
        // The next entry of the other one is for whoever asks first.
        resp.ask(&format!("XADD {other} * n 2"));
        let read = resp.ask(&format!("XREADGROUP GROUP g d STREAMS {other} >"));
        assert_eq!(without_ids(&read), format!("[[${other} [[* [$n $2]]]]]"));
    }
    waiting.check("XREADGROUP GROUP g c BLOCK 30 STREAMS a b > >", "nils");
    // Inside a transaction nothing waits.
    waiting.check("MULTI", "+OK");
    waiting.check("XREADGROUP GROUP g c BLOCK 0 STREAMS a b > >", "+QUEUED");
    waiting.check("XLEN a", "+QUEUED");
    waiting.check("EXEC", "[nils :2]");
    resp.ask("XADD a * n 3");
    resp.ask("XADD b * n 3");
    waiting.check("MULTI", "+OK");
    waiting.check("XREADGROUP GROUP g c BLOCK 0 STREAMS a b > >", "+QUEUED");
    waiting.check("PING", "+QUEUED");
    assert_eq!(
        without_ids(&waiting.ask("EXEC")),
        "[[[$a [[* [$n $3]]]] [$b [[* [$n $3]]]]] +PONG]"
    );
    // Who does not wait any more gets nothing.
    waiting.send("XREADGROUP GROUP g gone BLOCK 0 STREAMS a b > >");
    waiting.assert_silent(Duration::from_millis(30));
    waiting.reset();
    std::thread::sleep(Duration::from_millis(30));
    resp.ask("XADD b * n 4");
    let read = resp.ask("XREADGROUP GROUP g d STREAMS a b > >");
    assert_eq!(without_ids(&read), "[[$b [[* [$n $4]]]]]");
}

#[test]
fn a_waiting_reader_outlives_its_consumer_and_is_told_that_its_group_is_gone() {
    let (broker, mut resp) = memory();
    for stream in ["a", "b"] {
        resp.check(&format!("XGROUP CREATE {stream} g 0 MKSTREAM"), "+OK");
    }
    let mut waiting = Resp::connect(broker.address);
    let read = "XREADGROUP GROUP g c BLOCK 0 STREAMS a b > >";
    waiting.send(read);
    waiting.assert_silent(Duration::from_millis(30));
    // Its consumers go and come again with what they read; others take their places meanwhile.
    resp.check("XGROUP DELCONSUMER a g c", ":0");
    resp.check("XGROUP DELCONSUMER b g c", ":0");
    resp.check("XGROUP CREATECONSUMER b g other", ":1");
    resp.ask("XADD b * n 1");
    assert_eq!(without_ids(&waiting.reply()), "[[$b [[* [$n $1]]]]]");
    let pending = resp.ask("XPENDING b g");
    assert!(pending.ends_with("[[$c $1]]]"), "{pending}");
    let gone = "-NOGROUP the consumer group this client was blocked on no longer exists";
    for (end, again) in [
        ("XGROUP DESTROY b g", "XGROUP CREATE b g $"),
        ("DEL a", "XGROUP CREATE a g $ MKSTREAM"),
    ] {
        waiting.send(read);
        waiting.assert_silent(Duration::from_millis(30));
        resp.check(end, ":1");
        let told = waiting.reply();
        // On several shards it may not have begun to wait.
        let is_early = are_several() && told.starts_with("-NOGROUP No such key");
        assert!(told == gone || is_early, "{end}: {told}");
        assert!(
            waiting.ask(read).starts_with("-NOGROUP No such key"),
            "{end}"
        );
        resp.check(again, "+OK");
    }
    waiting.check("XREADGROUP GROUP g c STREAMS a b > >", "nils");
    // A reader by another door waits for its queue to come again.
    let mut text = broker.client();
    text.send(b"PULL a/g wait=20s\n").expect("it takes it");
    waiting.send(read);
    waiting.assert_silent(Duration::from_millis(30));
    resp.check("DEL a", ":1");
    assert!(waiting.reply().starts_with("-NOGROUP "));
    resp.ask("XADD a * n 2");
    assert!(text.line().expect("a line comes").starts_with("MSG a/g "));
}

#[test]
fn streams_that_lie_on_the_disk_are_all_read() {
    let dir = TempDir::new("resp-cold-streams");
    let launch = launch_at(&dir);
    let mut broker = launch.start();
    let mut resp = Resp::connect(broker.address);
    let streams = ["a", "b", "c", "d"];
    for stream in streams {
        resp.check(&format!("XGROUP CREATE {stream} g 0 MKSTREAM"), "+OK");
        for number in 0..3 {
            resp.ask(&format!("XADD {stream} * n {number}"));
        }
    }
    // Nothing of it is in memory after a start.
    broker.process.kill_running();
    broker = launch.start();
    let mut resp = Resp::connect(broker.address);
    resp.ask("XADD a * n 3");
    let mut numbers = std::collections::BTreeMap::new();
    let mut first = true;
    loop {
        let read = resp.ask("XREADGROUP GROUP g c COUNT 2 STREAMS d a c b > > > >");
        if read == "nils" {
            break;
        }
        let read = without_ids(&read);
        let parts: Vec<&str> = read.split("[$").collect();
        let mut stream = "";
        for part in parts {
            match part.split_once(' ') {
                Some(("n", number)) => {
                    let number = number.trim_matches(|letter: char| !letter.is_ascii_digit());
                    let all: &mut String = numbers.entry(stream).or_default();
                    all.push_str(number);
                }
                Some((name, _)) => {
                    stream = streams.iter().find(|stream| **stream == name).expect(name);
                }
                None => {}
            }
        }
        if std::mem::take(&mut first) {
            let order: Vec<_> = numbers.keys().copied().collect();
            assert_eq!(order, streams, "each has something: {read}");
        }
    }
    assert_eq!(numbers["a"], "0123");
    for stream in &streams[1..] {
        assert_eq!(numbers[stream], "012", "{stream}");
    }
    let pending = resp.ask("XPENDING a g");
    assert!(pending.starts_with("[:4 "), "{pending}");
}
