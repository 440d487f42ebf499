//! Frames, methods, content headers and field tables of AMQP.

use ringmq::protocol::amqp::content::{Header, Kept, Properties, put_header, put_properties};
use ringmq::protocol::amqp::frame::{self, Kind, Step};
use ringmq::protocol::amqp::method::Method;
use ringmq::protocol::amqp::table;

use crate::pieces;

const FRAME_BYTES_MAX: u32 = 4096;

/// A frame as it is, or why there is none.
type Found = Vec<Result<(Kind, u16, Vec<u8>), &'static str>>;

fn decoded(pieces: &[&[u8]]) -> Found {
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            match frame::decode(&kept, FRAME_BYTES_MAX) {
                Step::Incomplete => break,
                Step::Bad(why) => {
                    found.push(Err(why));
                    return found;
                }
                Step::Frame(frame, used) => {
                    assert!(used <= FRAME_BYTES_MAX as usize);
                    found.push(Ok((frame.kind, frame.channel, frame.payload.to_vec())));
                    kept.drain(..used);
                }
            }
        }
        assert!(kept.len() < FRAME_BYTES_MAX as usize);
    }
    found
}

/// A table is walked in the same way by whoever asks whether it is whole, and by who reads it.
fn check_table(octets: &[u8]) {
    let entries: Vec<_> = table::entries(octets).collect();
    let mut again = Vec::new();
    for (name, value) in &entries {
        table::put_value(&mut again, name, value);
    }
    assert_eq!(again, octets[..again.len()]);
    if table::is_valid(octets) {
        assert_eq!(again, octets, "nothing of a whole table is left out");
    }
    for (name, value) in &entries {
        assert!(table::find(octets, name).is_some());
        if let Some(inner) = table::inner(value, b'F').filter(|_| table::is_valid(octets)) {
            check_table(inner);
        }
        if let Some(inner) = table::inner(value, b'A').filter(|_| table::is_valid(octets)) {
            assert_eq!(
                table::array_values(inner)
                    .flatten()
                    .copied()
                    .collect::<Vec<_>>(),
                inner
            );
        }
    }
}

fn check_header(payload: &[u8]) {
    let Ok(header) = Header::decode(payload) else {
        return;
    };
    let Ok(found) = Properties::decode(header.properties) else {
        return;
    };
    // The headers table is taken out and put back in its place, octet by octet.
    let mut kept = Vec::new();
    found.put_without_headers(&mut kept);
    let kept = Kept {
        properties: &kept,
        headers: [found.headers.unwrap_or_default(), b""],
        reply_to: None,
    };
    let mut again = Vec::new();
    put_properties(&mut again, &kept);
    assert_eq!(again, header.properties);
    let mut whole = Vec::new();
    put_header(&mut whole, header.body_bytes, &kept);
    let read = Header::decode(&whole).expect("it was written by put_header");
    assert_eq!(
        (read.body_bytes, read.properties),
        (header.body_bytes, &again[..])
    );
    if let Some(headers) = found.headers {
        assert!(table::is_valid(headers));
        check_table(headers);
    }
    // A message of this protocol whose answers go elsewhere says nothing else otherwise.
    let mut moved = Vec::new();
    found.put_with_reply_to(&mut moved, b"elsewhere");
    let kept = Kept {
        properties: &moved,
        ..kept
    };
    let mut moved = Vec::new();
    put_properties(&mut moved, &kept);
    let moved = Properties::decode(&moved).expect("it was whole before");
    assert_eq!(moved.reply_to, found.reply_to.map(|_| &b"elsewhere"[..]));
    assert_eq!(
        (
            moved.headers,
            moved.priority,
            moved.expiration,
            moved.user_id
        ),
        (
            found.headers,
            found.priority,
            found.expiration,
            found.user_id
        )
    );
}

/// See [`crate`].
pub fn run(data: &[u8]) {
    let Some((input, pieces)) = pieces(data) else {
        return;
    };
    let whole = decoded(&[input]);
    assert_eq!(decoded(&pieces), whole);
    let mut again = Vec::new();
    for (kind, channel, payload) in whole.iter().flatten() {
        again.push(kind.octet());
        again.extend_from_slice(&channel.to_be_bytes());
        again.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        again.extend_from_slice(payload);
        again.push(0xce);
        match kind {
            Kind::Method => {
                if let Ok((id, method)) = Method::decode(payload) {
                    assert_eq!(
                        payload[..4],
                        [id.0.to_be_bytes(), id.1.to_be_bytes()].concat()
                    );
                    // Its arguments are all there is: one octet more or less makes no sense.
                    let longer = [&payload[..], b"x"].concat();
                    assert!(Method::decode(&longer).is_err(), "{method:?}");
                    assert!(
                        Method::decode(&payload[..payload.len() - 1]).is_err(),
                        "{method:?}"
                    );
                }
            }
            Kind::Header => check_header(payload),
            Kind::Body => check_table(payload),
            Kind::Heartbeat => {}
        }
    }
    assert_eq!(again, input[..again.len()]);
}
