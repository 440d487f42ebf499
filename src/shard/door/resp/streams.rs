//! Streams: a stream is a queue that retains, its groups are the queue's groups, and the id of an entry is the
//! time of its publish and the message's id.
//! The field `body` of an entry is the message's body, the others are its headers.

use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::encode;
use super::lists::integer;
use super::reading::Asked;
use crate::broker::command::{Body, From, PublishOptions, TimeSpec, Typed};
use crate::broker::headers::{self, Value};
use crate::broker::id::{Level, MessageId};
use crate::broker::queue::QueueKey;
use crate::broker::reply::{Delivery, Error, ErrorCode};
use crate::log::disk::Storage;
use crate::log::{SectionKind, Sections};
use crate::protocol::resp::encode::Version;
use crate::protocol::text::encode::is_escaped;
use crate::protocol::text::value;

pub(super) const COUNT_DEFAULT: u32 = 1000;
/// Entries that one `XADD` trims at most, and one `XAUTOCLAIM` looks at.
pub(super) const PIECE: usize = 1000;
/// The fields beside `body`, bytes as they are passed on.
const FIELDS_BYTES_MAX: usize = 48 << 10;
/// The field that is the message's body.
const BODY: &[u8] = b"body";

/// The id of an entry: publish time in milliseconds, and the message's.
type Id = (u64, MessageId);

/// Names and values.
type Fields = Vec<(Box<[u8]>, Box<[u8]>)>;

/// An entry with its fields.
#[derive(Debug)]
pub(super) struct Entry {
    /// The stream's name; empty where there is only one.
    key: Box<[u8]>,
    pub(super) id: Id,
    fields: Fields,
}

impl Entry {
    /// What a delivery brings.
    pub(super) fn of(delivery: &Delivery<'_>) -> Entry {
        let mut scratch = Vec::new();
        // A group's queue is named before the slash, which no name holds as it is.
        let source = delivery.source.split(|octet| *octet == b'/').next();
        let key = Typed(source.unwrap_or_default()).decoded(&mut scratch);
        Entry {
            key: key.into(),
            id: (delivery.timestamp_ms.unwrap_or(0), delivery.id),
            fields: fields(delivery.headers, delivery.body.as_slice()),
        }
    }
}

/// The fields of a message.
fn fields(table: &[u8], body: &[u8]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in headers::entries(table) {
        let text: Box<[u8]> = match value {
            Value::Text(text) => text.into(),
            Value::Bool(value) => value.to_string().into_bytes().into(),
            Value::Signed(value) => value.to_string().into_bytes().into(),
            Value::Unsigned(value) => value.to_string().into_bytes().into(),
            Value::Float(value) => value.to_string().into_bytes().into(),
            Value::Void | Value::Other(_) => continue,
        };
        fields.push((name.into(), text));
    }
    if !body.is_empty() || fields.is_empty() {
        fields.push((BODY.into(), body.into()));
    }
    fields
}

pub(super) fn write_id(out: &mut Vec<u8>, (ms, id): Id) {
    encode::bulk(out, format!("{ms}-{id}").as_bytes());
}

pub(super) fn write_entry(out: &mut Vec<u8>, entry: &Entry) {
    encode::array(out, 2);
    write_id(out, entry.id);
    encode::array(out, entry.fields.len() * 2);
    for (name, value) in &entry.fields {
        encode::bulk(out, name);
        encode::bulk(out, value);
    }
}

/// Streams in the order they were asked for: with what is pending wherever that was asked for, and with what is new
/// where there is something: these entries, which are in the same order. Nothing if there is no stream.
pub(super) fn write_streams(out: &mut Vec<u8>, version: Version, asked: &[Asked], new: &[Entry]) {
    let mut left = new;
    let mut streams = Vec::new();
    for asked in asked {
        let entries = match &asked.pending {
            Some(pending) => &pending[..],
            None => {
                let own = left.iter().take_while(|entry| entry.key == asked.key);
                let (own, rest) = left.split_at(own.count());
                left = rest;
                own
            }
        };
        if asked.pending.is_some() || !entries.is_empty() {
            streams.push((&asked.key, entries));
        }
    }
    if streams.is_empty() {
        return encode::nil_array(out, version);
    }
    match version {
        Version::Two => encode::array(out, streams.len()),
        Version::Three => encode::map(out, version, streams.len()),
    }
    for (key, entries) in streams {
        if version == Version::Two {
            encode::array(out, 2);
        }
        encode::bulk(out, key);
        encode::array(out, entries.len());
        entries.iter().for_each(|entry| write_entry(out, entry));
    }
}

/// `ms-id`, or `ms` alone with `rest` for the id.
pub(super) fn parse_id(word: &[u8], rest: MessageId) -> Option<Id> {
    match memchr::memchr(b'-', word) {
        Some(at) => Some((
            value::decimal(&word[..at])?,
            value::decimal(&word[at + 1..])?,
        )),
        None => Some((value::decimal(word)?, rest)),
    }
}

pub(super) const BAD_ID: &str = "Invalid stream ID specified as stream command argument";

impl<S: Storage> Shard<S> {
    /// An entry of a stream; `None` while it must be read from the disk, which was asked for. Without fields
    /// if it is gone or damaged.
    fn read_entry(&mut self, store: QueueKey, id: MessageId) -> Option<Entry> {
        let empty = Entry {
            key: Box::default(),
            id: (0, id),
            fields: Vec::new(),
        };
        if !self.engine.queue(store).index.is_live(id) {
            return Some(empty);
        }
        let (place, _) = self.engine.locate(store, id)?;
        match self.engine.stored(store, place) {
            None => {
                self.engine.fetch(place);
                None
            }
            Some(Err(_)) => Some(empty),
            Some(Ok(message)) => {
                let table = Sections(message.sections).get(SectionKind::Headers);
                Some(Entry {
                    id: (message.time_ms, id),
                    fields: fields(table.unwrap_or_default(), message.body.as_slice()),
                    ..empty
                })
            }
        }
    }

    /// The same of several; `None` if the command comes again.
    pub(super) fn read_entries(
        &mut self,
        slot: usize,
        store: QueueKey,
        ids: impl Iterator<Item = MessageId>,
    ) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut is_cold = false;
        for id in ids {
            match self.read_entry(store, id) {
                Some(entry) => entries.push(entry),
                None => is_cold = true,
            }
        }
        if is_cold {
            self.block_cold(slot);
            return None;
        }
        Some(entries)
    }

    /// `XADD`
    pub(super) fn xadd(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let mut rest = &words[2..];
        let (mut must_exist, mut length_max) = (false, None);
        loop {
            rest = match rest {
                [word, more @ ..] if word.eq_ignore_ascii_case(b"NOMKSTREAM") => {
                    must_exist = true;
                    more
                }
                [word, more @ ..] if word.eq_ignore_ascii_case(b"MAXLEN") => {
                    let more = match more {
                        [b"~" | b"=", more @ ..] => more,
                        more => more,
                    };
                    let Some((Some(number), more)) =
                        more.split_first().map(|(word, more)| (integer(word), more))
                    else {
                        return self.say_err(slot, "value is not an integer or out of range");
                    };
                    length_max = Some(u64::try_from(number).unwrap_or(0));
                    match more {
                        [word, _, more @ ..] if word.eq_ignore_ascii_case(b"LIMIT") => more,
                        more => more,
                    }
                }
                _ => break,
            };
        }
        let [id, pairs @ ..] = rest else {
            return self.say_err(slot, "syntax error");
        };
        if *id != b"*" {
            let text = "an entry's id is the broker's: XADD takes * only, and MAXLEN and NOMKSTREAM before it";
            return self.say_err(slot, text);
        }
        if pairs.is_empty() || pairs.len() % 2 != 0 {
            let text = "wrong number of arguments for 'xadd' command";
            return self.say_err(slot, text);
        }
        let (mut body, mut args) = (None, Vec::new());
        for pair in pairs.chunks(2) {
            let (name, value) = (pair[0], pair[1]);
            if name == BODY && body.is_none() {
                body = Some(value);
                continue;
            }
            let is_odd = |octet: &u8| matches!(octet, b' ' | b'=');
            if name.is_empty() || name.len() > headers::NAME_BYTES_MAX || name.iter().any(is_odd) {
                let text = "the name of a field has 1 to 255 octets, no space and no =";
                return self.say_err(slot, text);
            }
            args.extend_from_slice(b" h.");
            args.extend_from_slice(name);
            args.push(b'=');
            for octet in value {
                match is_escaped(*octet) {
                    true => args.extend_from_slice(format!("%{octet:02X}").as_bytes()),
                    false => args.push(*octet),
                }
            }
        }
        if args.len() > FIELDS_BYTES_MAX {
            let text = "the fields have at most 48 KiB; what is larger goes into the field body";
            return self.say_error(slot, &Error::new(ErrorCode::TooBig, text));
        }
        let key = match self.open_stream(slot, words[1], must_exist, now) {
            Ok(Some(key)) => key,
            Ok(None) => return self.say_in(slot, encode::nil),
            Err(flow) => return flow,
        };
        let options = PublishOptions {
            args: &args,
            is_plain: args.is_empty(),
            ..PublishOptions::default()
        };
        let body = body.unwrap_or_default();
        let one = std::iter::once(Body::Borrowed(body));
        let outcome = self
            .engine
            .publish(key, &options, one, 1, body.len() as u64, now);
        match outcome {
            Ok(receipt) => {
                self.note_published(slot, key, &receipt);
                if let Some(length_max) = length_max {
                    self.trim_stream(key, length_max, now);
                }
                self.say(slot, |out| write_id(out, (now.us / 1000, receipt.first)))
            }
            Err(refused) => self.not_published(slot, refused),
        }
    }

    /// The stream of that name, made if it may be; `None` if it is not there.
    pub(super) fn open_stream(
        &mut self,
        slot: usize,
        name: &[u8],
        must_exist: bool,
        now: Now,
    ) -> Result<Option<QueueKey>, Flow> {
        if self.is_draining() {
            let error = super::super::super::drain::draining();
            return Err(self.say_error(slot, &error));
        }
        if must_exist && self.list(name).is_none_or(|key| !self.is_stream(key)) {
            return Ok(None);
        }
        let key = match self.list_or_new(slot, name) {
            Ok(key) => key,
            Err(error) => return Err(self.say_error(slot, &error)),
        };
        if self.is_stream(key) {
            return Ok(Some(key));
        }
        if self.engine.queue(key).index.live() > 0 {
            return Err(self.say_wrong_type(slot));
        }
        // What was acked stays until it is deleted or trimmed.
        let queue = self.engine.queue_mut(key);
        let before = queue.settings.clone();
        queue.settings.retain.bytes = Some(u64::MAX - 1);
        self.engine.settings_changed(key, &before, now.us);
        self.engine.log_definition(key);
        Ok(Some(key))
    }

    /// Deletes the oldest entries that nobody has pending, a bounded number.
    fn trim_stream(&mut self, key: QueueKey, length_max: u64, now: Now) {
        let mut from = 0;
        for _ in 0..PIECE {
            let index = &self.engine.queue(key).index;
            if index.live() <= length_max {
                return;
            }
            let Some(id) = index.next_live(from) else {
                return;
            };
            // What lies on the disk goes with a later XADD.
            if self.engine.delete_stored(key, id, now).is_err() {
                return;
            }
            from = id + 1;
        }
    }

    /// `XLEN`
    pub(super) fn xlen(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let count = match self.list(words[1]) {
            Some(key) if self.is_stream(key) => self.engine.queue(key).index.live(),
            Some(key) if self.length(key) > 0 => return self.say_wrong_type(slot),
            _ => 0,
        };
        self.say(slot, |out| encode::integer(out, count))
    }

    /// `XRANGE`
    pub(super) fn xrange(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let count = match words.get(4..) {
            Some([word, count]) if word.eq_ignore_ascii_case(b"COUNT") => integer(count),
            Some([]) | None => Some(i64::from(COUNT_DEFAULT)),
            Some(_) => None,
        };
        let Some(count) = count else {
            return self.say_err(slot, "syntax error");
        };
        let bound = |word: &[u8], rest| match word {
            b"-" => Some(((0, 0), false)),
            b"+" => Some(((u64::MAX, u64::MAX), false)),
            [b'(', word @ ..] => Some((parse_id(word, rest)?, true)),
            word => Some((parse_id(word, rest)?, false)),
        };
        let (Some((least, over)), Some((most, under))) =
            (bound(words[2], 0), bound(words[3], u64::MAX))
        else {
            return self.say_err(slot, BAD_ID);
        };
        let Some(key) = self.list(words[1]).filter(|key| self.is_stream(*key)) else {
            return self.say(slot, |out| encode::array(out, 0));
        };
        let start = From::At(TimeSpec::UnixUs(least.0.saturating_mul(1000)));
        let Ok(mut from) = self.engine.find_start(key, start, now) else {
            self.block_cold(slot);
            return Flow::Again;
        };
        let count = usize::try_from(count).unwrap_or(0);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < count.min(PIECE) && bytes < self.limits.batch_bytes_max {
            let queue = self.engine.queue(key);
            let next = queue.index.next_live(from);
            let Some(id) = next.filter(|id| *id < queue.visible()) else {
                break;
            };
            from = id + 1;
            let Some(entry) = self.read_entry(key, id) else {
                self.block_cold(slot);
                return Flow::Again;
            };
            if entry.fields.is_empty() || entry.id < least || (over && entry.id == least) {
                continue;
            }
            if entry.id > most || (under && entry.id == most) {
                break;
            }
            bytes += entry
                .fields
                .iter()
                .map(|(_, value)| value.len())
                .sum::<usize>();
            entries.push(entry);
        }
        self.say(slot, |out| {
            encode::array(out, entries.len());
            entries.iter().for_each(|entry| write_entry(out, entry));
        })
    }

    /// `XDEL`
    pub(super) fn xdel(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let Some(ids) = parse_ids(&words[2..]) else {
            return self.say_err(slot, BAD_ID);
        };
        let Some(key) = self.list(words[1]).filter(|key| self.is_stream(*key)) else {
            return self.say(slot, |out| encode::integer(out, 0));
        };
        // The time in an id must be the entry's.
        let numbers = ids.iter().map(|(_, id)| *id);
        let Some(entries) = self.read_entries(slot, key, numbers) else {
            return Flow::Again;
        };
        let mut count = 0;
        for (entry, wanted) in entries.iter().zip(&ids) {
            if entry.id != *wanted {
                continue;
            }
            match self.engine.delete_stored(key, entry.id.1, now) {
                Ok(is_gone) => count += u64::from(is_gone),
                Err(_) => {
                    self.block_cold(slot);
                    return Flow::Again;
                }
            }
        }
        let level = self.engine.queue(key).settings.durable;
        self.gate_resp(slot, if count > 0 { level } else { Level::None });
        self.say(slot, |out| encode::integer(out, count))
    }

    /// What is written next waits until all that was logged has reached that level.
    pub(super) fn gate_resp(&mut self, slot: usize, level: Level) {
        let need = self.engine.need(level);
        self.wait_for(slot, need);
    }
}

/// Ids as `XACK` and `XDEL` take them.
pub(super) fn parse_ids(words: &[&[u8]]) -> Option<Vec<Id>> {
    words.iter().map(|word| parse_id(word, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_time_and_a_number() {
        assert_eq!(parse_id(b"12-3", 9), Some((12, 3)));
        assert_eq!(parse_id(b"12", 9), Some((12, 9)));
        for bad in [
            "",
            "-",
            "x",
            "1-",
            "-1",
            "1-2-3",
            "1-x",
            "99999999999999999999999-1",
        ] {
            assert_eq!(parse_id(bad.as_bytes(), 0), None, "{bad}");
        }
    }

    #[test]
    fn the_body_is_a_field_and_headers_are_the_others() {
        let mut table = Vec::new();
        headers::push_text(&mut table, b"a", b"1");
        let shown = |table: &[u8], body: &[u8]| -> Vec<String> {
            let fields = fields(table, body);
            let shown = fields.iter().map(|(name, value)| {
                format!(
                    "{}={}",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                )
            });
            shown.collect()
        };
        assert_eq!(shown(&table, b""), ["a=1"]);
        assert_eq!(shown(&table, b"x"), ["a=1", "body=x"]);
        assert_eq!(shown(b"", b""), ["body="]);
    }
}
