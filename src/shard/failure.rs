//! What clients are told of results that nobody knows.

use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::protocol::text::encode;

/// Why a result is unknown when the log has failed.
pub(super) const DISK_FAILED: &str =
    "the disk failed before this was safe; it may or may not be there after the restart";
/// Why it is when the filesystem has taken back the space of a segment.
pub(super) const NO_SPACE: &str =
    "the disk has no space to make this safe; it may or may not be there when it has";

/// Rewrites output that waited for a log which has failed: every success line becomes
/// `ERR UNKNOWNRESULT`, with its tag; messages behind it are left out, they are delivered again
/// after the restart.
pub(super) fn answer_failed(out: &mut Vec<u8>, gated: &[u8]) {
    let error = Error::new(ErrorCode::UnknownResult, DISK_FAILED);
    for item in Items(gated) {
        match item.kind {
            // A subscription that has ended has ended.
            b"END" if item.is_gone() => out.extend_from_slice(item.whole),
            b"OK" | b"END" | b"DATA" => encode::error(out, item.tag, &error),
            b"MSG" | b"EXPIRED" | b"LAG" => {}
            _ => out.extend_from_slice(item.whole),
        }
    }
}

/// Rewrites output that waited for a log without space: what was to be safe gets
/// `ERR UNKNOWNRESULT`, with its tag. Messages leave, but for those that are settled by being sent,
/// whose settling is not safe either; their `END` counts the others.
pub(super) fn answer_stalled(out: &mut Vec<u8>, gated: &[u8]) {
    let error = Error::new(ErrorCode::UnknownResult, NO_SPACE);
    let mut left_out: Vec<(Option<&[u8]>, u64)> = Vec::new();
    for item in Items(gated) {
        match item.kind {
            b"OK" => encode::error(out, item.tag, &error),
            b"MSG" if item.is_settled_by_sending() => {
                match left_out.iter_mut().find(|(tag, _)| *tag == item.tag) {
                    Some((_, count)) => *count += 1,
                    None => left_out.push((item.tag, 1)),
                }
            }
            b"END" if !item.is_gone() => {
                let found = left_out.iter().position(|(tag, _)| *tag == item.tag);
                let less = found.map_or(0, |found| left_out.swap_remove(found).1);
                let count = item.words().next().and_then(number).unwrap_or(0);
                let reply = Reply::End {
                    count: count.saturating_sub(less),
                };
                encode::reply(out, item.tag, &reply);
            }
            _ => out.extend_from_slice(item.whole),
        }
    }
}

/// A line of output, with the body that belongs to it.
struct Item<'a> {
    kind: &'a [u8],
    tag: Option<&'a [u8]>,
    line: &'a [u8],
    /// Line and body with their line ends.
    whole: &'a [u8],
}

impl<'a> Item<'a> {
    /// It is a stored message without a lease; live messages and answers have no id.
    fn is_settled_by_sending(&self) -> bool {
        let mut words = self.words().skip(1);
        words.next() == Some(b"-") && words.next().is_some_and(|word| word.starts_with(b"id="))
    }

    /// It says that a subscription has ended by itself, and answers nothing.
    fn is_gone(&self) -> bool {
        self.words().any(|word| word.starts_with(b"gone="))
    }

    /// The words behind kind and tag.
    fn words(&self) -> impl Iterator<Item = &'a [u8]> {
        let words = self.line.split(|octet| *octet == b' ');
        words.skip(1 + usize::from(self.tag.is_some()))
    }
}

/// Output, item by item.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let end = memchr::memchr(b'\n', self.0)?;
        let line = &self.0[..end];
        let mut words = line.split(|octet| *octet == b' ');
        let kind = words.next().unwrap_or_default();
        let tag = words.next().and_then(|word| word.strip_prefix(b"@"));
        let body = match kind {
            b"MSG" | b"DATA" => {
                let size = line.rsplit(|octet| *octet == b'$').next();
                size.and_then(number).unwrap_or(0) as usize + 1
            }
            _ => 0,
        };
        let (whole, rest) = self.0.split_at((end + 1 + body).min(self.0.len()));
        self.0 = rest;
        Some(Item {
            kind,
            tag,
            line,
            whole,
        })
    }
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_still_gets_one_answer() {
        let gated = b"OK 1 disk\nOK @7 2 disk\nMSG q 1.1.1 $3\nOK\n\nEND 1\nERR SYNTAX :x\nEND @8 q gone=drain\nPONG\nDATA $2\nhi\n";
        let mut out = Vec::new();
        answer_failed(&mut out, gated);
        let text = String::from_utf8(out).expect("it is text");
        let kinds: Vec<&str> = text
            .lines()
            .map(|line| line.split(" :").next().unwrap_or_default())
            .collect();
        let unknown = "ERR UNKNOWNRESULT";
        assert_eq!(
            kinds,
            [
                unknown,
                "ERR @7 UNKNOWNRESULT",
                unknown,
                "ERR SYNTAX",
                "END @8 q gone=drain",
                "PONG",
                unknown
            ]
        );
    }
    #[test]
    fn without_space_messages_leave_and_only_what_was_to_be_safe_is_unknown() {
        let gated = b"OK 1 disk\nMSG @7 q 1.1.1 $3\nOK\n\nMSG @7 q - id=2 $1\n-\nMSG @8 q - id=3 $0\n\nEND @7 2\nEND @8 1\nEND q gone=drain\nEND 5\nDATA $2\nhi\nPONG\n";
        let mut out = Vec::new();
        answer_stalled(&mut out, gated);
        let text = String::from_utf8(out).expect("it is text");
        let (first, rest) = text.split_once('\n').expect("lines");
        assert!(first.starts_with("ERR UNKNOWNRESULT :"), "{first}");
        assert_eq!(
            rest,
            "MSG @7 q 1.1.1 $3\nOK\n\nEND @7 1\nEND @8 0\nEND q gone=drain\nEND 5\nDATA $2\nhi\nPONG\n"
        );
    }
}
