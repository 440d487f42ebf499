//! The options of `QSET`, also those of `--set`: read into a patch, and written so that they can
//! be read again.

use crate::broker::reply::Error;
use crate::broker::settings::{Backoff, DeadOn, Paused, Retain, Settings, SettingsPatch, WhenFull};

use super::encode;
use super::value::{self, shown, syntax};
use super::verb::Verb;

/// Most messages a second that `rate=` can allow: one each microsecond.
const RATE_MAX: u64 = 1_000_000;

/// Takes one `key=value` of a `QSET` into the patch.
///
/// # Errors
/// `SYNTAX` for a bad value or a key said before, `NAME` for a bad dead-letter queue, `UNKNOWN` for
/// a key that this version does not have.
pub fn set(patch: &mut SettingsPatch, key: &[u8], value: &[u8]) -> Result<(), Error> {
    match key {
        b"durable" => once(
            &mut patch.durable,
            "durable=",
            value::level("durable=", value),
        ),
        b"lease" => once(
            &mut patch.lease_us,
            "lease=",
            value::duration_not_zero("lease=", value),
        ),
        b"maxdeliver" => {
            let tries = value::integer("maxdeliver=", value, 0, u64::from(u32::MAX));
            once(
                &mut patch.maxdeliver,
                "maxdeliver=",
                tries.map(|tries| tries as u32),
            )
        }
        b"dead" => once(&mut patch.dead, "dead=", dead(value)),
        b"deadon" => once(&mut patch.deadon, "deadon=", deadon(value)),
        b"backoff" => once(&mut patch.backoff, "backoff=", backoff(value)),
        b"dedup" => once(
            &mut patch.dedup_us,
            "dedup=",
            value::duration("dedup=", value),
        ),
        b"full" => once(&mut patch.full, "full=", full(value)),
        b"maxlen" => {
            let count = or_none(value, |value| value::integer("maxlen=", value, 1, u64::MAX));
            once(&mut patch.maxlen, "maxlen=", count)
        }
        b"maxbytes" => {
            let bytes = or_none(value, |value| match value::size("maxbytes=", value)? {
                0 => Err(syntax("maxbytes= is at least 1, or none for no limit")),
                bytes => Ok(bytes),
            });
            once(&mut patch.maxbytes, "maxbytes=", bytes)
        }
        b"ttl" => {
            let ttl = or_none(value, |value| value::duration_not_zero("ttl=", value));
            once(&mut patch.ttl_us, "ttl=", ttl)
        }
        b"retain" => once(&mut patch.retain, "retain=", retain(value)),
        b"fair" => once(&mut patch.fair_key, "fair=", fair(value)),
        b"rate" => once(&mut patch.rate, "rate=", or_none(value, rate)),
        b"head" => once(&mut patch.head, "head=", value::flag("head=", value)),
        b"single" => once(&mut patch.single, "single=", value::flag("single=", value)),
        b"pri" => {
            let pri = value::integer("pri=", value, 0, 255).map(|pri| pri as u8);
            once(&mut patch.pri, "pri=", pri)
        }
        b"pause" => once(&mut patch.pause, "pause=", pause(value)),
        other => Err(super::parse::no_such_option(Verb::Qset, other)),
    }
}

/// Puts a parsed value in its place, which must be empty.
///
/// # Errors
/// That of the value, or `SYNTAX` if the option was said before.
pub(super) fn once<T>(
    place: &mut Option<T>,
    key: &str,
    value: Result<T, Error>,
) -> Result<(), Error> {
    if place.is_some() {
        return Err(syntax(format!("{key} is said twice: say it once")));
    }
    *place = Some(value?);
    Ok(())
}

fn or_none<T>(
    value: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    match value {
        b"none" => Ok(None),
        value => parse(value).map(Some),
    }
}

fn dead(value: &[u8]) -> Result<Box<[u8]>, Error> {
    let mut scratch = Vec::new();
    Ok(value::name(value)?.decoded(&mut scratch).into())
}

fn deadon(value: &[u8]) -> Result<DeadOn, Error> {
    let mut set = DeadOn {
        tries: false,
        ttl: false,
        full: false,
    };
    for word in words(value) {
        match word {
            b"tries" => set.tries = true,
            b"ttl" => set.ttl = true,
            b"full" => set.full = true,
            _ => {
                return Err(syntax(format!(
                    "deadon= is any of tries,ttl,full joined by commas, or none, not {}",
                    shown(value)
                )));
            }
        }
    }
    Ok(set)
}

fn pause(value: &[u8]) -> Result<Paused, Error> {
    let mut paused = Paused::default();
    for word in words(value) {
        match word {
            b"in" => paused.input = true,
            b"out" => paused.output = true,
            _ => {
                return Err(syntax(format!(
                    "pause= is in, out, in,out or none, not {}",
                    shown(value)
                )));
            }
        }
    }
    Ok(paused)
}

/// Words joined by commas; `none` is no word, nor is nothing.
fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let listed = if matches!(value, b"none" | b"") {
        None
    } else {
        Some(value)
    };
    listed
        .into_iter()
        .flat_map(|list| list.split(|octet| *octet == b','))
}

fn full(value: &[u8]) -> Result<WhenFull, Error> {
    match value {
        b"reject" => Ok(WhenFull::Reject),
        b"dropold" => Ok(WhenFull::DropOld),
        _ => Err(syntax(format!(
            "full= is reject or dropold, not {}",
            shown(value)
        ))),
    }
}

fn fair(value: &[u8]) -> Result<bool, Error> {
    match value {
        b"key" => Ok(true),
        b"none" => Ok(false),
        _ => Err(syntax(format!(
            "fair= is key or none, not {}",
            shown(value)
        ))),
    }
}

/// An age, a size, or both; of each kind one.
fn retain(value: &[u8]) -> Result<Retain, Error> {
    let refused = || {
        syntax(format!(
            "retain= is how old or how large what is kept may be, with its unit, such as 24h, 512M \
             or 24h,512M, or none, not {}",
            shown(value)
        ))
    };
    let mut retain = Retain::default();
    if value == b"none" {
        return Ok(retain);
    }
    for word in value.split(|octet| *octet == b',') {
        // A bare number could be either.
        let has_unit = word.last().is_some_and(|octet| !octet.is_ascii_digit());
        let age_us = value::duration_us(word).filter(|age_us| has_unit && *age_us > 0);
        let bytes = value::size("retain=", word)
            .ok()
            .filter(|bytes| has_unit && *bytes > 0);
        match (age_us, bytes) {
            (Some(_), _) if retain.age_us.is_none() => retain.age_us = age_us,
            (None, Some(_)) if retain.bytes.is_none() => retain.bytes = bytes,
            _ => return Err(refused()),
        }
    }
    Ok(retain)
}

/// `<n>/s`.
fn rate(value: &[u8]) -> Result<u32, Error> {
    let refused = || {
        syntax(format!(
            "rate= is so many messages a second, such as 100/s, or none, not {}",
            shown(value)
        ))
    };
    let count = value.strip_suffix(b"/s").ok_or_else(refused)?;
    let count = value::integer("rate=", count, 1, RATE_MAX).map_err(|_| refused())?;
    Ok(count as u32)
}

fn backoff(value: &[u8]) -> Result<Backoff, Error> {
    let range = match memchr::memmem::find(value, b"..") {
        Some(dots) => {
            value::duration_us(&value[..dots]).zip(value::duration_us(&value[dots + 2..]))
        }
        None => value::duration_us(value).map(|always| (always, always)),
    };
    match range {
        Some((first_us, most_us)) if first_us <= most_us => Ok(Backoff { first_us, most_us }),
        _ => Err(syntax(format!(
            "backoff= is a first and a longest wait such as 1s..5m, one wait such as 5s, or 0 for \
             at once, not {}",
            shown(value)
        ))),
    }
}

/// Appends every setting as `key=value`, each behind `prefix` and followed by `end`, in the order
/// of the protocol's page. `dead` is the name that an absent `settings.dead` stands for.
pub fn write(out: &mut Vec<u8>, settings: &Settings, dead: &[u8], prefix: &str, end: u8) {
    let Settings {
        durable,
        lease_us,
        maxdeliver,
        dead: own_dead,
        deadon,
        backoff,
        dedup_us,
        full,
        maxlen,
        maxbytes,
        ttl_us,
        retain,
        fair_key,
        single,
        rate,
        pri,
        pause,
        head,
    } = settings;
    let mut line = |key: &str, value: &dyn Fn(&mut Vec<u8>)| {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        value(out);
        out.push(end);
    };
    line("durable", &|out| {
        out.extend_from_slice(durable.setting().as_bytes())
    });
    line("lease", &|out| write_duration(out, *lease_us));
    line("maxdeliver", &|out| {
        write_number(out, u64::from(*maxdeliver))
    });
    line("dead", &|out| {
        encode::typed(out, own_dead.as_deref().unwrap_or(dead))
    });
    line("deadon", &|out| {
        let words = [
            ("tries", deadon.tries),
            ("ttl", deadon.ttl),
            ("full", deadon.full),
        ];
        write_words(out, &words);
    });
    line("backoff", &|out| {
        write_duration(out, backoff.first_us);
        if backoff.most_us != backoff.first_us {
            out.extend_from_slice(b"..");
            write_duration(out, backoff.most_us);
        }
    });
    line("dedup", &|out| write_duration(out, *dedup_us));
    line("full", &|out| {
        out.extend_from_slice(match full {
            WhenFull::Reject => b"reject",
            WhenFull::DropOld => b"dropold",
        });
    });
    line("maxlen", &|out| write_or_none(out, *maxlen, write_number));
    line("maxbytes", &|out| {
        write_or_none(out, *maxbytes, write_number)
    });
    line("ttl", &|out| write_or_none(out, *ttl_us, write_duration));
    line("retain", &|out| match (retain.age_us, retain.bytes) {
        (None, bytes) => write_or_none(out, bytes, write_size),
        (Some(age_us), None) => write_duration(out, age_us),
        (Some(age_us), Some(bytes)) => {
            write_duration(out, age_us);
            out.push(b',');
            write_size(out, bytes);
        }
    });
    line("fair", &|out| {
        out.extend_from_slice(if *fair_key { b"key" } else { b"none" });
    });
    line("single", &|out| write_number(out, u64::from(*single)));
    line("rate", &|out| match rate {
        Some(rate) => {
            write_number(out, u64::from(*rate));
            out.extend_from_slice(b"/s");
        }
        None => out.extend_from_slice(b"none"),
    });
    line("pri", &|out| write_number(out, u64::from(*pri)));
    line("pause", &|out| {
        write_words(out, &[("in", pause.input), ("out", pause.output)])
    });
    if *head {
        line("head", &|out| write_number(out, 1));
    }
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The largest unit that needs no fraction.
pub fn write_duration(out: &mut Vec<u8>, duration_us: u64) {
    const UNITS: [(u64, &str); 6] = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
        (1, "us"),
    ];
    if duration_us == 0 {
        return out.push(b'0');
    }
    let (unit_us, unit) = UNITS
        .into_iter()
        .find(|(unit_us, _)| duration_us.is_multiple_of(*unit_us))
        .expect("every number of microseconds is a multiple of one");
    write_number(out, duration_us / unit_us);
    out.extend_from_slice(unit.as_bytes());
}

/// The largest unit that needs no fraction; at least K, since a size without a unit could be a time.
fn write_size(out: &mut Vec<u8>, bytes: u64) {
    const UNITS: [(u32, u8); 2] = [(30, b'G'), (20, b'M')];
    let unit = UNITS
        .into_iter()
        .find(|(shift, _)| bytes.trailing_zeros() >= *shift);
    let (shift, letter) = unit.unwrap_or((10, b'K'));
    write_number(out, bytes >> shift);
    out.push(letter);
}

fn write_or_none(out: &mut Vec<u8>, value: Option<u64>, write: fn(&mut Vec<u8>, u64)) {
    match value {
        Some(value) => write(out, value),
        None => out.extend_from_slice(b"none"),
    }
}

fn write_words(out: &mut Vec<u8>, words: &[(&str, bool)]) {
    let mut separator: &[u8] = b"";
    for (word, _) in words.iter().filter(|(_, is)| *is) {
        out.extend_from_slice(separator);
        out.extend_from_slice(word.as_bytes());
        separator = b",";
    }
    if separator.is_empty() {
        out.extend_from_slice(b"none");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::reply::ErrorCode;

    fn patch(options: &str) -> Result<SettingsPatch, Error> {
        let mut patch = SettingsPatch::default();
        for option in options.split(' ') {
            let (key, value) = option.split_once('=').expect("cases have an equals sign");
            set(&mut patch, key.as_bytes(), value.as_bytes())?;
        }
        Ok(patch)
    }

    /// The settings that come of the options on top of the defaults, as printed.
    fn check(options: &str, want: &str) {
        let mut settings = Settings::default();
        settings.apply(&patch(options).expect("cases are valid"));
        let mut printed = Vec::new();
        write(&mut printed, &settings, b"jobs.dead", "", b' ');
        let printed = String::from_utf8(printed).expect("settings are ASCII");
        assert!(printed.contains(want), "{options}: {printed}");
        let mut again = Settings::default();
        again.apply(&patch(printed.trim_end()).expect("what is printed can be read"));
        settings.dead.get_or_insert_with(|| b"jobs.dead"[..].into());
        assert_eq!(again, settings, "{printed}");
    }

    #[test]
    fn every_setting_is_read_and_printed_so_that_it_can_be_read() {
        check(
            "pri=0",
            "durable=disk lease=30s maxdeliver=5 dead=jobs.dead deadon=tries",
        );
        check(
            "pri=0",
            "backoff=1s..5m dedup=2m full=reject maxlen=none maxbytes=none ttl=none",
        );
        check("pri=9", "pri=9 pause=none ");
        check("durable=none", "durable=none ");
        check("durable=os", "durable=os ");
        check("lease=90", "lease=90ms ");
        check("lease=1us", "lease=1us ");
        check("maxdeliver=0", "maxdeliver=0 ");
        check("dead=a%20b.%C3%A9", "dead=a%20b.%C3%A9 ");
        check("deadon=tries,ttl,full", "deadon=tries,ttl,full ");
        check("deadon=full", "deadon=full ");
        check("deadon=none", "deadon=none ");
        check("backoff=0", "backoff=0 ");
        check("backoff=5s", "backoff=5s ");
        check("backoff=10..10d", "backoff=10ms..10d ");
        check("dedup=0", "dedup=0 ");
        check("full=dropold", "full=dropold ");
        check(
            "maxlen=10 maxbytes=10M ttl=36h",
            "maxlen=10 maxbytes=10485760 ttl=36h ",
        );
        check("retain=36h", "retain=36h ");
        check("retain=1024K", "retain=1M ");
        check("retain=3G,90s", "retain=90s,3G ");
        check("retain=none", "retain=none ");
        check("fair=key", "fair=key single=0 ");
        check("fair=none single=1", "fair=none single=1 ");
        check("rate=100/s", "rate=100/s pri=0 ");
        check("rate=none", "rate=none pri=0 ");
        check("head=1", "head=1 ");
        check("pause=in,out", "pause=in,out ");
        check("pause=out", "pause=out ");
        check("pause=", "pause=none ");
    }

    #[test]
    fn bad_settings_are_refused() {
        let refused = |options: &str, code| {
            assert_eq!(
                patch(options).map_err(|error| error.code),
                Err(code),
                "{options}"
            );
        };
        for options in [
            "durable=memory",
            "lease=0",
            "lease=",
            "maxdeliver=-1",
            "maxdeliver=4294967296",
            "deadon=try",
            "deadon=tries,",
            "backoff=5m..1s",
            "backoff=1s..",
            "backoff=..1s",
            "backoff=1s..2s..3s",
            "full=drop",
            "maxlen=0",
            "maxbytes=0",
            "ttl=0",
            "pri=256",
            "pri=1 pri=1",
            "fair=1",
            "fair=",
            "single=2",
            "single=none",
            "retain=5",
            "retain=0s",
            "retain=1h,2h",
            "retain=1M,",
            "retain=",
            "rate=5",
            "rate=0/s",
            "rate=5/m",
            "rate=1000001/s",
            "pause=both",
            "maxlen=none maxlen=5",
        ] {
            refused(options, ErrorCode::Syntax);
        }
        refused("dead=", ErrorCode::Name);
        refused("dead=a/b", ErrorCode::Name);
        for options in ["durable=quorum", "x=1"] {
            refused(options, ErrorCode::Unknown);
        }
    }
}
