//! Where a command's line ends and what kind of body it has: the framing, nothing else.
//!
//! The verb is never looked at here, so that the body of an unknown, refused or malformed command
//! is skipped as exactly as any other.

/// What follows a line's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form<'a> {
    /// Nothing: the command is its line.
    None,
    /// The rest of the line behind a `:`.
    Inline(&'a [u8]),
    /// `$n`: so many octets and a line end.
    Counted(u64),
    /// `*n`: so many lines.
    Lines(u64),
}

/// A line split at its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Tag, verb and arguments, with the spaces between and around them.
    pub head: &'a [u8],
    /// The body that it announces or holds.
    pub form: Form<'a>,
}

/// The last token starts with `$` or `*` but says no length: nobody knows what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfStep;

/// Longest count in a `$n` or `*n`, digits.
const COUNT_DIGITS_MAX: usize = 10;

/// Looked at one by one before `memchr` is worth its call, bytes.
const NEAR_BYTES: usize = 24;

/// The place of the first LF at or behind `from`.
#[inline]
pub fn find_end(input: &[u8], from: usize) -> Option<usize> {
    let rest = input.get(from..)?;
    let (near, far) = rest.split_at(rest.len().min(NEAR_BYTES));
    if let Some(at) = near.iter().position(|octet| *octet == b'\n') {
        return Some(from + at);
    }
    memchr::memchr(b'\n', far).map(|at| from + NEAR_BYTES + at)
}

/// The line without the one CR that may stand before its LF.
#[inline]
pub fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Splits a line, given without its line end.
///
/// # Errors
/// [`OutOfStep`] if the last token starts with `$` or `*` and is neither a length nor a pattern.
pub fn split(line: &[u8]) -> Result<Line<'_>, OutOfStep> {
    if let Some(colon) = inline_start(line) {
        return Ok(Line {
            head: &line[..colon],
            form: Form::Inline(&line[colon + 1..]),
        });
    }
    let mut end = line.len();
    while end > 0 && line[end - 1] == b' ' {
        end -= 1;
    }
    let start = memchr::memrchr(b' ', &line[..end]).map_or(0, |space| space + 1);
    let last = &line[start..end];
    let form = match last {
        [b'$', digits @ ..] => Form::Counted(count(digits).ok_or(OutOfStep)?),
        [b'*'] | [b'*', b'.', ..] => Form::None,
        [b'*', digits @ ..] => Form::Lines(count(digits).ok_or(OutOfStep)?),
        _ => Form::None,
    };
    let head = match form {
        Form::None => line,
        _ => &line[..start],
    };
    Ok(Line { head, form })
}

/// The place of the first colon that begins a token.
fn inline_start(line: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b':', line).find(|at| *at == 0 || line[*at - 1] == b' ')
}

/// One to ten digits.
fn count(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > COUNT_DIGITS_MAX {
        return None;
    }
    let mut value = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
    }
    Some(value)
}

/// Behind an LF or CR LF that stands at `at`.
#[inline]
pub fn behind_end(input: &[u8], at: usize) -> Option<usize> {
    match *input.get(at)? {
        b'\n' => Some(at + 1),
        b'\r' if *input.get(at + 1)? == b'\n' => Some(at + 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, head: &str, form: Form<'_>) {
        let want = Line {
            head: head.as_bytes(),
            form,
        };
        assert_eq!(split(line.as_bytes()), Ok(want), "{line}");
    }

    #[test]
    fn only_a_colon_or_the_last_token_announces_a_body() {
        check("PING", "PING", Form::None);
        check("PUB q :hello", "PUB q ", Form::Inline(b"hello"));
        check("PUB q :", "PUB q ", Form::Inline(b""));
        check(
            "PUB q : two  spaces ",
            "PUB q ",
            Form::Inline(b" two  spaces "),
        );
        check("PUB a:b :c :d", "PUB a:b ", Form::Inline(b"c :d"));
        check("PUB a:b: h.x=:y", "PUB a:b: h.x=:y", Form::None);
        check(":x", "", Form::Inline(b"x"));
        check("PUB q :x $5", "PUB q ", Form::Inline(b"x $5"));
        check("PUB q $5", "PUB q ", Form::Counted(5));
        check("PUB q $5  ", "PUB q ", Form::Counted(5));
        check("FOO $0000000009", "FOO ", Form::Counted(9));
        check("FOO $9999999999", "FOO ", Form::Counted(9_999_999_999));
        check("$5", "", Form::Counted(5));
        check("MPUB q *3", "MPUB q ", Form::Lines(3));
        check("PUB $5 x", "PUB $5 x", Form::None);
        check("PUB *5 x", "PUB *5 x", Form::None);
        check("PUB q x$5", "PUB q x$5", Form::None);
        check("QLS *", "QLS *", Form::None);
        check("QLS *.eu", "QLS *.eu", Form::None);
        check("QLS *.5", "QLS *.5", Form::None);
        check("", "", Form::None);
    }

    #[test]
    fn a_length_that_is_none_leaves_the_stream_out_of_step() {
        for token in [
            "$",
            "$-1",
            "$+1",
            "$0x10",
            "$1e3",
            "$1,000",
            "$10000000000",
            "$:1",
            "$$",
            "*x",
            "**",
            "*-1",
            "*1e3",
            "*10000000000",
            "*#",
            "*1.",
            "*$1",
            "$1000000000000000000000000000000000000000000000000000000000000",
        ] {
            assert_eq!(
                split(format!("PUB q {token}").as_bytes()),
                Err(OutOfStep),
                "{token}"
            );
            assert_eq!(split(token.as_bytes()), Err(OutOfStep), "{token}");
        }
    }

    #[test]
    fn line_ends_are_found_near_and_far() {
        for length in 0..100 {
            let mut input = vec![b'x'; length];
            assert_eq!(find_end(&input, 0), None);
            input.push(b'\n');
            input.extend_from_slice(b"more\n");
            for from in 0..=length {
                assert_eq!(find_end(&input, from), Some(length));
            }
        }
    }
}
