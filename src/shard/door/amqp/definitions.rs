//! Exchanges, queues and bindings: made, asked for, deleted.

use super::{Awaited, Fault, Outcome, arguments, channel_fault, connection_fault, shown};
use super::{consume::no_queue, reply_to};
use crate::broker::command::{MessageState, Source, Typed};
use crate::broker::exchanges::{
    Change, Declared, FLAG_AUTO_DELETE, FLAG_DURABLE, FLAG_EXCLUSIVE, FLAG_INTERNAL, Kind, Target,
};
use crate::broker::id::Level;
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;
use crate::protocol::amqp::code;
use crate::protocol::amqp::method::{Binding, Id, Method, id};
use crate::shard::session::{Asker, Flow};
use crate::shard::{Now, Shard};

/// Names that begin so are the broker's own.
const RESERVED: &[u8] = b"amq.";

/// How a queue is declared.
struct Declare<'a> {
    queue: &'a [u8],
    flags: u8,
    passive: bool,
    nowait: bool,
    arguments: &'a [u8],
}

fn flag(is: bool, flag: u8) -> u8 {
    if is { flag } else { 0 }
}

/// It is not as the client says.
fn inequivalent(what: &str, name: &[u8], argument: &str, said: &str, is: &str) -> Fault {
    let text = format!(
        "inequivalent arg '{argument}' for {what} '{}' in vhost '/': received {said} but current is {is}",
        shown(name)
    );
    channel_fault(code::PRECONDITION_FAILED, text)
}

fn no_exchange(name: &[u8]) -> Fault {
    let text = format!("there is no exchange '{}' in vhost '/'", shown(name));
    channel_fault(code::NOT_FOUND, text)
}

fn not_yours(text: String) -> Fault {
    channel_fault(code::ACCESS_REFUSED, text)
}

impl<S: Storage> Shard<S> {
    pub(super) fn run_definition(
        &mut self,
        slot: usize,
        number: u16,
        method: &Method<'_>,
        now: Now,
    ) -> Outcome {
        match *method {
            Method::ExchangeDeclare { .. } => self.declare_exchange(slot, number, method),
            Method::ExchangeDelete {
                exchange,
                if_unused,
                nowait,
            } => self.delete_exchange(slot, number, exchange, if_unused, nowait),
            Method::ExchangeBind { binding, nowait } => {
                let target = self.exchange_target(&binding)?;
                self.bind_target(slot, target, &binding)?;
                self.defined(slot, number, nowait.then_some(()), id::EXCHANGE_BIND_OK);
                Ok(())
            }
            Method::ExchangeUnbind { binding, nowait } => {
                let target = Target::Exchange(binding.destination.into());
                self.unbind_target(slot, target, &binding)?;
                self.defined(slot, number, nowait.then_some(()), id::EXCHANGE_UNBIND_OK);
                Ok(())
            }
            Method::QueueDeclare {
                queue,
                passive,
                durable,
                exclusive,
                auto_delete,
                nowait,
                arguments,
            } => {
                let flags = flag(durable, FLAG_DURABLE)
                    | flag(exclusive, FLAG_EXCLUSIVE)
                    | flag(auto_delete, FLAG_AUTO_DELETE);
                let declare = Declare {
                    queue,
                    flags,
                    passive,
                    nowait,
                    arguments,
                };
                self.declare_queue(slot, number, &declare, now)
            }
            Method::QueueBind { binding, nowait } => {
                let name = self.queue_name(slot, number, binding.destination)?;
                let key = self.usable_queue(slot, &name)?;
                let binding = self.with_key(binding, &name);
                let target = Target::Queue(self.engine.queue(key).uid);
                self.bind_target(slot, target, &binding)?;
                self.defined(slot, number, nowait.then_some(()), id::QUEUE_BIND_OK);
                Ok(())
            }
            Method::QueueUnbind { binding } => {
                let name = self.queue_name(slot, number, binding.destination)?;
                if let Some(key) = self.engine.find(&name) {
                    self.check_lock(slot, key)?;
                    let binding = self.with_key(binding, &name);
                    let target = Target::Queue(self.engine.queue(key).uid);
                    self.unbind_target(slot, target, &binding)?;
                }
                self.defined(slot, number, None, id::QUEUE_UNBIND_OK);
                Ok(())
            }
            Method::QueuePurge { queue, nowait } => self.purge_queue(slot, number, queue, nowait),
            Method::QueueDelete {
                queue,
                if_unused,
                if_empty,
                nowait,
            } => self.delete_queue(slot, number, queue, (if_unused, if_empty), nowait),
            _ => unreachable!("it defines nothing"),
        }
    }

    /// Where neither queue nor key is named, the key is the queue that is meant.
    fn with_key<'a>(&self, binding: Binding<'a>, name: &'a [u8]) -> Binding<'a> {
        match binding.destination.is_empty() && binding.key.is_empty() {
            true => Binding {
                key: name,
                ..binding
            },
            false => binding,
        }
    }

    /// Answers what was defined, when that is on the disk.
    fn defined(&mut self, slot: usize, number: u16, nowait: Option<()>, answer: Id) {
        self.hold_for_definitions(slot);
        if nowait.is_none() {
            self.say_on(slot, number, answer).end();
        }
    }

    /// What is said from now on leaves when what was defined in this turn is on the disk.
    fn hold_for_definitions(&mut self, slot: usize) {
        if !self.engine.sync_wanted {
            return;
        }
        let need = self.engine.need(Level::Disk);
        self.wait_for(slot, need);
    }

    fn check_memory(&self) -> Outcome {
        match self.engine.over_budget {
            true => Err(connection_fault(
                code::RESOURCE_ERROR,
                "the memory budget is used up",
            )),
            false => Ok(()),
        }
    }

    // --- Exchanges ---

    fn declare_exchange(&mut self, slot: usize, number: u16, method: &Method<'_>) -> Outcome {
        let Method::ExchangeDeclare {
            exchange: name,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            nowait,
            arguments,
        } = *method
        else {
            unreachable!("it is an exchange.declare");
        };
        if passive && !name.is_empty() {
            if self.engine.exchanges.find(name).is_none() {
                return Err(no_exchange(name));
            }
        } else {
            let flags = flag(durable, FLAG_DURABLE)
                | flag(auto_delete, FLAG_AUTO_DELETE)
                | flag(internal, FLAG_INTERNAL);
            self.make_exchange(slot, (name, kind), flags, arguments)?;
        }
        self.defined(slot, number, nowait.then_some(()), id::EXCHANGE_DECLARE_OK);
        Ok(())
    }

    fn make_exchange(
        &mut self,
        slot: usize,
        (name, kind): (&[u8], &[u8]),
        flags: u8,
        arguments: &[u8],
    ) -> Outcome {
        if name.is_empty() {
            let text = "the default exchange is always there and cannot be declared";
            return Err(not_yours(text.to_owned()));
        }
        let Some(kind) = Kind::from_name(kind) else {
            let text = format!("exchanges of type '{}' are not offered", shown(kind));
            // Types that begin so are those of extensions.
            return Err(match kind.starts_with(b"x-") {
                true => connection_fault(code::NOT_IMPLEMENTED, text),
                false => channel_fault(code::PRECONDITION_FAILED, text),
            });
        };
        let alternate = arguments::alternate(arguments)?;
        if let Some(key) = self.engine.exchanges.find(name) {
            let known = self.engine.exchanges.get(key);
            let differs = |argument: &str, said: &str, is: &str| {
                Err(inequivalent("exchange", name, argument, said, is))
            };
            if known.kind != kind {
                return differs("type", kind.name(), known.kind.name());
            }
            for (argument, bit) in [
                ("durable", FLAG_DURABLE),
                ("auto_delete", FLAG_AUTO_DELETE),
                ("internal", FLAG_INTERNAL),
            ] {
                let (said, is) = (flags & bit != 0, known.flags & bit != 0);
                if said != is {
                    return differs(argument, &said.to_string(), &is.to_string());
                }
            }
            let is = arguments::alternate(&known.arguments).unwrap_or_default();
            if alternate != is {
                let text = |name: Option<&[u8]>| {
                    name.map_or("none".to_owned(), |name| format!("'{}'", shown(name)))
                };
                return differs("alternate-exchange", &text(alternate), &text(is));
            }
            return Ok(());
        }
        if name.starts_with(RESERVED) {
            let text = format!("exchange name '{}' is reserved", shown(name));
            return Err(not_yours(text));
        }
        self.check_memory()?;
        let change = Change::Exchange {
            name,
            kind,
            flags,
            arguments,
        };
        self.define(slot, &change, false)
    }

    /// Exchanges or bindings change. With several shards that is asked of the first, and what asks comes again when all
    /// have changed them.
    fn define(&mut self, slot: usize, change: &Change<'_>, only_unused: bool) -> Outcome {
        if self.peers.is_some() {
            self.ask_change(slot, change, only_unused);
            return Err(Fault::Again);
        }
        self.engine.change(change);
        Ok(())
    }

    fn delete_exchange(
        &mut self,
        slot: usize,
        number: u16,
        name: &[u8],
        if_unused: bool,
        nowait: bool,
    ) -> Outcome {
        if name.is_empty() || name.starts_with(RESERVED) {
            let text = format!("exchange '{}' cannot be deleted", shown(name));
            return Err(not_yours(text));
        }
        if let Some(key) = self.engine.exchanges.find(name) {
            if if_unused && !self.engine.exchanges.get(key).is_unused() {
                let text = format!("exchange '{}' in vhost '/' is in use", shown(name));
                return Err(channel_fault(code::PRECONDITION_FAILED, text));
            }
            self.define(slot, &Change::ExchangeGone { name }, if_unused)?;
        }
        self.defined(slot, number, nowait.then_some(()), id::EXCHANGE_DELETE_OK);
        Ok(())
    }

    // --- Bindings ---

    fn exchange_target(&self, binding: &Binding<'_>) -> Result<Target, Fault> {
        let name = binding.destination;
        if name.is_empty() {
            let text = "the default exchange cannot be bound";
            return Err(not_yours(text.to_owned()));
        }
        match self.engine.exchanges.find(name) {
            Some(_) => Ok(Target::Exchange(name.into())),
            None => Err(no_exchange(name)),
        }
    }

    fn bind_target(&mut self, slot: usize, target: Target, binding: &Binding<'_>) -> Outcome {
        if binding.source.is_empty() {
            let text =
                "every queue is bound to the default exchange by its name, and by nothing else";
            return Err(not_yours(text.to_owned()));
        }
        let Some(source) = self.engine.exchanges.find(binding.source) else {
            return Err(no_exchange(binding.source));
        };
        if self.engine.exchanges.get(source).kind == Kind::Headers {
            arguments::check_match(binding.arguments)?;
        }
        let (key, arguments) = (binding.key, binding.arguments);
        if self
            .engine
            .exchanges
            .is_bound(source, &target, key, arguments)
        {
            return Ok(());
        }
        self.check_memory()?;
        self.wait_for_definition(slot, &target)?;
        let change = Change::Bind {
            source: binding.source,
            target,
            key,
            arguments,
        };
        self.define(slot, &change, false)
    }

    fn unbind_target(&mut self, slot: usize, target: Target, binding: &Binding<'_>) -> Outcome {
        if binding.source.is_empty() {
            let text = "a queue is always bound to the default exchange";
            return Err(not_yours(text.to_owned()));
        }
        let (key, arguments) = (binding.key, binding.arguments);
        let source = self.engine.exchanges.find(binding.source);
        let is_bound = |source| {
            let exchanges = &self.engine.exchanges;
            exchanges.is_bound(source, &target, key, arguments)
        };
        if !source.is_some_and(is_bound) {
            return Ok(());
        }
        let change = Change::Unbind {
            source: binding.source,
            target,
            key,
            arguments,
        };
        self.define(slot, &change, false)
    }

    /// The log of the first shard must not know a queue that this shard's has lost: its identity would be another's.
    fn wait_for_definition(&mut self, slot: usize, target: &Target) -> Outcome {
        if self.peers.is_none() || !matches!(target, Target::Queue(_)) {
            return Ok(());
        }
        let need = match self.amqp(slot).bind_need.take() {
            Some(need) => need,
            None => self.engine.need(Level::Disk),
        };
        if self.engine.reached(need) {
            return Ok(());
        }
        self.amqp(slot).bind_need = Some(need);
        self.block(slot, need);
        Err(Fault::Again)
    }

    // --- Queues ---

    fn declare_queue(
        &mut self,
        slot: usize,
        number: u16,
        declare: &Declare<'_>,
        now: Now,
    ) -> Outcome {
        let name: Box<[u8]> = match (declare.queue, declare.passive) {
            (b"", false) => self.amqp.next_name("amq.gen-").into(),
            (b"", true) => self.queue_name(slot, number, b"")?,
            (name, _) => name.into(),
        };
        if let Some(address) = reply_to::address(&name) {
            return match self.is_answered_at(address) {
                true => self.declared(slot, number, &name, 0, 0, declare.nowait),
                false => Err(no_queue(&name)),
            };
        }
        if *name == *reply_to::QUEUE && declare.passive {
            return self.declared(slot, number, &name, 0, 0, declare.nowait);
        }
        let key = match self.engine.find(&name) {
            Some(key) => {
                self.check_lock(slot, key)?;
                if !declare.passive {
                    self.check_same(key, declare)?;
                }
                self.amqp.used(self.engine.queue(key).uid, now);
                key
            }
            None if declare.passive => return Err(no_queue(&name)),
            None => self.make_queue(slot, &name, declare, now)?,
        };
        let queue = self.engine.queue(key);
        let ready = u32::try_from(queue.ready()).unwrap_or(u32::MAX);
        let consumers = queue.consumers;
        self.declared(slot, number, &name, ready, consumers, declare.nowait)
    }

    fn declared(
        &mut self,
        slot: usize,
        number: u16,
        name: &[u8],
        ready: u32,
        consumers: u32,
        nowait: bool,
    ) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        channel.last_queue = name.into();
        if !nowait {
            self.say_on(slot, number, id::QUEUE_DECLARE_OK)
                .shortstr(name)
                .long(ready)
                .long(consumers)
                .end();
        }
        Ok(())
    }

    /// The queue is as the client says.
    fn check_same(&mut self, key: QueueKey, declare: &Declare<'_>) -> Outcome {
        arguments::check_queue(declare.flags, declare.arguments)?;
        let queue = self.engine.queue(key);
        let found = match &queue.declared {
            Some(known) => arguments::difference(known, declare.flags, declare.arguments),
            // One that another protocol has made has no arguments, and is as durable as it is stored.
            None => {
                let said = declare.flags & FLAG_DURABLE;
                let is_logged = queue.settings.durable != Level::None;
                let durable = match self.engine.log {
                    Some(_) => flag(is_logged, FLAG_DURABLE),
                    None => said,
                };
                let known = Declared::new(durable, b"");
                arguments::difference(&known, declare.flags, declare.arguments)
            }
        };
        match found {
            None => Ok(()),
            Some((argument, said, is)) => {
                let name = self.engine.queue(key).name.clone();
                Err(inequivalent("queue", &name, argument, &said, &is))
            }
        }
    }

    fn make_queue(
        &mut self,
        slot: usize,
        name: &[u8],
        declare: &Declare<'_>,
        now: Now,
    ) -> Result<QueueKey, Fault> {
        let is_given = std::mem::take(&mut self.amqp(slot).is_given);
        if declare.queue.starts_with(RESERVED) && !is_given {
            let text = format!("queue name '{}' is reserved", shown(name));
            return Err(not_yours(text));
        }
        arguments::check_queue(declare.flags, declare.arguments)?;
        self.check_memory()?;
        let declared = Declared::new(declare.flags, declare.arguments);
        let has_log = self.engine.log.is_some();
        let settings = arguments::settings(&self.engine.defaults, &declared, has_log);
        let was_wanted = self.engine.sync_wanted;
        let key = self.engine.create(name, settings);
        let uid = self.engine.queue(key).uid;
        let expires_us = declared.expires_us;
        let is_transient = declared.is_transient();
        self.engine.change(&Change::Queue { uid, declared });
        if declare.flags & FLAG_EXCLUSIVE != 0 {
            self.amqp(slot).exclusive.insert(uid);
        }
        if let Some(expires_us) = expires_us {
            self.amqp.watch(uid, expires_us, now);
        }
        match is_transient {
            // It does not survive the broker: nobody waits for the disk.
            true => self.engine.sync_wanted = was_wanted,
            false => self.hold_for_definitions(slot),
        }
        Ok(key)
    }

    fn purge_queue(&mut self, slot: usize, number: u16, name: &[u8], nowait: bool) -> Outcome {
        let name = self.queue_name(slot, number, name)?;
        let key = self.usable_queue(slot, &name)?;
        let printed = self.engine.queue(key).printed.clone();
        self.amqp(slot).awaited = Some(Awaited::Purge {
            channel: number,
            nowait,
        });
        let asker = Asker {
            slot,
            tag: None,
            quiet: false,
        };
        let source = Source {
            queue: Typed(&printed),
            group: None,
        };
        match self.purge(asker, source, Some(MessageState::Ready)) {
            Flow::Done => Ok(()),
            Flow::Again => Err(Fault::Again),
        }
    }

    fn delete_queue(
        &mut self,
        slot: usize,
        number: u16,
        name: &[u8],
        (if_unused, if_empty): (bool, bool),
        nowait: bool,
    ) -> Outcome {
        let name = self.queue_name(slot, number, name)?;
        let mut deleted = 0;
        if let Some(before) = self.amqp(slot).deleted.take() {
            deleted = before;
        } else if let Some(key) = self.engine.find(&name) {
            self.check_lock(slot, key)?;
            let queue = self.engine.queue(key);
            let in_use = |text: &str| {
                let text = format!("queue '{}' in vhost '/' {text}", shown(&name));
                Err(channel_fault(code::PRECONDITION_FAILED, text))
            };
            if if_unused && queue.consumers > 0 {
                return in_use("has consumers");
            }
            if if_empty && queue.ready() > 0 {
                return in_use("is not empty");
            }
            deleted = u32::try_from(queue.ready()).unwrap_or(u32::MAX);
            let uid = queue.uid;
            let is_bound = self.engine.exchanges.has_bindings(uid);
            self.drop_queue(key);
            self.amqp(slot).exclusive.remove(&uid);
            self.hold_for_definitions(slot);
            if self.peers.is_some() && is_bound {
                // Nothing is published to it any more when its client reads that it is gone.
                self.amqp(slot).deleted = Some(deleted);
                self.define(slot, &Change::QueueGone { uid }, false)?;
            }
        }
        if !nowait {
            self.say_on(slot, number, id::QUEUE_DELETE_OK)
                .long(deleted)
                .end();
        }
        Ok(())
    }
}
