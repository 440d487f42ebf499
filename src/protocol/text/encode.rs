//! Replies to bytes. Appends to the connection's output and never looks at what was there.
//!
//! Every line begins with one of `OK ERR MSG END PONG DATA LAG EXPIRED`, ends with a single LF,
//! and holds at most [`SENT_LINE_BYTES_MAX`] bytes: what peers chose the length of was bounded when
//! it was decoded, and headers that do not fit are left out.

use crate::broker::headers::{self, Value};
use crate::broker::id::{Handle, Level, MessageId};
use crate::broker::reply::{Delivery, Error, Payload, Reply};
use crate::buffer::send::{Pool, SendRing};

use super::digits::count_up;
use super::value::NAME_OCTET;
use super::{IN_PLACE_BYTES_MAX, SENT_LINE_BYTES_MAX};

/// Why a subscription ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Its queue or group was deleted.
    Deleted,
    /// The broker is going down.
    Drain,
}

/// Longest error text, bytes; longer ones are cut.
const ERROR_TEXT_BYTES_MAX: usize = 1 << 10;

/// Bytes kept free in a `MSG` line for the size of its body and the line end.
const TAIL_BYTES: usize = 32;

/// One answer.
pub fn reply(out: &mut Vec<u8>, tag: Option<&[u8]>, reply: &Reply<'_>) {
    match reply {
        Reply::Ok => kind(out, b"OK", tag),
        Reply::Word(word) => {
            kind(out, b"OK", tag);
            field(out, word.as_bytes());
        }
        Reply::Receipt {
            id,
            level,
            duplicate,
        } => {
            kind(out, b"OK", tag);
            number_field(out, b"", *id);
            field(out, level.receipt().as_bytes());
            if *duplicate {
                field(out, b"dup=1");
            }
        }
        Reply::BatchReceipt {
            first,
            count,
            level,
            duplicate,
        } => {
            kind(out, b"OK", tag);
            number_field(out, b"", *first);
            number_field(out, b"", u64::from(*count));
            field(out, level.receipt().as_bytes());
            if *duplicate {
                field(out, b"dup=1");
            }
        }
        Reply::Cast {
            receivers,
            level,
            refused,
        } => {
            kind(out, b"OK", tag);
            number_field(out, b"", *receivers);
            field(out, level.receipt().as_bytes());
            if *refused > 0 {
                number_field(out, b"refused=", *refused);
            }
        }
        Reply::Count { count, stale } => {
            kind(out, b"OK", tag);
            number_field(out, b"", *count);
            stale_field(out, stale);
        }
        Reply::QuietStale { count, stale } => {
            kind(out, b"ERR", tag);
            field(out, b"STALE");
            number_field(out, b"done=", *count);
            stale_field(out, stale);
            out.extend_from_slice(b" :these are no live leases (any more)");
        }
        Reply::End { count } => {
            kind(out, b"END", tag);
            number_field(out, b"", *count);
        }
        Reply::Pong(text) => {
            kind(out, b"PONG", tag);
            if let Some(text) = text {
                out.extend_from_slice(b" :");
                out.extend_from_slice(text);
            }
        }
        Reply::Data(data) => {
            kind(out, b"DATA", tag);
            number_field(out, b"$", data.len() as u64);
            out.push(b'\n');
            out.extend_from_slice(data);
        }
        Reply::Hello { .. } => hello(out, tag, reply),
        Reply::Synced {
            accepted,
            rejected,
            level,
        } => {
            kind(out, b"OK", tag);
            number_field(out, b"accepted=", *accepted);
            number_field(out, b"rejected=", *rejected);
            field(out, level.receipt().as_bytes());
        }
        Reply::Error(error) => return self::error(out, tag, error),
    }
    out.push(b'\n');
}

/// `OK <id> <level>`, the answer to most publishes.
#[inline]
pub fn receipt(out: &mut Vec<u8>, id: MessageId, level: Level) {
    out.extend_from_slice(b"OK ");
    number(out, id);
    out.extend_from_slice(receipt_end(level));
}

#[inline]
fn receipt_end(level: Level) -> &'static [u8] {
    match level {
        Level::None => b" mem\n",
        Level::Os => b" os\n",
        Level::Disk => b" disk\n",
        Level::Quorum => b" quorum\n",
    }
}

/// The answer to an ack of one live delivery.
pub const ACKED: &[u8] = b"OK 1\n";

/// The receipts of messages with consecutive ids: [`receipt`], with the number counted in its digits.
#[derive(Debug)]
pub struct Receipts {
    line: [u8; Receipts::BYTES_MAX],
    /// Where the number's last digit stands, and where the line ends.
    last: usize,
    end: usize,
}

impl Receipts {
    /// A receipt is never longer.
    pub const BYTES_MAX: usize = 32;

    /// Begins with that id.
    pub fn new(first: MessageId, level: Level) -> Receipts {
        let mut line = [0; Receipts::BYTES_MAX];
        let mut digits = itoa::Buffer::new();
        let id = digits.format(first).as_bytes();
        let mut end = 0;
        for part in [b"OK ", id, receipt_end(level)] {
            line[end..][..part.len()].copy_from_slice(part);
            end += part.len();
        }
        let last = end - receipt_end(level).len() - 1;
        Receipts { line, last, end }
    }

    /// The next receipt.
    #[inline]
    pub fn write(&mut self, out: &mut Vec<u8>) {
        // All of the line, for a copy of a known length takes no call, without what is behind its end.
        let end = out.len() + self.end;
        out.extend_from_slice(&self.line);
        out.truncate(end);
        if !count_up(&mut self.line, self.last) {
            // One digit more, all of them 0 behind the first.
            self.line.copy_within(self.last..self.end, self.last + 1);
            self.line[b"OK ".len()] = b'1';
            self.last += 1;
            self.end += 1;
        }
    }
}

/// Messages of one queue to one consumer, one after another, without anything but their bodies: [`message`],
/// with what changes from one to the next counted in its digits.
#[derive(Debug)]
pub struct Plain {
    line: [u8; Plain::LINE_BYTES],
    /// Where the id's last digit stands, the serial's, and the end of the line.
    id_at: usize,
    serial_at: usize,
    end: usize,
    /// Length of what is the same for all.
    fixed: usize,
    /// What the line says.
    id: MessageId,
    serial: u64,
    size: usize,
}

impl Plain {
    const LINE_BYTES: usize = 128;
    /// Longest beginning of the line: two numbers, the size and what is between them fit behind it.
    const FIXED_BYTES_MAX: usize = Plain::LINE_BYTES - 56;

    /// Of that queue, by its printed name; `None` if the line is longer than those are for which this is made.
    #[inline]
    pub fn new(tag: &[u8], source: &[u8], incarnation: u64) -> Option<Plain> {
        let mut line = [0; Plain::LINE_BYTES];
        let mut digits = itoa::Buffer::new();
        let incarnation = digits.format(incarnation).as_bytes();
        let at: &[u8] = if tag.is_empty() { b"" } else { b" @" };
        let parts = [b"MSG", at, tag, b" ", source, b" ", incarnation, b"."];
        let mut fixed = 0;
        for part in parts {
            if fixed + part.len() > Plain::FIXED_BYTES_MAX {
                return None;
            }
            line[fixed..fixed + part.len()].copy_from_slice(part);
            fixed += part.len();
        }
        Some(Plain {
            line,
            id_at: 0,
            serial_at: 0,
            end: 0,
            fixed,
            id: 0,
            serial: 0,
            size: 0,
        })
    }

    /// Appends the message.
    #[inline]
    pub fn write(&mut self, out: &mut Vec<u8>, id: MessageId, serial: u64, body: &[u8]) {
        let follows = self.id + 1 == id && self.serial + 1 == serial && self.size == body.len();
        if !(follows && count_up(&mut self.line, self.id_at) && {
            count_up(&mut self.line, self.serial_at)
        }) {
            self.spell(id, serial, body.len());
        }
        (self.id, self.serial, self.size) = (id, serial, body.len());
        out.reserve(Plain::LINE_BYTES + body.len() + 1);
        let start = out.len();
        // More than the line, and back again: copies of a known length take a few moves each.
        if self.end <= Plain::LINE_BYTES / 2 {
            out.extend_from_slice(&self.line[..Plain::LINE_BYTES / 2]);
        } else {
            out.extend_from_slice(&self.line);
        }
        out.truncate(start + self.end);
        out.extend_from_slice(body);
        out.push(b'\n');
    }

    /// Writes the line's end anew.
    #[inline(never)]
    fn spell(&mut self, id: MessageId, serial: u64, size: usize) {
        let mut at = self.fixed;
        let mut put = |part: &[u8]| {
            self.line[at..at + part.len()].copy_from_slice(part);
            at += part.len();
            at
        };
        let mut digits = itoa::Buffer::new();
        self.id_at = put(digits.format(id).as_bytes()) - 1;
        put(b".");
        self.serial_at = put(digits.format(serial).as_bytes()) - 1;
        put(b" $");
        put(digits.format(size).as_bytes());
        self.end = put(b"\n");
    }
}

/// One message. A large body that is shared is referenced by the ring, any other is copied.
#[inline]
pub fn message(ring: &mut SendRing, pool: &mut Pool, tag: Option<&[u8]>, delivery: &Delivery<'_>) {
    let body = delivery.body.as_slice();
    let referenced = match &delivery.body {
        Payload::Shared(bytes) if bytes.len() >= IN_PLACE_BYTES_MAX => Some(bytes),
        _ => None,
    };
    let out = ring.writer(pool);
    let copied = if referenced.is_some() { 0 } else { body.len() };
    out.reserve(copied + delivery.source.len() + 128);
    message_line(out, tag, delivery, body.len());
    match referenced {
        Some(bytes) => {
            ring.share(bytes.clone());
            ring.writer(pool).push(b'\n');
        }
        None => {
            out.extend_from_slice(body);
            out.push(b'\n');
        }
    }
}

/// One message whose body is copied, whoever owns it.
pub fn copied_message(out: &mut Vec<u8>, tag: Option<&[u8]>, delivery: &Delivery<'_>) {
    let body = delivery.body.as_slice();
    message_line(out, tag, delivery, body.len());
    out.extend_from_slice(body);
    out.push(b'\n');
}

/// `LAG [@tag] <pattern> dropped=<n>`: a live subscription has missed copies.
pub fn lag(out: &mut Vec<u8>, tag: Option<&[u8]>, pattern: &[u8], dropped: u64) {
    kind(out, b"LAG", tag);
    field(out, pattern);
    number_field(out, b"dropped=", dropped);
    out.push(b'\n');
}

/// `MSG [@tag] <src> <handle> [id= try= ts= key= reply= h.x=] $<n>`
fn message_line(out: &mut Vec<u8>, tag: Option<&[u8]>, delivery: &Delivery<'_>, size: usize) {
    let start = out.len();
    kind(out, b"MSG", tag);
    field(out, delivery.source);
    match delivery.handle {
        Some(handle) => {
            out.push(b' ');
            self::handle(out, handle);
        }
        None => {
            out.extend_from_slice(b" -");
            if delivery.id > 0 {
                number_field(out, b"id=", delivery.id);
            }
        }
    }
    if delivery.tries > 1 {
        number_field(out, b"try=", u64::from(delivery.tries));
    }
    if let Some(timestamp_ms) = delivery.timestamp_ms {
        number_field(out, b"ts=", timestamp_ms);
    }
    let line_max = start + SENT_LINE_BYTES_MAX - TAIL_BYTES;
    if let Some(key) = delivery.key {
        text_field(out, b"key=", key, line_max);
    }
    if let Some(reply) = delivery.reply {
        text_field(out, b"reply=", reply, line_max);
    }
    if !delivery.headers.is_empty() {
        header_fields(out, delivery.headers, line_max);
    }
    number_field(out, b"$", size as u64);
    out.push(b'\n');
}

/// The headers that can be printed, as `h.<name>=<value>`.
fn header_fields(out: &mut Vec<u8>, octets: &[u8], line_max: usize) {
    for (name, value) in headers::entries(octets) {
        let before = out.len();
        out.extend_from_slice(b" h.");
        header_name(out, name);
        out.push(b'=');
        if !header_value(out, value) || out.len() > line_max {
            out.truncate(before);
        }
    }
}

/// Appends a header's value; `false` if it has no form as text.
fn header_value(out: &mut Vec<u8>, value: Value<'_>) -> bool {
    match value {
        Value::Text(octets) => escaped(out, octets),
        Value::Bool(is) => out.push(b'0' + u8::from(is)),
        Value::Signed(value) => {
            out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        }
        Value::Unsigned(value) => number(out, value),
        Value::Float(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Void => {}
        Value::Other(_) => return false,
    }
    true
}

/// `END [@tag] <src> gone=<why>`: a subscription has ended by itself.
pub fn gone(out: &mut Vec<u8>, tag: Option<&[u8]>, source: &[u8], why: Gone) {
    kind(out, b"END", tag);
    field(out, source);
    out.extend_from_slice(match why {
        Gone::Deleted => b" gone=deleted\n",
        Gone::Drain => b" gone=drain\n",
    });
}

/// `EXPIRED <handle>`: a lease was lost.
pub fn expired(out: &mut Vec<u8>, handle: Handle) {
    out.extend_from_slice(b"EXPIRED ");
    self::handle(out, handle);
    out.push(b'\n');
}

/// A name as server lines print it.
pub fn typed(out: &mut Vec<u8>, octets: &[u8]) {
    for (at, octet) in octets.iter().enumerate() {
        let leads = at == 0 && matches!(octet, b':' | b'@');
        if NAME_OCTET[usize::from(*octet)] && !leads {
            out.push(*octet);
        } else {
            percent(out, *octet);
        }
    }
}

/// A handle.
#[inline]
pub fn handle(out: &mut Vec<u8>, handle: Handle) {
    number(out, handle.incarnation);
    out.push(b'.');
    number(out, handle.id);
    out.push(b'.');
    number(out, handle.serial);
}

/// A number in decimal.
#[inline]
pub fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The octet can't stand in an option's value as it is. Octets above 127 can, so that text in
/// UTF-8 stays readable.
#[inline]
pub fn is_escaped(octet: u8) -> bool {
    octet <= b' ' || octet == b'%' || octet == 0x7f
}

#[inline]
fn kind(out: &mut Vec<u8>, word: &[u8], tag: Option<&[u8]>) {
    out.extend_from_slice(word);
    if let Some(tag) = tag {
        out.extend_from_slice(b" @");
        out.extend_from_slice(tag);
    }
}

#[inline]
fn field(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b' ');
    out.extend_from_slice(text);
}

#[inline]
fn number_field(out: &mut Vec<u8>, key: &[u8], value: u64) {
    out.push(b' ');
    out.extend_from_slice(key);
    number(out, value);
}

/// A value of free text, left out if the line would get too long.
fn text_field(out: &mut Vec<u8>, key: &[u8], value: &[u8], line_max: usize) {
    let before = out.len();
    field(out, key);
    escaped(out, value);
    if out.len() > line_max {
        out.truncate(before);
    }
}

fn escaped(out: &mut Vec<u8>, value: &[u8]) {
    for octet in value {
        if is_escaped(*octet) {
            percent(out, *octet);
        } else {
            out.push(*octet);
        }
    }
}

/// A header's name: only what an option's key may hold stands for itself.
fn header_name(out: &mut Vec<u8>, name: &[u8]) {
    for octet in name {
        if octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_') {
            out.push(*octet);
        } else {
            percent(out, *octet);
        }
    }
}

fn percent(out: &mut Vec<u8>, octet: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let high = DIGITS[usize::from(octet >> 4)];
    let low = DIGITS[usize::from(octet & 15)];
    out.extend_from_slice(&[b'%', high, low]);
}

/// `stale=a,b`: tokens as typed, but for controls, which could be taken for a line end.
fn stale_field(out: &mut Vec<u8>, stale: &[u8]) {
    if !stale.is_empty() {
        out.extend_from_slice(b" stale=");
        out.extend(stale.iter().map(|octet| {
            if octet.is_ascii_control() {
                b'?'
            } else {
                *octet
            }
        }));
    }
}

fn hello(out: &mut Vec<u8>, tag: Option<&[u8]>, reply: &Reply<'_>) {
    let Reply::Hello {
        body_bytes_max,
        line_bytes_max,
        batch_count_max,
        batch_bytes_max,
        handles_max,
        node,
    } = reply
    else {
        return;
    };
    kind(out, b"OK", tag);
    field(
        out,
        concat!("proto=1 server=ringmq/", env!("CARGO_PKG_VERSION")).as_bytes(),
    );
    number_field(out, b"max_body=", *body_bytes_max);
    number_field(out, b"max_line=", *line_bytes_max);
    number_field(out, b"max_batch=", *batch_count_max);
    number_field(out, b"max_batch_bytes=", *batch_bytes_max);
    number_field(out, b"max_handles=", *handles_max);
    out.extend_from_slice(b" auth=0 node=");
    typed(out, node.as_bytes());
}

/// `ERR [@tag] CODE [retry=ms] [k=v…] :text`
pub fn error(out: &mut Vec<u8>, tag: Option<&[u8]>, error: &Error) {
    kind(out, b"ERR", tag);
    field(out, error.code.word().as_bytes());
    if let Some(retry_ms) = error.retry_ms {
        number_field(out, b"retry=", u64::from(retry_ms));
    }
    if !error.fields.is_empty() {
        out.push(b' ');
        one_line(out, &error.fields, SENT_LINE_BYTES_MAX / 2);
    }
    out.extend_from_slice(b" :");
    one_line(out, &error.text, ERROR_TEXT_BYTES_MAX);
    out.push(b'\n');
}

/// Text without anything that could end a line, cut at a character.
fn one_line(out: &mut Vec<u8>, text: &str, bytes_max: usize) {
    let start = out.len();
    for character in text.chars() {
        if out.len() - start + character.len_utf8() > bytes_max {
            return;
        }
        let shown = if character.is_control() {
            ' '
        } else {
            character
        };
        out.extend_from_slice(shown.encode_utf8(&mut [0; 4]).as_bytes());
    }
}
