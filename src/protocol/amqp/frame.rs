//! Frames: cutting the stream into them. A frame is whole or not there; nothing is kept between two calls.

/// Type, channel and size before a frame's payload, bytes.
pub const HEAD_BYTES: usize = 7;
/// What a frame takes beside its payload, bytes.
pub const AROUND_BYTES: usize = HEAD_BYTES + 1;
/// What ends a frame.
pub const END: u8 = 0xce;
/// The least that both sides take as the size of a frame, bytes, and the most before the size is agreed on.
pub const FRAME_BYTES_MIN: u32 = 4096;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A method with its arguments.
    Method,
    /// The size and the properties of a message.
    Header,
    /// A piece of a message's body.
    Body,
    /// Nothing: the peer is alive.
    Heartbeat,
}

impl Kind {
    /// The number on the wire.
    pub fn octet(self) -> u8 {
        match self {
            Kind::Method => 1,
            Kind::Header => 2,
            Kind::Body => 3,
            Kind::Heartbeat => 8,
        }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: Kind,
    /// On which channel; 0 is the connection itself.
    pub channel: u16,
    /// Without head and end.
    pub payload: &'a [u8],
}

/// What stands at the front of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Not all of a frame yet.
    Incomplete,
    /// A frame, and how many bytes it takes.
    Frame(Frame<'a>, usize),
    /// No frame; why.
    Bad(&'static str),
}

/// Looks at the front of the input. `frame_bytes_max` is the size of a whole frame that was agreed on.
#[inline]
pub fn decode(input: &[u8], frame_bytes_max: u32) -> Step<'_> {
    let Some(head) = input.first_chunk::<HEAD_BYTES>() else {
        return match input.first() {
            Some(octet) if kind(*octet).is_none() => Step::Bad("there is no such type of frame"),
            _ => Step::Incomplete,
        };
    };
    let [octet, high, low, size @ ..] = *head;
    let Some(kind) = kind(octet) else {
        return Step::Bad("there is no such type of frame");
    };
    let size = u32::from_be_bytes(size);
    if size > frame_bytes_max.saturating_sub(AROUND_BYTES as u32) {
        return Step::Bad("the frame is larger than what was agreed on");
    }
    let size = size as usize;
    let Some(rest) = input.get(HEAD_BYTES..HEAD_BYTES + size + 1) else {
        return Step::Incomplete;
    };
    let (payload, end) = rest.split_at(size);
    if end != [END] {
        return Step::Bad("the frame does not end where its size says");
    }
    let frame = Frame {
        kind,
        channel: u16::from_be_bytes([high, low]),
        payload,
    };
    Step::Frame(frame, size + AROUND_BYTES)
}

#[inline]
fn kind(octet: u8) -> Option<Kind> {
    match octet {
        1 => Some(Kind::Method),
        2 => Some(Kind::Header),
        3 => Some(Kind::Body),
        8 => Some(Kind::Heartbeat),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&channel.to_be_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.extend_from_slice(payload);
        out.push(END);
        out
    }

    #[test]
    fn a_frame_is_whole_or_not_there() {
        let bytes = encoded(1, 515, b"payload");
        for cut in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..cut], 4096),
                Step::Incomplete,
                "cut at {cut}"
            );
        }
        let frame = Frame {
            kind: Kind::Method,
            channel: 515,
            payload: b"payload",
        };
        assert_eq!(decode(&bytes, 4096), Step::Frame(frame, bytes.len()));
        let more = [&bytes[..], b"more"].concat();
        assert_eq!(decode(&more, 4096), Step::Frame(frame, bytes.len()));
    }

    #[test]
    fn what_is_no_frame_is_seen_at_once() {
        for kind in [0, 4, 5, 6, 7, 9, b'A', 255] {
            assert!(matches!(decode(&[kind], 4096), Step::Bad(_)), "{kind}");
            assert!(matches!(decode(&encoded(kind, 0, b""), 4096), Step::Bad(_)));
        }
        let mut bytes = encoded(8, 0, b"");
        *bytes.last_mut().expect("it has an end") = 0;
        assert!(matches!(decode(&bytes, 4096), Step::Bad(_)));
    }

    #[test]
    fn the_size_that_was_agreed_on_counts_the_whole_frame() {
        let fits = encoded(3, 1, &[0; 4096 - AROUND_BYTES]);
        assert!(matches!(decode(&fits, 4096), Step::Frame(_, 4096)));
        let over = encoded(3, 1, &[0; 4096 - AROUND_BYTES + 1]);
        // The size alone is enough to refuse it: nothing is kept for what was announced.
        assert!(matches!(decode(&over[..HEAD_BYTES], 4096), Step::Bad(_)));
    }

    proptest! {
        #[test]
        fn any_octets_are_a_frame_none_or_the_beginning_of_one(
            octets in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            match decode(&octets, 4096) {
                Step::Frame(frame, used) => {
                    prop_assert_eq!(encoded(frame.kind.octet(), frame.channel, frame.payload), &octets[..used]);
                }
                Step::Incomplete => prop_assert!(octets.len() < 4096),
                Step::Bad(_) => prop_assert!(!octets.is_empty()),
            }
        }
    }
}
