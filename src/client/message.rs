//! What a broker hands out, and what it says about what it was given.

use std::borrow::Cow;

pub use crate::broker::id::Level;

/// One delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Queue, or queue and group, as the broker prints it.
    pub source: String,
    /// What settles it; absent when there is nothing to settle.
    pub handle: Option<String>,
    /// The options of the line in order: `try`, `ts`, `key`, `h.<name>` …, values decoded.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The body's octets.
    pub body: Vec<u8>,
}

impl Message {
    /// The message's id in its queue; absent for one that was never stored.
    pub fn id(&self) -> Option<u64> {
        match &self.handle {
            Some(handle) => handle.split('.').nth(1)?.parse().ok(),
            None => self.number("id"),
        }
    }

    /// Which try this is; 1 for the first.
    pub fn tries(&self) -> u64 {
        self.number("try").unwrap_or(1)
    }

    /// When it was published, unix milliseconds; told when asked for (`ts=1`), as
    /// [`Client`](super::Client) always does.
    pub fn published_ms(&self) -> Option<u64> {
        self.number("ts")
    }

    /// The publisher's `key=`.
    pub fn key(&self) -> Option<&[u8]> {
        self.field("key")
    }

    /// Where an answer is to be sent.
    pub fn reply_to(&self) -> Option<&[u8]> {
        self.field("reply")
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        fields.find_map(|(key, value)| {
            (key.strip_prefix("h.") == Some(name)).then_some(value.as_slice())
        })
    }

    /// The body as text; octets that are not UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        fields.find_map(|(key, value)| (key == name).then_some(value.as_slice()))
    }

    fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(self.field(name)?).ok()?.parse().ok()
    }
}

/// The broker's word that it has a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Id of the message, or of a batch's first.
    pub id: u64,
    /// How many messages it was.
    pub count: u64,
    /// How far they had got when it was sent.
    pub level: Level,
    /// The broker had it already, from an earlier attempt with the same `once=`.
    pub is_duplicate: bool,
}

impl Receipt {
    /// What follows `OK`; `is_batch` says that a count stands behind the id.
    pub(super) fn parse(rest: &str, is_batch: bool) -> Option<Receipt> {
        let mut words = rest.split(' ');
        let id = words.next()?.parse().ok()?;
        let count = match is_batch {
            true => words.next()?.parse().ok()?,
            false => 1,
        };
        let level = words.next()?;
        let levels = [Level::None, Level::Os, Level::Disk, Level::Quorum];
        Some(Receipt {
            id,
            count,
            level: levels.into_iter().find(|known| known.receipt() == level)?,
            is_duplicate: words.any(|word| word == "dup=1"),
        })
    }
}

/// What became of an ack, a nack or a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It has had its effect.
    Confirmed,
    /// The lease had ended, so it had no effect: the message comes again, to this consumer or
    /// another one.
    Stale,
    /// The connection broke before the answer, or the broker could not tell. Without its effect the
    /// message comes again; after an ack [`Client`](super::Client) then acks it again and does not
    /// show it.
    Unknown,
}

/// What [`Client::flush`](super::Client::flush) has waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "publishes may have been refused"]
pub struct Flushed {
    /// Publishes that were confirmed since the last flush, those of `publish` included.
    pub confirmed: u64,
    /// Those among them that the broker had already, from an attempt whose receipt was lost.
    pub duplicates: u64,
    /// Publishes of `publish_nowait` that were refused, by their number: none of them is stored.
    pub refused: Vec<(u64, super::Refusal)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts() {
        let receipt = |rest: &str, is_batch: bool| Receipt::parse(rest, is_batch);
        let want = Receipt {
            id: 7,
            count: 1,
            level: Level::Disk,
            is_duplicate: false,
        };
        assert_eq!(receipt("7 disk", false), Some(want));
        let want = Receipt {
            id: 7,
            count: 3,
            level: Level::None,
            is_duplicate: true,
        };
        assert_eq!(receipt("7 3 mem dup=1", true), Some(want));
        assert_eq!(receipt("7", false), None);
        assert_eq!(receipt("7 paper", false), None);
    }

    #[test]
    fn a_message_tells_about_itself() {
        let field = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
        let mut message = Message {
            source: "jobs".to_owned(),
            handle: Some("1.42.7".to_owned()),
            fields: vec![field("try", "3"), field("ts", "9"), field("h.a", "b")],
            body: b"x".to_vec(),
        };
        assert_eq!((message.id(), message.tries()), (Some(42), 3));
        assert_eq!(message.published_ms(), Some(9));
        assert_eq!(message.header("a"), Some(b"b".as_slice()));
        assert_eq!((message.header("b"), message.key()), (None, None));
        message.handle = None;
        message.fields = vec![field("id", "5")];
        assert_eq!((message.id(), message.tries()), (Some(5), 1));
    }
}
