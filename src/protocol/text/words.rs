//! Comparing short texts word by word, without the call that `memcmp` takes.

/// Does `input` begin with these octets?
#[inline(always)]
pub(super) fn begins_with(input: &[u8], octets: &[u8]) -> bool {
    let Some(front) = input.get(..octets.len()) else {
        return false;
    };
    // What a line or a handle is mostly as long as: two words, which may overlap.
    match octets.len() {
        8..=16 => ends::<8>(front) == ends::<8>(octets),
        17..=32 => ends::<16>(front) == ends::<16>(octets),
        _ => front == octets,
    }
}

/// The first and the last octets.
#[inline(always)]
fn ends<const N: usize>(octets: &[u8]) -> (Option<&[u8; N]>, Option<&[u8; N]>) {
    (octets.first_chunk(), octets.last_chunk())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_octet_counts() {
        let text: Vec<u8> = (0..70).collect();
        for length in 0..=text.len() {
            let octets = &text[..length];
            assert!(begins_with(&text, octets), "{length}");
            assert!(begins_with(octets, octets), "{length}");
            for at in 0..length {
                let mut other = text.clone();
                other[at] ^= 1;
                assert!(!begins_with(&other, octets), "{length} differs at {at}");
                assert!(!begins_with(&text[..at], octets), "{length} cut at {at}");
            }
        }
    }
}
