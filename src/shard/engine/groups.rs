//! Groups: several readers of the messages of one queue. One copy is stored; each reader has its own states,
//! leases and tries. What every reader has settled is freed, or kept by `retain=`.

use super::super::Now;
use super::{Engine, TURN_DEADLINES, free_slots};
use crate::broker::arena::is_request;
use crate::broker::command::{From, TimeSpec};
use crate::broker::id::{Level, MessageId, QueueUid};
use crate::broker::index::Located;
use crate::broker::keys::KeyHash;
use crate::broker::lease::HolderKey;
use crate::broker::queue::{Adoption, Group, Published, Queue, QueueKey, Retained, Sharing, View};
use crate::broker::settings::Settings;
use crate::fault::{Fault, planted};
use crate::log::disk::Storage;
use crate::log::{Entry, LogIndex, Position, SettleReason, TransferReason};
use crate::protocol::text::encode;

use super::super::conn::Need;

/// What was asked for must be read from the disk first; ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cold;

impl<S: Storage> Engine<S> {
    /// The queue that holds a reader's messages: itself, or a group's queue.
    #[inline]
    pub fn store_of(&self, key: QueueKey) -> QueueKey {
        match &self.queue(key).group {
            None => key,
            Some(group) => group.queue,
        }
    }

    /// Everybody who reads a queue: the bare name, unless only groups do, and the groups.
    pub fn readers(&self, store: QueueKey) -> Vec<QueueKey> {
        let queue = self.queue(store);
        let bare = (!queue.is_absent()).then_some(store);
        bare.into_iter().chain(queue.groups()).collect()
    }

    /// A queue's group of that name (octets).
    pub fn find_group(&self, store: QueueKey, name: &[u8]) -> Option<QueueKey> {
        let sharing = self.queue(store).sharing.as_ref()?;
        sharing.groups.get(name).copied()
    }

    /// The same, or the place where consumers wait for one.
    pub fn find_group_with_ghosts(&self, store: QueueKey, name: &[u8]) -> Option<QueueKey> {
        let sharing = self.queue(store).sharing.as_ref()?;
        let groups = [&sharing.groups, &sharing.ghosts];
        groups
            .into_iter()
            .find_map(|groups| groups.get(name).copied())
    }

    /// Could anybody answer a request?
    pub fn has_consumers(&self, store: QueueKey) -> bool {
        let queue = self.queue(store);
        let mut groups = queue.groups();
        queue.has_consumers() || groups.any(|key| self.queue(key).has_consumers())
    }

    /// Somebody reads a queue by its bare name, the first time.
    pub fn begin_bare(&mut self, key: QueueKey) {
        self.queue_mut(key).begun = true;
        self.log_definition(key);
    }

    /// Makes a group that begins with the stored messages from `first` on, and logs it.
    pub fn begin_group(
        &mut self,
        store: QueueKey,
        name: &[u8],
        first: MessageId,
        now_us: u64,
    ) -> QueueKey {
        let uid = QueueUid(self.next_uid);
        let key = self.install_group(uid, store, name, first, now_us);
        let index = self.log_reader(key, first);
        if let Some(group) = &mut self.queue_mut(key).group {
            group.begun = index;
        }
        key
    }

    /// The bare name begins to read at `first`, and that is logged. Returns what a first delivery waits for.
    pub fn begin_bare_at(&mut self, store: QueueKey, first: MessageId, now_us: u64) -> Need {
        self.seek(store, first, now_us);
        self.need(Level::Disk)
    }

    /// When a group may be handed its first message: once it is durable.
    pub fn begun(&self, key: QueueKey) -> Need {
        match (&self.queue(key).group, &self.log) {
            (Some(group), Some(_)) => Need {
                level: Level::Disk,
                index: LogIndex(group.begun),
            },
            _ => Need::NOW,
        }
    }

    /// Logs where a reader begins; the number of the record.
    fn log_reader(&mut self, key: QueueKey, first: MessageId) -> u64 {
        let queue = &self.queues[key.0 as usize];
        let store = match &queue.group {
            None => queue.uid,
            Some(group) => self.queues[group.queue.0 as usize].uid,
        };
        let Some(log) = self
            .log
            .as_mut()
            .filter(|_| !planted(Fault::GroupNotLogged))
        else {
            return 0;
        };
        log.append(&Entry::Group {
            uid: queue.uid,
            queue: store,
            first,
            name: queue.group.as_ref().map_or(b"", |group| &group.name),
        });
        self.sync_wanted = true;
        log.index().0
    }

    /// Puts a group into its places, without logging.
    pub fn install_group(
        &mut self,
        uid: QueueUid,
        store: QueueKey,
        name: &[u8],
        first: MessageId,
        now_us: u64,
    ) -> QueueKey {
        self.share(store);
        let adoption = self.adoption(store, first);
        let key = self.place_group(uid, store, name);
        self.queue_mut(key).adopt(&adoption, now_us);
        if self.queue(store).is_absent() {
            self.queue_mut(store).leave();
        }
        self.recount(store);
        self.arm(key);
        self.schedule(key);
        key
    }

    /// Makes a group that has no messages yet.
    pub fn place_group(&mut self, uid: QueueUid, store: QueueKey, name: &[u8]) -> QueueKey {
        self.next_uid = self.next_uid.max(uid.0 + 1);
        self.share(store);
        let base = self.queue(store);
        let mut printed = base.printed.to_vec();
        printed.push(b'/');
        encode::typed(&mut printed, name);
        let mut queue = Queue::new(uid, &base.name, printed, base.settings.clone());
        queue.skip_to(base.next_id());
        queue.begun = true;
        queue.restore_view(View::default());
        queue.group = Some(Box::new(Group {
            queue: store,
            name: name.into(),
            begun: 0,
        }));
        let sharing = self.sharing_mut(store);
        let key = match sharing.ghosts.remove(name) {
            Some(key) => {
                sharing.groups.insert(name.into(), key);
                let ghost = self.queue_mut(key);
                queue.waiters = std::mem::take(&mut ghost.waiters);
                queue.consumers = ghost.consumers;
                queue.scheduled = ghost.scheduled;
                *ghost = queue;
                key
            }
            None => {
                let key = QueueKey(self.queues.insert(queue) as u32);
                self.sharing_mut(store).groups.insert(name.into(), key);
                key
            }
        };
        self.by_uid.insert(uid, key);
        key
    }

    fn sharing_mut(&mut self, store: QueueKey) -> &mut Sharing {
        let sharing = &mut self.queue_mut(store).sharing;
        sharing.as_mut().expect("the queue was made to share")
    }

    /// A reader goes to another place: its leases end. Returns who had them.
    pub fn seek(&mut self, key: QueueKey, first: MessageId, now_us: u64) -> Vec<HolderKey> {
        let holders = self.seek_unlogged(key, first, now_us);
        self.log_reader(key, first);
        holders
    }

    /// [`Engine::seek`] without logging.
    pub fn seek_unlogged(
        &mut self,
        key: QueueKey,
        first: MessageId,
        now_us: u64,
    ) -> Vec<HolderKey> {
        let store = self.store_of(key);
        self.share(store);
        let holders = self.end_leases(key);
        self.moving.retain(|moving| moving.queue != key);
        let adoption = self.adoption(store, first);
        let queue = self.queue_mut(key);
        queue.begun = true;
        queue.adopt(&adoption, now_us);
        self.recount(store);
        self.arm(key);
        self.schedule(key);
        holders
    }

    /// What a reader begins with.
    fn adoption(&self, store: QueueKey, first: MessageId) -> Adoption {
        let mut adoption = self.queue(store).adoption(first, None);
        if let Some(reader) = self.readers(store).first() {
            adoption.expire_like(self.queue(*reader));
        }
        adoption
    }

    /// Lets a queue have several readers, and retain.
    pub fn share(&mut self, store: QueueKey) {
        if self.queue(store).is_shared() {
            return;
        }
        self.queue_mut(store).share();
        let leased = self.leases.iter().filter(|lease| lease.queue == store);
        let leased: Vec<_> = leased.map(|lease| (lease.id, lease.pri)).collect();
        let moving = self.moving().filter(|(key, _)| *key == store);
        let moving: Vec<_> = moving.map(|(_, death)| (death.id, death.pri)).collect();
        for (id, pri) in leased.into_iter().chain(moving) {
            self.queue_mut(store).keep_pri(id, pri);
        }
    }

    /// Settings of a queue were changed: its groups follow.
    pub fn settings_changed(&mut self, store: QueueKey, before: &Settings, now_us: u64) {
        let settings = self.queue(store).settings.clone();
        self.queue_mut(store).retain_changed(now_us);
        let groups: Vec<QueueKey> = self.queue(store).groups().collect();
        for key in groups.iter().chain([&store]) {
            let queue = self.queue_mut(*key);
            queue.settings = settings.clone();
            queue.fair_changed();
            queue.ttl_changed(before.ttl_us, now_us);
            queue.pri_changed(before.pri);
            self.arm(*key);
            self.schedule(*key);
        }
        if settings.retain != before.retain && self.queue(store).is_shared() {
            self.recount(store);
        }
    }

    /// Deletes a group; its waiting consumers stay for the name. Returns who had leases of it.
    pub fn delete_group(&mut self, key: QueueKey, from_log: bool) -> Vec<HolderKey> {
        let Some(group) = self.queue(key).group.clone() else {
            return Vec::new();
        };
        let store = group.queue;
        let holders = self.end_leases(key);
        self.moving.retain(|moving| moving.queue != key);
        let uid = self.queue(key).uid;
        let alone = self.readers(store) == [key];
        self.sharing_mut(store).groups.remove(&group.name);
        if alone {
            // The messages stay for the next one who reads.
            let mut adoption = self.queue(store).adoption(0, Some(self.queue(key)));
            adoption.expire_like(self.queue(key));
            self.queue_mut(store).adopt(&adoption, 0);
            self.arm(store);
        }
        self.sharing_mut(store).ghosts.insert(group.name, key);
        self.queue_mut(key).become_ghost();
        self.by_uid.remove(&uid);
        self.recount(store);
        if let Some(log) = &mut self.log
            && !from_log
        {
            log.append(&Entry::DeleteQueue { uid });
            self.sync_wanted = true;
        }
        self.drop_ghost(key);
        holders
    }

    /// A queue is deleted, its groups with it; those that are waited for stay for their names.
    pub(super) fn delete_groups(&mut self, store: QueueKey) -> Vec<HolderKey> {
        let Some(sharing) = &mut self.queue_mut(store).sharing else {
            return Vec::new();
        };
        let groups = std::mem::take(&mut sharing.groups);
        let mut holders = Vec::new();
        for (name, key) in groups {
            holders.extend(self.end_leases(key));
            let queue = self.queue_mut(key);
            let uid = queue.uid;
            queue.become_ghost();
            let is_awaited = !queue.waiters.is_empty() || queue.consumers > 0 || queue.scheduled;
            self.by_uid.remove(&uid);
            match is_awaited {
                true => _ = self.sharing_mut(store).ghosts.insert(name, key),
                false => self.forget_queue(key),
            }
        }
        holders
    }

    /// A queue has come again: so do the groups that consumers wait for.
    pub(super) fn revive_groups(&mut self, store: QueueKey) {
        let ghosts = self.queue(store).sharing.iter();
        let names: Vec<Box<[u8]>> = ghosts
            .flat_map(|sharing| sharing.ghosts.keys().cloned())
            .collect();
        for name in names {
            // Nothing is stored yet, so that the time says nothing.
            self.begin_group(store, &name, 0, 0);
        }
    }

    /// Counts anew which messages no reader wants any more.
    pub fn recount(&mut self, store: QueueKey) {
        let blocks = self.queue(store).stored_blocks();
        let views: Vec<_> = self
            .readers(store)
            .into_iter()
            .filter_map(|key| self.queue(key).view())
            .map(|view| blocks.iter().map(|number| view.words(*number)).collect())
            .collect();
        self.queue_mut(store).recount(&views);
        self.mark_to_free(store);
        self.arm(store);
    }

    /// Something that a queue stores may be freed by [`Engine::free_unwanted`].
    pub(super) fn mark_to_free(&mut self, store: QueueKey) {
        let uid = self.queue(store).uid;
        if !self.to_free.contains(&(store, uid)) {
            self.to_free.push((store, uid));
        }
    }

    /// A stored message gets its id, in its queue and in that queue's groups.
    pub fn enter(
        &mut self,
        key: QueueKey,
        message: &Published,
        order: Option<KeyHash>,
    ) -> MessageId {
        let queue = self.queue_mut(key);
        let id = queue.publish(*message);
        if let Some(hash) = order {
            queue.set_key(id, hash);
        }
        if queue.sharing.is_some() {
            self.enter_groups(key, id, std::slice::from_ref(message), order);
        }
        id
    }

    /// Messages were published: every group gets them.
    #[cold]
    pub(super) fn enter_groups(
        &mut self,
        store: QueueKey,
        first: MessageId,
        messages: &[Published],
        key: Option<KeyHash>,
    ) {
        let groups: Vec<QueueKey> = self.queue(store).groups().collect();
        for group in groups {
            for (id, message) in (first..).zip(messages) {
                self.queue_mut(group).follow(id, message, key);
            }
            self.arm(group);
        }
    }

    /// What a queue has revealed is visible to its groups too.
    #[cold]
    pub fn reveal_groups(&mut self, store: QueueKey) {
        let upto = self.queue(store).visible();
        let groups: Vec<QueueKey> = self.queue(store).groups().collect();
        for group in groups {
            self.queue_mut(group).reveal(upto);
            self.schedule(group);
            self.arm(group);
        }
    }

    /// Has any reader still to settle it?
    fn is_wanted(&self, store: QueueKey, id: MessageId) -> bool {
        let queue = self.queue(store);
        let mut groups = queue.groups();
        queue.is_unsettled(id) || groups.any(|key| self.queue(key).is_unsettled(id))
    }

    /// One of several readers has settled a message: what `settled` does otherwise there.
    #[cold]
    pub(super) fn settled_by_one(
        &mut self,
        key: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: Option<SettleReason>,
    ) {
        let store = self.store_of(key);
        let queue = &self.queues[key.0 as usize];
        let wakes = queue.wakes_when_settled();
        if queue.settings.durable != Level::None
            && !is_request(place)
            && let Some(reason) = reason
            && !(planted(Fault::AckNotLogged)
                && reason == SettleReason::Acked
                && id.is_multiple_of(4))
        {
            let log = self.log.as_mut().expect("a logged queue has a log");
            log.settle(queue.uid, 0, reason, id);
            self.sync_wanted |= queue.settings.durable >= Level::Disk;
        }
        let is_acked = reason == Some(SettleReason::Acked);
        self.free_if_done(store, id, place, size, is_acked);
        if wakes {
            self.schedule(key);
        }
    }

    /// Frees a message if every reader has settled it, or retains it if the last of them did so by an ack.
    fn free_if_done(
        &mut self,
        store: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        is_acked: bool,
    ) {
        if self.is_wanted(store, id) {
            if planted(Fault::FreedByOne) && id.is_multiple_of(8) {
                for reader in self.readers(store) {
                    self.queue_mut(reader).settle_waiting(id, size);
                }
            }
            return;
        }
        let retained = match is_request(place) {
            true => Retained::Never,
            false => self.queue_mut(store).retain(id, size, is_acked),
        };
        match retained {
            Retained::Never => self.free(store, id, place, size),
            Retained::Not => {
                self.log_released(store, id);
                self.free(store, id, place, size);
            }
            Retained::Kept => {
                self.mark_to_free(store);
                self.arm(store);
            }
        }
    }

    /// A message is not retained any longer: a restart must know, which has no clock to tell by.
    fn log_released(&mut self, store: QueueKey, id: MessageId) {
        let queue = &self.queues[store.0 as usize];
        if queue.settings.durable != Level::None
            && let Some(log) = &mut self.log
        {
            log.settle(queue.uid, 0, SettleReason::Released, id);
            self.sync_wanted |= queue.settings.durable >= Level::Disk;
        }
    }

    /// Gives a message's storage back.
    fn free(&mut self, store: QueueKey, id: MessageId, place: u64, size: Option<u32>) {
        let queue = &mut self.queues[store.0 as usize];
        queue.free(id, size);
        if queue.settings.durable == Level::None || is_request(place) {
            queue.arena.free(place, &mut self.pool);
        } else {
            let log = self.log.as_mut().expect("a logged queue has a log");
            log.freed(Position(place));
            free_slots(log, &mut queue.index);
        }
        if let Some(origin) = queue.origins.remove(&id) {
            self.dead_settled(origin);
        }
    }

    /// Frees what no reader wants and nothing retains, a bounded piece; true if there is more that can be
    /// done now.
    pub fn free_unwanted(&mut self, now: Now) -> bool {
        let mut budget = TURN_DEADLINES;
        while let Some((store, uid)) = self.to_free.last().copied() {
            if budget == 0 {
                return true;
            }
            if !self.is_same(store, uid) {
                self.to_free.pop();
                continue;
            }
            let queue = &mut self.queues[store.0 as usize];
            let Some(id) = queue.next_to_free(now.us) else {
                self.to_free.pop();
                self.arm(store);
                continue;
            };
            budget -= 1;
            let is_retained = queue
                .sharing
                .as_ref()
                .is_some_and(|sharing| !sharing.unclaimed.contains(id));
            match queue.index.find(id) {
                Located::At(place) => {
                    if is_retained {
                        self.log_released(store, id);
                    }
                    self.free(store, id, place, None);
                }
                Located::Spilled(slot) => {
                    self.load(slot);
                    return false;
                }
                Located::Gone => queue.free(id, None),
            }
        }
        false
    }

    /// In recovery: a reader has settled a message. True if nobody wants it any more.
    pub fn settle_replayed(&mut self, key: QueueKey, id: MessageId, size: Option<u32>) -> bool {
        self.queue_mut(key).settle_replayed(id, size);
        let store = self.store_of(key);
        if !self.queue(store).is_shared() {
            return true;
        }
        if self.is_wanted(store, id) || !self.queue(store).index.is_live(id) {
            return false;
        }
        // What was not retained although the queue retains is named by an entry of its own.
        if self.queue_mut(store).retain(id, size, true) != Retained::Never {
            return false;
        }
        self.queue_mut(store).free(id, size);
        true
    }

    /// Is anything still to be freed that no reader wants?
    pub fn has_unclaimed(&self) -> bool {
        self.to_free.iter().any(|(store, uid)| {
            self.is_same(*store, *uid)
                && self
                    .queue(*store)
                    .sharing
                    .as_ref()
                    .is_some_and(|sharing| !sharing.unclaimed.is_empty())
        })
    }

    #[allow(clippy::too_many_arguments)]
    /// Settles a message for everybody who reads it, unless one of them has it at hand: it was deleted,
    /// or made room. True if it is gone.
    pub fn settle_for_all(
        &mut self,
        store: QueueKey,
        id: MessageId,
        place: u64,
        size: Option<u32>,
        reason: SettleReason,
        bury: bool,
        now: Now,
    ) -> bool {
        let readers: Vec<QueueKey> = self
            .readers(store)
            .into_iter()
            .filter(|key| self.queue(*key).is_unsettled(id))
            .collect();
        if readers.is_empty() || readers.iter().any(|key| self.queue(*key).is_in_use(id)) {
            return false;
        }
        let (last, others) = readers.split_last().expect("it was just looked at");
        for key in others {
            self.settle_waiting(*key, id, place, size, reason);
        }
        let full = TransferReason::DroppedOld;
        if !(bury && self.bury_waiting(*last, id, place, size, full, now)) {
            self.settle_waiting(*last, id, place, size, reason);
        }
        true
    }

    /// Deletes a stored message that nobody has at hand, whether readers have still to settle it or it is
    /// retained. True if it is gone now.
    ///
    /// # Errors
    /// [`Cold`]: where it lies must be read from the disk first, and was asked for.
    pub fn delete_stored(
        &mut self,
        store: QueueKey,
        id: MessageId,
        now: Now,
    ) -> Result<bool, Cold> {
        let queue = self.queue(store);
        if !queue.index.is_live(id) || id >= queue.visible() {
            return Ok(false);
        }
        let (place, size) = self.locate(store, id).ok_or(Cold)?;
        if self.is_wanted(store, id) {
            let reason = SettleReason::Deleted;
            return Ok(self.settle_for_all(store, id, place, size, reason, false, now));
        }
        let is_kept = |sharing: &Sharing| sharing.is_done(id);
        if !self.queue(store).sharing.as_deref().is_some_and(is_kept) {
            return Ok(false);
        }
        self.log_released(store, id);
        self.free(store, id, place, size);
        Ok(true)
    }

    /// The oldest message of a shared queue, from an id on, that may be dropped to make room.
    pub(super) fn next_droppable(&self, store: QueueKey, from: MessageId) -> Option<MessageId> {
        let queue = self.queue(store);
        let sharing = queue.sharing.as_ref()?;
        let readers = self.readers(store);
        let mut id = queue.index.next_live(from)?;
        loop {
            let in_use = |key: &QueueKey| self.queue(*key).is_in_use(id);
            if !sharing.is_done(id) && !readers.iter().any(in_use) {
                return Some(id);
            }
            id = queue.index.next_live(id + 1)?;
        }
    }

    /// The id from which on a reader has messages, as `from=` and `to=` say it.
    ///
    /// # Errors
    /// [`Cold`]: something has to be read from the disk first, and was asked for.
    pub fn find_start(&mut self, store: QueueKey, from: From, now: Now) -> Result<MessageId, Cold> {
        match from {
            From::First => Ok(0),
            From::New => Ok(self.queue(store).next_id()),
            From::At(TimeSpec::Id(id)) => Ok(id.min(self.queue(store).next_id())),
            From::At(TimeSpec::UnixUs(at_us)) => self.first_since(store, at_us),
            From::At(TimeSpec::AgoUs(ago_us)) => {
                self.first_since(store, now.us.saturating_sub(ago_us) / 1000 * 1000)
            }
        }
    }

    /// The oldest stored message published at a time or later, by halving: publish times grow with the ids.
    fn first_since(&mut self, store: QueueKey, at_us: u64) -> Result<MessageId, Cold> {
        let (mut low, mut high) = (0, self.queue(store).next_id());
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.queue(store).index.next_live(middle);
            let Some(id) = found.filter(|id| *id < high) else {
                high = middle;
                continue;
            };
            match self.time_us(store, id)? {
                Some(time_us) if time_us < at_us => low = id + 1,
                Some(_) => high = middle,
                // What cannot be read says nothing of its time: the next one does.
                None => {
                    let next = self.queue(store).index.next_live(id + 1);
                    match next.filter(|next| *next < high) {
                        Some(next) => match self.time_us(store, next)? {
                            Some(time_us) if time_us < at_us => low = next + 1,
                            _ => high = middle,
                        },
                        None => high = middle,
                    }
                }
            }
        }
        Ok(low)
    }

    /// When a message was published, microseconds; `None` if it is damaged.
    fn time_us(&mut self, store: QueueKey, id: MessageId) -> Result<Option<u64>, Cold> {
        let place = match self.queue_mut(store).index.find(id) {
            Located::At(place) => place,
            Located::Spilled(slot) => {
                self.load(slot);
                return Err(Cold);
            }
            Located::Gone => return Ok(None),
        };
        match self.stored(store, place) {
            Some(Ok(message)) => Ok(Some(message.time_ms * 1000)),
            Some(Err(_)) => Ok(None),
            None => {
                self.fetch(place);
                Err(Cold)
            }
        }
    }
}
