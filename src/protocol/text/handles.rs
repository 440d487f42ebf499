//! Handles as they are typed, `<incarnation>.<id>.<serial>`, one or many after another.
//!
//! A consumer mostly settles what it got in the order in which it got it, so the next handle is the one before with
//! both its last numbers one higher: that text is tried first, which is one comparison.

use crate::broker::id::Handle;
use crate::config::Limits;

use super::digits::{count_up, leading};
use super::line::behind_end;
use super::parse::TOKENS_RESERVE_BYTES;
use super::words::begins_with;

/// `<incarnation>.<id>.<serial>`; anything else names nothing.
#[inline]
pub fn parse(token: &[u8]) -> Option<Handle> {
    match leading_handle(token) {
        Some((handle, ends)) if ends[2] == token.len() => Some(handle),
        _ => parse_long(token),
    }
}

/// The same with numbers of any number of digits.
#[cold]
fn parse_long(token: &[u8]) -> Option<Handle> {
    let mut numbers = [0u64; 3];
    let mut nth = 0;
    let mut digits = 0;
    for octet in token {
        match octet {
            b'0'..=b'9' => {
                digits += 1;
                numbers[nth] = numbers[nth]
                    .checked_mul(10)?
                    .checked_add(u64::from(octet - b'0'))?;
            }
            b'.' if nth < 2 && digits > 0 => {
                nth += 1;
                digits = 0;
            }
            _ => return None,
        }
    }
    let [incarnation, id, serial] = numbers;
    (nth == 2 && digits > 0).then_some(Handle {
        incarnation,
        id,
        serial,
    })
}

/// The handle at the front of `input`, and where each of its numbers ends.
#[inline(always)]
fn leading_handle(input: &[u8]) -> Option<(Handle, [usize; 3])> {
    let (incarnation, first) = leading(input)?;
    let rest = input[first..].strip_prefix(b".")?;
    let (id, second) = leading(rest)?;
    let rest = rest[second..].strip_prefix(b".")?;
    let (serial, third) = leading(rest)?;
    let handle = Handle {
        incarnation,
        id,
        serial,
    };
    let second = first + 1 + second;
    Some((handle, [first, second, second + 1 + third]))
}

/// Incarnation in the first handle of the plain `ACK` or `ACK!` at the front of `input`; `None` if it is none.
#[inline]
pub fn first_incarnation(input: &[u8]) -> Option<u64> {
    let handles = input
        .strip_prefix(b"ACK")
        .map(|line| line.strip_prefix(b"!").unwrap_or(line))?;
    let (incarnation, digits) = leading(handles.strip_prefix(b" ")?)?;
    (handles.get(1 + digits) == Some(&b'.')).then_some(incarnation)
}

/// A handle and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    /// What it names.
    pub handle: Handle,
    /// Its first octet and the one behind it.
    pub span: (u32, u32),
}

/// Reads plain acks, one after another.
#[derive(Debug)]
pub struct Acks {
    /// The last handle as it was typed.
    text: [u8; Acks::TEXT_BYTES],
    length: usize,
    /// Where the id's last digit is.
    id_at: usize,
    last: Handle,
}

impl Acks {
    const TEXT_BYTES: usize = 64;

    /// Nothing was read yet.
    #[inline]
    pub fn new() -> Acks {
        Acks {
            text: [0; Acks::TEXT_BYTES],
            length: 0,
            id_at: 0,
            last: Handle {
                incarnation: 0,
                id: 0,
                serial: 0,
            },
        }
    }

    /// Adds the handles of a whole `ACK` or `ACK!` at `from` in `input` to `handles`, if it has no tag and
    /// nothing but handles; says whether it is quiet, and where it ends. `None`, and nothing added: the general path
    /// knows.
    #[inline]
    pub fn read(
        &mut self,
        input: &[u8],
        from: usize,
        limits: &Limits,
        handles: &mut Vec<Typed>,
    ) -> Option<(bool, usize)> {
        let before = handles.len();
        let read = self.read_line(input, from, limits, handles);
        if read.is_none() {
            handles.truncate(before);
        }
        read
    }

    #[inline(always)]
    fn read_line(
        &mut self,
        input: &[u8],
        from: usize,
        limits: &Limits,
        handles: &mut Vec<Typed>,
    ) -> Option<(bool, usize)> {
        let line = input.get(from..)?;
        let (quiet, mut at) = match line.first_chunk::<4>()? {
            b"ACK " => (false, from + 4),
            b"ACK!" if line.get(4) == Some(&b' ') => (true, from + 5),
            _ => return None,
        };
        let most = handles.len() + limits.handles_max;
        loop {
            let (handle, length) = self.handle(&input[at..])?;
            handles.push(Typed {
                handle,
                span: (at as u32, (at + length) as u32),
            });
            at += length;
            if *input.get(at)? != b' ' {
                break;
            }
            at += 1;
            if handles.len() == most {
                return None;
            }
        }
        let end = behind_end(input, at)?;
        (at - from + TOKENS_RESERVE_BYTES <= limits.line_bytes_max).then_some((quiet, end))
    }

    /// The handle at the front of `input`, and its length.
    #[inline(always)]
    fn handle(&mut self, input: &[u8]) -> Option<(Handle, usize)> {
        if self.length > 0
            && count_up(&mut self.text, self.id_at)
            && count_up(&mut self.text, self.length - 1)
            && begins_with(input, &self.text[..self.length])
            && !input.get(self.length).is_some_and(u8::is_ascii_digit)
        {
            self.last.id += 1;
            self.last.serial += 1;
            return Some((self.last, self.length));
        }
        let (handle, ends) = leading_handle(input)?;
        let length = ends[2];
        self.length = 0;
        if let Some(text) = self.text.get_mut(..length) {
            text.copy_from_slice(&input[..length]);
            self.length = length;
            self.id_at = ends[1] - 1;
            self.last = handle;
        }
        Some((handle, length))
    }
}

impl Default for Acks {
    fn default() -> Acks {
        Acks::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_numbers_are_a_handle() {
        assert_eq!(
            parse(b"1.22.333"),
            Some(Handle {
                incarnation: 1,
                id: 22,
                serial: 333
            })
        );
        for bad in [
            "",
            "-",
            "1",
            "1.2",
            "1.2.",
            ".1.2",
            "1..2",
            "1.2.3.4",
            "1.2.x",
            "1.2.99999999999999999999",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_first_incarnation_is_told_where_an_ack_is_plain() {
        for (line, want) in [
            ("ACK 7.8.9\n", Some(7)),
            ("ACK! 1700000000001.8.9 2.2.2\n", Some(1_700_000_000_001)),
            ("ACK 7.", Some(7)),
            ("ACK 7", None),
            ("ACK 7 8.9.9\n", None),
            ("ACK  7.8.9\n", None),
            ("ACK! @a 7.8.9\n", None),
            ("ACK .8.9\n", None),
            ("ACK7.8.9\n", None),
            ("ACK!!7.8.9\n", None),
            ("NACK 7.8.9\n", None),
            ("ACK", None),
            ("", None),
        ] {
            assert_eq!(first_incarnation(line.as_bytes()), want, "{line}");
        }
    }

    #[test]
    fn handles_that_follow_each_other_or_not_are_read_alike() {
        let limits = Limits::default();
        let lines: &[&[u8]] = &[
            b"ACK 1.8.98\n",
            b"ACK 1.9.99 1.10.100 1.11.101 1.12.102\r\n",
            b"ACK! 1.013.103 1.14.104 1.14.104\n",
            b"ACK 1.15.105 1.15.106 1.17.1070 2.18.1071 2.19.1072\n",
            b"ACK 2.20.1073\n",
            b"ACK 18446744073709551.999999999999999.9999999999999998 18446744073709551.1000000000000000.9999999999999999\n",
        ];
        let mut acks = Acks::new();
        let mut handles = Vec::new();
        for line in lines {
            let (quiet, consumed) = {
                handles.clear();
                acks.read(line, 0, &limits, &mut handles).expect("plain")
            };
            assert_eq!(consumed, line.len());
            assert_eq!(quiet, line[3] == b'!');
            let tokens = line.split(|octet| octet.is_ascii_whitespace());
            let tokens = tokens.skip(1).filter(|token| !token.is_empty());
            let expected: Vec<_> = tokens.map(|token| (parse(token), token)).collect();
            let read: Vec<_> = handles
                .iter()
                .map(|typed| {
                    let (from, to) = typed.span;
                    (Some(typed.handle), &line[from as usize..to as usize])
                })
                .collect();
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn what_is_not_plain_or_not_whole_is_left_alone() {
        let limits = Limits::default();
        let mut handles = Vec::new();
        let many = format!("ACK{}\n", " 1.2.3".repeat(limits.handles_max + 1));
        for line in [
            "ACK 1.2.3",
            "ACK 1.2.3 1.3.4",
            "ACK 1.2.3\r",
            "ACK 1.2.3 \n",
            "ACK  1.2.3\n",
            "ACK 1.2.3  1.2.4\n",
            "ACK 1.2\n",
            "ACK 1.2.3.4\n",
            "ACK 1.2.3 x\n",
            "ACK \n",
            "ACK!1.2.3\n",
            "NACK 1.2.3\n",
            "@1 ACK 1.2.3\n",
            "ACK 1.2.99999999999999999999\n",
            &many,
        ] {
            // Also where a handle is expected.
            for first in [false, true] {
                let mut acks = Acks::new();
                if first {
                    let read = acks.read(b"ACK 1.1.2\n", 0, &limits, &mut handles);
                    assert_eq!(read, Some((false, 10)));
                }
                let read = acks.read(line.as_bytes(), 0, &limits, &mut handles);
                assert_eq!(read, None, "{line}");
            }
        }
    }
}
