//! What a connection posts to its guests.

use super::super::Letter;
use super::super::gather::Gather;
use super::super::guest::Kind;
use super::Dest;
use crate::log::disk::Storage;
use crate::shard::Shard;

impl<S: Storage> Shard<S> {
    /// Adds a command to what is posted to a shard at the turn's end; returns its run.
    pub(in super::super) fn post_command(&mut self, slot: usize, to: u32, frame: &[&[u8]]) -> u64 {
        self.seal_own(slot, true);
        self.list_away(slot);
        self.open_link(slot, to);
        let bytes: usize = frame.iter().map(|part| part.len()).sum();
        let away = self.away(slot);
        let last = away.runs.back().map(|run| run.id);
        let link = &mut away.links[to as usize];
        if let Some((run, draft)) = &mut link.draft
            && Some(*run) == last
        {
            let run = *run;
            for part in frame {
                draft.extend_from_slice(part);
            }
            self.count_posted(slot, to, bytes);
            return run;
        }
        self.flush_draft(slot, to);
        let away = self.away(slot);
        let run = away.add_run(Dest::Guest(to));
        let mut draft = Vec::with_capacity(bytes.max(512));
        for part in frame {
            draft.extend_from_slice(part);
        }
        away.links[to as usize].draft = Some((run, draft));
        self.count_posted(slot, to, bytes);
        run
    }

    /// Adds frames to what is posted to a shard at the turn's end, which nothing waits for.
    pub(in crate::shard) fn post_unanswered(&mut self, slot: usize, to: u32, frames: &[&[u8]]) {
        self.list_away(slot);
        self.open_link(slot, to);
        let bytes: usize = frames.iter().map(|part| part.len()).sum();
        if self.away(slot).links[to as usize].draft.is_none() {
            let number = self.add_question(slot);
            let draft = Vec::with_capacity(bytes.max(512));
            self.away(slot).links[to as usize].draft = Some((number, draft));
        }
        let link = &mut self.away(slot).links[to as usize];
        if let Some((_, draft)) = &mut link.draft {
            for part in frames {
                draft.extend_from_slice(part);
            }
        }
        self.count_posted(slot, to, bytes);
    }

    /// Posts something that is a run of its own.
    pub(in super::super) fn post_alone(
        &mut self,
        slot: usize,
        to: u32,
        kind: Kind,
        bytes: Vec<u8>,
    ) {
        self.seal_own(slot, true);
        let run = self.away(slot).add_run(Dest::Guest(to));
        self.post_input(slot, to, run, kind, bytes);
    }

    /// Begins a run that several shards answer.
    pub(in super::super) fn add_gather(&mut self, slot: usize, gather: Gather) -> u64 {
        self.seal_own(slot, true);
        self.list_away(slot);
        self.away(slot).add_run(Dest::Gather(Box::new(gather)))
    }

    /// A number for what parts answer that is not a run: what they say is not sent as it is.
    pub(in super::super) fn add_question(&mut self, slot: usize) -> u64 {
        let away = self.away(slot);
        let id = away.next_run;
        away.next_run += 1;
        id
    }

    /// Posts input that belongs to a run there is.
    pub(in super::super) fn post_input(
        &mut self,
        slot: usize,
        to: u32,
        run: u64,
        kind: Kind,
        bytes: Vec<u8>,
    ) {
        self.list_away(slot);
        self.open_link(slot, to);
        self.flush_draft(slot, to);
        self.count_posted(slot, to, bytes.len() + kind.bytes());
        let conn = self.key(slot);
        let letter = Letter::Input {
            conn,
            run,
            kind,
            bytes,
        };
        self.mail().post(to, letter);
    }

    fn count_posted(&mut self, slot: usize, to: u32, bytes: usize) {
        self.away(slot).links[to as usize].posted += bytes;
        self.mail().outstanding[to as usize] += bytes;
    }

    fn flush_draft(&mut self, slot: usize, to: u32) {
        let conn = self.key(slot);
        if let Some((run, bytes)) = self.away(slot).links[to as usize].draft.take() {
            let letter = Letter::Input {
                conn,
                run,
                kind: Kind::Commands,
                bytes,
            };
            self.mail().post(to, letter);
        }
    }

    pub(in super::super) fn flush_drafts(&mut self, slot: usize) {
        for to in 0..self.shards().0 {
            self.flush_draft(slot, to);
        }
    }
}
