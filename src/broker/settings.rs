//! A queue's settings: the options of `QSET`, their defaults, and how they are written.

use super::id::Level;

/// What happens to a publish when the queue is at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// `ERR FULL`.
    Reject,
    /// The oldest message that nobody leases is freed.
    DropOld,
}

/// How long a nacked message waits: doubling from `first_us` to `most_us`. Both 0 = at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failed try, microseconds.
    pub first_us: u64,
    /// Never longer than this, microseconds.
    pub most_us: u64,
}

impl Backoff {
    /// The wait after the given failed try (from 1), microseconds.
    pub fn after(&self, tries: u32) -> u64 {
        let doublings = tries.saturating_sub(1).min(63);
        self.first_us
            .checked_shl(doublings)
            .filter(|wait| wait >> doublings == self.first_us)
            .unwrap_or(u64::MAX)
            .min(self.most_us)
    }
}

/// Why a message goes to the dead-letter queue, a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadOn {
    /// `maxdeliver` was reached.
    pub tries: bool,
    /// Its time to live ended.
    pub ttl: bool,
    /// It was dropped to make room.
    pub full: bool,
}

/// How long settled messages are kept; of both limits the first that is met counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retain {
    /// Since the publish, microseconds.
    pub age_us: Option<u64>,
    /// The bodies of all that is kept, bytes.
    pub bytes: Option<u64>,
}

impl Retain {
    /// Are settled messages kept at all?
    #[inline]
    pub fn is_set(self) -> bool {
        self.age_us.is_some() || self.bytes.is_some()
    }
}

/// Which doors of a queue are shut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    /// Publishes are refused.
    pub input: bool,
    /// Nothing is handed out.
    pub output: bool,
}

/// Every setting of one queue, effective values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The level of publishes.
    pub durable: Level,
    /// Lease of a delivery that asks for none, microseconds.
    pub lease_us: u64,
    /// Tries before the dead-letter queue; 0 = no limit.
    pub maxdeliver: u32,
    /// The dead-letter queue's name; `<queue>.dead` when absent.
    pub dead: Option<Box<[u8]>>,
    /// What goes there.
    pub deadon: DeadOn,
    /// Wait after a nack.
    pub backoff: Backoff,
    /// Window of `once=`, microseconds.
    pub dedup_us: u64,
    /// At a limit.
    pub full: WhenFull,
    /// Most messages.
    pub maxlen: Option<u64>,
    /// Most bytes of bodies.
    pub maxbytes: Option<u64>,
    /// Time to live, microseconds.
    pub ttl_us: Option<u64>,
    /// Settled messages that are kept.
    pub retain: Retain,
    /// Keys have turns.
    pub fair_key: bool,
    /// One consumer at a time.
    pub single: bool,
    /// Most messages published in a second.
    pub rate: Option<u32>,
    /// Priority of publishes that say none.
    pub pri: u8,
    /// Shut doors.
    pub pause: Paused,
    /// Messages of the highest priority, 255, enter at the head: the last one published leaves first.
    pub head: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            durable: Level::Disk,
            lease_us: 30_000_000,
            maxdeliver: 5,
            dead: None,
            deadon: DeadOn {
                tries: true,
                ttl: false,
                full: false,
            },
            backoff: Backoff {
                first_us: 1_000_000,
                most_us: 300_000_000,
            },
            dedup_us: 120_000_000,
            full: WhenFull::Reject,
            maxlen: None,
            maxbytes: None,
            ttl_us: None,
            retain: Retain::default(),
            fair_key: false,
            single: false,
            rate: None,
            pri: 0,
            pause: Paused::default(),
            head: false,
        }
    }
}

/// What a `QSET` says; absent = unchanged. `Some(None)` takes a limit away (`maxlen=none`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SettingsPatch {
    pub durable: Option<Level>,
    pub lease_us: Option<u64>,
    pub maxdeliver: Option<u32>,
    /// Octets of the name, decoded.
    pub dead: Option<Box<[u8]>>,
    pub deadon: Option<DeadOn>,
    pub backoff: Option<Backoff>,
    pub dedup_us: Option<u64>,
    pub full: Option<WhenFull>,
    pub maxlen: Option<Option<u64>>,
    pub maxbytes: Option<Option<u64>>,
    pub ttl_us: Option<Option<u64>>,
    pub retain: Option<Retain>,
    pub fair_key: Option<bool>,
    pub single: Option<bool>,
    pub rate: Option<Option<u32>>,
    pub pri: Option<u8>,
    pub pause: Option<Paused>,
    pub head: Option<bool>,
}

/// Version of [`Settings::encode`]. Version 1 has no octet `more`, and is what is written where all of
/// its bits would be 0, so that an older program can read a directory that needs nothing newer.
const ENCODING: u8 = 2;
/// The version without `more`.
const ENCODING_PLAIN: u8 = 1;

impl Settings {
    /// Settings of a queue that is made to take this one's dead letters: no dead-letter queue of its own,
    /// no limit of tries, at least the same level.
    pub fn for_dead_letters(&self, defaults: &Settings) -> Settings {
        Settings {
            durable: self.durable.max(defaults.durable),
            maxdeliver: 0,
            dead: Some(Box::default()),
            ttl_us: None,
            retain: Retain::default(),
            maxlen: None,
            maxbytes: None,
            rate: None,
            pause: Paused::default(),
            ..defaults.clone()
        }
    }

    /// Whether an empty queue takes so many messages with so many bytes of bodies at once.
    pub fn can_hold(&self, count: u64, body_bytes: u64) -> bool {
        count <= self.maxlen.unwrap_or(u64::MAX) && body_bytes <= self.maxbytes.unwrap_or(u64::MAX)
    }

    /// Appends the octets that the log keeps.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Settings {
            durable,
            lease_us,
            maxdeliver,
            dead,
            deadon,
            backoff,
            dedup_us,
            full,
            maxlen,
            maxbytes,
            ttl_us,
            retain,
            fair_key,
            single,
            rate,
            pri,
            pause,
            head,
        } = self;
        let flags = [
            deadon.tries,
            deadon.ttl,
            deadon.full,
            *full == WhenFull::DropOld,
            pause.input,
            pause.output,
            dead.is_some(),
        ];
        let flags = flags
            .iter()
            .rev()
            .fold(0u8, |bits, flag| bits << 1 | u8::from(*flag));
        let more = [
            *fair_key,
            *single,
            rate.is_some(),
            retain.age_us.is_some(),
            retain.bytes.is_some(),
            *head,
        ];
        let more = more
            .iter()
            .rev()
            .fold(0u8, |bits, flag| bits << 1 | u8::from(*flag));
        let version = if more == 0 { ENCODING_PLAIN } else { ENCODING };
        out.extend_from_slice(&[version, *durable as u8, flags, *pri]);
        out.extend_from_slice(&maxdeliver.to_le_bytes());
        let none = u64::MAX;
        let numbers = [
            *lease_us,
            backoff.first_us,
            backoff.most_us,
            *dedup_us,
            maxlen.unwrap_or(none),
            maxbytes.unwrap_or(none),
            ttl_us.unwrap_or(none),
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        if more != 0 {
            out.push(more);
            if let Some(rate) = rate {
                out.extend_from_slice(&rate.to_le_bytes());
            }
            for limit in [retain.age_us, retain.bytes].into_iter().flatten() {
                out.extend_from_slice(&limit.to_le_bytes());
            }
        }
        out.extend_from_slice(dead.as_deref().unwrap_or_default());
    }

    /// Reads what [`Settings::encode`] wrote; `None` if it is something else.
    pub fn decode(octets: &[u8]) -> Option<Settings> {
        let (head, rest) = octets.split_first_chunk::<8>()?;
        let (numbers, rest) = rest.split_first_chunk::<56>()?;
        let [version, durable, flags, pri, maxdeliver @ ..] = *head;
        let (more, dead) = match version {
            ENCODING_PLAIN => (0, rest),
            ENCODING => rest.split_first().map(|(more, dead)| (*more, dead))?,
            _ => return None,
        };
        if more > 0b11_1111 {
            return None;
        }
        let mut dead = dead;
        let mut rate = None;
        if more & 4 != 0 {
            let (octets, rest) = dead.split_first_chunk::<4>()?;
            (rate, dead) = (Some(u32::from_le_bytes(*octets)), rest);
        }
        let mut retain = Retain::default();
        for (bit, limit) in [(8, &mut retain.age_us), (16, &mut retain.bytes)] {
            if more & bit != 0 {
                let (octets, rest) = dead.split_first_chunk::<8>()?;
                (*limit, dead) = (Some(u64::from_le_bytes(*octets)), rest);
            }
        }
        let number = |nth: usize| {
            let octets = numbers[nth * 8..nth * 8 + 8]
                .try_into()
                .expect("eight octets");
            u64::from_le_bytes(octets)
        };
        let limit = |nth: usize| Some(number(nth)).filter(|number| *number != u64::MAX);
        let flag = |nth: u8| flags & 1 << nth != 0;
        Some(Settings {
            durable: [Level::None, Level::Os, Level::Disk, Level::Quorum]
                .get(durable as usize)
                .copied()?,
            lease_us: number(0),
            maxdeliver: u32::from_le_bytes(maxdeliver),
            dead: flag(6).then(|| dead.into()),
            deadon: DeadOn {
                tries: flag(0),
                ttl: flag(1),
                full: flag(2),
            },
            backoff: Backoff {
                first_us: number(1),
                most_us: number(2),
            },
            dedup_us: number(3),
            full: if flag(3) {
                WhenFull::DropOld
            } else {
                WhenFull::Reject
            },
            maxlen: limit(4),
            maxbytes: limit(5),
            ttl_us: limit(6),
            retain,
            fair_key: more & 1 != 0,
            single: more & 2 != 0,
            rate,
            pri,
            pause: Paused {
                input: flag(4),
                output: flag(5),
            },
            head: more & 32 != 0,
        })
    }

    /// Takes over what the patch says.
    pub fn apply(&mut self, patch: &SettingsPatch) {
        let SettingsPatch {
            durable,
            lease_us,
            maxdeliver,
            dead,
            deadon,
            backoff,
            dedup_us,
            full,
            maxlen,
            maxbytes,
            ttl_us,
            retain,
            fair_key,
            single,
            rate,
            pri,
            pause,
            head,
        } = patch;
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                *field = value.clone();
            }
        }
        set(&mut self.durable, durable);
        set(&mut self.lease_us, lease_us);
        set(&mut self.maxdeliver, maxdeliver);
        if let Some(name) = dead {
            self.dead = Some(name.clone());
        }
        set(&mut self.deadon, deadon);
        set(&mut self.backoff, backoff);
        set(&mut self.dedup_us, dedup_us);
        set(&mut self.full, full);
        set(&mut self.maxlen, maxlen);
        set(&mut self.maxbytes, maxbytes);
        set(&mut self.ttl_us, ttl_us);
        set(&mut self.retain, retain);
        set(&mut self.fair_key, fair_key);
        set(&mut self.single, single);
        set(&mut self.rate, rate);
        set(&mut self.pri, pri);
        set(&mut self.pause, pause);
        set(&mut self.head, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_most() {
        let backoff = Backoff {
            first_us: 10,
            most_us: 75,
        };
        let waits: Vec<_> = (1..7).map(|tries| backoff.after(tries)).collect();
        assert_eq!(waits, [10, 20, 40, 75, 75, 75]);
        assert_eq!(backoff.after(u32::MAX), 75);
        assert_eq!(
            Backoff {
                first_us: 0,
                most_us: 0
            }
            .after(9),
            0
        );
    }

    #[test]
    fn settings_survive_their_encoding() {
        let plain = Settings::default();
        let odd = Settings {
            durable: Level::Os,
            dead: Some(b"grave".as_slice().into()),
            deadon: DeadOn {
                tries: false,
                ttl: true,
                full: true,
            },
            full: WhenFull::DropOld,
            maxlen: Some(0),
            ttl_us: Some(5),
            pri: 200,
            pause: Paused {
                input: true,
                output: false,
            },
            ..Settings::default()
        };
        let grave = odd.for_dead_letters(&plain);
        let fair = Settings {
            fair_key: true,
            ..odd.clone()
        };
        let single = Settings {
            single: true,
            ..plain.clone()
        };
        let slow = Settings {
            rate: Some(1 << 30),
            ..odd.clone()
        };
        let list = Settings {
            head: true,
            rate: Some(7),
            ..plain.clone()
        };
        for settings in [plain, odd, grave, fair, single, slow, list] {
            let mut octets = Vec::new();
            settings.encode(&mut octets);
            let needs_more = settings.fair_key || settings.single || settings.rate.is_some();
            assert_eq!(octets[0], if needs_more { 2 } else { 1 });
            assert_eq!(Settings::decode(&octets), Some(settings));
            assert_eq!(Settings::decode(&octets[..40]), None);
            octets[0] = 3;
            assert_eq!(Settings::decode(&octets), None);
        }
    }
}
