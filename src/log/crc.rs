//! CRC-32C of what is short: messages mostly.
//!
//! The `crc32c` crate goes byte by byte up to the next aligned address and then through one word
//! after another, each of which waits for the one before. Here a message is read where it lies, and
//! as three runs of words at once, whose checksums are joined by one carry-less multiplication
//! each. What is long, and every processor without these instructions, is left to the crate.
//!
//! The only unsafe code of the log: the call of a function that is compiled for instructions which
//! were just seen to be there.
#![allow(unsafe_code)]

/// The crate has a faster way for this and more, bytes.
const LONG_BYTES: usize = 768;

/// Continues a CRC-32C over more bytes.
#[inline]
pub(crate) fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() < LONG_BYTES
        && std::arch::is_x86_feature_detected!("sse4.2")
        && std::arch::is_x86_feature_detected!("pclmulqdq")
    {
        // SAFETY: the processor has both extensions, and the function needs nothing else.
        return unsafe { short::append(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
mod short {
    use std::arch::x86_64::{
        _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u16, _mm_crc32_u32, _mm_crc32_u64,
        _mm_cvtsi64_si128, _mm_cvtsi128_si64,
    };

    /// Fewer words than this are not worth splitting.
    const SPLIT_WORDS: usize = 6;
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

    /// Continues over fewer than [`super::LONG_BYTES`].
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
        let (mut words, mut rest) = bytes.as_chunks::<8>();
        let mut crc = u64::from(!crc);
        if words.len() >= SPLIT_WORDS {
            let run = words.len() / 3;
            let first;
            (first, words) = words.split_at(words.len() - 2 * run);
            let (before, first) = first.split_at(first.len() - run);
            let (second, third) = words.split_at(run);
            for word in before {
                crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
            }
            let (mut of_second, mut of_third) = (0, 0);
            for ((a, b), c) in first.iter().zip(second).zip(third) {
                crc = _mm_crc32_u64(crc, u64::from_le_bytes(*a));
                of_second = _mm_crc32_u64(of_second, u64::from_le_bytes(*b));
                of_third = _mm_crc32_u64(of_third, u64::from_le_bytes(*c));
            }
            let moved = times(crc, PAST_WORDS[2 * run]) ^ times(of_second, PAST_WORDS[run]);
            crc = _mm_crc32_u64(0, moved) ^ of_third;
        } else {
            for word in words {
                crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
            }
        }
        let mut crc = crc as u32;
        if let Some((four, more)) = rest.split_first_chunk::<4>() {
            crc = _mm_crc32_u32(crc, u32::from_le_bytes(*four));
            rest = more;
        }
        if let Some((two, more)) = rest.split_first_chunk::<2>() {
            crc = _mm_crc32_u16(crc, u16::from_le_bytes(*two));
            rest = more;
        }
        if let Some(byte) = rest.first() {
            crc = _mm_crc32_u8(crc, *byte);
        }
        !crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_crate_computes_at_every_length_and_alignment() {
        let mut bytes = vec![0u8; LONG_BYTES + 40];
        let mut state = 1u64;
        for byte in &mut bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
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
