//! CRC-32C of what is short: messages mostly.
//!
//! The `crc32c` crate goes byte by byte up to the next aligned address and then through one word
//! after another, each of which waits for the one before. Here a message is read where it lies. A short one is one
//! chain of words: the next message's begins while it waits. What is longer is read as three runs of words at
//! once, whose checksums are joined by one carry-less multiplication each. What is long, and every processor without
//! these instructions, is left to the crate.
//!
//! The only unsafe code of the log: the call of a function that is compiled for instructions which
//! were just seen to be there.
#![allow(unsafe_code)]

/// The crate has a faster way for this and more, bytes.
const LONG_BYTES: usize = 768;
/// Less than this is not worth splitting, bytes.
const SPLIT_BYTES: usize = 192;

/// Continues a CRC-32C over more bytes.
#[inline]
pub(crate) fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < LONG_BYTES && std::arch::is_x86_feature_detected!("sse4.2") {
        if bytes.len() < SPLIT_BYTES {
            // SAFETY: the processor has the extension, and the function needs nothing else.
            return unsafe { short::append(crc, bytes) };
        }
        if std::arch::is_x86_feature_detected!("pclmulqdq") {
            // SAFETY: the processor has both extensions, and the function needs nothing else.
            return unsafe { short::append_split(crc, bytes) };
        }
    }
    crc32c::crc32c_append(crc, bytes)
}

/// Continues a CRC-32C over a few octets, and over more bytes, which need not lie together: over the `count` lowest
/// of `front`, 1 to 7, whose others are 0.
#[inline]
pub(crate) fn append_parts(crc: u32, front: u64, count: usize, bytes: &[u8]) -> u32 {
    debug_assert!((1..8).contains(&count) && front >> (8 * count) == 0);
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < SPLIT_BYTES && std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: as in `append`.
        return unsafe { short::append_parts(crc, front, count, bytes) };
    }
    append_far_parts(crc, front, count, bytes)
}

#[inline(never)]
fn append_far_parts(crc: u32, front: u64, count: usize, bytes: &[u8]) -> u32 {
    append(append(crc, &front.to_le_bytes()[..count]), bytes)
}

#[cfg(target_arch = "x86_64")]
mod short {
    use std::arch::x86_64::{
        _mm_clmulepi64_si128, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
    };

    /// Words in the first and second run together at most.
    const WORDS_MAX: usize = super::LONG_BYTES / 8 / 3 * 2;

    /// At `n`: x^(64n - 33) modulo the polynomial, lowest power in the top bit. A checksum times
    /// this, reduced by one more step, is that checksum moved past `n` words.
    static PAST_WORDS: [u32; WORDS_MAX + 1] = past_words();

    const fn past_words() -> [u32; WORDS_MAX + 1] {
        const POLYNOMIAL: u32 = 0x82f6_3b78;
        let mut table = [0; WORDS_MAX + 1];
        // x^31.
        let mut power: u32 = 1;
        let mut words = 1;
        while words <= WORDS_MAX {
            table[words] = power;
            let mut bit = 0;
            while bit < 64 {
                power = (power >> 1) ^ if power & 1 == 1 { POLYNOMIAL } else { 0 };
                bit += 1;
            }
            words += 1;
        }
        table
    }

    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn times(crc: u64, factor: u32) -> u64 {
        let crc = _mm_cvtsi64_si128(crc as i64);
        let factor = _mm_cvtsi64_si128(i64::from(factor));
        _mm_cvtsi128_si64(_mm_clmulepi64_si128(crc, factor, 0)) as u64
    }

    /// Continues over what is not worth splitting.
    #[target_feature(enable = "sse4.2")]
    pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
        !over(u64::from(!crc), bytes)
    }

    /// See [`super::append_parts`].
    #[target_feature(enable = "sse4.2")]
    pub(super) fn append_parts(crc: u32, front: u64, count: usize, bytes: &[u8]) -> u32 {
        !over(over_few(u64::from(!crc), front, count), bytes)
    }

    /// Continues over fewer than [`super::LONG_BYTES`], in three runs.
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn append_split(crc: u32, bytes: &[u8]) -> u32 {
        let words = bytes.as_chunks::<8>().0;
        let run = words.len() / 3;
        let (first, words) = words.split_at(run);
        let (second, words) = words.split_at(run);
        let (third, _) = words.split_at(run);
        let mut crc = u64::from(!crc);
        let (mut of_second, mut of_third) = (0, 0);
        for ((a, b), c) in first.iter().zip(second).zip(third) {
            crc = _mm_crc32_u64(crc, u64::from_le_bytes(*a));
            of_second = _mm_crc32_u64(of_second, u64::from_le_bytes(*b));
            of_third = _mm_crc32_u64(of_third, u64::from_le_bytes(*c));
        }
        let moved = times(crc, PAST_WORDS[2 * run]) ^ times(of_second, PAST_WORDS[run]);
        crc = _mm_crc32_u64(0, moved) ^ of_third;
        !over(crc, &bytes[3 * 8 * run..])
    }

    /// The state after the `count` lowest octets of `octets`, 1 to 7; the others are of no matter.
    ///
    /// Zeros in front of a state of zero change nothing, so one step over a whole word does it, with the state added to
    /// the octets that it meets. What of the state is longer than they are only moves up.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn over_few(crc: u64, octets: u64, count: usize) -> u64 {
        _mm_crc32_u64(0, (crc ^ octets) << (64 - 8 * count)) ^ (crc >> (8 * count))
    }

    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn over(mut crc: u64, bytes: &[u8]) -> u32 {
        let Some(last) = bytes.last_chunk::<8>() else {
            return over_less_than_a_word(crc, bytes);
        };
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            for word in block.as_chunks::<8>().0 {
                crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
            }
        }
        let (words, rest) = rest.as_chunks::<8>();
        if let [word, more @ ..] = words {
            crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
            if let [word, more @ ..] = more {
                crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
                if let [word, ..] = more {
                    crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
                }
            }
        }
        if rest.is_empty() {
            return crc as u32;
        }
        // The last word is read again: what is left is at its end.
        let octets = u64::from_le_bytes(*last) >> (64 - 8 * rest.len());
        over_few(crc, octets, rest.len()) as u32
    }

    #[inline(never)]
    #[target_feature(enable = "sse4.2")]
    fn over_less_than_a_word(crc: u64, bytes: &[u8]) -> u32 {
        let octets = bytes.iter().rev();
        let octets = octets.fold(0, |all, octet| all << 8 | u64::from(*octet));
        match bytes.len() {
            0 => crc as u32,
            count => over_few(crc, octets, count) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Octets without an order, and a word more.
    fn noise(count: usize) -> (Vec<u8>, u64) {
        let mut state = 1u64;
        let octets = (0..count).map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        });
        (octets.collect(), state)
    }

    #[test]
    fn parts_are_what_the_whole_is() {
        let (bytes, state) = noise(LONG_BYTES + 40);
        for length in 0..=LONG_BYTES + 16 {
            for count in 1..8 {
                let front = state.rotate_left(length as u32) >> (64 - 8 * count);
                let whole = [&front.to_le_bytes()[..count], &bytes[..length]].concat();
                for crc in [0, 1, u32::MAX, 0x8000_0000, state as u32] {
                    let expected = crc32c::crc32c_append(crc, &whole);
                    let parts = append_parts(crc, front, count, &bytes[..length]);
                    assert_eq!(parts, expected, "{count} and {length} bytes");
                }
            }
        }
    }

    #[test]
    fn it_is_what_the_crate_computes_at_every_length_and_alignment() {
        let (bytes, state) = noise(LONG_BYTES + 40);
        for length in 0..=LONG_BYTES + 16 {
            for from in 0..16 {
                let piece = &bytes[from..from + length];
                for crc in [0, 1, u32::MAX, 0x8000_0000, state as u32] {
                    let expected = crc32c::crc32c_append(crc, piece);
                    assert_eq!(append(crc, piece), expected, "{length} bytes from {from}");
                }
            }
        }
    }
}
