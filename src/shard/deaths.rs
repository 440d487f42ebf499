//! What a message tells of its deaths that was dead-lettered by a route: the headers `x-death`,
//! `x-first-death-*` and `x-last-death-*`, as clients of AMQP expect them. The message's own headers stay
//! as they are.

use crate::broker::exchanges::DeadRoute;
use crate::log::{SectionKind, Sections, SectionsBuilder, TransferReason};
use crate::protocol::amqp::content::{expiration, without_expiration};
use crate::protocol::amqp::table;

/// One death.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// Octets of the name of the queue it died in.
    pub queue: &'a [u8],
    /// Why.
    pub reason: TransferReason,
    /// Unix time, seconds.
    pub time_s: u64,
}

/// The word for a reason.
fn word(reason: TransferReason) -> &'static [u8] {
    match reason {
        TransferReason::Tries => b"delivery_limit",
        TransferReason::Expired => b"expired",
        TransferReason::DroppedOld => b"maxlen",
        TransferReason::Rejected | TransferReason::Moved => b"rejected",
    }
}

/// Exchange and routing key that a message was published with; one that came by another protocol has the
/// default exchange and its queue's name.
pub fn source<'a>(sections: Sections<'a>, queue: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let source = sections.get(SectionKind::Source);
    let split = source.and_then(|source| {
        let (length, rest) = source.split_first()?;
        rest.split_at_checked(usize::from(*length))
    });
    split.unwrap_or((b"", queue))
}

/// Appends the section that [`source`] reads.
pub fn put_source(builder: &mut SectionsBuilder<'_>, exchange: &[u8], key: &[u8]) {
    let mut octets = vec![exchange.len() as u8];
    octets.extend_from_slice(exchange);
    octets.extend_from_slice(key);
    builder.add(SectionKind::Source, &octets);
}

/// Most bytes that one more death adds to a message's sections.
pub const DEATH_BYTES_MAX: usize = 8 << 10;

/// The sections of a message that died, and the key that it is published with now.
pub fn add<'a>(
    sections: Sections<'a>,
    note: &Note<'a>,
    route: &'a DeadRoute,
) -> (Vec<u8>, &'a [u8]) {
    let headers = sections.get(SectionKind::Headers).unwrap_or_default();
    let properties = sections.get(SectionKind::Props).unwrap_or_default();
    let (exchange, key) = source(sections, note.queue);
    let new_key = route.key.as_deref().unwrap_or(key);
    let mut out = Vec::new();
    let mut builder = SectionsBuilder::new(&mut out);
    for section in sections.iter() {
        match section.kind() {
            Some(
                SectionKind::Once
                | SectionKind::Due
                | SectionKind::ExpiresAt
                | SectionKind::Priority
                | SectionKind::Source
                | SectionKind::Headers,
            ) => {}
            Some(SectionKind::Props) => {
                builder.add(SectionKind::Props, &without_expiration(properties));
            }
            _ => _ = builder.copy(section),
        }
    }
    put_source(&mut builder, &route.exchange, new_key);
    let expiration = expiration(properties);
    builder.headers(&told(headers, note, exchange, key, expiration));
    (out, new_key)
}

/// The headers with one more death.
fn told(
    headers: &[u8],
    note: &Note<'_>,
    exchange: &[u8],
    key: &[u8],
    expiration: Option<&[u8]>,
) -> Vec<u8> {
    let reason = word(note.reason);
    let mut out = Vec::new();
    for (name, value) in table::entries(headers) {
        if name != b"x-death" && !name.starts_with(b"x-last-death-") {
            table::put_value(&mut out, name, value);
        }
    }
    let known: Vec<&[u8]> = deaths(headers).collect();
    let same = known.iter().position(|death| {
        text_of(death, b"queue") == Some(note.queue) && text_of(death, b"reason") == Some(reason)
    });
    let count = same.and_then(|at| number_of(known[at], b"count"));
    let mut death = Vec::new();
    table::put_number(&mut death, b"count", count.unwrap_or(0).saturating_add(1));
    match same {
        // When and with which key it died first stays.
        Some(at) => {
            for (name, value) in table::entries(known[at]).filter(|(name, _)| *name != b"count") {
                table::put_value(&mut death, name, value);
            }
        }
        None => {
            table::put_text(&mut death, b"reason", reason);
            table::put_text(&mut death, b"queue", note.queue);
            table::put_time(&mut death, b"time", note.time_s);
            table::put_text(&mut death, b"exchange", exchange);
            let mut keys = Vec::new();
            table::put_text_value(&mut keys, key);
            table::put_inner(&mut death, b"routing-keys", b'A', &keys);
            if let Some(expiration) = expiration {
                table::put_text(&mut death, b"original-expiration", expiration);
            }
        }
    }
    let mut array = Vec::new();
    table::put_inner_value(&mut array, b'F', &death);
    for (at, other) in known.iter().enumerate() {
        if Some(at) != same {
            table::put_inner_value(&mut array, b'F', other);
        }
    }
    table::put_inner(&mut out, b"x-death", b'A', &array);
    let is_first = table::find(headers, b"x-first-death-reason").is_none();
    let ends: &[&str] = if is_first {
        &["first", "last"]
    } else {
        &["last"]
    };
    for end in ends {
        for (what, value) in [
            ("reason", reason),
            ("queue", note.queue),
            ("exchange", exchange),
        ] {
            let name = format!("x-{end}-death-{what}");
            table::put_text(&mut out, name.as_bytes(), value);
        }
    }
    out
}

/// The tables of `x-death`, the last death first.
fn deaths(headers: &[u8]) -> impl Iterator<Item = &[u8]> {
    let array = table::find(headers, b"x-death").and_then(|value| table::inner(value, b'A'));
    table::array_values(array.unwrap_or_default()).filter_map(|value| table::inner(value, b'F'))
}

fn text_of<'a>(death: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    table::inner(table::find(death, name)?, b'S')
}

fn number_of(death: &[u8], name: &[u8]) -> Option<u64> {
    crate::broker::headers::find(death, name)?.as_unsigned()
}

/// A message with these sections has died in that queue before, and since then no consumer has rejected
/// it: to bring it there again would never end.
pub fn is_circle(sections: Sections<'_>, queue: &[u8]) -> bool {
    let headers = sections.get(SectionKind::Headers).unwrap_or_default();
    for death in deaths(headers) {
        if text_of(death, b"reason") == Some(b"rejected") {
            return false;
        }
        if text_of(death, b"queue") == Some(queue) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(exchange: &str, key: Option<&str>) -> DeadRoute {
        DeadRoute {
            exchange: exchange.as_bytes().into(),
            key: key.map(|key| key.as_bytes().into()),
        }
    }

    fn note(queue: &'static str, reason: TransferReason) -> Note<'static> {
        Note {
            queue: queue.as_bytes(),
            reason,
            time_s: 1_700_000_000,
        }
    }

    fn die(
        sections: &[u8],
        queue: &'static str,
        reason: TransferReason,
        to: &DeadRoute,
    ) -> Vec<u8> {
        add(Sections(sections), &note(queue, reason), to).0
    }

    #[test]
    fn deaths_are_counted_by_queue_and_reason_the_last_first() {
        let to = route("graves", Some("k"));
        let mut first = Vec::new();
        let mut own = Vec::new();
        table::put_text(&mut own, b"mine", b"1");
        SectionsBuilder::new(&mut first).headers(&own);
        let mut sections = die(&first, "a", TransferReason::Rejected, &to);
        sections = die(&sections, "b", TransferReason::Expired, &to);
        sections = die(&sections, "a", TransferReason::Rejected, &to);
        let headers = Sections(&sections)
            .get(SectionKind::Headers)
            .expect("they are there");
        let told: Vec<_> = deaths(headers)
            .map(|death| {
                (
                    text_of(death, b"queue").expect("it is told"),
                    text_of(death, b"reason").expect("it is told"),
                    number_of(death, b"count").expect("it is told"),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (&b"a"[..], &b"rejected"[..], 2),
                (&b"b"[..], &b"expired"[..], 1)
            ]
        );
        assert!(table::is_valid(headers));
        let text = |name: &[u8]| table::find(headers, name).and_then(|it| table::inner(it, b'S'));
        assert_eq!(text(b"mine"), Some(&b"1"[..]));
        assert_eq!(text(b"x-first-death-queue"), Some(&b"a"[..]));
        assert_eq!(text(b"x-first-death-exchange"), Some(&b""[..]));
        assert_eq!(text(b"x-last-death-exchange"), Some(&b"graves"[..]));
        let names = table::entries(headers).filter(|(name, _)| *name == b"x-last-death-queue");
        assert_eq!(names.count(), 1);
    }

    #[test]
    fn the_key_is_the_routes_or_the_messages() {
        let mut sections = Vec::new();
        put_source(&mut SectionsBuilder::new(&mut sections), b"e", b"own");
        let (with, without) = (route("x", Some("other")), route("x", None));
        let dead = add(
            Sections(&sections),
            &note("q", TransferReason::Tries),
            &with,
        );
        assert_eq!(dead.1, b"other");
        assert_eq!(source(Sections(&dead.0), b"q"), (&b"x"[..], &b"other"[..]));
        let dead = add(
            Sections(&sections),
            &note("q", TransferReason::Tries),
            &without,
        );
        assert_eq!(dead.1, b"own");
        let dead = add(Sections(b""), &note("q", TransferReason::Tries), &without);
        assert_eq!(dead.1, b"q");
    }

    #[test]
    fn a_circle_without_a_consumer_is_seen() {
        let to = route("x", None);
        let once = die(b"", "a", TransferReason::Expired, &to);
        assert!(is_circle(Sections(&once), b"a"));
        assert!(!is_circle(Sections(&once), b"b"));
        let twice = die(&once, "b", TransferReason::Rejected, &to);
        assert!(!is_circle(Sections(&twice), b"a"));
        assert!(!is_circle(Sections(b""), b"a"));
    }
}
