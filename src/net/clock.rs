//! The clock that every turn is stamped with: read once for all that happens in the turn, and once more behind it to
//! tell how long it took.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::shard::Now;

/// The wall clock as it stood at start, carried on by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// Unix time at `start`, microseconds.
    start_us: u64,
}

impl Clock {
    /// A clock that begins with the system's wall time.
    pub fn start() -> Clock {
        Clock {
            start: Instant::now(),
            start_us: wall_us(),
        }
    }

    /// What the clocks say. `us` never goes back; `wall_us` follows the system, jumps included.
    pub fn now(&self) -> Now {
        Now {
            us: self.us(),
            wall_us: wall_us(),
        }
    }

    /// [`Now::us`] alone, microseconds: one system clock instead of two.
    pub fn us(&self) -> u64 {
        self.start_us + micros(self.start.elapsed())
    }
}

/// Unix time, microseconds; 0 if the system believes that it is before 1970.
fn wall_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, micros)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_the_wall_clock_and_never_goes_back() {
        let clock = Clock::start();
        let first = clock.now();
        assert!(first.us.abs_diff(first.wall_us) < 5_000_000, "{first:?}");
        let mut last = first.us;
        for _ in 0..1000 {
            let now = clock.now().us;
            assert!(now >= last);
            last = now;
        }
    }
}
