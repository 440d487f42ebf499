//! Numbers in decimal: read, and counted up where they stand.

/// Digits of a number that fits 64 bits whatever they are.
const DIGITS_MAX: usize = 19;

/// The number at the front of `input` and how many digits it has; none if it has no digit, or more than 19.
///
/// Eight octets are read as one word where there are as many: the digits in it are counted by where the first
/// octet is that is none, and added up in pairs, pairs of pairs and halves (multiplication within a register, as
/// described by Lamport, "Multiple byte processing with full-word instructions", 1975).
#[inline(always)]
pub(super) fn leading(input: &[u8]) -> Option<(u64, usize)> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (mut number, mut digits) = (0u64, 0);
    if let Some(chunk) = input.first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk) ^ (EACH * u64::from(b'0'));
        // The high bit of each octet that is no digit; of those behind the first one it is not sure.
        let others = (word.wrapping_add(EACH * (0x80 - 10)) | word) & (EACH * 0x80);
        if others & 0x80 != 0 {
            return None;
        }
        digits = others.trailing_zeros() as usize / 8;
        let word = word << (64 - 8 * digits);
        let word = (word.wrapping_mul(10) + (word >> 8)) & 0x00ff_00ff_00ff_00ff;
        let word = (word.wrapping_mul(100) + (word >> 16)) & 0x0000_ffff_0000_ffff;
        number = (word.wrapping_mul(10_000) + (word >> 32)) & 0xffff_ffff;
        if digits < 8 {
            return Some((number, digits));
        }
    }
    for octet in &input[digits..] {
        let digit = octet.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
        digits += 1;
    }
    (digits > 0 && digits <= DIGITS_MAX).then_some((number, digits))
}

/// Adds one to the number whose last digit stands at `last`, behind something that is no digit; false if
/// it gets longer by that and must be written anew.
#[inline(always)]
pub(super) fn count_up(line: &mut [u8], last: usize) -> bool {
    let mut at = last;
    while line[at] == b'9' {
        line[at] = b'0';
        at -= 1;
    }
    let is_digit = line[at].is_ascii_digit();
    line[at] += u8::from(is_digit);
    is_digit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_up_as_long_as_they_keep_their_length() {
        let mut line = *b"OK 0998";
        for expected in [b"OK 0999", b"OK 1000", b"OK 1001"] {
            assert!(count_up(&mut line, 6));
            assert_eq!(&line, expected);
        }
        let mut line = *b"OK 99";
        assert!(!count_up(&mut line, 4));
        assert_eq!(&line[..3], b"OK ", "what is in front stays");
    }

    #[test]
    fn only_what_fits_is_read() {
        assert_eq!(leading(b"12 3"), Some((12, 2)));
        assert_eq!(leading(b"007"), Some((7, 3)));
        assert_eq!(
            leading(b"9999999999999999999"),
            Some((9_999_999_999_999_999_999, 19))
        );
        for length in 1..=19 {
            let number = &"1234567890987654321"[..length];
            for behind in ["", "\n", ".1", "/", ":", "x2345678", "\u{80}1234567"] {
                let text = format!("{number}{behind}");
                let expected = (number.parse().expect("it fits"), length);
                assert_eq!(leading(text.as_bytes()), Some(expected), "{text:?}");
            }
        }
        for bad in [
            "",
            "x1",
            "x1234567",
            "/1234567",
            ":1234567",
            "10000000000000000000",
        ] {
            assert_eq!(leading(bad.as_bytes()), None, "{bad}");
        }
    }
}
