//! After the disk has failed: what clients who wait for a receipt are told.

use crate::broker::reply::{Error, ErrorCode};
use crate::protocol::text::encode;

/// Rewrites output that waited for the log: every success line becomes `ERR UNKNOWNRESULT`, with its tag;
/// messages behind it are left out, they will be delivered after the restart.
pub(super) fn unknown_results(out: &mut Vec<u8>, gated: &[u8]) {
    let error = Error::new(
        ErrorCode::UnknownResult,
        "the disk failed before this was safe; it may or may not be there after the restart",
    );
    let mut rest = gated;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let mut words = line.split(|octet| *octet == b' ');
        let kind = words.next().unwrap_or_default();
        let tag = words.next().and_then(|word| word.strip_prefix(b"@"));
        match kind {
            b"OK" | b"END" => encode::error(out, tag, &error),
            b"MSG" | b"DATA" => {
                let size = line
                    .rsplit(|octet| *octet == b'$')
                    .next()
                    .unwrap_or_default();
                let size: usize = std::str::from_utf8(size)
                    .ok()
                    .and_then(|size| size.parse().ok())
                    .unwrap_or(0);
                if kind == b"DATA" {
                    encode::error(out, tag, &error);
                }
                rest = rest.get(size + 1..).unwrap_or_default();
            }
            b"EXPIRED" | b"LAG" => {}
            _ => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_still_gets_one_answer() {
        let gated = b"OK 1 disk\nOK @7 2 disk\nMSG q 1.1.1 $3\nOK\n\nEND 1\nERR SYNTAX :x\nPONG\nDATA $2\nhi\n";
        let mut out = Vec::new();
        unknown_results(&mut out, gated);
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
                "PONG",
                unknown
            ]
        );
    }
}
