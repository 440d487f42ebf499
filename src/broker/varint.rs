//! Numbers in groups of seven bits, low first, the high bit of an octet saying that another follows (LEB128).

/// Appends a number.
#[inline]
pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
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
