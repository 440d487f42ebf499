//! The redis crate: a job queue, pipelines, transactions, publish and subscribe, a stream, and a broker that is killed.
//!
//! redis_queue PORT RESTART: RESTART is a command that kills the broker and starts it again on its port and data.

use std::num::NonZeroUsize;
use std::process::Command;
use std::thread;
use std::time::Duration;

use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::{Client, Commands, Connection, Direction, RedisResult};

fn connect(uri: &str) -> Connection {
    for _ in 0..100 {
        if let Ok(connection) = Client::open(uri).and_then(|client| client.get_connection()) {
            return connection;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the broker cannot be reached");
}

fn lists(uri: &str) -> RedisResult<()> {
    let mut client = connect(uri);
    let binary: Vec<u8> = (0..=255).collect();
    assert_eq!(client.rpush::<_, _, usize>("jobs", &["a", "b"])?, 2);
    assert_eq!(client.rpush::<_, _, usize>("jobs", &binary[..])?, 3);
    assert_eq!(
        client.lrange::<_, Vec<Vec<u8>>>("jobs", 0, -1)?,
        [b"a".to_vec(), b"b".to_vec(), binary.clone()]
    );
    assert_eq!(client.lpop::<_, String>("jobs", None)?, "a");
    assert_eq!(
        client.lpop::<_, Vec<Vec<u8>>>("jobs", NonZeroUsize::new(5))?,
        [b"b".to_vec(), binary]
    );
    assert_eq!(client.lpop::<_, Option<String>>("jobs", None)?, None);
    assert_eq!(client.rpush_exists::<_, _, usize>("jobs", "x")?, 0);
    assert_eq!(client.lpush::<_, _, usize>("jobs", &["1", "2"])?, 2);
    assert_eq!(
        client.brpop::<_, Option<[String; 2]>>("jobs", 1.0)?,
        Some(["jobs".into(), "1".into()])
    );
    assert_eq!(
        client.lmpop::<_, Option<(String, Vec<String>)>>(
            2,
            &["none", "jobs"],
            Direction::Left,
            1
        )?,
        Some(("jobs".into(), vec!["2".into()]))
    );
    assert_eq!(client.blpop::<_, Option<[String; 2]>>("jobs", 0.05)?, None);
    // One that waits for ever.
    let waits = thread::spawn({
        let uri = uri.to_owned();
        move || connect(&uri).blpop::<_, [String; 2]>(&["none", "jobs"], 0.0)
    });
    thread::sleep(Duration::from_millis(100));
    client.rpush::<_, _, usize>("jobs", "late")?;
    assert_eq!(
        waits.join().expect("it ends")?,
        ["jobs".to_owned(), "late".to_owned()]
    );
    Ok(())
}

fn pipelines(uri: &str) -> RedisResult<()> {
    let mut client = connect(uri);
    let mut pipe = redis::pipe();
    for nth in 0..1000 {
        pipe.rpush("many", nth);
    }
    assert_eq!(
        pipe.query::<Vec<usize>>(&mut client)?,
        (1..=1000).collect::<Vec<_>>()
    );
    let mut pipe = redis::pipe();
    for _ in 0..1000 {
        pipe.lpop("many", None);
    }
    assert_eq!(
        pipe.query::<Vec<u32>>(&mut client)?,
        (0..1000).collect::<Vec<_>>()
    );
    let (length, first, left): (usize, String, usize) = redis::pipe()
        .atomic()
        .rpush("many", &["a", "b"])
        .lpop("many", None)
        .llen("many")
        .query(&mut client)?;
    assert_eq!((length, first.as_str(), left), (2, "a", 1));
    assert_eq!(client.del::<_, usize>("many")?, 1);
    let error = client
        .set::<_, _, ()>("a", "b")
        .expect_err("there is no SET");
    assert!(error.to_string().contains("unknown command"), "{error}");
    Ok(())
}

fn topics(uri: &str) -> RedisResult<()> {
    let (mut client, mut subscriber) = (connect(uri), connect(uri));
    let mut topics = subscriber.as_pubsub();
    topics.subscribe("news.eu")?;
    topics.psubscribe("news.*")?;
    for nth in 0..100 {
        assert_eq!(client.publish::<_, _, usize>("news.eu", nth)?, 1);
    }
    let mut seen: [Vec<u32>; 2] = Default::default();
    for _ in 0..200 {
        let message = topics.get_message()?;
        assert_eq!(message.get_channel_name(), "news.eu");
        seen[usize::from(message.from_pattern())].push(message.get_payload()?);
    }
    let wanted: Vec<u32> = (0..100).collect();
    assert_eq!(seen, [wanted.clone(), wanted]);
    Ok(())
}

fn streams(uri: &str) -> RedisResult<()> {
    let mut client = connect(uri);
    let mut ids: Vec<String> = Vec::new();
    for nth in 0..5 {
        ids.push(client.xadd(
            "events",
            "*",
            &[("n", nth.to_string()), ("body", format!("entry {nth}"))],
        )?);
    }
    client.xgroup_create::<_, _, _, ()>("events", "group", "0")?;
    let mut read = |consumer: &str, count: usize| -> RedisResult<Vec<redis::streams::StreamId>> {
        let options = StreamReadOptions::default()
            .group("group", consumer)
            .count(count)
            .block(1000);
        let reply: Option<StreamReadReply> = client.xread_options(&["events"], &[">"], &options)?;
        Ok(reply
            .map(|mut reply| reply.keys.remove(0).ids)
            .unwrap_or_default())
    };
    let (one, two) = (read("one", 2)?, read("two", 10)?);
    assert_eq!(
        one.iter()
            .chain(&two)
            .map(|entry| entry.id.clone())
            .collect::<Vec<_>>(),
        ids
    );
    assert_eq!(one[1].get::<String>("body").as_deref(), Some("entry 1"));
    assert!(read("one", 10)?.is_empty());
    assert_eq!(
        client.xack::<_, _, _, usize>("events", "group", &ids[..2])?,
        2
    );
    assert_eq!(client.xack::<_, _, _, usize>("events", "group", &ids)?, 3);
    assert_eq!(client.xlen::<_, usize>("events")?, 5);
    assert_eq!(client.del::<_, usize>("events")?, 1);
    Ok(())
}

/// A worker whose broker is killed; it connects again, and what was pushed is there.
fn reconnects(uri: &str, restart: &str) -> RedisResult<()> {
    let mut client = connect(uri);
    let jobs: Vec<String> = (0..100).map(|nth| format!("job {nth}")).collect();
    assert_eq!(client.rpush::<_, _, usize>("work", &jobs)?, 100);
    assert_eq!(client.lpop::<_, String>("work", None)?, jobs[0]);
    let status = Command::new("sh")
        .args(["-c", restart])
        .status()
        .expect("sh is there");
    assert!(status.success());
    assert!(
        client.llen::<_, usize>("work").is_err(),
        "the connection has ended"
    );
    let mut client = connect(uri);
    // The job of the client that said nothing more has come back: it is not known to be done.
    let mut got: Vec<String> = Vec::new();
    while got.len() < jobs.len() {
        got.push(client.blpop::<_, [String; 2]>("work", 5.0)?[1].clone());
    }
    assert_eq!(got, jobs);
    Ok(())
}

fn main() -> RedisResult<()> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().expect("a port");
    let restart = arguments.next().expect("a command");
    // Both versions of the protocol.
    for version in ["resp2", "resp3"] {
        let uri = format!("redis://127.0.0.1:{port}/?protocol={version}");
        lists(&uri)?;
        pipelines(&uri)?;
        if version == "resp2" {
            topics(&uri)?;
        }
        streams(&uri)?;
    }
    reconnects(&format!("redis://127.0.0.1:{port}/"), &restart)
}
