//! `PUB every=`: a queue gets a message again and again.

use bytes::Bytes;

use super::engine::Refused;
use super::session::{Asker, Flow};
use super::{Now, Shard};
use crate::broker::command::{Body, PublishOptions, Typed};
use crate::broker::id::Level;
use crate::broker::reply::{Error, ErrorCode, Reply};
use crate::broker::schedule::{SCHEDULE_BYTES_MAX, Schedule};
use crate::log::disk::Storage;
use crate::protocol::text::value;

impl<S: Storage> Shard<S> {
    /// Makes, changes or ends (`every_us` 0) a schedule.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn schedule(
        &mut self,
        asker: Asker<'_>,
        queue: Typed<'_>,
        name: Typed<'_>,
        every_us: u64,
        options: &PublishOptions<'_>,
        body: Body<'_>,
        now: Now,
    ) -> Flow {
        let done = match every_us {
            0 => self.end_schedule(queue, name),
            _ => self.set_schedule(queue, name, every_us, options, &body, now),
        };
        match done {
            Ok(number) => self.scheduled(asker, number),
            Err(Refused::Cold) => {
                if let Body::Owned(bytes) = body {
                    self.conns[asker.slot].rare.make().kept_body = Some(bytes);
                }
                self.block_cold(asker.slot);
                return Flow::Again;
            }
            Err(Refused::Error(error)) => {
                if asker.quiet {
                    self.conns[asker.slot].rare.make().quiet.rejected += 1;
                }
                return self.conclude(asker, Err(error));
            }
        }
        Flow::Done
    }

    fn set_schedule(
        &mut self,
        queue: Typed<'_>,
        name: Typed<'_>,
        every_us: u64,
        options: &PublishOptions<'_>,
        body: &Body<'_>,
        now: Now,
    ) -> Result<u64, Refused> {
        self.engine.build_told(options);
        let sections: Box<[u8]> = self.engine.sections().into();
        if sections.len() + body.as_slice().len() > SCHEDULE_BYTES_MAX {
            return Err(too_big().into());
        }
        if self.engine.over_budget {
            return Err(super::cast::no_memory().into());
        }
        let delay_us = match options.at_us {
            Some(at_us) => Some(until(at_us, every_us, now.wall_us)),
            None => options.delay_us,
        };
        let mut scratch = Vec::new();
        let schedule = Schedule {
            name: name.decoded(&mut scratch).into(),
            every_us,
            ttl_us: options.ttl_us,
            pri: options.pri,
            sections,
            body: Bytes::copy_from_slice(body.as_slice()),
        };
        let key = self.find_or_create(queue);
        let first_us = delay_us.map(|delay_us| now.us.saturating_add(delay_us));
        self.engine.set_schedule(key, schedule, first_us, now)
    }

    fn end_schedule(&mut self, queue: Typed<'_>, name: Typed<'_>) -> Result<u64, Refused> {
        let key = self.existing(queue)?;
        let mut scratch = Vec::new();
        let ended = self.engine.end_schedule(key, name.decoded(&mut scratch));
        ended.ok_or_else(|| {
            let text = format!(
                "{0} has no schedule {1}; QGET {0} lists them",
                value::shown(queue.0),
                value::shown(name.0)
            );
            Error::new(ErrorCode::Conflict, text).into()
        })
    }

    /// Answers when the definition is on the disk.
    fn scheduled(&mut self, asker: Asker<'_>, number: u64) {
        let level = match self.engine.log {
            Some(_) => Level::Disk,
            None => Level::None,
        };
        let need = self.engine.need(level);
        if asker.quiet {
            let quiet = &mut self.conns[asker.slot].rare.make().quiet;
            quiet.accepted += 1;
            quiet.level = quiet.level.min(level);
            quiet.need = quiet.need.and(need);
            return;
        }
        let reply = Reply::Receipt {
            id: number,
            level,
            duplicate: false,
        };
        self.answer_when(asker, need, &reply);
    }
}

/// From now to a time, or to the next of those that are whole intervals after it, microseconds.
fn until(at_us: u64, every_us: u64, now_us: u64) -> u64 {
    match now_us.checked_sub(at_us) {
        None => at_us - now_us,
        Some(past_us) => past_us.next_multiple_of(every_us) - past_us,
    }
}

fn too_big() -> Error {
    let text = format!(
        "the message of a schedule has at most {SCHEDULE_BYTES_MAX} bytes with its key and headers"
    );
    Error::new(ErrorCode::TooBig, text)
}

#[cfg(test)]
mod tests {
    use super::until;

    #[test]
    fn a_time_that_has_passed_counts_on_by_intervals() {
        assert_eq!(until(50, 100, 20), 30);
        assert_eq!(until(50, 100, 50), 0);
        assert_eq!(until(50, 100, 51), 99);
        assert_eq!(until(50, 100, 149), 1);
        assert_eq!(until(50, 100, 150), 0);
        assert_eq!(until(0, 1, u64::MAX), 0);
    }
}
