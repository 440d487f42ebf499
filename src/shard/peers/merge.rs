//! Parts of answers, as several shards have written them, to one.

use crate::broker::command::{Source, Tokens};
use crate::broker::id::Level;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::shard::settling::push_stale;

/// What became of a cast.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cast {
    pub receivers: u64,
    pub level: Level,
    pub refused: u64,
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.split(|octet| *octet == b' ')
}

fn number(word: &[u8]) -> u64 {
    let text = std::str::from_utf8(word).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.expect("a shard writes numbers where they belong")
}

fn level(word: &[u8]) -> Level {
    match word {
        b"mem" => Level::None,
        b"os" => Level::Os,
        b"disk" => Level::Disk,
        _ => Level::Quorum,
    }
}

/// `OK <commands> <level>` of a transaction, or the error that it was refused with.
pub(super) fn committed<'a>(parts: &[&'a [u8]]) -> Result<(u64, Level), &'a [u8]> {
    let part = parts.first().copied().unwrap_or_default();
    let mut words = words(part);
    if words.next() != Some(b"OK") {
        return Err(part);
    }
    let count = number(words.next().unwrap_or_default());
    Ok((count, level(words.next().unwrap_or_default())))
}

/// `OK <receivers> <level> [refused=k] taken=n` of each, or an error and `refused=k` behind it; the error of a shard if
/// no other tells of a receiver. The level is that of the queues, of which `n` took it.
pub(super) fn cast(parts: &[&[u8]]) -> Result<Cast, Vec<u8>> {
    let mut sum = Cast {
        receivers: 0,
        level: Level::Quorum,
        refused: 0,
    };
    let (mut error, mut queues, mut unasked) = (None, 0, 0);
    for part in parts {
        let mut words = words(part);
        if words.next() != Some(b"OK") {
            let (line, refused) = refused_by(part);
            error = Some(line);
            unasked += refused;
            continue;
        }
        sum.receivers += number(words.next().unwrap_or_default());
        let reached = level(words.next().unwrap_or_default());
        for word in words {
            if let Some(refused) = word.strip_prefix(b"refused=") {
                sum.refused += number(refused);
            }
            if let Some(taken) = word.strip_prefix(b"taken=").map(number)
                && taken > 0
            {
                queues += taken;
                sum.level = sum.level.min(reached);
            }
        }
    }
    if queues == 0 {
        sum.level = Level::None;
    }
    match (unknown(parts), error) {
        (Some(error), _) => Err(refused_by(error).0),
        (None, Some(error)) if sum.receivers + sum.refused == 0 => Err(error),
        _ => {
            sum.refused += unasked;
            Ok(sum)
        }
    }
}

/// An error that answers a part of a cast, and how many queues it speaks for.
fn refused_by(part: &[u8]) -> (Vec<u8>, u64) {
    let last = words(part).last().unwrap_or_default();
    let Some(count) = last.strip_prefix(b"refused=") else {
        return (part.to_vec(), 0);
    };
    let end = part.len() - last.len() - 2;
    ([&part[..end], b"\n"].concat(), number(count))
}

/// What a shard says whose part may or may not be done.
pub(super) fn unknown<'a>(parts: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut parts = parts.iter().copied();
    parts.find(|part| part.starts_with(b"ERR UNKNOWNRESULT"))
}

/// The error of an `ERR <code> [retry=n] [k=v …] :<text>`.
pub(super) fn error(line: &[u8]) -> Error {
    let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
    let (words, text) = line.split_once(" :").unwrap_or((&line, ""));
    let mut words = words.split(' ').skip(1);
    let code = words.next().and_then(ErrorCode::from_word);
    let mut error = Error::new(
        code.expect("a shard writes a code where it belongs"),
        text.to_owned(),
    );
    let (retry, fields): (Vec<&str>, Vec<&str>) =
        words.partition(|word| word.starts_with("retry="));
    let retry = retry.first().and_then(|word| word.strip_prefix("retry="));
    error.retry_ms = retry.and_then(|retry_ms| retry_ms.parse().ok());
    error.fields = fields.join(" ");
    error
}

/// How many were settled, and the stale tokens in the order typed. `parts` are by shard, empty for those
/// that were not asked.
pub(super) fn settled(tokens: &[u8], owners: &[Option<u32>], parts: &[&[u8]]) -> (u64, Vec<u8>) {
    let mut count = 0;
    let mut stale_of: Vec<_> = Vec::new();
    for part in parts {
        let mut words = words(part).skip(1);
        count += words.next().map_or(0, number);
        let stale = words.next().and_then(|word| word.strip_prefix(b"stale="));
        let stale = stale.unwrap_or_default();
        stale_of.push(stale.split(|octet| *octet == b',').peekable());
    }
    let mut stale = Vec::new();
    for (token, owner) in Tokens(tokens).iter().zip(owners) {
        // Each shard names its own in the order given.
        let is_stale = match owner {
            Some(owner) => stale_of[*owner as usize].next_if_eq(&token).is_some(),
            None => true,
        };
        if is_stale {
            push_stale(&mut stale, token);
        }
    }
    (count, stale)
}

/// `OK accepted=n rejected=m <level>` of each.
pub(super) fn synced(parts: &[&[u8]]) -> Reply<'static> {
    let (mut accepted, mut rejected) = (0, 0);
    let (mut weakest, mut nothing) = (None, Level::Quorum);
    for part in parts {
        let mut words = words(part).skip(1);
        let mut value = |key: &str| {
            let word = words.next().unwrap_or_default();
            word.strip_prefix(key.as_bytes()).map_or(0, number)
        };
        let taken = value("accepted=");
        accepted += taken;
        rejected += value("rejected=");
        let reached = level(words.next().unwrap_or_default());
        // A shard that has taken nothing says what it would store at.
        match taken {
            0 => nothing = nothing.min(reached),
            _ => weakest = Some(weakest.unwrap_or(reached).min(reached)),
        }
    }
    Reply::Synced {
        accepted,
        rejected,
        level: weakest.unwrap_or(nothing),
    }
}

/// The octets of `DATA $n`.
fn data(part: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\n', part).unwrap_or(0);
    let data = &part[end + 1..];
    data.strip_suffix(b"\n").unwrap_or(data)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split(|octet| *octet == b'\n');
    lines.filter(|line| !line.is_empty())
}

/// The lines of `QLS` by name, a queue's groups behind it.
pub(super) fn lists(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = Vec::new();
    for line in parts.iter().flat_map(|part| lines(data(part))) {
        let name = line.split(|octet| *octet == b' ').next();
        let source = Source::split(name.unwrap_or_default());
        let (mut queue, mut group) = (Vec::new(), Vec::new());
        let queue = source.queue.decoded(&mut queue).to_vec();
        let group = source.group.map(|name| name.decoded(&mut group).to_vec());
        all.push((queue, group, line));
    }
    all.sort_unstable();
    let mut text = Vec::new();
    for (_, _, line) in all {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

/// What is the same for all shards, or counts the whole, is not added up.
const LARGEST: [&str; 5] = [
    "uptime_ms",
    "draining",
    "group_unsettled_most",
    "incarnation",
    "log_sync_us_max",
];

/// The lines of `STATS`, added up.
pub(super) fn stats(parts: &[&[u8]], shards: usize) -> Vec<u8> {
    let mut sums: Vec<(String, Result<u64, String>)> = Vec::new();
    for part in parts {
        let mut at = 0;
        for line in lines(data(part)) {
            let line = String::from_utf8_lossy(line);
            let (key, value) = line.split_once('=').unwrap_or((&line, ""));
            let value = value.parse::<u64>().map_err(|_| value.to_owned());
            if let Some(known) = sums.iter().position(|(other, _)| other == key) {
                at = known + 1;
                if let (Ok(sum), Ok(value)) = (&mut sums[known].1, value) {
                    *sum = match LARGEST.contains(&key) {
                        true => value.max(*sum),
                        false => *sum + value,
                    };
                }
            } else {
                // It stands where that shard has it.
                sums.insert(at, (key.to_owned(), value));
                at += 1;
            }
        }
    }
    let at = sums.iter().position(|(key, _)| key == "uptime_ms");
    sums.insert(at.unwrap_or(0), ("shards".to_owned(), Ok(shards as u64)));
    let mut text = Vec::new();
    for (key, value) in sums {
        let value = value.map_or_else(|text| text, |number| number.to_string());
        text.extend_from_slice(format!("{key}={value}\n").as_bytes());
    }
    text
}

/// What a guest's line of `STATS conns` begins with; the connection's key at its home follows.
pub(in crate::shard) const GUEST: &str = "guest=";

/// What of a connection is at its guests too.
const ADDED: [&[u8]; 3] = [b"leased=", b"subscriptions=", b"waiting="];

/// The lines of `STATS conns`; what guests have is added to their connection's.
pub(super) fn connections(parts: &[&[u8]]) -> Vec<u8> {
    // What a connection is named, its words, and what of them is added up.
    let (mut rows, mut guests) = (Vec::new(), Vec::new());
    for line in parts.iter().flat_map(|part| lines(data(part))) {
        let all: Vec<&[u8]> = words(line).collect();
        let mut counts = [0; 3];
        for word in &all {
            for (count, key) in counts.iter_mut().zip(ADDED) {
                *count += word.strip_prefix(key).map_or(0, number);
            }
        }
        match all[0].strip_prefix(GUEST.as_bytes()) {
            Some(of) => guests.push((of, counts)),
            None => rows.push((all[0].strip_prefix(b"conn=").unwrap_or(all[0]), all, counts)),
        }
    }
    for (of, more) in guests {
        if let Some((_, _, counts)) = rows.iter_mut().find(|(id, ..)| *id == of) {
            for (count, more) in counts.iter_mut().zip(more) {
                *count += more;
            }
        }
    }
    let mut text = Vec::new();
    for (_, all, counts) in rows {
        for (nth, word) in all.iter().enumerate() {
            if nth > 0 {
                text.push(b' ');
            }
            match ADDED.iter().position(|key| word.starts_with(key)) {
                Some(at) => {
                    text.extend_from_slice(ADDED[at]);
                    text.extend_from_slice(counts[at].to_string().as_bytes());
                }
                None => text.extend_from_slice(word),
            }
        }
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::text::encode;

    fn data_of(text: &str) -> Vec<u8> {
        format!("DATA ${}\n{text}\n", text.len()).into_bytes()
    }

    #[test]
    fn casts_add_up_and_the_weakest_level_counts() {
        let sum = cast(&[
            b"OK 2 disk taken=1\n",
            b"OK 0 mem taken=0\n",
            b"OK 1 mem taken=0\n",
            b"OK 1 os refused=3 taken=1\n",
        ]);
        let wanted = Cast {
            receivers: 4,
            level: Level::Os,
            refused: 3,
        };
        assert_eq!(sum, Ok(wanted));
        let nobody = cast(&[b"OK 0 mem taken=0\n"]).expect("it answers");
        assert_eq!((nobody.receivers, nobody.level), (0, Level::None));
        let error = |line: &[u8]| Err(line.to_vec());
        let drained = [&b"OK 0 mem taken=0\n"[..], b"ERR DRAINING :x y refused=2\n"];
        assert_eq!(
            cast(&drained),
            error(b"ERR DRAINING :x y\n"),
            "who would have taken it?"
        );
        let one = cast(&[b"OK 1 os taken=1\n", drained[1]]).expect("one took it");
        assert_eq!((one.receivers, one.level, one.refused), (1, Level::Os, 2));
        let errors = [&b"ERR A :x refused=0\n"[..], b"ERR B :y refused=1\n"];
        assert_eq!(cast(&errors), error(b"ERR B :y\n"));
        // A log that finds no space says so in place of what stood there.
        let unsure = [&b"OK 1 os taken=1\n"[..], b"ERR UNKNOWNRESULT :x\n"];
        assert_eq!(cast(&unsure), error(b"ERR UNKNOWNRESULT :x\n"));
    }

    #[test]
    fn errors_are_written_again_as_they_were() {
        for code in ErrorCode::ALL {
            for middle in ["", " retry=100", " at=3 maxlen=5", " retry=7 messages=5"] {
                for text in ["x", "", "two :words = retry=9"] {
                    let line = format!("ERR {}{middle} :{text}\n", code.word());
                    let mut written = Vec::new();
                    encode::error(&mut written, None, &error(line.as_bytes()));
                    assert_eq!(String::from_utf8_lossy(&written), line);
                }
            }
        }
    }

    #[test]
    fn stale_handles_are_named_in_the_order_typed() {
        let tokens = b"2.1.1 3.1.1 x 2.9.9 3.7.7";
        let owners = [Some(0), Some(1), None, Some(0), Some(1)];
        let parts: [&[u8]; 2] = [b"OK 1 stale=2.9.9\n", b"OK 1 stale=3.1.1\n"];
        assert_eq!(
            settled(tokens, &owners, &parts),
            (2, b"3.1.1,x,2.9.9".to_vec())
        );
        let parts: [&[u8]; 2] = [b"OK 3\n", b"OK 2\n"];
        assert_eq!(settled(tokens, &owners, &parts), (5, b"x".to_vec()));
    }

    #[test]
    fn a_sync_tells_the_weakest_level_of_what_was_taken() {
        let parts: [&[u8]; 3] = [
            b"OK accepted=2 rejected=0 disk\n",
            b"OK accepted=0 rejected=1 mem\n",
            b"OK accepted=1 rejected=0 os\n",
        ];
        let Reply::Synced {
            accepted,
            rejected,
            level,
        } = synced(&parts)
        else {
            panic!("it is one");
        };
        assert_eq!((accepted, rejected, level), (3, 1, Level::Os));
    }

    #[test]
    fn lists_are_one_in_order() {
        let one = data_of("b ready=1\nb/g ready=0\nz ready=1\n");
        let two = data_of("a ready=2\nb%20x ready=1\n");
        let all = lists(&[&one, &two, &data_of("")]);
        let text = String::from_utf8(all).expect("it is text");
        assert_eq!(
            text,
            "a ready=2\nb ready=1\nb/g ready=0\nb%20x ready=1\nz ready=1\n"
        );
    }

    #[test]
    fn counts_are_added_and_what_is_one_for_all_is_not() {
        let one = data_of("server=x/1\nuptime_ms=5\nready=1\nlog_bytes=7\n");
        let two = data_of("server=x/1\nuptime_ms=6\nready=2\nerrors_total.NAME=1\nlog_bytes=1\n");
        let text = stats(&[&one, &two], 2);
        assert_eq!(
            String::from_utf8(text).expect("it is text"),
            "server=x/1\nshards=2\nuptime_ms=6\nready=3\nerrors_total.NAME=1\nlog_bytes=8\n"
        );
    }

    #[test]
    fn a_connection_has_what_its_guests_have() {
        let one = data_of("conn=0.1 peer=x name= leased=1 subscriptions=0 waiting=0 idle_ms=1\n");
        let two = data_of("guest=0.1 leased=2 subscriptions=1 waiting=0\n");
        assert_eq!(
            connections(&[&one, &two]),
            b"conn=0.1 peer=x name= leased=3 subscriptions=1 waiting=0 idle_ms=1\n"
        );
    }
}
