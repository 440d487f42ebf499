//! RESP, versions 2 and 3, against `redis-protocol`.

use redis_protocol::{resp2, resp3};
use ringmq::config::Limits;
use ringmq::protocol::resp::decode::{Decoder, Step};
use ringmq::protocol::resp::encode::{self, Version};

use crate::rng::Rng;

/// What both sides know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Simple(String),
    Error(String),
    Integer(u64),
    Bulk(Vec<u8>),
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Push(Vec<Value>),
    Nil,
    NilArray,
}

fn text(rng: &mut Rng) -> String {
    let count = rng.below(20);
    (0..count)
        .map(|_| (b' ' + rng.below(90) as u8) as char)
        .collect()
}

fn octets(rng: &mut Rng) -> Vec<u8> {
    let count = rng.below(30);
    (0..count).map(|_| rng.next() as u8).collect()
}

fn value(rng: &mut Rng, depth: u64) -> Value {
    match rng.below(if depth == 0 { 6 } else { 9 }) {
        0 => Value::Simple(text(rng)),
        1 => Value::Error(text(rng)),
        2 => Value::Integer(rng.next() >> 1 >> rng.below(63)),
        3 => Value::Bulk(octets(rng)),
        4 => Value::Nil,
        5 => Value::NilArray,
        6 => Value::Map(
            (0..rng.below(4))
                .map(|at| {
                    let key = Value::Bulk(format!("{at}").into_bytes());
                    (key, value(rng, depth - 1))
                })
                .collect(),
        ),
        kind => {
            let values = (0..rng.below(4)).map(|_| value(rng, depth - 1)).collect();
            if kind == 7 {
                Value::Array(values)
            } else {
                Value::Push(values)
            }
        }
    }
}

/// Ours.
fn put(out: &mut Vec<u8>, value: &Value, version: Version) {
    match value {
        Value::Simple(text) => encode::simple(out, text.as_bytes()),
        Value::Error(text) => encode::error(out, "ERR", text),
        Value::Integer(number) => encode::integer(out, *number),
        Value::Bulk(octets) => encode::bulk(out, octets),
        Value::Nil => encode::nil(out, version),
        Value::NilArray => encode::nil_array(out, version),
        Value::Array(values) => {
            encode::array(out, values.len());
            values.iter().for_each(|value| put(out, value, version));
        }
        Value::Push(values) => {
            encode::push(out, version, values.len());
            values.iter().for_each(|value| put(out, value, version));
        }
        Value::Map(pairs) => {
            encode::map(out, version, pairs.len());
            for (key, value) in pairs {
                put(out, key, version);
                put(out, value, version);
            }
        }
    }
}

/// What version 2 makes of it: no maps, no pushes.
fn in_version_2(value: &Value) -> resp2::types::OwnedFrame {
    use resp2::types::OwnedFrame as Frame;
    match value {
        Value::Simple(text) => Frame::SimpleString(text.clone().into_bytes()),
        Value::Error(text) => Frame::Error(format!("ERR {text}")),
        Value::Integer(number) => Frame::Integer(*number as i64),
        Value::Bulk(octets) => Frame::BulkString(octets.clone()),
        Value::Nil | Value::NilArray => Frame::Null,
        Value::Array(values) | Value::Push(values) => {
            Frame::Array(values.iter().map(in_version_2).collect())
        }
        Value::Map(pairs) => Frame::Array(
            pairs
                .iter()
                .flat_map(|(key, value)| [in_version_2(key), in_version_2(value)])
                .collect(),
        ),
    }
}

fn in_version_3(value: &Value) -> resp3::types::OwnedFrame {
    use resp3::types::OwnedFrame as Frame;
    let attributes = None;
    match value {
        Value::Simple(text) => Frame::SimpleString {
            data: text.clone().into_bytes(),
            attributes,
        },
        Value::Error(text) => Frame::SimpleError {
            data: format!("ERR {text}"),
            attributes,
        },
        Value::Integer(number) => Frame::Number {
            data: *number as i64,
            attributes,
        },
        Value::Bulk(octets) => Frame::BlobString {
            data: octets.clone(),
            attributes,
        },
        Value::Nil | Value::NilArray => Frame::Null,
        Value::Array(values) => Frame::Array {
            data: values.iter().map(in_version_3).collect(),
            attributes,
        },
        Value::Push(values) => Frame::Push {
            data: values.iter().map(in_version_3).collect(),
            attributes,
        },
        Value::Map(pairs) => Frame::Map {
            data: pairs
                .iter()
                .map(|(key, value)| (in_version_3(key), in_version_3(value)))
                .collect(),
            attributes,
        },
    }
}

#[test]
fn what_we_say_they_understand() {
    let mut rng = Rng::new(1);
    for round in 0..20_000 {
        let value = value(&mut rng, 3);
        let mut two = Vec::new();
        put(&mut two, &value, Version::Two);
        let (found, used) = resp2::decode::decode(&two)
            .expect("well formed")
            .expect("whole");
        assert_eq!(
            (found, used),
            (in_version_2(&value), two.len()),
            "round {round}: {value:?}"
        );
        let mut three = Vec::new();
        put(&mut three, &value, Version::Three);
        let found = resp3::decode::complete::decode(&three).expect("well formed");
        let (found, used) = found.expect("whole");
        assert_eq!(
            (found, used),
            (in_version_3(&value), three.len()),
            "round {round}: {value:?}"
        );
    }
}

#[test]
fn what_they_say_we_understand() {
    use resp2::types::OwnedFrame as Frame;
    let mut rng = Rng::new(2);
    let limits = Limits::default();
    for round in 0..20_000 {
        let words: Vec<Vec<u8>> = (0..rng.range(1, 8)).map(|_| octets(&mut rng)).collect();
        let frame = Frame::Array(words.iter().cloned().map(Frame::BulkString).collect());
        let mut out = vec![0; 1000];
        let size = resp2::encode::encode(&mut out, &frame, false).expect("it fits");
        out.truncate(size);
        let mut decoder = Decoder::new(false);
        let cut = rng.below(size as u64) as usize;
        assert_eq!(decoder.decode(&out[..cut], &limits), (0, Step::Incomplete));
        assert_eq!(
            decoder.decode(&out, &limits),
            (size, Step::Command),
            "round {round}"
        );
        assert_eq!(decoder.words(&out), words, "round {round}");
    }
}
