//! What the reactor drives: a whole broker without its sockets.

use std::io::IoSlice;

use crate::log::disk::Storage;
use crate::shard::{Bag, ConnKey, Now, Room, Shard, Stop};

/// The reactor's view of a [`Shard`]; the methods' contracts are the shard's own. A trait, so that
/// the reactor is tested without a broker behind it.
pub trait Driven {
    /// See [`Shard::handle_accept_at`].
    fn handle_accept(&mut self, peer: &str, listener: usize, now: Now) -> Option<ConnKey>;
    /// See [`Shard::receive_room`].
    fn receive_room(&mut self, conn: ConnKey) -> Option<Room<'_>>;
    /// See [`Shard::handle_received`].
    fn handle_received(&mut self, conn: ConnKey, count: usize, now: Now);
    /// See [`Shard::handle_half_close`].
    fn handle_half_close(&mut self, conn: ConnKey, now: Now);
    /// See [`Shard::handle_reset`].
    fn handle_reset(&mut self, conn: ConnKey, now: Now);
    /// See [`Shard::handle_turn_end`].
    fn handle_turn_end(&mut self, now: Now);
    /// See [`Shard::poll_resume`].
    fn poll_resume(&mut self) -> Option<ConnKey>;
    /// See [`Shard::poll_output`].
    fn poll_output(&mut self) -> Option<ConnKey>;
    /// See [`Shard::output`].
    fn output<'a>(&'a self, conn: ConnKey, slices: &mut [IoSlice<'a>]) -> usize;
    /// See [`Shard::handle_sent`].
    fn handle_sent(&mut self, conn: ConnKey, count: usize, now: Now) -> bool;
    /// See [`Shard::poll_close`].
    fn poll_close(&mut self) -> Option<ConnKey>;
    /// See [`Shard::poll_unacknowledged`].
    fn poll_unacknowledged(&mut self) -> Option<ConnKey> {
        None
    }
    /// See [`Shard::handle_unacknowledged`].
    fn handle_unacknowledged(&mut self, _conn: ConnKey, _bytes: usize, _now: Now) {}
    /// See [`Shard::poll_timeout`].
    fn poll_timeout(&self) -> Option<u64>;
    /// See [`Shard::handle_shutdown`].
    fn handle_shutdown(&mut self, now: Now);
    /// See [`Shard::poll_stopped`].
    fn poll_stopped(&mut self) -> Option<Stop>;
    /// See [`Shard::handle_turn_measured`].
    fn handle_turn_measured(&mut self, _took_us: u64) {}
    /// See [`Shard::handle_post`]; one that is alone gets none.
    fn handle_post(&mut self, _from: u32, _bag: Bag, _now: Now) {}
    /// See [`Shard::poll_post`]; one that is alone has none.
    fn poll_post(&mut self) -> Option<(u32, Bag)> {
        None
    }
}

impl<S: Storage> Driven for Shard<S> {
    fn handle_accept(&mut self, peer: &str, listener: usize, now: Now) -> Option<ConnKey> {
        Shard::handle_accept_at(self, peer, listener, now)
    }
    fn receive_room(&mut self, conn: ConnKey) -> Option<Room<'_>> {
        Shard::receive_room(self, conn)
    }
    fn handle_received(&mut self, conn: ConnKey, count: usize, now: Now) {
        Shard::handle_received(self, conn, count, now);
    }
    fn handle_half_close(&mut self, conn: ConnKey, now: Now) {
        Shard::handle_half_close(self, conn, now);
    }
    fn handle_reset(&mut self, conn: ConnKey, now: Now) {
        Shard::handle_reset(self, conn, now);
    }
    fn handle_turn_end(&mut self, now: Now) {
        Shard::handle_turn_end(self, now);
    }
    fn poll_resume(&mut self) -> Option<ConnKey> {
        Shard::poll_resume(self)
    }
    fn poll_output(&mut self) -> Option<ConnKey> {
        Shard::poll_output(self)
    }
    fn output<'a>(&'a self, conn: ConnKey, slices: &mut [IoSlice<'a>]) -> usize {
        Shard::output(self, conn, slices)
    }
    fn handle_sent(&mut self, conn: ConnKey, count: usize, now: Now) -> bool {
        Shard::handle_sent(self, conn, count, now)
    }
    fn poll_close(&mut self) -> Option<ConnKey> {
        Shard::poll_close(self)
    }
    fn poll_unacknowledged(&mut self) -> Option<ConnKey> {
        Shard::poll_unacknowledged(self)
    }
    fn handle_unacknowledged(&mut self, conn: ConnKey, bytes: usize, now: Now) {
        Shard::handle_unacknowledged(self, conn, bytes, now);
    }
    fn poll_timeout(&self) -> Option<u64> {
        Shard::poll_timeout(self)
    }
    fn handle_shutdown(&mut self, now: Now) {
        Shard::handle_shutdown(self, now);
    }
    fn poll_stopped(&mut self) -> Option<Stop> {
        Shard::poll_stopped(self)
    }
    fn handle_turn_measured(&mut self, took_us: u64) {
        Shard::handle_turn_measured(self, took_us);
    }
    fn handle_post(&mut self, from: u32, bag: Bag, now: Now) {
        Shard::handle_post(self, from, bag, now);
    }
    fn poll_post(&mut self) -> Option<(u32, Bag)> {
        Shard::poll_post(self)
    }
}
