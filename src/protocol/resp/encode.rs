//! Replies to bytes, in the version that the client has asked for.

use crate::protocol::text::encode::number;

/// Which version of the protocol a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// What every client speaks.
    #[default]
    Two,
    /// Asked for with `HELLO 3`: maps, pushes, one kind of nothing.
    Three,
}

/// `+OK`
pub const OK: &[u8] = b"+OK\r\n";

/// A short text without line ends.
pub fn simple(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'+');
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// An error: its word, then a sentence. Line ends become spaces.
pub fn error(out: &mut Vec<u8>, word: &str, text: &str) {
    out.push(b'-');
    out.extend_from_slice(word.as_bytes());
    out.push(b' ');
    let text = text.bytes();
    out.extend(text.map(|octet| if octet < b' ' { b' ' } else { octet }));
    out.extend_from_slice(b"\r\n");
}

/// A number.
pub fn integer(out: &mut Vec<u8>, value: u64) {
    out.push(b':');
    number(out, value);
    out.extend_from_slice(b"\r\n");
}

/// Octets of any kind.
pub fn bulk(out: &mut Vec<u8>, octets: &[u8]) {
    bulk_head(out, octets.len());
    out.extend_from_slice(octets);
    out.extend_from_slice(b"\r\n");
}

/// What stands before so many octets; they and a line end follow.
pub fn bulk_head(out: &mut Vec<u8>, length: usize) {
    out.push(b'$');
    number(out, length as u64);
    out.extend_from_slice(b"\r\n");
}

/// So many values follow.
pub fn array(out: &mut Vec<u8>, count: usize) {
    head(out, b'*', count);
}

/// So many pairs of values follow; in version 2 they are one array.
pub fn map(out: &mut Vec<u8>, version: Version, pairs: usize) {
    match version {
        Version::Two => head(out, b'*', pairs * 2),
        Version::Three => head(out, b'%', pairs),
    }
}

/// So many values follow that answer nothing; in version 2 an array.
pub fn push(out: &mut Vec<u8>, version: Version, count: usize) {
    match version {
        Version::Two => head(out, b'*', count),
        Version::Three => head(out, b'>', count),
    }
}

fn head(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    number(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

/// No octets.
pub fn nil(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(match version {
        Version::Two => b"$-1\r\n",
        Version::Three => b"_\r\n",
    });
}

/// No values.
pub fn nil_array(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(match version {
        Version::Two => b"*-1\r\n",
        Version::Three => b"_\r\n",
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value() {
        let mut out = Vec::new();
        simple(&mut out, b"PONG");
        error(&mut out, "ERR", "no\r\nway");
        integer(&mut out, 12);
        bulk(&mut out, b"a\r\nb");
        array(&mut out, 2);
        for version in [Version::Two, Version::Three] {
            map(&mut out, version, 1);
            push(&mut out, version, 3);
            nil(&mut out, version);
            nil_array(&mut out, version);
        }
        let want = "+PONG\r\n-ERR no  way\r\n:12\r\n$4\r\na\r\nb\r\n*2\r\n\
                    *2\r\n*3\r\n$-1\r\n*-1\r\n%1\r\n>3\r\n_\r\n_\r\n";
        assert_eq!(String::from_utf8_lossy(&out), want);
    }
}
