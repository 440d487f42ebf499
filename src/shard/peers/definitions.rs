//! Exchanges and bindings are the same on all shards: who waits until a change of them is so everywhere.
//!
//! ```text
//!   any shard --Change--> first shard: changed, logged --Changed--> all others: changed
//!       ^------------------------------Defined, by each of them-----------'
//! ```
//!
//! A connection looks at what its own shard has, asks for a change only where that is not yet so, and looks again when all
//! have it. See [`engine`](crate::shard::engine) for what is changed.

use std::collections::BTreeMap;

use super::Letter;
use super::away::Wait;
use crate::broker::exchanges::Change;
use crate::broker::id::Level;
use crate::log::disk::Storage;
use crate::shard::conn::{Blocked, Need};
use crate::shard::engine::RouteNews;
use crate::shard::{ConnKey, Shard};

/// Changes that are not everywhere yet.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    last_ticket: u64,
    /// Who waits for what was asked by that number, and how many shards have not said that it is so.
    asked: BTreeMap<u64, (ConnKey, u32)>,
    /// Of the first shard: whom to tell when its log has got so far.
    logged: Vec<(Need, (u32, u64))>,
}

impl<S: Storage> Shard<S> {
    /// Exchanges or bindings are to be changed on all shards; the connection waits until they are.
    pub(in crate::shard) fn ask_change(
        &mut self,
        slot: usize,
        change: &Change<'_>,
        only_unused: bool,
    ) {
        let (shards, me) = self.shards();
        let key = self.key(slot);
        let change = self.engine.encode_for_all(change);
        let definitions = &mut self.mail().definitions;
        definitions.last_ticket += 1;
        let ticket = definitions.last_ticket;
        definitions.asked.insert(ticket, (key, shards));
        self.conns[slot].blocked = Blocked::Away(Wait::Definition);
        if me == 0 {
            return self.order_change((me, ticket), change, only_unused);
        }
        let letter = Letter::Change {
            change,
            only_unused,
            ticket,
        };
        self.mail().post(0, letter);
    }

    /// The first shard makes a change, in the order of those that are asked for.
    pub(super) fn order_change(
        &mut self,
        asker: (u32, u64),
        mut change: Vec<u8>,
        only_unused: bool,
    ) {
        let is_kept_back = |shard: &Shard<S>, change: &Change<'_>| match change {
            Change::ExchangeGone { name } if only_unused => {
                let exchanges = &shard.engine.exchanges;
                let found = exchanges.find(name);
                found.is_some_and(|key| !exchanges.get(key).is_unused())
            }
            _ => false,
        };
        let octets = std::mem::take(&mut change);
        if let Some(decoded) = self.engine.decode_for_me(&octets)
            && !is_kept_back(self, &decoded)
            && self.engine.change(&decoded)
        {
            change = octets.clone();
        }
        let need = self.engine.need(Level::Disk);
        self.engine.route_news.push(RouteNews { change, asker });
        self.mail().definitions.logged.push((need, asker));
    }

    /// What was changed in this turn is told.
    pub(super) fn exchange_definitions(&mut self) {
        let (shards, me) = self.shards();
        for RouteNews { change, asker } in std::mem::take(&mut self.engine.route_news) {
            if me == 0 {
                for to in 1..shards {
                    let change = change.clone();
                    self.mail().post(to, Letter::Changed { change, asker });
                }
                continue;
            }
            let letter = Letter::Change {
                change,
                only_unused: false,
                ticket: asker.1,
            };
            self.mail().post(0, letter);
        }
        let logged = std::mem::take(&mut self.mail().definitions.logged);
        for (need, asker) in logged {
            match self.engine.reached(need) {
                true => self.tell_defined(asker),
                false => self.mail().definitions.logged.push((need, asker)),
            }
        }
    }

    /// Something is as it was asked, here.
    pub(super) fn tell_defined(&mut self, asker: (u32, u64)) {
        match asker {
            (_, 0) => {}
            (shard, ticket) if shard == self.shards().1 => self.count_defined(ticket),
            (shard, ticket) => self.mail().post(shard, Letter::Defined { ticket }),
        }
    }

    /// One more shard has what was asked.
    pub(super) fn count_defined(&mut self, ticket: u64) {
        let asked = &mut self.mail().definitions.asked;
        let Some((conn, missing)) = asked.get_mut(&ticket) else {
            return;
        };
        *missing -= 1;
        let (conn, missing) = (*conn, *missing);
        if missing > 0 {
            return;
        }
        self.mail().definitions.asked.remove(&ticket);
        if let Some(slot) = self.slot(conn)
            && self.conns[slot].blocked == Blocked::Away(Wait::Definition)
        {
            self.conns[slot].blocked = Blocked::No;
            self.resume(slot);
        }
    }

    /// The first shard tells all that it has, before anything is served.
    pub(super) fn post_routes(&mut self) {
        let (shards, me) = self.shards();
        if me != 0 {
            return;
        }
        // That is among it.
        self.engine.route_news.clear();
        self.engine.has_routes = true;
        let routes = self.engine.routes_for_all();
        for to in 1..shards {
            self.mail().post(to, Letter::Routes(routes.clone()));
        }
    }
}
