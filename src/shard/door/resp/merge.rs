//! Replies of several shards to one command, as one. Pure.

use super::encode::{self, Version};

/// How the replies of several shards become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Numbers are added up.
    Sum,
    /// The same, and who refuses does not count where another has receivers.
    Receivers,
    /// Names in one order.
    Names,
    /// The same, behind the cursor.
    Scan,
    /// Texts one behind another.
    Texts,
    /// Lines of keys and values: what counts is added up.
    Info,
}

/// What a shard says whose part may or may not be done.
const UNKNOWN: &[u8] = b"-UNKNOWNRESULT";

/// What of `INFO` is of each shard.
const ADDED: [&str; 10] = [
    "connected_clients",
    "maxclients",
    "blocked_clients",
    "used_memory",
    "maxmemory",
    "total_connections_received",
    "total_commands_processed",
    "total_net_input_bytes",
    "total_net_output_bytes",
    "rejected_connections",
];

/// The same, of which a shard says more in its line.
const KEYSPACE: &str = "db0";

/// One reply of those of several shards.
pub(in super::super::super) fn merge(how: Merge, parts: &[&[u8]]) -> Vec<u8> {
    let mut errors = parts.iter().filter(|part| part.starts_with(b"-"));
    let error = errors.clone().next();
    let unknown = errors.find(|part| part.starts_with(UNKNOWN));
    let sum = || -> u64 {
        let parts = parts.iter().filter(|part| part.starts_with(b":"));
        parts.map(|part| Values(part).number()).sum()
    };
    let mut out = Vec::new();
    match (unknown, error) {
        (Some(error), _) => out.extend_from_slice(error),
        (None, Some(error)) if how != Merge::Receivers || sum() == 0 => {
            out.extend_from_slice(error);
        }
        _ => write_merged(&mut out, how, parts, sum),
    }
    out
}

/// Streams and their entries as several shards have read them, in the order asked for. Nothing if there is no stream.
pub(in super::super::super) fn merge_streams(
    version: Version,
    keys: &[Box<[u8]>],
    parts: &[Vec<u8>],
) -> Vec<u8> {
    // Name and entries, as they are written.
    let mut read: Vec<(&[u8], &[u8])> = Vec::new();
    for part in parts {
        let mut values = Values(part);
        if is_nothing(part) {
            continue;
        }
        for _ in 0..values.number() {
            if version == Version::Two {
                values.number();
            }
            let key = values.bulk();
            read.push((key, values.skip()));
        }
    }
    let mut out = Vec::new();
    match version {
        _ if read.is_empty() => encode::nil_array(&mut out, version),
        Version::Two => encode::array(&mut out, read.len()),
        Version::Three => encode::map(&mut out, version, read.len()),
    }
    for key in keys {
        // A stream may be named twice.
        let Some(at) = read.iter().position(|(name, _)| **name == **key) else {
            continue;
        };
        let (_, entries) = read.remove(at);
        if version == Version::Two {
            encode::array(&mut out, 2);
        }
        encode::bulk(&mut out, key);
        out.extend_from_slice(entries);
    }
    out
}

/// No stream has anything.
pub(in super::super::super) fn is_nothing(part: &[u8]) -> bool {
    matches!(part, b"*-1\r\n" | b"_\r\n")
}

fn write_merged(out: &mut Vec<u8>, how: Merge, parts: &[&[u8]], sum: impl Fn() -> u64) {
    match how {
        Merge::Sum | Merge::Receivers => encode::integer(out, sum()),
        Merge::Names | Merge::Scan => {
            let mut names = Vec::new();
            for part in parts {
                let mut values = Values(part);
                if how == Merge::Scan {
                    // Two values, of which the first is the cursor.
                    values.number();
                    values.bulk();
                }
                let count = values.number();
                names.extend((0..count).map(|_| values.bulk()));
            }
            names.sort_unstable();
            if how == Merge::Scan {
                encode::array(out, 2);
                encode::bulk(out, b"0");
            }
            encode::array(out, names.len());
            names.iter().for_each(|name| encode::bulk(out, name));
        }
        Merge::Texts => {
            let texts: Vec<&[u8]> = parts.iter().map(|part| Values(part).bulk()).collect();
            encode::bulk(out, &texts.concat());
        }
        Merge::Info => {
            let texts = parts.iter().map(|part| Values(part).bulk());
            let texts: Vec<_> = texts.map(String::from_utf8_lossy).collect();
            let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
            encode::bulk(out, add_up(&texts).as_bytes());
        }
    }
}

/// Texts of `INFO` as one.
fn add_up(texts: &[&str]) -> String {
    let Some(first) = texts.first() else {
        return String::new();
    };
    let value = |text: &str, key: &str| -> u64 {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(other, _)| *other == key);
        let digits = found.map_or("", |(_, value)| value.trim_start_matches("keys="));
        let end = digits.find(|octet: char| !octet.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())].parse().unwrap_or(0)
    };
    let total = |key: &str| -> u64 { texts.iter().map(|text| value(text, key)).sum() };
    let mut out = String::new();
    for line in first.lines() {
        match line.split_once(':') {
            Some((key, _)) if ADDED.contains(&key) => {
                out += &format!("{key}:{}", total(key));
            }
            Some((KEYSPACE, rest)) => {
                let behind = rest.split_once(',').map_or("", |(_, behind)| behind);
                out += &format!("{KEYSPACE}:keys={},{behind}", total(KEYSPACE));
            }
            _ => out += line,
        }
        out += "\r\n";
    }
    out
}

/// Values that this broker has written, one after another.
struct Values<'a>(&'a [u8]);

impl<'a> Values<'a> {
    /// The number in the next line, behind the octet that tells its kind.
    fn number(&mut self) -> u64 {
        let end = memchr::memchr(b'\n', self.0).unwrap_or(self.0.len());
        let line = self.0.get(1..end.saturating_sub(1)).unwrap_or_default();
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        let text = std::str::from_utf8(line).ok();
        let number = text.and_then(|text| text.parse().ok());
        number.expect("a shard writes numbers where they belong")
    }

    /// The next value as it is written.
    fn skip(&mut self) -> &'a [u8] {
        let start = self.0;
        let mut left = 1;
        while left > 0 {
            left -= 1;
            match self.0.first() {
                Some(b'$') => _ = self.bulk(),
                Some(b'*') => left += self.number(),
                other => panic!("an entry has no {other:?}"),
            }
        }
        &start[..start.len() - self.0.len()]
    }

    /// Octets of any kind.
    fn bulk(&mut self) -> &'a [u8] {
        let length = self.number() as usize;
        let (octets, rest) = self.0.split_at(length);
        self.0 = &rest[b"\r\n".len()..];
        octets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(how: Merge, parts: &[&str], want: &str) {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        let found = merge(how, &parts);
        assert_eq!(String::from_utf8_lossy(&found), want);
    }

    #[test]
    fn numbers_are_added_up_and_errors_tell() {
        check(Merge::Sum, &[":2\r\n", ":0\r\n", ":40\r\n"], ":42\r\n");
        check(Merge::Sum, &[":2\r\n", "-ERR no\r\n"], "-ERR no\r\n");
        check(Merge::Receivers, &[":2\r\n", "-FULL no\r\n"], ":2\r\n");
        check(
            Merge::Receivers,
            &[":0\r\n", "-FULL no\r\n"],
            "-FULL no\r\n",
        );
        let unknown = "-UNKNOWNRESULT x\r\n";
        check(
            Merge::Receivers,
            &[":2\r\n", "-ERR y\r\n", unknown],
            unknown,
        );
    }

    #[test]
    fn names_are_in_one_order() {
        let (one, two) = ("$1\r\nb\r\n$4\r\n\r\n*1\r\n", "$1\r\na\r\n");
        let all = format!("*3\r\n$4\r\n\r\n*1\r\n{two}$1\r\nb\r\n");
        let parts = [
            format!("*2\r\n{one}"),
            "*0\r\n".to_owned(),
            format!("*1\r\n{two}"),
        ];
        check(Merge::Names, &parts.each_ref().map(|part| &**part), &all);
        let parts = parts.map(|part| format!("*2\r\n$1\r\n0\r\n{part}"));
        let want = format!("*2\r\n$1\r\n0\r\n{all}");
        check(Merge::Scan, &parts.each_ref().map(|part| &**part), &want);
        check(
            Merge::Texts,
            &["$2\r\na\n\r\n", "$0\r\n\r\n"],
            "$2\r\na\n\r\n",
        );
    }

    #[test]
    fn streams_are_in_the_order_asked_for() {
        let entries =
            |id: &str| format!("*1\r\n*2\r\n$3\r\n{id}\r\n*2\r\n$1\r\nf\r\n$2\r\n\r\n\r\n");
        let keys = [&b"c"[..], b"a", b"b", b"d"].map(Box::from);
        for version in [Version::Two, Version::Three] {
            let (head, pair, nothing) = match version {
                Version::Two => ('*', "*2\r\n", "*-1\r\n"),
                Version::Three => ('%', "", "_\r\n"),
            };
            let [a, b, c] = ["a", "b", "c"]
                .map(|key| format!("{pair}$1\r\n{key}\r\n{}", entries(&format!("1-{key}"))));
            let none = format!("{pair}$1\r\nd\r\n*0\r\n");
            let parts = [
                format!("{head}2\r\n{a}{c}"),
                nothing.to_owned(),
                format!("{head}2\r\n{b}{none}"),
            ];
            let parts = parts.map(String::into_bytes);
            let found = merge_streams(version, &keys, &parts);
            let want = format!("{head}4\r\n{c}{a}{b}{none}");
            assert_eq!(String::from_utf8_lossy(&found), want);
            let found = merge_streams(version, &keys, &parts[1..2]);
            assert_eq!(String::from_utf8_lossy(&found), nothing);
        }
    }

    #[test]
    fn what_counts_of_the_server_is_added_up() {
        let one = "# A\r\nredis_version:7\r\nconnected_clients:2\r\n\r\ndb0:keys=3,expires=0\r\n";
        let two = "# A\r\nredis_version:7\r\nconnected_clients:40\r\n\r\ndb0:keys=1,expires=0\r\n";
        assert_eq!(
            add_up(&[one, two]),
            "# A\r\nredis_version:7\r\nconnected_clients:42\r\n\r\ndb0:keys=4,expires=0\r\n"
        );
    }
}
