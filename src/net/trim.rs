//! When the allocator is asked for what it keeps between blocks: once after traffic, when that has stopped.

use std::thread;

use super::os;

/// Nothing has come for so long, microseconds.
const QUIET_US: u64 = 3_000_000;
/// So much has come since the last time, bytes: what little traffic leaves behind is used again.
const INPUT_BYTES_MIN: u64 = 8 << 20;

/// Asks for it on a thread of its own, which ends with that: it may take long, and whoever does not allocate meanwhile
/// goes on.
pub(super) fn spawn() {
    let thread = thread::Builder::new().name("trim".to_owned());
    if let Err(error) = thread.spawn(os::trim_freed_memory) {
        log::debug!("no thread to give memory back: {error}");
    }
}

/// Whether that is worth while.
#[derive(Debug, Default)]
pub(super) struct Trim {
    /// Input since the last time, bytes.
    bytes: u64,
    /// When the last of it came, microseconds.
    last_us: u64,
}

impl Trim {
    /// So much input has come in a turn.
    pub(super) fn received(&mut self, bytes: usize, now_us: u64) {
        if bytes > 0 {
            self.bytes = self.bytes.saturating_add(bytes as u64);
            self.last_us = now_us;
        }
    }

    /// When it is to be done if nothing comes until then, microseconds.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        (self.bytes >= INPUT_BYTES_MIN).then(|| self.last_us.saturating_add(QUIET_US))
    }

    /// Is it to be done now? Once.
    pub(super) fn take_due(&mut self, now_us: u64) -> bool {
        let is_due = self.poll_timeout().is_some_and(|due_us| due_us <= now_us);
        if is_due {
            self.bytes = 0;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_once_when_much_has_come_and_nothing_comes_any_more() {
        let mut trim = Trim::default();
        trim.received(INPUT_BYTES_MIN as usize - 1, 1_000);
        assert_eq!(trim.poll_timeout(), None, "that was little");
        assert!(!trim.take_due(u64::MAX));
        trim.received(1, 2_000);
        assert_eq!(trim.poll_timeout(), Some(2_000 + QUIET_US));
        trim.received(0, 3_000);
        trim.received(1, 4_000);
        assert!(!trim.take_due(2_000 + QUIET_US), "more has come meanwhile");
        assert!(trim.take_due(4_000 + QUIET_US));
        assert!(!trim.take_due(u64::MAX), "that was the once");
        assert_eq!(trim.poll_timeout(), None);
        trim.received(INPUT_BYTES_MIN as usize, 5_000);
        assert!(
            trim.take_due(5_000 + QUIET_US),
            "and after more traffic again"
        );
    }
}
