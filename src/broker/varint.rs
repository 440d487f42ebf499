//! Numbers in as few bytes as they need: seven bits a byte, low ones first, top bit = more follow.

/// Most bytes of one number.
pub const BYTES_MAX: usize = 10;

/// Appends a number.
#[inline]
pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a number at `at` and moves `at` behind it.
///
/// # Panics
/// If `into` has less than [`BYTES_MAX`] bytes from `at` on and the number needs them.
#[inline]
pub fn write(into: &mut [u8], at: &mut usize, mut number: u64) {
    while number >= 0x80 {
        into[*at] = number as u8 | 0x80;
        *at += 1;
        number >>= 7;
    }
    into[*at] = number as u8;
    *at += 1;
}

/// The number at `at`, which moves behind it; `None` if the bytes end or the number needs more
/// than 64 bits.
#[inline]
pub fn get(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        return Some(u64::from(first));
    }
    get_long(bytes, at)
}

fn get_long(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0u64;
    for (place, &byte) in bytes[*at..].iter().take(BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if place == BYTES_MAX - 1 && bits > 1 {
            return None;
        }
        number |= bits << (7 * place);
        if byte < 0x80 {
            *at += place + 1;
            return Some(number);
        }
    }
    None
}

/// Takes a number off the front of octets that this process wrote itself.
///
/// # Panics
/// If there is no whole number.
#[inline]
pub fn take(from: &mut &[u8]) -> u64 {
    let mut number = 0;
    let mut shift = 0;
    loop {
        let octet = from[0];
        *from = &from[1..];
        number |= u64::from(octet & 0x7f) << shift;
        if octet < 0x80 {
            return number;
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for shift in 0..64 {
            for number in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = vec![9];
                put(&mut out, number);
                let mut at = 1;
                assert_eq!(get(&out, &mut at), Some(number));
                assert_eq!(at, out.len());
                let mut rest = &out[1..];
                assert_eq!(take(&mut rest), number);
                assert!(rest.is_empty());
                let mut array = [0; BYTES_MAX];
                let mut end = 0;
                write(&mut array, &mut end, number);
                assert_eq!(&array[..end], &out[1..]);
                assert_eq!(get(&out[..out.len() - 1], &mut 1), None, "cut");
            }
        }
        assert_eq!(get(&[0xff; 10], &mut 0), None, "more than 64 bits");
    }
}
