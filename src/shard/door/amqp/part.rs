//! Parts: what a client of a broker with several shards has at each of them.
//!
//! A part is a connection of this protocol like any other, with channels, consumers and unacked deliveries of its own;
//! what it says is read by the client's home ([`front`](super::front)) and not by the client. So beside the methods of
//! the specification it says, and is told, some that never leave the broker, of a class of their own.

use super::{Amqp, Channel, Confirm, Outcome, Phase, Understands, connection_fault};
use crate::log::disk::Storage;
use crate::protocol::amqp::code;
use crate::protocol::amqp::encode::Frame;
use crate::protocol::amqp::method::Id;
use crate::protocol::amqp::wire::Reader;
use crate::shard::Shard;

/// The class of what only shards say to each other.
const INTERNAL: u16 = 0xffff;
/// From a part: what became of the next publishes of a channel; verdict and count.
pub(super) const REPORT: Id = (INTERNAL, 1);
/// From a part: a channel that is limited as a whole has messages for its consumers.
pub(super) const WANT: Id = (INTERNAL, 2);
/// From a part: so many deliveries that it was allowed were none.
pub(super) const UNUSED: Id = (INTERNAL, 3);
/// To a part: answers that are never stored go to this channel; the secret of its address.
const ANSWERS: Id = (INTERNAL, 10);
/// To a part: the broker has given the name of the queue that is declared next.
const GIVEN: Id = (INTERNAL, 11);
/// To a part: the channel's consumers are limited as a whole, or are not any more.
const LIMIT: Id = (INTERNAL, 12);
/// To a part: so many more deliveries of a channel that is limited as a whole.
const ALLOW: Id = (INTERNAL, 13);

/// In the tag that a part gives a delivery: nobody acks it.
pub(super) const UNTRACKED: u64 = 1 << 63;

/// What became of a publish at a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has reached its level.
    Taken,
    /// A queue has refused it.
    Refused,
    /// No queue of the shard wants it.
    Unrouted,
}

impl Verdict {
    fn octet(self) -> u8 {
        match self {
            Verdict::Taken => 0,
            Verdict::Refused => 1,
            Verdict::Unrouted => 2,
        }
    }

    pub(super) fn of(octet: u8) -> Verdict {
        match octet {
            0 => Verdict::Taken,
            1 => Verdict::Refused,
            _ => Verdict::Unrouted,
        }
    }
}

/// What a home tells a part of its client when it begins.
#[derive(Clone, Debug)]
pub struct Introduction {
    user: Box<[u8]>,
    frame_bytes_max: u32,
}

/// What a part is told beside methods of the specification.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    /// See [`ANSWERS`].
    Answers(u64),
    /// See [`GIVEN`].
    Given,
    /// See [`LIMIT`].
    Limit(bool),
    /// See [`ALLOW`].
    Allow(u32),
}

impl Word {
    /// Appends it as a frame.
    pub(super) fn put(self, out: &mut Vec<u8>, channel: u16) {
        match self {
            Word::Answers(secret) => Frame::method(out, channel, ANSWERS).longlong(secret).end(),
            Word::Given => Frame::method(out, channel, GIVEN).end(),
            Word::Limit(is) => Frame::method(out, channel, LIMIT).octet(u8::from(is)).end(),
            Word::Allow(count) => Frame::method(out, channel, ALLOW).long(count).end(),
        }
    }

    fn read(payload: &[u8]) -> Option<Word> {
        let mut reader = Reader::new(payload);
        let id = (reader.short().ok()?, reader.short().ok()?);
        match id {
            ANSWERS => reader.longlong().ok().map(Word::Answers),
            GIVEN => Some(Word::Given),
            LIMIT => reader.octet().ok().map(|octet| Word::Limit(octet != 0)),
            ALLOW => reader.long().ok().map(Word::Allow),
            _ => None,
        }
    }
}

/// Is the payload of a method one of those?
pub(super) fn is_internal(payload: &[u8]) -> bool {
    payload.starts_with(&INTERNAL.to_be_bytes())
}

impl Amqp {
    /// The part of a client at a shard that is not its home.
    pub fn guest() -> Amqp {
        Amqp {
            phase: Phase::Running,
            is_part: true,
            is_guest: true,
            understands: Understands::ALL,
            ..Amqp::new()
        }
    }

    /// What the client's parts at other shards are told of it.
    pub fn introduction(&self) -> Introduction {
        Introduction {
            user: self.user.clone(),
            frame_bytes_max: self.frame_bytes_max,
        }
    }

    /// Whose part it is.
    pub fn introduced(&mut self, introduction: Introduction) {
        self.user = introduction.user;
        self.frame_bytes_max = introduction.frame_bytes_max;
    }

    /// A publish of a channel is reported when its turn has come.
    pub(super) fn report_later(&mut self, number: u16, verdict: Verdict, need: super::Need) {
        let Some(channel) = self.channel(number) else {
            return;
        };
        channel.published += 1;
        let tag = channel.published;
        match (verdict, self.confirms.back_mut()) {
            (
                Verdict::Taken,
                Some(Confirm::Taken {
                    channel,
                    last,
                    need: other,
                    ..
                }),
            ) if *channel == number && *other == need => *last = tag,
            (Verdict::Unrouted, Some(Confirm::Unrouted { channel, count }))
                if *channel == number =>
            {
                *count += 1;
            }
            (Verdict::Taken, _) => self.confirms.push_back(Confirm::Taken {
                channel: number,
                first: tag,
                last: tag,
                need,
            }),
            (Verdict::Unrouted, _) => self.confirms.push_back(Confirm::Unrouted {
                channel: number,
                count: 1,
            }),
            (Verdict::Refused, _) => self.confirms.push_back(Confirm::Refused {
                channel: number,
                tag,
            }),
        }
    }
}

/// Writes what became of publishes.
pub(super) fn report(out: &mut Vec<u8>, confirm: Confirm) {
    let (channel, verdict, count) = match confirm {
        Confirm::Taken {
            channel,
            first,
            last,
            ..
        } => (channel, Verdict::Taken, last - first + 1),
        Confirm::Refused { channel, .. } => (channel, Verdict::Refused, 1),
        Confirm::Unrouted { channel, count } => (channel, Verdict::Unrouted, count),
    };
    Frame::method(out, channel, REPORT)
        .octet(verdict.octet())
        .longlong(count)
        .end();
}

impl Channel {
    /// A delivery was made, one less may be made.
    pub(super) fn made(&mut self, serial: u64, is_getting: bool) {
        if serial != 0 && !is_getting {
            self.allowed = self.allowed.map(|left| left.saturating_sub(1));
        }
    }

    /// The tag that a part tells its client's home.
    pub(super) fn part_tag(tag: u64, serial: u64) -> u64 {
        match serial {
            0 => tag | UNTRACKED,
            _ => tag,
        }
    }
}

impl<S: Storage> Shard<S> {
    /// Does, as a guest, what its home has told it.
    pub(super) fn heed_word(&mut self, slot: usize, number: u16, payload: &[u8]) -> Outcome {
        let Some(word) = Word::read(payload) else {
            let text = "the shards of the broker do not understand each other";
            return Err(connection_fault(code::INTERNAL_ERROR, text));
        };
        let amqp = self.amqp(slot);
        if let Word::Given = word {
            amqp.is_given = true;
            return Ok(());
        }
        let Some(channel) = amqp.channel(number) else {
            return Ok(());
        };
        match word {
            Word::Answers(secret) => channel.answers = Some((Box::default(), secret)),
            Word::Limit(is_limited) => self.limit_part(slot, number, is_limited),
            Word::Allow(count) => self.allow_part(slot, number, count),
            Word::Given => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::conn::Need;

    #[test]
    fn publishes_are_reported_in_their_order_and_equals_together() {
        let mut amqp = Amqp::guest();
        amqp.channels.push(None);
        amqp.channels.push(Some(Box::new(Channel::new())));
        for verdict in [
            Verdict::Taken,
            Verdict::Taken,
            Verdict::Unrouted,
            Verdict::Unrouted,
            Verdict::Refused,
            Verdict::Taken,
        ] {
            amqp.report_later(1, verdict, Need::NOW);
        }
        let mut out = Vec::new();
        for confirm in std::mem::take(&mut amqp.confirms) {
            report(&mut out, confirm);
        }
        let mut want = Vec::new();
        for (verdict, count) in [(0, 2), (2, 2), (1, 1), (0, 1)] {
            Frame::method(&mut want, 1, REPORT)
                .octet(verdict)
                .longlong(count)
                .end();
        }
        assert_eq!(out, want);
    }
}
