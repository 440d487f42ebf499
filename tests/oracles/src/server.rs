//! A broker without sockets talks to a client that is theirs alone: every method that it answers with is read
//! by them.

use std::io::IoSlice;

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, ProtocolVersion};
use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, connection, exchange, queue, tx};
use amq_protocol::types::{AMQPValue, FieldTable, LongString, ShortString};
use ringmq::config::Config;
use ringmq::log::NoStorage;
use ringmq::shard::{ConnKey, Now, Shard};

use crate::amqp::{parsed, theirs};

struct Client {
    shard: Shard<NoStorage>,
    conn: ConnKey,
    us: u64,
}

fn short(text: &str) -> ShortString {
    ShortString::try_new(text).expect("it is short")
}

impl Client {
    fn connect() -> Client {
        let now = Now {
            us: 1,
            wall_us: 1_000_000,
        };
        let (mut shard, _) =
            Shard::open(&Config::default(), None, now, 1).expect("it needs no disk");
        let conn = shard
            .handle_accept("127.0.0.1:1", now)
            .expect("it takes one");
        Client { shard, conn, us: 1 }
    }

    /// Sends frames; what comes back.
    fn say(&mut self, frames: &[AMQPFrame]) -> Vec<AMQPFrame> {
        let octets: Vec<u8> = frames.iter().flat_map(theirs).collect();
        let mut rest = &octets[..];
        let mut heard = Vec::new();
        for _ in 0..5 {
            self.us += 10;
            let now = Now {
                us: self.us,
                wall_us: 1_000_000 + self.us,
            };
            while !rest.is_empty() {
                let Some(space) = self.shard.receive_space(self.conn) else {
                    break;
                };
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                self.shard.handle_received(self.conn, count, now);
            }
            self.shard.handle_turn_end(now);
            loop {
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = self.shard.output(self.conn, &mut slices);
                let octets: Vec<u8> = slices[..filled]
                    .iter()
                    .flat_map(|slice| slice.iter().copied())
                    .collect();
                if octets.is_empty() {
                    break;
                }
                heard.extend_from_slice(&octets);
                self.shard.handle_sent(self.conn, octets.len(), now);
            }
        }
        assert!(rest.is_empty());
        parsed(&heard)
    }

    fn call(&mut self, class: AMQPClass) -> AMQPClass {
        let frames = self.say(&[AMQPFrame::Method(1, class)]);
        match &frames[..] {
            [AMQPFrame::Method(1, class)] => class.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn open() -> Client {
        let mut client = Client::connect();
        let frames = client.say(&[AMQPFrame::ProtocolHeader(ProtocolVersion::amqp_0_9_1())]);
        let [AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Start(start)))] =
            &frames[..]
        else {
            panic!("{frames:?}");
        };
        assert_eq!((start.version_major, start.version_minor), (0, 9));
        let Some(AMQPValue::FieldTable(able)) = start.server_properties.inner().get("capabilities")
        else {
            panic!("{start:?}");
        };
        for name in [
            "publisher_confirms",
            "basic.nack",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "connection.blocked",
            "authentication_failure_close",
            "per_consumer_qos",
            "direct_reply_to",
        ] {
            assert_eq!(
                able.inner().get(name),
                Some(&AMQPValue::Boolean(true)),
                "{name}"
            );
        }
        let connection = |method| AMQPFrame::Method(0, AMQPClass::Connection(method));
        let mut understands = FieldTable::default();
        for name in ["basic.nack", "consumer_cancel_notify", "connection.blocked"] {
            understands.insert(short(name), AMQPValue::Boolean(true));
        }
        let mut properties = FieldTable::default();
        properties.insert(short("capabilities"), AMQPValue::FieldTable(understands));
        let frames = client.say(&[connection(connection::AMQPMethod::StartOk(
            connection::StartOk {
                client_properties: properties,
                mechanism: short("PLAIN"),
                response: LongString::from("\0guest\0guest"),
                locale: short("en_US"),
            },
        ))]);
        let [AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Tune(tune)))] =
            &frames[..]
        else {
            panic!("{frames:?}");
        };
        assert_eq!(
            (tune.channel_max, tune.frame_max, tune.heartbeat),
            (2047, 128 << 10, 60)
        );
        let frames = client.say(&[
            connection(connection::AMQPMethod::TuneOk(connection::TuneOk {
                channel_max: 2047,
                frame_max: 128 << 10,
                heartbeat: 0,
            })),
            connection(connection::AMQPMethod::Open(connection::Open {
                virtual_host: short("/"),
            })),
            AMQPFrame::Method(
                1,
                AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})),
            ),
        ]);
        let [
            AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::OpenOk(_))),
            AMQPFrame::Method(1, AMQPClass::Channel(channel::AMQPMethod::OpenOk(_))),
        ] = &frames[..]
        else {
            panic!("{frames:?}");
        };
        client
    }
}

fn publish(
    exchange: &str,
    key: &str,
    properties: basic::AMQPProperties,
    body: &[u8],
) -> [AMQPFrame; 3] {
    let method = basic::Publish {
        exchange: short(exchange),
        routing_key: short(key),
        mandatory: true,
        immediate: false,
    };
    [
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Publish(method))),
        AMQPFrame::Header(
            1,
            AMQPContentHeader {
                class_id: 60,
                body_size: body.len() as u64,
                properties,
            },
        ),
        AMQPFrame::Body(1, body.to_vec()),
    ]
}

#[test]
fn every_answer_is_read_and_is_the_right_one() {
    let mut client = Client::open();
    macro_rules! call {
        ($class:ident, $module:ident, $name:ident { $($field:ident: $value:expr),* $(,)? } => $answer:ident) => {{
            let said = AMQPClass::$class($module::AMQPMethod::$name($module::$name { $($field: $value),* }));
            match client.call(said.clone()) {
                AMQPClass::$class($module::AMQPMethod::$answer(answer)) => answer,
                other => panic!("{other:?} answers {said:?}"),
            }
        }};
    }
    let none = FieldTable::default;
    call!(Exchange, exchange, Declare {
        exchange: short("x"), kind: short("topic"), passive: false, durable: true, auto_delete: false,
        internal: false, nowait: false, arguments: none(),
    } => DeclareOk);
    call!(Exchange, exchange, Bind {
        destination: short("x"), source: short("amq.fanout"), routing_key: short(""), nowait: false,
        arguments: none(),
    } => BindOk);
    let declared = call!(Queue, queue, Declare {
        queue: short("q"), passive: false, durable: true, exclusive: false, auto_delete: false, nowait: false,
        arguments: none(),
    } => DeclareOk);
    assert_eq!(
        (
            declared.queue.as_str(),
            declared.message_count,
            declared.consumer_count
        ),
        ("q", 0, 0)
    );
    call!(Queue, queue, Bind {
        queue: short("q"), exchange: short("x"), routing_key: short("a.#"), nowait: false, arguments: none(),
    } => BindOk);
    call!(Channel, channel, Flow { active: true } => FlowOk);
    call!(Basic, basic, Qos { prefetch_count: 10, global: false } => QosOk);
    call!(Confirm, confirm, Select { nowait: false } => SelectOk);

    // In by their encoder, out by their decoder: bytes, properties and headers are the same.
    let mut headers = none();
    headers.insert(short("n"), AMQPValue::ShortUInt(7));
    let properties = basic::AMQPProperties::default()
        .with_headers(headers)
        .with_content_type(short("text/plain"))
        .with_timestamp(77)
        .with_cluster_id(short("c"));
    let frames = client.say(&publish("x", "a.b", properties.clone(), b"hello"));
    let [AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Ack(ack)))] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(ack.delivery_tag, 1);
    let get = || {
        AMQPClass::Basic(basic::AMQPMethod::Get(basic::Get {
            queue: short("q"),
            no_ack: false,
        }))
    };
    let frames = client.say(&[AMQPFrame::Method(1, get())]);
    let [
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::GetOk(got))),
        AMQPFrame::Header(1, header),
        AMQPFrame::Body(1, body),
    ] = &frames[..]
    else {
        panic!("{frames:?}");
    };
    assert_eq!(
        (got.delivery_tag, got.redelivered, got.message_count),
        (1, false, 0)
    );
    assert_eq!(
        (got.exchange.as_str(), got.routing_key.as_str()),
        ("x", "a.b")
    );
    assert_eq!(
        (&header.properties, &body[..]),
        (&properties, &b"hello"[..])
    );
    assert!(matches!(
        client.call(get()),
        AMQPClass::Basic(basic::AMQPMethod::GetEmpty(_))
    ));
    call!(Basic, basic, Recover { requeue: true } => RecoverOk);

    // A consumer gets it again, and is told so.
    let frames = client.say(&[AMQPFrame::Method(
        1,
        AMQPClass::Basic(basic::AMQPMethod::Consume(basic::Consume {
            queue: short("q"),
            consumer_tag: short("c"),
            no_local: false,
            no_ack: false,
            exclusive: false,
            nowait: false,
            arguments: none(),
        })),
    )]);
    let [
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::ConsumeOk(begun))),
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))),
        AMQPFrame::Header(1, header),
        AMQPFrame::Body(1, _),
    ] = &frames[..]
    else {
        panic!("{frames:?}");
    };
    assert_eq!(begun.consumer_tag.as_str(), "c");
    assert_eq!((deliver.delivery_tag, deliver.redelivered), (2, true));
    let found = header
        .properties
        .headers()
        .as_ref()
        .expect("it has headers");
    assert_eq!(
        found.inner().get("x-delivery-count"),
        Some(&AMQPValue::LongLongInt(1))
    );
    assert_eq!(
        call!(Basic, basic, Cancel { consumer_tag: short("c"), nowait: false } => CancelOk)
            .consumer_tag
            .as_str(),
        "c"
    );

    // What no queue takes comes back in front of its confirm.
    let frames = client.say(&publish("", "nobody", properties, b"lost"));
    let [
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Return(returned))),
        AMQPFrame::Header(1, _),
        AMQPFrame::Body(1, body),
        AMQPFrame::Method(1, AMQPClass::Basic(basic::AMQPMethod::Ack(_))),
    ] = &frames[..]
    else {
        panic!("{frames:?}");
    };
    assert_eq!((returned.reply_code, &body[..]), (312, &b"lost"[..]));
    call!(Queue, queue, Unbind {
        queue: short("q"), exchange: short("x"), routing_key: short("a.#"), arguments: none(),
    } => UnbindOk);
    call!(Exchange, exchange, Unbind {
        destination: short("x"), source: short("amq.fanout"), routing_key: short(""), nowait: false,
        arguments: none(),
    } => UnbindOk);
    call!(Exchange, exchange, Delete { exchange: short("x"), if_unused: false, nowait: false } => DeleteOk);
    assert_eq!(
        call!(Queue, queue, Purge { queue: short("q"), nowait: false } => PurgeOk).message_count,
        0
    );
    let deleted = call!(Queue, queue, Delete {
        queue: short("q"), if_unused: false, if_empty: false, nowait: false,
    } => DeleteOk);
    assert_eq!(deleted.message_count, 0, "what is leased is not counted");
    call!(Channel, channel, Close { reply_code: 200, reply_text: short(""), class_id: 0, method_id: 0 } => CloseOk);

    let frames = client.say(&[AMQPFrame::Method(
        1,
        AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {})),
    )]);
    assert!(
        matches!(&frames[..], [AMQPFrame::Method(1, _)]),
        "{frames:?}"
    );
    call!(Tx, tx, Select {} => SelectOk);
    call!(Tx, tx, Commit {} => CommitOk);
    call!(Tx, tx, Rollback {} => RollbackOk);
    // A mistake closes the channel, and says what was done.
    let passive = queue::Declare {
        queue: short("q"),
        passive: true,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: none(),
    };
    let said = client.call(AMQPClass::Queue(queue::AMQPMethod::Declare(passive)));
    let AMQPClass::Channel(channel::AMQPMethod::Close(close)) = said else {
        panic!("{said:?}");
    };
    assert_eq!(
        (close.reply_code, close.class_id, close.method_id),
        (404, 50, 10)
    );
    let bye = connection::Close {
        reply_code: 200,
        reply_text: short("bye"),
        class_id: 0,
        method_id: 0,
    };
    let bye = AMQPClass::Connection(connection::AMQPMethod::Close(bye));
    let frames = client.say(&[AMQPFrame::Method(0, bye)]);
    let [AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)))] =
        &frames[..]
    else {
        panic!("{frames:?}");
    };
}
