//! What the broker says: methods, content headers and bodies as frames in a connection's output.

use bytes::Bytes;

use super::content::{Kept, put_header};
use super::frame::{AROUND_BYTES, END, HEAD_BYTES, Kind};
use super::method::{Id, id};
use super::wire::{put_long, put_longlong, put_longstr, put_short, put_shortstr};
use crate::broker::reply::Payload;
use crate::buffer::send::{Pool, SendRing};

/// Bodies from this size are referenced, not copied, bytes.
const REFERENCED_BYTES_MIN: usize = 16 << 10;

/// A frame that is being written; [`Frame::end`] must be called.
#[derive(Debug)]
pub struct Frame<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Frame<'a> {
    /// Begins a method.
    #[inline]
    pub fn method(out: &'a mut Vec<u8>, channel: u16, id: Id) -> Frame<'a> {
        let frame = Frame::begin(out, Kind::Method, channel);
        put_short(frame.out, id.0);
        put_short(frame.out, id.1);
        frame
    }

    #[inline]
    fn begin(out: &'a mut Vec<u8>, kind: Kind, channel: u16) -> Frame<'a> {
        let start = out.len();
        out.push(kind.octet());
        put_short(out, channel);
        out.extend_from_slice(&[0; 4]);
        Frame { out, start }
    }

    /// One octet.
    #[inline]
    pub fn octet(self, value: u8) -> Frame<'a> {
        self.out.push(value);
        self
    }

    /// Two octets.
    #[inline]
    pub fn short(self, value: u16) -> Frame<'a> {
        put_short(self.out, value);
        self
    }

    /// Four octets.
    #[inline]
    pub fn long(self, value: u32) -> Frame<'a> {
        put_long(self.out, value);
        self
    }

    /// Eight octets.
    #[inline]
    pub fn longlong(self, value: u64) -> Frame<'a> {
        put_longlong(self.out, value);
        self
    }

    /// A short string.
    #[inline]
    pub fn shortstr(self, octets: &[u8]) -> Frame<'a> {
        put_shortstr(self.out, octets);
        self
    }

    /// A long string or a table.
    #[inline]
    pub fn longstr(self, octets: &[u8]) -> Frame<'a> {
        put_longstr(self.out, octets);
        self
    }

    /// Writes the size in front and the end behind.
    #[inline]
    pub fn end(self) {
        let size = (self.out.len() - self.start - HEAD_BYTES) as u32;
        self.out[self.start + 3..self.start + HEAD_BYTES].copy_from_slice(&size.to_be_bytes());
        self.out.push(END);
    }
}

/// A frame that says that the broker is alive.
pub fn heartbeat(out: &mut Vec<u8>) {
    Frame::begin(out, Kind::Heartbeat, 0).end();
}

/// A confirm: the message of that number, or all up to it, have reached their level.
#[inline]
pub fn ack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool) {
    Frame::method(out, channel, id::BASIC_ACK)
        .longlong(tag)
        .octet(u8::from(multiple))
        .end();
}

/// The message of that number was not taken.
pub fn nack(out: &mut Vec<u8>, channel: u16, tag: u64) {
    Frame::method(out, channel, id::BASIC_NACK)
        .longlong(tag)
        .octet(0)
        .end();
}

/// The connection or the channel is closed by the broker: code, text, and what was the cause.
pub fn close(out: &mut Vec<u8>, channel: u16, code: u16, text: &str, cause: Id) {
    let id = match channel {
        0 => id::CONNECTION_CLOSE,
        _ => id::CHANNEL_CLOSE,
    };
    Frame::method(out, channel, id)
        .short(code)
        .shortstr(cut(text))
        .short(cause.0)
        .short(cause.1)
        .end();
}

/// What fits a short string, cut between two characters.
pub fn cut(text: &str) -> &[u8] {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// A message of a consumer. `message` says where it came from.
#[derive(Clone, Copy, Debug)]
pub struct Deliver<'a> {
    /// The consumer's name.
    pub consumer: &'a [u8],
    /// The number that acks name.
    pub tag: u64,
    /// It was handed out before.
    pub redelivered: bool,
    /// The exchange that it was published to.
    pub exchange: &'a [u8],
    /// With that key.
    pub key: &'a [u8],
}

impl Deliver<'_> {
    /// Writes the method.
    #[inline]
    pub fn put(&self, out: &mut Vec<u8>, channel: u16) {
        Frame::method(out, channel, id::BASIC_DELIVER)
            .shortstr(self.consumer)
            .longlong(self.tag)
            .octet(u8::from(self.redelivered))
            .shortstr(self.exchange)
            .shortstr(self.key)
            .end();
    }

    /// Writes the answer to a get, behind which so many messages are ready.
    pub fn put_got(&self, out: &mut Vec<u8>, channel: u16, left: u32) {
        Frame::method(out, channel, id::BASIC_GET_OK)
            .longlong(self.tag)
            .octet(u8::from(self.redelivered))
            .shortstr(self.exchange)
            .shortstr(self.key)
            .long(left)
            .end();
    }
}

/// A message comes back to its publisher.
pub fn returned(
    out: &mut Vec<u8>,
    channel: u16,
    code: u16,
    text: &str,
    exchange: &[u8],
    key: &[u8],
) {
    Frame::method(out, channel, id::BASIC_RETURN)
        .short(code)
        .shortstr(cut(text))
        .shortstr(exchange)
        .shortstr(key)
        .end();
}

/// The content header and the body behind a deliver, a get-ok or a return, in frames of at most
/// `frame_bytes_max` bytes.
#[inline]
pub fn content(
    ring: &mut SendRing,
    pool: &mut Pool,
    channel: u16,
    kept: &Kept<'_>,
    body: &Payload<'_>,
    frame_bytes_max: u32,
) {
    let octets = body.as_slice();
    let out = ring.writer(pool);
    let frame = Frame::begin(out, Kind::Header, channel);
    put_header(frame.out, octets.len() as u64, kept);
    frame.end();
    let piece_bytes = frame_bytes_max as usize - AROUND_BYTES;
    if let Payload::Shared(bytes) = body
        && bytes.len() >= REFERENCED_BYTES_MIN
    {
        return referenced(ring, pool, channel, bytes, piece_bytes);
    }
    for piece in octets.chunks(piece_bytes) {
        out.reserve(piece.len() + AROUND_BYTES);
        out.push(Kind::Body.octet());
        put_short(out, channel);
        put_longstr(out, piece);
        out.push(END);
    }
}

/// The body in pieces that are not copied.
fn referenced(
    ring: &mut SendRing,
    pool: &mut Pool,
    channel: u16,
    body: &Bytes,
    piece_bytes: usize,
) {
    let mut at = 0;
    while at < body.len() {
        let piece = body.slice(at..body.len().min(at + piece_bytes));
        at += piece.len();
        let out = ring.writer(pool);
        out.push(Kind::Body.octet());
        put_short(out, channel);
        put_long(out, piece.len() as u32);
        ring.share(piece);
        ring.writer(pool).push(END);
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::super::content::{Header, Properties};
    use super::super::frame::{Step, decode};
    use super::*;

    fn sent(ring: &SendRing) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = ring.slices(&mut slices);
        slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn methods_are_the_octets_of_the_specification() {
        let mut out = Vec::new();
        ack(&mut out, 3, 258, true);
        assert_eq!(
            out,
            b"\x01\0\x03\0\0\0\x0d\0\x3c\0\x50\0\0\0\0\0\0\x01\x02\x01\xce"
        );
        out.clear();
        heartbeat(&mut out);
        assert_eq!(out, b"\x08\0\0\0\0\0\0\xce");
        out.clear();
        close(&mut out, 0, 320, "bye", (0, 0));
        assert_eq!(
            out,
            b"\x01\0\0\0\0\0\x0e\0\x0a\0\x32\x01\x40\x03bye\0\0\0\0\xce"
        );
        out.clear();
        close(&mut out, 9, 404, "", (50, 10));
        assert_eq!(
            out,
            b"\x01\0\x09\0\0\0\x0b\0\x14\0\x28\x01\x94\0\0\x32\0\x0a\xce"
        );
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("short"), b"short");
        let long = "é".repeat(200);
        assert_eq!(cut(&long).len(), 254);
    }

    #[test]
    fn a_body_is_cut_into_frames_that_fit_whoever_owns_it() {
        for size in [0usize, 1, 4088, 4089, 8176, 8177, 40_000] {
            let octets: Vec<u8> = (0..size).map(|at| at as u8).collect();
            let bytes = Bytes::from(octets.clone());
            for body in [Payload::Slice(&octets), Payload::Shared(bytes.clone())] {
                let mut ring = SendRing::default();
                let mut pool = Pool::new(4, 1 << 20, 1 << 20);
                content(&mut ring, &mut pool, 7, &Kept::default(), &body, 4096);
                let output = sent(&ring);
                let mut rest = &output[..];
                let mut got = Vec::new();
                let mut frames = 0;
                while let Step::Frame(frame, used) = decode(rest, 4096) {
                    assert_eq!(frame.channel, 7);
                    match frame.kind {
                        Kind::Header => {
                            let header = Header::decode(frame.payload).expect("it is whole");
                            assert_eq!((header.class, header.body_bytes), (60, size as u64));
                            assert!(Properties::decode(header.properties).is_ok());
                        }
                        Kind::Body => got.extend_from_slice(frame.payload),
                        kind => panic!("a {kind:?} frame"),
                    }
                    frames += 1;
                    rest = &rest[used..];
                }
                assert!(rest.is_empty());
                assert_eq!(got, octets);
                assert_eq!(frames, 1 + size.div_ceil(4088));
            }
        }
    }
}
