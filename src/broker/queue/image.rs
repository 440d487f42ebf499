//! The messages' states of one queue as a checkpoint keeps them.

use std::collections::{BTreeMap, BTreeSet};

use super::Queue;
use crate::broker::id::MessageId;

/// Runs of consecutive ids: (first, count).
pub type Runs = Vec<(MessageId, u64)>;

/// The messages' states of one queue as a checkpoint keeps them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The id the next message will get.
    pub next_id: MessageId,
    /// Ready ids by priority.
    pub lanes: BTreeMap<u8, Runs>,
    /// (due, id, priority).
    pub delayed: Vec<(u64, MessageId, u8)>,
    /// (id, failed tries).
    pub tries: Vec<(MessageId, u16)>,
}

impl Image {
    /// Takes these messages out.
    fn leave_out(&mut self, ids: &BTreeSet<MessageId>) {
        for runs in self.lanes.values_mut() {
            leave_out(runs, ids);
        }
        self.delayed.retain(|(_, id, _)| !ids.contains(id));
        self.tries.retain(|(id, _)| !ids.contains(id));
    }
}

/// Takes ids out of runs.
pub fn leave_out(runs: &mut Runs, ids: &BTreeSet<MessageId>) {
    let all = std::mem::take(runs);
    for (mut first, count) in all {
        let end = first + count;
        for id in ids.range(first..end) {
            if *id > first {
                runs.push((first, id - first));
            }
            first = id + 1;
        }
        if end > first {
            runs.push((first, end - first));
        }
    }
}

/// Appends ids to runs; consecutive ones share a run.
pub fn push_runs(runs: &mut Runs, ids: impl Iterator<Item = MessageId>) {
    for id in ids {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == id => *count += 1,
            _ => runs.push((id, 1)),
        }
    }
}

impl Queue {
    /// Messages as a checkpoint keeps them: (priority, ids) of ready, (due, id, priority) of
    /// delayed, and failed tries. Leased and hidden messages count as ready, requests are left out.
    pub fn image(&self, leased: &[(MessageId, u8)], requests: &BTreeSet<MessageId>) -> Image {
        let mut lanes: BTreeMap<u8, Vec<(MessageId, u64)>> = BTreeMap::new();
        let mut single = Vec::new();
        for (pri, lane) in self.ready.lanes() {
            lanes.insert(pri, lane.runs());
        }
        self.add_keyed(&mut lanes);
        let mut special = self.specials.iter().peekable();
        for id in self.visible..self.next_id {
            let found = special.next_if(|special| special.id == id);
            if !self.is_unsettled(id) {
                continue;
            }
            match found {
                Some(special) if special.due_us > 0 => {
                    single.push((special.due_us, id, special.pri))
                }
                Some(special) => push_runs(lanes.entry(special.pri).or_default(), [id].into_iter()),
                None => push_runs(
                    lanes.entry(self.settings.pri).or_default(),
                    [id].into_iter(),
                ),
            }
        }
        for (id, pri) in leased {
            push_runs(lanes.entry(*pri).or_default(), [*id].into_iter());
        }
        single.extend(self.delayed.iter());
        single.sort_unstable();
        let mut tries: Vec<_> = self
            .tries
            .iter()
            .map(|(id, failed)| (*id, *failed))
            .collect();
        tries.sort_unstable();
        let mut image = Image {
            next_id: self.next_id,
            lanes,
            delayed: single,
            tries,
        };
        if !requests.is_empty() {
            image.leave_out(requests);
        }
        image
    }

    /// Takes the messages' states over from a checkpoint; the index and the keys were restored before.
    pub fn restore(&mut self, image: &Image) {
        self.next_id = image.next_id;
        self.visible = image.next_id;
        for (id, failed) in &image.tries {
            self.set_failed(*id, *failed);
        }
        for (pri, runs) in &image.lanes {
            for (first, count) in runs {
                for id in *first..first + count {
                    self.insert_ready(id, *pri);
                }
            }
        }
        for (due_us, id, pri) in &image.delayed {
            self.become_waiting(*id, *pri, (*due_us).max(1));
        }
    }
}
