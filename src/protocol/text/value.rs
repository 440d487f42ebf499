//! The values inside a line: names, numbers, durations, times, sizes. Parsed here once, so that
//! nothing behind the protocol meets a bad one.
//!
//! No clock: a time that is relative stays relative.

use crate::broker::command::{From, Source, TimeSpec, Typed};
use crate::broker::id::Level;
use crate::broker::reply::{Error, ErrorCode};

/// Longest duration, microseconds: a million days. Sums with any time of today can't overflow.
pub const DURATION_US_MAX: u64 = 1_000_000 * DAY_US;

/// Longest name, octets after decoding.
pub const NAME_BYTES_MAX: usize = 255;

const SECOND_US: u64 = 1_000_000;
const DAY_US: u64 = 86_400 * SECOND_US;

/// Latest time that can be written: the end of the year 9999, unix milliseconds.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// Which octets stand for themselves in a name.
pub static NAME_OCTET: [bool; 256] = name_octets();

const fn name_octets() -> [bool; 256] {
    let mut table = [false; 256];
    let mut octet = 0;
    while octet < 256 {
        let is = octet as u8;
        table[octet] = is.is_ascii_alphanumeric()
            || matches!(is, b'.' | b'_' | b'-' | b':' | b'@' | b'+' | b'~');
        octet += 1;
    }
    table
}

/// A syntax error.
pub fn syntax(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorCode::Syntax, text)
}

/// Something that this version does not have.
pub fn unknown(text: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorCode::Unknown, text)
}

/// What somebody typed, fit to be shown in an error text: at most 40 characters, no controls.
pub fn shown(typed: &[u8]) -> String {
    const CHARS_MAX: usize = 40;
    let head = &typed[..typed.len().min(4 * CHARS_MAX)];
    let text = String::from_utf8_lossy(head);
    let mut shown: String = text
        .chars()
        .take(CHARS_MAX)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().count() > CHARS_MAX || head.len() < typed.len() {
        shown.push_str("...");
    }
    shown
}

/// A decimal number of 1 to 20 digits that fits 64 bits.
#[inline]
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// A message id: 1 to 19 digits.
pub fn id(text: &[u8]) -> Option<u64> {
    decimal(text).filter(|_| text.len() <= 19)
}

/// The octet that two hexadecimal digits mean.
fn hex_octet(high: u8, low: u8) -> Option<u8> {
    let high = char::from(high).to_digit(16)?;
    let low = char::from(low).to_digit(16)?;
    Some((high << 4 | low) as u8)
}

/// Checks a name as typed.
///
/// # Errors
/// `NAME`, with what is wrong about it.
pub fn name(text: &[u8]) -> Result<Typed<'_>, Error> {
    if text.is_empty() {
        return Err(Error::new(
            ErrorCode::Name,
            "a name has at least one character",
        ));
    }
    if matches!(text[0], b':' | b'@') {
        return Err(Error::new(
            ErrorCode::Name,
            "a name does not begin with a colon or an @; write that as %3A or %40",
        ));
    }
    let mut octets = 0;
    let mut at = 0;
    while at < text.len() {
        if NAME_OCTET[usize::from(text[at])] {
            at += 1;
        } else if text[at] == b'%' {
            match text.get(at + 1..at + 3) {
                Some(&[high, low]) if hex_octet(high, low).is_some() => at += 3,
                _ => {
                    return Err(Error::new(
                        ErrorCode::Name,
                        "in a name % is followed by two hexadecimal digits, as in %20",
                    ));
                }
            }
        } else {
            return Err(bad_name_octet(text, at));
        }
        octets += 1;
    }
    if octets > NAME_BYTES_MAX {
        return Err(Error::new(ErrorCode::Name, "a name has at most 255 octets"));
    }
    Ok(Typed(text))
}

/// Why an octet can't stand in a name, and what can.
fn bad_name_octet(text: &[u8], at: usize) -> Error {
    let octet = text[at];
    let advice = format!(
        "{} is not a name: letters, digits and . _ - : @ + ~ stand for themselves, \
         any other octet is written %XX, here %{octet:02X}",
        shown(text)
    );
    Error::new(ErrorCode::Name, advice)
}

/// A queue or `queue/group`.
///
/// # Errors
/// `NAME`.
pub fn source(text: &[u8]) -> Result<Source<'_>, Error> {
    match memchr::memchr(b'/', text) {
        None => {
            name(text)?;
        }
        Some(slash) => {
            name(&text[..slash])?;
            name(&text[slash + 1..])?;
        }
    }
    Ok(Source::split(text))
}

/// What `from=` and `to=` say.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn position(key: &str, value: &[u8]) -> Result<From, Error> {
    match value {
        b"first" => Ok(From::First),
        b"new" => Ok(From::New),
        _ => time(key, value).map(From::At).map_err(|_| {
            syntax(format!(
                "{key} is first, new, a message id such as 17, an age such as -5m, or a time such as \
                 2026-01-31T09:00:00Z or @1769850000000 (unix ms), not {}",
                shown(value)
            ))
        }),
    }
}

/// An option's value of free text: any octets, `%XX` well-formed, not empty.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn text<'a>(key: &str, value: &'a [u8]) -> Result<Typed<'a>, Error> {
    if value.is_empty() {
        return Err(syntax(format!(
            "{key} is empty: leave it out or give it a value"
        )));
    }
    escapes(key, value)?;
    Ok(Typed(value))
}

/// Checks that every `%` is followed by two hexadecimal digits.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn escapes(key: &str, value: &[u8]) -> Result<(), Error> {
    for at in memchr::memchr_iter(b'%', value) {
        match value.get(at + 1..at + 3) {
            Some(&[high, low]) if hex_octet(high, low).is_some() => {}
            _ => {
                return Err(syntax(format!(
                    "in {key} a % is followed by two hexadecimal digits; \
                     write %25 for a percent sign"
                )));
            }
        }
    }
    Ok(())
}

/// How many octets a checked value has once its `%XX` are decoded.
pub fn decoded_len(value: &[u8]) -> usize {
    value.len() - 2 * memchr::memchr_iter(b'%', value).count()
}

/// A number from `least` to `most`.
///
/// # Errors
/// `SYNTAX`, naming what is counted and the bounds.
pub fn integer(what: &str, value: &[u8], least: u64, most: u64) -> Result<u64, Error> {
    decimal(value)
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| {
            syntax(format!(
                "{what} is a number from {least} to {most}, not {}",
                shown(value)
            ))
        })
}

/// `1` or `0`.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn flag(key: &str, value: &[u8]) -> Result<bool, Error> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(syntax(format!("{key} is 1 or 0, not {}", shown(value)))),
    }
}

/// A duration in microseconds; a bare number is milliseconds.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn duration(key: &str, value: &[u8]) -> Result<u64, Error> {
    duration_us(value).ok_or_else(|| {
        syntax(format!(
            "{key} is a duration such as 1500ms, 30s, 5m, 2h or 7d (a bare number is \
             milliseconds, the longest is 1000000d), not {}",
            shown(value)
        ))
    })
}

/// A duration that is not zero.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn duration_not_zero(key: &str, value: &[u8]) -> Result<u64, Error> {
    match duration(key, value)? {
        0 => Err(syntax(format!("{key} is longer than 0, as in {key}30s"))),
        duration_us => Ok(duration_us),
    }
}

/// A duration in microseconds, if it is one.
pub fn duration_us(value: &[u8]) -> Option<u64> {
    let digits = value
        .iter()
        .position(|octet| !octet.is_ascii_digit())
        .unwrap_or(value.len());
    let unit_us = match &value[digits..] {
        b"us" => 1,
        b"" | b"ms" => 1_000,
        b"s" => SECOND_US,
        b"m" => 60 * SECOND_US,
        b"h" => 3_600 * SECOND_US,
        b"d" => DAY_US,
        _ => return None,
    };
    decimal(&value[..digits])?
        .checked_mul(unit_us)
        .filter(|total_us| *total_us <= DURATION_US_MAX)
}

/// A size in bytes: digits and perhaps K, M or G, powers of 1024.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn size(key: &str, value: &[u8]) -> Result<u64, Error> {
    let (digits, shift) = match value {
        [digits @ .., b'K'] => (digits, 10),
        [digits @ .., b'M'] => (digits, 20),
        [digits @ .., b'G'] => (digits, 30),
        digits => (digits, 0),
    };
    decimal(digits)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| {
            syntax(format!(
                "{key} is a size in bytes such as 4096, 64K, 10M or 1G, not {}",
                shown(value)
            ))
        })
}

/// A durability level that this version has.
///
/// # Errors
/// `SYNTAX` for another word, `UNKNOWN` for `quorum`.
pub fn level(what: &str, value: &[u8]) -> Result<Level, Error> {
    match Level::parse(value) {
        Some(Level::Quorum) => Err(unknown(format!(
            "{what} quorum is not built yet: the strongest level of one broker is disk"
        ))),
        Some(level) => Ok(level),
        None => Err(syntax(format!(
            "{what} is none, os or disk, not {}",
            shown(value)
        ))),
    }
}

/// A point in time or an id: `2026-01-31T09:00:00Z`, `@<unix ms>`, `-<duration>`, `<id>`.
///
/// # Errors
/// `SYNTAX`, naming the option.
pub fn time(key: &str, value: &[u8]) -> Result<TimeSpec, Error> {
    time_spec(value).ok_or_else(|| {
        syntax(format!(
            "{key} is a time such as 2026-01-31T09:00:00Z, @1769850000000 (unix ms) or -5m \
             (ago), not {}",
            shown(value)
        ))
    })
}

fn time_spec(value: &[u8]) -> Option<TimeSpec> {
    match value {
        [b'@', millis @ ..] => decimal(millis)
            .filter(|millis| *millis <= UNIX_MS_MAX)
            .map(|millis| TimeSpec::UnixUs(millis * 1000)),
        [b'-', ago @ ..] => duration_us(ago).map(TimeSpec::AgoUs),
        _ => id(value)
            .map(TimeSpec::Id)
            .or_else(|| rfc3339_us(value).map(TimeSpec::UnixUs)),
    }
}

/// Unix microseconds of `YYYY-MM-DDTHH:MM:SS[.fraction]Z`, years 1970 to 9999.
fn rfc3339_us(value: &[u8]) -> Option<u64> {
    let value = value.strip_suffix(b"Z")?;
    let (whole, fraction) = match value {
        [_, ..] if value.len() > 19 => {
            let fraction = value[19..].strip_prefix(b".")?;
            (&value[..19], fraction)
        }
        _ => (value, &b"0"[..]),
    };
    let &[
        y1,
        y2,
        y3,
        y4,
        b'-',
        m1,
        m2,
        b'-',
        d1,
        d2,
        b'T',
        h1,
        h2,
        b':',
        n1,
        n2,
        b':',
        s1,
        s2,
    ] = whole
    else {
        return None;
    };
    let within = |digits: &[u8], least: u64, most: u64| {
        decimal(digits).filter(|number| (least..=most).contains(number))
    };
    let year = within(&[y1, y2, y3, y4], 1970, 9999)?;
    let month = within(&[m1, m2], 1, 12)?;
    let day = within(&[d1, d2], 1, days_in(year, month))?;
    let hour = within(&[h1, h2], 0, 23)?;
    let minute = within(&[n1, n2], 0, 59)?;
    let second = within(&[s1, s2], 0, 59)?;
    let seconds = ((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second;
    Some(seconds * SECOND_US + fraction_us(fraction)?)
}

/// Microseconds of the digits behind a decimal point; finer ones are dropped.
fn fraction_us(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    (0..6).try_fold(0, |us, place| {
        let digit = digits.get(place).map_or(0, |digit| digit - b'0');
        Some(us * 10 + u64::from(digit))
    })
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of a month.
fn days_before(year: u64, month: u64) -> u64 {
    let before = year - 1;
    let leaps = before / 4 - before / 100 + before / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    (year - 1970) * 365 + leaps + (1..month).map(|month| days_in(year, month)).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_know_their_bounds() {
        let check = |text: &str, want| assert_eq!(decimal(text.as_bytes()), want, "{text}");
        check("0", Some(0));
        check("00000000000000000007", Some(7));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("99999999999999999999", None);
        check("000000000000000000007", None);
        for bad in ["", "-1", "+1", "0x10", "1e3", " 1", "1 ", "1.0", "\u{663}"] {
            check(bad, None);
        }
    }

    #[test]
    fn ids_have_up_to_19_digits() {
        assert_eq!(id(b"9999999999999999999"), Some(9_999_999_999_999_999_999));
        assert_eq!(id(b"09999999999999999999"), None);
        assert_eq!(id(b""), None);
    }

    #[test]
    fn durations() {
        let check = |text: &str, want| assert_eq!(duration_us(text.as_bytes()), want, "{text}");
        check("0", Some(0));
        check("5", Some(5_000));
        check("5us", Some(5));
        check("5ms", Some(5_000));
        check("5s", Some(5_000_000));
        check("5m", Some(300_000_000));
        check("5h", Some(18_000_000_000));
        check("5d", Some(432_000_000_000));
        check("1000000d", Some(DURATION_US_MAX));
        check("1000001d", None);
        check("86400000000000001us", None);
        check("18446744073709551615d", None);
        for bad in ["", "s", "-1s", "1.5s", "1S", "1 s", "1sec", "1w", "0x1s"] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        let check = |text: &str, want| assert_eq!(size("bytes=", text.as_bytes()).ok(), want);
        check("0", Some(0));
        check("1K", Some(1 << 10));
        check("10M", Some(10 << 20));
        check("1G", Some(1 << 30));
        check("17179869183G", Some(17_179_869_183 << 30));
        check("17179869184G", None);
        for bad in ["", "K", "1k", "1KB", "-1", "1T"] {
            check(bad, None);
        }
    }

    #[test]
    fn times() {
        let check = |text: &str, want| assert_eq!(time_spec(text.as_bytes()), want, "{text}");
        let second = |unix| Some(TimeSpec::UnixUs(unix * SECOND_US));
        check("1970-01-01T00:00:00Z", second(0));
        check("2000-02-29T12:30:15Z", second(951_827_415));
        check("2026-01-31T09:00:00Z", second(1_769_850_000));
        check("2100-03-01T00:00:00Z", second(4_107_542_400));
        check("9999-12-31T23:59:59Z", second(253_402_300_799));
        check("1970-01-01T00:00:01.5Z", Some(TimeSpec::UnixUs(1_500_000)));
        check(
            "1970-01-01T00:00:00.1234567Z",
            Some(TimeSpec::UnixUs(123_456)),
        );
        check("@1500", Some(TimeSpec::UnixUs(1_500_000)));
        check(
            "@253402300799999",
            Some(TimeSpec::UnixUs(253_402_300_799_999_000)),
        );
        check("-5m", Some(TimeSpec::AgoUs(300_000_000)));
        check("17", Some(TimeSpec::Id(17)));
        for bad in [
            "",
            "@",
            "-",
            "@-1",
            "@253402300800000",
            "1969-12-31T23:59:59Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+01:00",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567890Z",
            "2026-1-1T0:0:0Z",
            "tomorrow",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn names() {
        let check = |text: &[u8], ok: bool| assert_eq!(name(text).is_ok(), ok, "{text:?}");
        check(b"jobs", true);
        check(b"a.b_c-d:e@f+g~h9", true);
        check(b"%00%ff%Fa", true);
        check(b"%3Ax", true);
        check(b"-", true);
        check(&[b'x'; 255], true);
        check(&[b'x'; 256], false);
        check(&b"%20".repeat(255), true);
        check(&b"%20".repeat(256), false);
        for bad in [
            &b""[..],
            b":x",
            b"@x",
            b"a b",
            b"a/b",
            b"a,b",
            b"a=b",
            b"%",
            b"%2",
            b"%2g",
            b"%+1",
            b"a\rb",
            b"a\0b",
            b"caf\xc3\xa9",
            b"a*",
            b"$x",
            b"#",
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn what_was_typed_is_shown_short_and_clean() {
        assert_eq!(shown(b"abc"), "abc");
        assert_eq!(shown(b"a\r\x07b\xff"), "a??b\u{fffd}");
        assert_eq!(shown(&[b'x'; 40]), "x".repeat(40));
        assert_eq!(shown(&[b'x'; 41]), "x".repeat(40) + "...");
        assert!(shown(&[b'x'; 60_000]).len() < 50);
    }
}
