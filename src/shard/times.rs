//! How long things take, in histograms for `/metrics`.
//!
//! Of every hand-out (the messages that one connection is given of one queue in one turn) the first message is
//! measured: all of them where they come one by one, few where they come by the hundred, and a message in the
//! middle of a run costs nothing.

/// Buckets of a histogram.
pub const BUCKETS: usize = 32;
/// Deliveries that are watched until they are acked, at most; of so many that follow each other, one at a time.
const WATCHED: usize = 256;
const APART: u64 = 64;

/// Counts of values by the powers of two that they are below.
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// Entry n counts what is below 2^n and in no entry before; the last one the rest.
    pub below: [u64; BUCKETS],
    /// Of all values.
    pub sum: u64,
}

impl Histogram {
    /// One more value.
    #[inline]
    pub fn add(&mut self, value: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.below[bucket.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(value);
    }
}

/// A delivery whose ack is awaited.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Of its lease; 0 = none.
    serial: u64,
    /// When it was handed out, microseconds.
    begun_us: u64,
}

/// What a shard measures.
#[derive(Debug)]
pub struct Times {
    /// From publish to the first hand-out, milliseconds.
    pub dwell_ms: Histogram,
    /// From hand-out to ack, microseconds.
    pub service_us: Histogram,
    /// Turns of the event loop, from the end of its sleep, microseconds.
    pub turn_us: Histogram,
    /// When the turn under way began, microseconds.
    pub now_us: u64,
    /// By their leases' serials.
    watched: Box<[Watched; WATCHED]>,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            dwell_ms: Histogram::default(),
            service_us: Histogram::default(),
            turn_us: Histogram::default(),
            now_us: 0,
            watched: Box::new([Watched::default(); WATCHED]),
        }
    }
}

impl Times {
    /// Where the delivery with that lease may be watched.
    #[inline]
    fn place(serial: u64) -> usize {
        (serial / APART) as usize % WATCHED
    }

    /// The delivery with that lease is to be watched. One that is watched at its place already, and
    /// `is_on` by its serial, goes on being watched instead, so that slow ones are not lost.
    #[inline]
    pub fn watch(&mut self, serial: u64, now_us: u64, is_on: impl FnOnce(u64) -> bool) {
        let place = &mut self.watched[Times::place(serial)];
        if place.serial == 0 || !is_on(place.serial) {
            *place = Watched {
                serial,
                begun_us: now_us,
            };
        }
    }

    /// The delivery with that lease is acked.
    #[inline]
    pub fn acked(&mut self, serial: u64) {
        self.acked_run(serial, 1);
    }

    /// So many deliveries with leases from `first` on are acked.
    #[inline]
    pub fn acked_run(&mut self, first: u64, count: u64) {
        let serials = first..first + count;
        for serial in serials
            .clone()
            .step_by(APART as usize)
            .chain(serials.end.checked_sub(1))
        {
            let watched = &mut self.watched[Times::place(serial)];
            if serials.contains(&watched.serial) {
                watched.serial = 0;
                let began = watched.begun_us;
                self.service_us.add(self.now_us.saturating_sub(began));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_below_the_next_power_of_two() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 1 << 40, u64::MAX] {
            histogram.add(value);
        }
        assert_eq!(histogram.below[..4], [1, 1, 2, 1]);
        assert_eq!(histogram.below[BUCKETS - 1], 2);
        assert_eq!(histogram.below.iter().sum::<u64>(), 7);
        assert_eq!(histogram.sum, u64::MAX);
    }

    #[test]
    fn who_is_watched_stays_so_until_its_lease_has_ended() {
        let mut times = Times::default();
        let same = 1 + APART * WATCHED as u64;
        times.watch(1, 100, |_| panic!("nobody was watched there"));
        times.watch(same, 200, |serial| serial == 1);
        times.now_us = 300;
        times.acked(same);
        assert_eq!(times.service_us.sum, 0);
        times.acked(1);
        times.acked(1);
        assert_eq!(times.service_us.sum, 200);
        times.watch(same, 300, |_| false);
        times.now_us = 310;
        times.acked(same);
        assert_eq!(times.service_us.sum, 210);
        assert_eq!(times.service_us.below.iter().sum::<u64>(), 2);
    }

    #[test]
    fn who_is_watched_within_a_run_is_found() {
        for serial in 1000..1300 {
            let mut times = Times::default();
            times.watch(serial, 0, |_| false);
            times.acked_run(900, 100);
            times.acked_run(1300, 100);
            assert_eq!(times.service_us.below.iter().sum::<u64>(), 0, "{serial}");
            times.acked_run(1000, 300);
            times.acked_run(1000, 300);
            assert_eq!(times.service_us.below.iter().sum::<u64>(), 1, "{serial}");
        }
    }
}
