//! What clients say, written as they write it: for a shard that says it to another in a client's stead.

use super::content::BASIC;
use super::encode::Frame;
use super::frame::{END, Kind};
use super::method::{Binding, Id, Method, Publish, id};
use super::wire::{put_longlong, put_longstr, put_short};

fn bits(all: &[bool]) -> u8 {
    let set = all.iter().enumerate().filter(|(_, is)| **is);
    set.map(|(nth, _)| 1 << nth).sum()
}

fn begin(out: &mut Vec<u8>, channel: u16, id: Id) -> Frame<'_> {
    Frame::method(out, channel, id)
}

fn bind(out: &mut Vec<u8>, channel: u16, id: Id, binding: &Binding<'_>, nowait: Option<bool>) {
    let frame = begin(out, channel, id)
        .short(0)
        .shortstr(binding.destination)
        .shortstr(binding.source)
        .shortstr(binding.key);
    let frame = match nowait {
        Some(nowait) => frame.octet(u8::from(nowait)),
        None => frame,
    };
    frame.longstr(binding.arguments).end();
}

/// Appends a method of queues, consumers, acks or transactions as a frame.
///
/// # Panics
/// If it is another: nothing else is said to other shards.
pub fn method(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) {
    match *method {
        Method::Close { code, text } => begin(out, channel, id::CONNECTION_CLOSE)
            .short(code)
            .shortstr(text)
            .long(0)
            .end(),
        Method::ChannelOpen => begin(out, channel, id::CHANNEL_OPEN).shortstr(b"").end(),
        Method::ChannelClose { code, text } => begin(out, channel, id::CHANNEL_CLOSE)
            .short(code)
            .shortstr(text)
            .long(0)
            .end(),
        Method::ChannelCloseOk => begin(out, channel, id::CHANNEL_CLOSE_OK).end(),
        Method::QueueDeclare {
            queue,
            passive,
            durable,
            exclusive,
            auto_delete,
            nowait,
            arguments,
        } => begin(out, channel, id::QUEUE_DECLARE)
            .short(0)
            .shortstr(queue)
            .octet(bits(&[passive, durable, exclusive, auto_delete, nowait]))
            .longstr(arguments)
            .end(),
        Method::QueueBind { binding, nowait } => {
            bind(out, channel, id::QUEUE_BIND, &binding, Some(nowait));
        }
        Method::QueueUnbind { binding } => bind(out, channel, id::QUEUE_UNBIND, &binding, None),
        Method::QueuePurge { queue, nowait } => begin(out, channel, id::QUEUE_PURGE)
            .short(0)
            .shortstr(queue)
            .octet(u8::from(nowait))
            .end(),
        Method::QueueDelete {
            queue,
            if_unused,
            if_empty,
            nowait,
        } => begin(out, channel, id::QUEUE_DELETE)
            .short(0)
            .shortstr(queue)
            .octet(bits(&[if_unused, if_empty, nowait]))
            .end(),
        Method::Qos {
            bytes,
            count,
            global,
        } => begin(out, channel, id::BASIC_QOS)
            .long(bytes)
            .short(count)
            .octet(u8::from(global))
            .end(),
        Method::Consume {
            queue,
            tag,
            no_local,
            no_ack,
            exclusive,
            nowait,
            arguments,
        } => begin(out, channel, id::BASIC_CONSUME)
            .short(0)
            .shortstr(queue)
            .shortstr(tag)
            .octet(bits(&[no_local, no_ack, exclusive, nowait]))
            .longstr(arguments)
            .end(),
        Method::Cancel { tag, nowait } => begin(out, channel, id::BASIC_CANCEL)
            .shortstr(tag)
            .octet(u8::from(nowait))
            .end(),
        Method::Get { queue, no_ack } => begin(out, channel, id::BASIC_GET)
            .short(0)
            .shortstr(queue)
            .octet(u8::from(no_ack))
            .end(),
        Method::Ack { tag, multiple } => begin(out, channel, id::BASIC_ACK)
            .longlong(tag)
            .octet(u8::from(multiple))
            .end(),
        Method::Nack {
            tag,
            multiple,
            requeue,
        } => begin(out, channel, id::BASIC_NACK)
            .longlong(tag)
            .octet(bits(&[multiple, requeue]))
            .end(),
        Method::ConfirmSelect { nowait } => begin(out, channel, id::CONFIRM_SELECT)
            .octet(u8::from(nowait))
            .end(),
        Method::TxSelect => begin(out, channel, id::TX_SELECT).end(),
        Method::TxCommit => begin(out, channel, id::TX_COMMIT).end(),
        Method::TxRollback => begin(out, channel, id::TX_ROLLBACK).end(),
        ref other => unreachable!("{other:?} is not passed on"),
    }
}

/// Appends a publish with its properties (flags and values as they came) and its body, which is one frame however
/// large it is: both sides are shards of one broker.
pub fn publish(
    out: &mut Vec<u8>,
    channel: u16,
    publish: &Publish<'_>,
    properties: &[u8],
    body: &[u8],
) {
    begin(out, channel, id::BASIC_PUBLISH)
        .short(0)
        .shortstr(publish.exchange)
        .shortstr(publish.key)
        .octet(bits(&[publish.mandatory, publish.immediate]))
        .end();
    let mut header = Vec::with_capacity(12 + properties.len());
    put_short(&mut header, BASIC);
    put_short(&mut header, 0);
    put_longlong(&mut header, body.len() as u64);
    header.extend_from_slice(properties);
    put_frame(out, Kind::Header, channel, &header);
    if !body.is_empty() {
        put_frame(out, Kind::Body, channel, body);
    }
}

fn put_frame(out: &mut Vec<u8>, kind: Kind, channel: u16, payload: &[u8]) {
    out.push(kind.octet());
    put_short(out, channel);
    put_longstr(out, payload);
    out.push(END);
}

#[cfg(test)]
mod tests {
    use super::super::content::Header;
    use super::super::frame::{Frame, Step, decode};
    use super::*;

    fn frames(mut octets: &[u8]) -> Vec<Frame<'_>> {
        let mut found = Vec::new();
        while let Step::Frame(frame, used) = decode(octets, u32::MAX) {
            found.push(frame);
            octets = &octets[used..];
        }
        assert!(octets.is_empty());
        found
    }

    #[test]
    fn a_method_is_read_as_it_was_said() {
        let binding = Binding {
            destination: b"q",
            source: b"e",
            key: b"k",
            arguments: b"",
        };
        let mut said = vec![
            Method::ChannelOpen,
            Method::ChannelCloseOk,
            Method::Close {
                code: 200,
                text: b"bye",
            },
            Method::ChannelClose {
                code: 404,
                text: b"no",
            },
            Method::QueueUnbind { binding },
            Method::Qos {
                bytes: 0,
                count: 9,
                global: false,
            },
            Method::Ack {
                tag: 1 << 40,
                multiple: true,
            },
            Method::TxSelect,
            Method::TxCommit,
            Method::TxRollback,
        ];
        for flag in 0..32u8 {
            let is = |nth: u8| flag >> nth & 1 != 0;
            said.extend([
                Method::QueueDeclare {
                    queue: b"q",
                    passive: is(0),
                    durable: is(1),
                    exclusive: is(2),
                    auto_delete: is(3),
                    nowait: is(4),
                    arguments: b"\x01xt\x01",
                },
                Method::QueueDelete {
                    queue: b"q",
                    if_unused: is(0),
                    if_empty: is(1),
                    nowait: is(2),
                },
                Method::Consume {
                    queue: b"q",
                    tag: b"c",
                    no_local: is(0),
                    no_ack: is(1),
                    exclusive: is(2),
                    nowait: is(3),
                    arguments: b"",
                },
                Method::QueueBind {
                    binding,
                    nowait: is(0),
                },
                Method::QueuePurge {
                    queue: b"q",
                    nowait: is(0),
                },
                Method::Cancel {
                    tag: b"c",
                    nowait: is(0),
                },
                Method::Get {
                    queue: b"q",
                    no_ack: is(0),
                },
                Method::Nack {
                    tag: 7,
                    multiple: is(0),
                    requeue: is(1),
                },
                Method::ConfirmSelect { nowait: is(0) },
            ]);
        }
        for want in said {
            let mut out = Vec::new();
            method(&mut out, 9, &want);
            let found = frames(&out);
            assert_eq!((found.len(), found[0].channel), (1, 9));
            let got = Method::decode(found[0].payload).map(|(_, got)| got);
            assert_eq!(got, Ok(want));
        }
    }

    #[test]
    fn a_message_has_one_frame_for_its_body_and_none_if_that_is_empty() {
        let said = Publish {
            exchange: b"e",
            key: b"k",
            mandatory: true,
            immediate: false,
        };
        for body in [&b""[..], b"body", &[7; 300_000]] {
            let mut out = Vec::new();
            publish(&mut out, 3, &said, &[0x10, 0, 2], body);
            let found = frames(&out);
            let got = Method::decode(found[0].payload).map(|(_, got)| got);
            assert_eq!(got, Ok(Method::Publish(said)));
            let header = Header::decode(found[1].payload).expect("it is whole");
            assert_eq!(header.properties, [0x10, 0, 2]);
            assert_eq!(header.body_bytes, body.len() as u64);
            let bodies: Vec<_> = found[2..].iter().map(|frame| frame.payload).collect();
            assert_eq!(bodies.concat(), body);
            assert_eq!(found.len(), 2 + usize::from(!body.is_empty()));
        }
    }
}
