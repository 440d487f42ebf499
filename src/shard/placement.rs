//! Which shard a queue belongs to.
//!
//! The rule is part of the data directory's format: a queue's log lies with its shard, so the same name must be
//! placed on the same shard by every version.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// Behind a queue's name: its dead-letter queue, its neighbour on the same shard.
const DEAD_SUFFIX: &[u8] = b".dead";

/// A name that is longer without its suffixes, octets, is placed by its first [`HEAD_BYTES`]. The name of a
/// dead-letter queue is its queue's, cut to leave room for the suffix, so the last octets of the longest names
/// must not count.
const LONG_BYTES: usize = 200;
/// See [`LONG_BYTES`].
const HEAD_BYTES: usize = 128;

/// The shard of the queue of that name (octets) among `shards` of them: SipHash-2-4 with a key of zeroes
/// (Aumasson and Bernstein, 2012) of the name without trailing `.dead`s, if that is longer than 200 octets of
/// its first 128, its high half scaled to the number of shards.
pub fn shard_of(name: &[u8], shards: u32) -> u32 {
    let stem = match without_suffix(name) {
        stem if stem.len() > LONG_BYTES => &stem[..HEAD_BYTES],
        stem => stem,
    };
    let mut hasher = SipHasher24::new_with_keys(0, 0);
    hasher.write(stem);
    let hash = hasher.finish();
    (((hash >> 32) * u64::from(shards)) >> 32) as u32
}

fn without_suffix(name: &[u8]) -> &[u8] {
    let mut stem = name;
    while let Some(shorter) = stem.strip_suffix(DEAD_SUFFIX)
        && !shorter.is_empty()
    {
        stem = shorter;
    }
    stem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_never_change_and_dead_letters_stay_near() {
        // Written down once: another answer would lose queues.
        let places: Vec<u32> = ["jobs", "orders", "mail", "a", "b", "c"]
            .iter()
            .map(|name| shard_of(name.as_bytes(), 8))
            .collect();
        assert_eq!(places, [6, 6, 3, 4, 7, 0]);
        for name in ["jobs", "x", ".dead"] {
            let dead = [name.as_bytes(), b".dead"].concat();
            assert_eq!(shard_of(name.as_bytes(), 64), shard_of(&dead, 64), "{name}");
            assert_eq!(shard_of(name.as_bytes(), 1), 0);
        }
    }

    #[test]
    fn the_longest_names_stay_near_their_dead_letters_too() {
        for length in 230..=255 {
            for end in [
                "",
                ".dead",
                ".deadx",
                ".dead.dead",
                ".dead.dead.de",
                "x.dead.dead12345",
            ] {
                let mut name = vec![b'n'; length];
                name[length - end.len()..].copy_from_slice(end.as_bytes());
                let dead = [&name[..length.min(250)], DEAD_SUFFIX].concat();
                let places = [shard_of(&name, 1 << 20), shard_of(&dead, 1 << 20)];
                assert_eq!(places[0], places[1], "{length} {end}");
            }
        }
    }

    #[test]
    fn names_spread_evenly() {
        let mut counts = [0; 4];
        for n in 0..4000 {
            counts[shard_of(format!("queue-{n}").as_bytes(), 4) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
