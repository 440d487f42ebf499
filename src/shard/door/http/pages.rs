//! Pages that every shard has a part in.

use super::answers::{Response, TEXT};
use super::{What, exposition};
use crate::broker::reply::Reply;
use crate::buffer::send::Pool;
use crate::log::Room;
use crate::log::disk::Storage;
use crate::shard::conn::Conn;
use crate::shard::door::Told;
use crate::shard::session::Flow;
use crate::shard::{Ending, Now, Shard};

/// The version that the text format of Prometheus has.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why a broker is not ready, in the order in which it is told.
const REASONS: [&str; 4] = [
    "the broker is going down",
    "the disk has failed",
    "the disk is full",
    "the memory budget is used up",
];

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/metrics`
    Metrics,
    /// `/readyz`
    Ready,
}

impl Page {
    /// One page of the shards' parts.
    pub fn merge(self, parts: &[&[u8]]) -> Vec<u8> {
        match (self, parts) {
            (_, [only]) => only.to_vec(),
            (Page::Metrics, parts) => exposition::merge(parts),
            (Page::Ready, parts) => {
                let told = |reason: &&str| {
                    let mut lines = parts.iter().flat_map(|part| part.split(|it| *it == b'\n'));
                    lines.any(|line| line == reason.as_bytes())
                };
                let reasons: Vec<&str> = REASONS.into_iter().filter(told).collect();
                reasons.join("\n").into_bytes()
            }
        }
    }
}

impl Conn {
    /// Responds with a page.
    pub(super) fn respond_page(&mut self, pool: &mut Pool, page: Page, text: &[u8]) {
        match page {
            Page::Metrics => self.respond(pool, &Response::new(200, METRICS), text),
            Page::Ready if text.is_empty() => {
                self.respond(pool, &Response::new(200, TEXT), b"ready\n");
            }
            Page::Ready => {
                let reasons = String::from_utf8_lossy(text).replace('\n', ", ");
                let body = format!("not ready: {reasons}\n");
                self.respond(pool, &Response::new(503, TEXT), body.as_bytes());
            }
        }
    }
}

impl<S: Storage> Shard<S> {
    pub(super) fn http_page(&mut self, slot: usize, page: Page, now: Now) -> Flow {
        if let Some(current) = &mut self.conns[slot].http().current {
            current.what = What::Page(page);
        }
        if self.peers.is_some() {
            let flow = self.gather_page(slot, page, now);
            if flow == Flow::Done {
                self.wait_for_last_run(slot);
            }
            return flow;
        }
        let text = self.part_of_page(page, now);
        self.conns[slot].tell(&mut self.pool, None, Told::Reply(&Reply::Data(&text)));
        Flow::Done
    }

    /// What this shard knows for a page.
    pub(in crate::shard) fn part_of_page(&mut self, page: Page, now: Now) -> Vec<u8> {
        match page {
            Page::Metrics => self.metrics(now),
            Page::Ready => self.unready(),
        }
    }

    /// Why this shard is not fit to take messages, a line each.
    fn unready(&self) -> Vec<u8> {
        let log = self.engine.log.as_ref();
        let holds = [
            self.is_draining() || self.ending != Ending::No,
            self.failed.is_some(),
            log.is_some_and(|log| log.room() == Room::DiskFull),
            self.engine.over_budget,
        ];
        let reasons = REASONS.into_iter().zip(holds);
        let reasons: Vec<&str> = reasons
            .filter_map(|(reason, holds)| holds.then_some(reason))
            .collect();
        reasons.join("\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_shard_lacks_is_told_once_and_in_order() {
        let merged = |parts: &[&str]| {
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
            String::from_utf8(Page::Ready.merge(&parts)).expect("it is text")
        };
        assert_eq!(merged(&["", "", ""]), "");
        assert_eq!(merged(&["", "the disk is full"]), "the disk is full");
        assert_eq!(
            merged(&[
                "the memory budget is used up",
                "the broker is going down\nthe memory budget is used up",
            ]),
            "the broker is going down\nthe memory budget is used up"
        );
    }
}
