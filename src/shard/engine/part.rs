//! What a transaction does on one shard, and how the log keeps that.

use bytes::Bytes;

use crate::broker::id::{MessageId, QueueUid};
use crate::broker::varint;

/// How a lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Its message is acked.
    Ack,
    /// Its message is given back.
    Nack {
        /// Microseconds; the queue's backoff when absent.
        delay_us: Option<u64>,
        /// To the dead-letter queue.
        dead: bool,
        /// What the consumer said.
        why: Vec<u8>,
    },
}

/// A lease that a transaction ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The reader.
    pub uid: QueueUid,
    /// The message.
    pub id: MessageId,
    /// Which try the lease was.
    pub tries: u16,
    /// The message's priority.
    pub pri: u8,
    /// How it ends.
    pub how: How,
}

/// What a transaction does on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// When its delays and times to live begin, microseconds.
    pub at_us: u64,
    /// Leases that end.
    pub settles: Vec<Settle>,
    /// Commands as they were typed; of them the publishes are done, one after another.
    pub frames: Bytes,
}

const NACK: u64 = 1;
const DEAD: u64 = 2;
const DELAYED: u64 = 4;

impl Part {
    /// As the log keeps it.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.frames.len() + 24 * self.settles.len() + 8);
        varint::put(&mut out, self.at_us);
        varint::put(&mut out, self.settles.len() as u64);
        for settle in &self.settles {
            varint::put(&mut out, settle.uid.0);
            varint::put(&mut out, settle.id);
            varint::put(&mut out, u64::from(settle.tries));
            varint::put(&mut out, u64::from(settle.pri));
            let How::Nack {
                delay_us,
                dead,
                why,
            } = &settle.how
            else {
                varint::put(&mut out, 0);
                continue;
            };
            let delayed = u64::from(delay_us.is_some()) * DELAYED;
            varint::put(&mut out, NACK | (u64::from(*dead) * DEAD) | delayed);
            varint::put(&mut out, delay_us.unwrap_or(0));
            varint::put(&mut out, why.len() as u64);
            out.extend_from_slice(why);
        }
        out.extend_from_slice(&self.frames);
        Bytes::from(out)
    }

    /// What was encoded; `None` if it makes no sense.
    pub fn decode(encoded: &Bytes) -> Option<Part> {
        let mut at = 0;
        let at_us = varint::get(encoded, &mut at)?;
        let count = varint::get(encoded, &mut at)?;
        let mut settles = Vec::new();
        for _ in 0..count {
            let mut number = || varint::get(encoded, &mut at);
            let (uid, id, tries, pri) = (number()?, number()?, number()?, number()?);
            let mut how = How::Ack;
            let flags = number()?;
            if flags & NACK != 0 {
                let (delay_us, length) = (number()?, usize::try_from(number()?).ok()?);
                let why = encoded.get(at..at.checked_add(length)?)?.to_vec();
                at += length;
                how = How::Nack {
                    delay_us: (flags & DELAYED != 0).then_some(delay_us),
                    dead: flags & DEAD != 0,
                    why,
                };
            }
            settles.push(Settle {
                uid: QueueUid(uid),
                id,
                tries: u16::try_from(tries).ok()?,
                pri: u8::try_from(pri).ok()?,
                how,
            });
        }
        let frames = encoded.slice(at..);
        Some(Part {
            at_us,
            settles,
            frames,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_comes_back_and_what_is_cut_does_not() {
        let settle = |id, how| Settle {
            uid: QueueUid(300),
            id,
            tries: 3,
            pri: 255,
            how,
        };
        let why = b"because".to_vec();
        let part = Part {
            at_us: 1_700_000_000_000_000,
            settles: vec![
                settle(1, How::Ack),
                settle(
                    u64::MAX,
                    How::Nack {
                        delay_us: None,
                        dead: true,
                        why,
                    },
                ),
                settle(
                    7,
                    How::Nack {
                        delay_us: Some(0),
                        dead: false,
                        why: Vec::new(),
                    },
                ),
            ],
            frames: Bytes::from_static(b"PUB q :x\n"),
        };
        let encoded = part.encode();
        assert_eq!(Part::decode(&encoded), Some(part.clone()));
        let head = encoded.len() - part.frames.len();
        for cut in 0..head {
            assert_eq!(Part::decode(&encoded.slice(..cut)), None, "{cut}");
        }
    }
}
