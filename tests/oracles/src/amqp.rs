//! AMQP 0-9-1 against `amq-protocol`: methods that clients send, contents, field tables of every type, and what
//! the broker writes.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::{
    AMQPClass, access, basic, channel, confirm, connection, exchange, queue, tx,
};
use amq_protocol::types::parsing::parse_field_table;
use amq_protocol::types::{
    AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString,
};
use ringmq::broker::reply::Payload;
use ringmq::buffer::send::{Pool, SendRing};
use ringmq::protocol::amqp::content::{Header, Kept, Properties, put_header};
use ringmq::protocol::amqp::encode::{self, Deliver};
use ringmq::protocol::amqp::frame::{self, Kind, Step};
use ringmq::protocol::amqp::method::{Binding, Method, Publish};
use ringmq::protocol::amqp::table;

use crate::rng::Rng;

const FRAME_BYTES_MAX: u32 = 128 << 10;

/// Octets of a frame as they write it.
pub fn theirs(frame: &AMQPFrame) -> Vec<u8> {
    let context = WriteContext {
        write: Vec::new(),
        position: 0,
    };
    let written = gen_frame(frame)(context).expect("a vector takes everything");
    written.write
}

/// All frames of what we have written.
pub fn parsed(mut octets: &[u8]) -> Vec<AMQPFrame> {
    let mut frames = Vec::new();
    while !octets.is_empty() {
        let (rest, frame) = parse_frame(octets).expect("a whole frame");
        frames.push(frame);
        octets = rest;
    }
    frames
}

fn short(rng: &mut Rng) -> ShortString {
    let count = rng.below(20);
    let text: String = (0..count)
        .map(|_| (b'!' + rng.below(90) as u8) as char)
        .collect();
    ShortString::try_new(text).expect("it is short")
}

fn octets(rng: &mut Rng) -> Vec<u8> {
    let count = rng.below(30);
    (0..count).map(|_| rng.next() as u8).collect()
}

fn value(rng: &mut Rng, kind: u64, depth: u64) -> AMQPValue {
    let number = rng.next();
    match kind {
        0 => AMQPValue::Boolean(number & 1 == 1),
        1 => AMQPValue::ShortShortInt(number as i8),
        2 => AMQPValue::ShortShortUInt(number as u8),
        3 => AMQPValue::ShortInt(number as i16),
        4 => AMQPValue::ShortUInt(number as u16),
        5 => AMQPValue::LongInt(number as i32),
        6 => AMQPValue::LongUInt(number as u32),
        7 => AMQPValue::LongLongInt(number as i64),
        8 => AMQPValue::Float(number as f32),
        9 => AMQPValue::Double(number as f64),
        10 => AMQPValue::DecimalValue(DecimalValue {
            scale: number as u8,
            value: number as u32,
        }),
        11 => AMQPValue::LongString(LongString::from(octets(rng))),
        12 => AMQPValue::Timestamp(number),
        13 => AMQPValue::ByteArray(ByteArray::from(octets(rng))),
        14 => AMQPValue::Void,
        15 => {
            let mut array = FieldArray::default();
            for _ in 0..rng.below(4) {
                let kind = rng.below(if depth == 0 { 15 } else { 17 });
                array.push(value(rng, kind, depth.saturating_sub(1)));
            }
            AMQPValue::FieldArray(array)
        }
        _ => AMQPValue::FieldTable(fields(rng, depth.saturating_sub(1))),
    }
}

fn fields(rng: &mut Rng, depth: u64) -> FieldTable {
    let mut fields = FieldTable::default();
    for number in 0..rng.below(6) {
        let kind = rng.below(if depth == 0 { 15 } else { 17 });
        let name = ShortString::try_new(format!("{number}{}", short(rng))).expect("it is short");
        fields.insert(name, value(rng, kind, depth));
    }
    fields
}

/// A table that we have read, as they read it.
fn read(octets: &[u8]) -> FieldTable {
    let mut whole = Vec::new();
    table::put(&mut whole, octets);
    let (rest, found) = parse_field_table(&whole[..]).expect("a whole table");
    assert!(rest.is_empty());
    found
}

#[test]
fn tables_of_every_type_are_read_alike() {
    let mut rng = Rng::new(3);
    for round in 0..5_000 {
        let mut expected = fields(&mut rng, 3);
        let name = ShortString::try_new("each").expect("it is short");
        expected.insert(name, value(&mut rng, round % 17, 2));
        let declare = AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
            queue: short(&mut rng),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: true,
            nowait: false,
            arguments: expected.clone(),
        }));
        let octets = theirs(&AMQPFrame::Method(1, declare));
        let Step::Frame(frame, _) = frame::decode(&octets, FRAME_BYTES_MAX) else {
            panic!("round {round}: no frame");
        };
        let Ok((_, Method::QueueDeclare { arguments, .. })) = Method::decode(frame.payload) else {
            panic!("round {round}: {expected:?} is not read");
        };
        assert!(table::is_valid(arguments));
        assert_eq!(read(arguments), expected);
        // Entry by entry, as the broker takes a table apart and puts it together.
        let mut again = Vec::new();
        for (name, value) in table::entries(arguments) {
            table::put_value(&mut again, name, value);
        }
        assert_eq!(again, arguments, "round {round}");
    }
}

#[test]
fn tables_that_we_write_they_read() {
    let mut rng = Rng::new(4);
    for _ in 0..2_000 {
        let (text, number, is) = (short(&mut rng), rng.next() >> 1, rng.chance(500));
        let mut inner = Vec::new();
        table::put_bool(&mut inner, b"is", is);
        let mut array = Vec::new();
        table::put_text_value(&mut array, text.as_str().as_bytes());
        table::put_inner_value(&mut array, b'F', &inner);
        let mut written = Vec::new();
        table::put_text(&mut written, b"text", text.as_str().as_bytes());
        table::put_number(&mut written, b"number", number);
        table::put_time(&mut written, b"time", number);
        table::put_inner(&mut written, b"inner", b'F', &inner);
        table::put_inner(&mut written, b"array", b'A', &array);
        let name = |name: &str| ShortString::try_new(name).expect("it is short");
        let long = || AMQPValue::LongString(LongString::from(text.as_str().as_bytes()));
        let mut inner = FieldTable::default();
        inner.insert(name("is"), AMQPValue::Boolean(is));
        let mut array = FieldArray::default();
        array.push(long());
        array.push(AMQPValue::FieldTable(inner.clone()));
        let mut expected = FieldTable::default();
        expected.insert(name("text"), long());
        expected.insert(name("number"), AMQPValue::LongLongInt(number as i64));
        expected.insert(name("time"), AMQPValue::Timestamp(number));
        expected.insert(name("inner"), AMQPValue::FieldTable(inner));
        expected.insert(name("array"), AMQPValue::FieldArray(array));
        assert_eq!(read(&written), expected);
    }
}

/// Every method that a client sends, with random arguments: as they write it, and what we are to make of it.
fn check_methods(rng: &mut Rng) {
    macro_rules! check {
        ($class:ident, $module:ident, $name:ident { $($field:ident: $value:expr),* $(,)? }, $ours:expr) => {{
            let method = $module::$name { $($field: $value),* };
            let class = AMQPClass::$class($module::AMQPMethod::$name(method));
            let channel = rng.below(2048) as u16;
            let octets = theirs(&AMQPFrame::Method(channel, class.clone()));
            let Step::Frame(frame, used) = frame::decode(&octets, FRAME_BYTES_MAX) else {
                panic!("{class:?} is no frame");
            };
            assert_eq!((frame.kind, frame.channel, used), (Kind::Method, channel, octets.len()));
            let (_, method) = Method::decode(frame.payload).unwrap_or_else(|error| {
                panic!("{class:?}: {error:?}")
            });
            assert_eq!(method, $ours, "{class:?}");
        }};
    }
    let (one, two, three) = (short(rng), short(rng), short(rng));
    let (a, b, c, d, e) = (
        rng.chance(500),
        rng.chance(500),
        rng.chance(500),
        rng.chance(500),
        rng.chance(500),
    );
    let (number, small, large) = (rng.next() as u16, rng.next() as u32, rng.next());
    let arguments = fields(rng, 2);
    let long = octets(rng);
    // As they write it, without its length.
    let written = {
        let declare = AMQPClass::Basic(basic::AMQPMethod::Consume(basic::Consume {
            queue: short(rng),
            consumer_tag: short(rng),
            no_local: a,
            no_ack: b,
            exclusive: c,
            nowait: d,
            arguments: arguments.clone(),
        }));
        let octets = theirs(&AMQPFrame::Method(0, declare));
        let Step::Frame(frame, _) = frame::decode(&octets, FRAME_BYTES_MAX) else {
            panic!("no frame");
        };
        match Method::decode(frame.payload) {
            Ok((_, Method::Consume { arguments, .. })) => arguments.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    let (first, second, third) = (
        one.as_str().as_bytes(),
        two.as_str().as_bytes(),
        three.as_str().as_bytes(),
    );
    let binding = Binding {
        destination: first,
        source: second,
        key: third,
        arguments: &written,
    };
    check!(
        Connection,
        connection,
        StartOk {
            client_properties: arguments.clone(),
            mechanism: one.clone(),
            response: LongString::from(long.clone()),
            locale: two.clone(),
        },
        Method::StartOk {
            properties: &written,
            mechanism: first,
            response: &long
        }
    );
    check!(
        Connection,
        connection,
        TuneOk {
            channel_max: number,
            frame_max: small,
            heartbeat: number
        },
        Method::TuneOk {
            channel_max: number,
            frame_bytes_max: small,
            heartbeat_s: number
        }
    );
    check!(
        Connection,
        connection,
        Open {
            virtual_host: one.clone()
        },
        Method::Open { vhost: first }
    );
    check!(
        Connection,
        connection,
        Close {
            reply_code: number,
            reply_text: one.clone(),
            class_id: 1,
            method_id: 2,
        },
        Method::Close {
            code: number,
            text: first
        }
    );
    check!(Connection, connection, CloseOk {}, Method::CloseOk);
    check!(
        Connection,
        connection,
        UpdateSecret {
            new_secret: LongString::from(long.clone()),
            reason: one.clone(),
        },
        Method::UpdateSecret
    );
    check!(Channel, channel, Open {}, Method::ChannelOpen);
    check!(
        Channel,
        channel,
        Flow { active: a },
        Method::ChannelFlow { active: a }
    );
    check!(
        Channel,
        channel,
        FlowOk { active: a },
        Method::ChannelFlowOk
    );
    check!(
        Channel,
        channel,
        Close {
            reply_code: number,
            reply_text: one.clone(),
            class_id: 1,
            method_id: 2,
        },
        Method::ChannelClose {
            code: number,
            text: first
        }
    );
    check!(Channel, channel, CloseOk {}, Method::ChannelCloseOk);
    check!(
        Access,
        access,
        Request {
            realm: one.clone(),
            exclusive: a,
            passive: b,
            active: c,
            write: d,
            read: e,
        },
        Method::AccessRequest
    );
    check!(
        Exchange,
        exchange,
        Declare {
            exchange: one.clone(),
            kind: two.clone(),
            passive: a,
            durable: b,
            auto_delete: c,
            internal: d,
            nowait: e,
            arguments: arguments.clone(),
        },
        Method::ExchangeDeclare {
            exchange: first,
            kind: second,
            passive: a,
            durable: b,
            auto_delete: c,
            internal: d,
            nowait: e,
            arguments: &written,
        }
    );
    check!(
        Exchange,
        exchange,
        Delete {
            exchange: one.clone(),
            if_unused: a,
            nowait: b
        },
        Method::ExchangeDelete {
            exchange: first,
            if_unused: a,
            nowait: b
        }
    );
    check!(
        Exchange,
        exchange,
        Bind {
            destination: one.clone(),
            source: two.clone(),
            routing_key: three.clone(),
            nowait: a,
            arguments: arguments.clone(),
        },
        Method::ExchangeBind { binding, nowait: a }
    );
    check!(
        Exchange,
        exchange,
        Unbind {
            destination: one.clone(),
            source: two.clone(),
            routing_key: three.clone(),
            nowait: a,
            arguments: arguments.clone(),
        },
        Method::ExchangeUnbind { binding, nowait: a }
    );
    check!(
        Queue,
        queue,
        Declare {
            queue: one.clone(),
            passive: a,
            durable: b,
            exclusive: c,
            auto_delete: d,
            nowait: e,
            arguments: arguments.clone(),
        },
        Method::QueueDeclare {
            queue: first,
            passive: a,
            durable: b,
            exclusive: c,
            auto_delete: d,
            nowait: e,
            arguments: &written,
        }
    );
    check!(
        Queue,
        queue,
        Bind {
            queue: one.clone(),
            exchange: two.clone(),
            routing_key: three.clone(),
            nowait: a,
            arguments: arguments.clone(),
        },
        Method::QueueBind { binding, nowait: a }
    );
    check!(
        Queue,
        queue,
        Unbind {
            queue: one.clone(),
            exchange: two.clone(),
            routing_key: three.clone(),
            arguments: arguments.clone(),
        },
        Method::QueueUnbind { binding }
    );
    check!(
        Queue,
        queue,
        Purge {
            queue: one.clone(),
            nowait: a
        },
        Method::QueuePurge {
            queue: first,
            nowait: a
        }
    );
    check!(
        Queue,
        queue,
        Delete {
            queue: one.clone(),
            if_unused: a,
            if_empty: b,
            nowait: c
        },
        Method::QueueDelete {
            queue: first,
            if_unused: a,
            if_empty: b,
            nowait: c
        }
    );
    check!(
        Basic,
        basic,
        Qos {
            prefetch_count: number,
            global: a
        },
        Method::Qos {
            bytes: 0,
            count: number,
            global: a
        }
    );
    check!(
        Basic,
        basic,
        Consume {
            queue: one.clone(),
            consumer_tag: two.clone(),
            no_local: a,
            no_ack: b,
            exclusive: c,
            nowait: d,
            arguments: arguments.clone(),
        },
        Method::Consume {
            queue: first,
            tag: second,
            no_local: a,
            no_ack: b,
            exclusive: c,
            nowait: d,
            arguments: &written,
        }
    );
    check!(
        Basic,
        basic,
        Cancel {
            consumer_tag: one.clone(),
            nowait: a
        },
        Method::Cancel {
            tag: first,
            nowait: a
        }
    );
    check!(
        Basic,
        basic,
        CancelOk {
            consumer_tag: one.clone()
        },
        Method::CancelOk
    );
    check!(
        Basic,
        basic,
        Publish {
            exchange: one.clone(),
            routing_key: two.clone(),
            mandatory: a,
            immediate: b,
        },
        Method::Publish(Publish {
            exchange: first,
            key: second,
            mandatory: a,
            immediate: b
        })
    );
    check!(
        Basic,
        basic,
        Get {
            queue: one.clone(),
            no_ack: a
        },
        Method::Get {
            queue: first,
            no_ack: a
        }
    );
    check!(
        Basic,
        basic,
        Ack {
            delivery_tag: large,
            multiple: a
        },
        Method::Ack {
            tag: large,
            multiple: a
        }
    );
    check!(
        Basic,
        basic,
        Reject {
            delivery_tag: large,
            requeue: a
        },
        Method::Reject {
            tag: large,
            requeue: a
        }
    );
    check!(
        Basic,
        basic,
        Nack {
            delivery_tag: large,
            multiple: a,
            requeue: b
        },
        Method::Nack {
            tag: large,
            multiple: a,
            requeue: b
        }
    );
    check!(
        Basic,
        basic,
        RecoverAsync { requeue: a },
        Method::RecoverAsync { requeue: a }
    );
    check!(
        Basic,
        basic,
        Recover { requeue: a },
        Method::Recover { requeue: a }
    );
    check!(
        Confirm,
        confirm,
        Select { nowait: a },
        Method::ConfirmSelect { nowait: a }
    );
    check!(Tx, tx, Select {}, Method::TxSelect);
    check!(Tx, tx, Commit {}, Method::TxCommit);
    check!(Tx, tx, Rollback {}, Method::TxRollback);
}

#[test]
fn every_method_that_they_write_we_read() {
    let mut rng = Rng::new(5);
    for _ in 0..500 {
        check_methods(&mut rng);
    }
}

fn properties(rng: &mut Rng) -> basic::AMQPProperties {
    let mut found = basic::AMQPProperties::default();
    macro_rules! some {
        ($($with:ident: $value:expr),*) => {
            $(if rng.chance(500) { let value = $value; found = found.$with(value); })*
        };
    }
    some!(
        with_content_type: short(rng), with_content_encoding: short(rng), with_headers: fields(rng, 2),
        with_delivery_mode: rng.next() as u8, with_priority: rng.next() as u8,
        with_correlation_id: short(rng), with_reply_to: short(rng), with_expiration: short(rng),
        with_message_id: short(rng), with_timestamp: rng.next(), with_type: short(rng),
        with_user_id: short(rng), with_app_id: short(rng), with_cluster_id: short(rng)
    );
    found
}

#[test]
fn contents_are_read_alike_and_given_back_as_they_came() {
    let mut rng = Rng::new(6);
    for round in 0..5_000 {
        let expected = properties(&mut rng);
        let header = AMQPContentHeader {
            class_id: 60,
            body_size: rng.next(),
            properties: expected.clone(),
        };
        let size = header.body_size;
        let octets = theirs(&AMQPFrame::Header(9, header));
        let Step::Frame(frame, _) = frame::decode(&octets, FRAME_BYTES_MAX) else {
            panic!("round {round}: no frame");
        };
        let header = Header::decode(frame.payload).expect("a whole header");
        assert_eq!((header.class, header.body_bytes), (60, size));
        let found = Properties::decode(header.properties).expect("whole properties");
        let text =
            |text: &Option<ShortString>| text.as_ref().map(|it| it.as_str().as_bytes().to_vec());
        let ours = |text: Option<&[u8]>| text.map(<[u8]>::to_vec);
        assert_eq!(found.delivery_mode, *expected.delivery_mode());
        assert_eq!(found.priority, *expected.priority());
        assert_eq!(ours(found.reply_to), text(expected.reply_to()));
        assert_eq!(ours(found.expiration), text(expected.expiration()));
        assert_eq!(ours(found.user_id), text(expected.user_id()));
        assert_eq!(found.headers.map(read), *expected.headers());
        // Taken apart, kept, put together.
        let mut kept = Vec::new();
        found.put_without_headers(&mut kept);
        let kept = Kept {
            properties: &kept,
            headers: [found.headers.unwrap_or_default(), b""],
            reply_to: None,
        };
        let mut again = Vec::new();
        put_header(&mut again, size, &kept);
        assert_eq!(again, frame.payload, "round {round}: {expected:?}");
    }
}

#[test]
fn what_the_broker_writes_they_read() {
    let mut rng = Rng::new(7);
    for _ in 0..2_000 {
        let (one, two, three) = (short(&mut rng), short(&mut rng), short(&mut rng));
        let (tag, a, channel) = (rng.next(), rng.chance(500), 1 + rng.below(2047) as u16);
        let code = rng.next() as u16;
        let mut out = Vec::new();
        encode::ack(&mut out, channel, tag, a);
        encode::nack(&mut out, channel, tag);
        encode::heartbeat(&mut out);
        encode::close(&mut out, channel, code, one.as_str(), (60, 40));
        encode::close(&mut out, 0, code, two.as_str(), (10, 40));
        encode::returned(
            &mut out,
            channel,
            code,
            one.as_str(),
            two.as_str().as_bytes(),
            three.as_str().as_bytes(),
        );
        let deliver = Deliver {
            consumer: one.as_str().as_bytes(),
            tag,
            redelivered: a,
            exchange: two.as_str().as_bytes(),
            key: three.as_str().as_bytes(),
        };
        deliver.put(&mut out, channel);
        deliver.put_got(&mut out, channel, code.into());
        let basic = |method| AMQPFrame::Method(channel, AMQPClass::Basic(method));
        let expected = [
            basic(basic::AMQPMethod::Ack(basic::Ack {
                delivery_tag: tag,
                multiple: a,
            })),
            basic(basic::AMQPMethod::Nack(basic::Nack {
                delivery_tag: tag,
                multiple: false,
                requeue: false,
            })),
            AMQPFrame::Heartbeat,
            AMQPFrame::Method(
                channel,
                AMQPClass::Channel(channel::AMQPMethod::Close(channel::Close {
                    reply_code: code,
                    reply_text: one.clone(),
                    class_id: 60,
                    method_id: 40,
                })),
            ),
            AMQPFrame::Method(
                0,
                AMQPClass::Connection(connection::AMQPMethod::Close(connection::Close {
                    reply_code: code,
                    reply_text: two.clone(),
                    class_id: 10,
                    method_id: 40,
                })),
            ),
            basic(basic::AMQPMethod::Return(basic::Return {
                reply_code: code,
                reply_text: one.clone(),
                exchange: two.clone(),
                routing_key: three.clone(),
            })),
            basic(basic::AMQPMethod::Deliver(basic::Deliver {
                consumer_tag: one.clone(),
                delivery_tag: tag,
                redelivered: a,
                exchange: two.clone(),
                routing_key: three.clone(),
            })),
            basic(basic::AMQPMethod::GetOk(basic::GetOk {
                delivery_tag: tag,
                redelivered: a,
                exchange: two.clone(),
                routing_key: three.clone(),
                message_count: code.into(),
            })),
        ];
        assert_eq!(parsed(&out), expected);
    }
}

#[test]
fn contents_that_the_broker_writes_they_read() {
    let mut rng = Rng::new(8);
    let (mut ring, mut pool) = (SendRing::default(), Pool::new(8, 64 << 10, 1 << 20));
    for round in 0..500 {
        let size = rng.spread(1, 20_000) as usize - 1;
        let body: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
        let mut told = Vec::new();
        table::put_number(&mut told, b"x-delivery-count", round);
        let kept = Kept {
            properties: b"",
            headers: [&told, b""],
            reply_to: Some(b"answers"),
        };
        encode::content(&mut ring, &mut pool, 3, &kept, &Payload::Slice(&body), 4096);
        let mut out = Vec::new();
        loop {
            let mut slices = [std::io::IoSlice::new(&[]); 64];
            let filled = ring.slices(&mut slices);
            let octets: Vec<u8> = slices[..filled]
                .iter()
                .flat_map(|slice| slice.iter().copied())
                .collect();
            if octets.is_empty() {
                break;
            }
            out.extend_from_slice(&octets);
            ring.consume(octets.len(), &mut pool);
        }
        let frames = parsed(&out);
        let AMQPFrame::Header(3, header) = &frames[0] else {
            panic!("{:?} is no header", frames[0]);
        };
        assert_eq!((header.class_id, header.body_size), (60, body.len() as u64));
        assert_eq!(header.properties.headers().as_ref(), Some(&read(&told)));
        let reply_to = header
            .properties
            .reply_to()
            .as_ref()
            .map(ShortString::as_str);
        assert_eq!(reply_to, Some("answers"));
        let mut found = Vec::new();
        for frame in &frames[1..] {
            let AMQPFrame::Body(3, piece) = frame else {
                panic!("{frame:?} is no body");
            };
            assert!(piece.len() <= 4096 - 8);
            found.extend_from_slice(piece);
        }
        assert_eq!(found, body);
    }
}
