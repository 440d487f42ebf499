//! How long things take, in histograms for `/metrics`.
//!
//! Of every hand-out (the messages that one connection is given of one queue in one turn) one message is measured:
//! all of them where they come one by one, few where they come by the hundred, and a message in the middle of a run
//! costs nothing.

use crate::log::Histogram;

/// Deliveries that are watched until they are acked, at most.
const WATCHED: usize = 256;

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
    /// A bit for each place there that is taken, by one that may have ended meanwhile.
    taken: [u64; WATCHED / 64],
}

impl Default for Times {
    fn default() -> Times {
        Times {
            dwell_ms: Histogram::default(),
            service_us: Histogram::default(),
            turn_us: Histogram::default(),
            now_us: 0,
            watched: Box::new([Watched::default(); WATCHED]),
            taken: [0; WATCHED / 64],
        }
    }
}

impl Times {
    /// The delivery with that lease is to be watched. One that is watched at its place already, and
    /// `is_on` by its serial, goes on being watched instead, so that slow ones are not lost.
    #[inline]
    pub fn watch(&mut self, serial: u64, now_us: u64, is_on: impl FnOnce(u64) -> bool) {
        let at = serial as usize % WATCHED;
        let place = &mut self.watched[at];
        if place.serial == 0 || !is_on(place.serial) {
            *place = Watched {
                serial,
                begun_us: now_us,
            };
            self.taken[at / 64] |= 1 << (at % 64);
        }
    }

    /// The delivery with that lease is acked.
    #[inline]
    pub fn acked(&mut self, serial: u64) {
        let at = serial as usize % WATCHED;
        let place = &mut self.watched[at];
        if place.serial == serial {
            place.serial = 0;
            self.taken[at / 64] &= !(1 << (at % 64));
            let worked_us = self.now_us.saturating_sub(place.begun_us);
            self.service_us.add(worked_us);
        }
    }

    /// The deliveries with so many leases, from that serial on, are acked.
    #[inline]
    pub fn acked_run(&mut self, first: u64, count: u64) {
        let (mut serial, end) = (first, first + count);
        while serial < end {
            let at = serial as usize % WATCHED;
            let (word, bit) = (at / 64, at as u64 % 64);
            let many = (64 - bit).min(end - serial);
            let mut taken = self.taken[word] & ((u64::MAX >> (64 - many)) << bit);
            while taken != 0 {
                self.acked(serial + u64::from(taken.trailing_zeros()) - bit);
                taken &= taken - 1;
            }
            serial += many;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_acks_finds_who_is_watched_in_it() {
        for first in [1, 60, 64, 250, 1000] {
            for count in [1, 2, 63, 64, 65, 300, 600] {
                let mut times = Times::default();
                for serial in first.max(10) - 3..first + count + 3 {
                    times.watch(serial, 1, |_| true);
                }
                times.now_us = 2;
                let watched: Vec<u64> = times.watched.iter().map(|it| it.serial).collect();
                let within = watched
                    .iter()
                    .filter(|it| (first..first + count).contains(it));
                let wanted = within.count() as u64;
                times.acked_run(first, count);
                assert_eq!(times.service_us.sum, wanted, "{count} from {first}");
            }
        }
    }

    #[test]
    fn who_is_watched_stays_so_until_its_lease_has_ended() {
        let mut times = Times::default();
        times.watch(1, 100, |_| panic!("nobody was watched there"));
        times.watch(1 + WATCHED as u64, 200, |serial| serial == 1);
        times.now_us = 300;
        times.acked(1 + WATCHED as u64);
        assert_eq!(times.service_us.sum, 0);
        times.acked(1);
        assert_eq!(times.service_us.sum, 200);
        times.watch(1 + WATCHED as u64, 300, |_| false);
        times.now_us = 310;
        times.acked(1 + WATCHED as u64);
        assert_eq!(times.service_us.sum, 210);
        assert_eq!(times.service_us.within.iter().sum::<u64>(), 2);
    }

    #[test]
    fn who_is_watched_within_a_run_is_found() {
        for serial in 1000..1300 {
            let mut times = Times::default();
            times.watch(serial, 0, |_| false);
            times.acked_run(900, 100);
            times.acked_run(1300, 100);
            assert_eq!(times.service_us.within.iter().sum::<u64>(), 0, "{serial}");
            times.acked_run(1000, 300);
            times.acked_run(1000, 300);
            assert_eq!(times.service_us.within.iter().sum::<u64>(), 1, "{serial}");
        }
    }
}
