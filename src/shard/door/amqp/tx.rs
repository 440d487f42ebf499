//! Transactions of a channel: publishes and what is said of deliveries wait for the commit, and are one
//! record of the log then.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Fault, Mode, Outcome, channel_fault, connection_fault};
use crate::broker::command::Body;
use crate::broker::id::Level;
use crate::fault::{Fault as Planted, planted};
use crate::log::disk::Storage;
use crate::log::{Room, publish_many_bytes};
use crate::protocol::amqp::code;
use crate::protocol::amqp::content::Properties;
use crate::protocol::amqp::method::{Publish, id};
use crate::shard::engine::Reached;
use crate::shard::{Now, Shard};

/// What the sections of a message take at most beside its properties, its exchange and its key, bytes.
const SECTIONS_BYTES_MAX: usize = 256;
/// Operations of one transaction at most.
const OPS_MAX: usize = 1 << 20;

/// One thing that waits for the commit.
#[derive(Debug)]
pub(super) enum Op {
    /// A message.
    Publish {
        exchange: Box<[u8]>,
        key: Box<[u8]>,
        mandatory: bool,
        properties: Box<[u8]>,
        body: Bytes,
    },
    /// An ack.
    Ack { tag: u64, multiple: bool },
    /// A reject or a nack.
    Nack {
        tag: u64,
        multiple: bool,
        requeue: bool,
    },
}

/// What a channel has queued since its last commit.
#[derive(Debug, Default)]
pub(super) struct Tx {
    ops: VecDeque<Op>,
    /// Memory of the messages, bytes.
    bytes: usize,
    /// A commit has room in the log and is being done.
    is_begun: bool,
}

impl Tx {
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.ops.capacity() * size_of::<Op>()
    }

    /// Queues one more.
    pub(super) fn queue(&mut self, op: Op) -> Outcome {
        if self.ops.len() >= OPS_MAX {
            return Err(connection_fault(
                code::RESOURCE_ERROR,
                "the transaction is too long; commit more often",
            ));
        }
        self.ops.push_back(op);
        Ok(())
    }
}

impl<S: Storage> Shard<S> {
    /// `tx.select`
    pub(super) fn select_tx(&mut self, slot: usize, number: u16) -> Outcome {
        let channel = self.amqp(slot).channel(number).expect("it is open");
        match &channel.mode {
            Mode::Confirm(_) => {
                let text = "the channel has confirms; it cannot have transactions too";
                return Err(channel_fault(code::PRECONDITION_FAILED, text));
            }
            Mode::Tx(_) => {}
            Mode::Plain => channel.mode = Mode::Tx(Box::default()),
        }
        self.say_on(slot, number, id::TX_SELECT_OK).end();
        Ok(())
    }

    /// A message waits for its commit.
    pub(super) fn queue_publish(
        &mut self,
        slot: usize,
        number: u16,
        publish: &Publish<'_>,
        properties: &[u8],
        body: Bytes,
    ) -> Outcome {
        self.exchange_to_publish(publish.exchange)?;
        self.check_properties(slot, publish, properties)?;
        let most = self.limits.batch_bytes_max;
        let bytes = body.len()
            + properties.len()
            + publish.exchange.len()
            + publish.key.len()
            + SECTIONS_BYTES_MAX;
        if self.amqp(slot).queued_bytes() + bytes > most {
            let text = format!("what waits for its commit is more than the {most} bytes taken");
            return Err(connection_fault(code::RESOURCE_ERROR, text));
        }
        let Mode::Tx(tx) = self.mode(slot, number) else {
            return Ok(());
        };
        tx.bytes += bytes;
        tx.queue(Op::Publish {
            exchange: publish.exchange.into(),
            key: publish.key.into(),
            mandatory: publish.mandatory,
            properties: properties.into(),
            body,
        })
    }

    fn mode(&mut self, slot: usize, number: u16) -> &mut Mode {
        let channel = self.amqp(slot).channel(number);
        &mut channel.expect("it is open").mode
    }

    /// `tx.commit`
    pub(super) fn commit_tx(&mut self, slot: usize, number: u16, now: Now) -> Outcome {
        self.commit_ops(slot, number, now)?;
        self.say_committed(slot, number);
        Ok(())
    }

    /// What was committed is told when it is safe.
    pub(super) fn say_committed(&mut self, slot: usize, number: u16) {
        let need = self.engine.need(Level::Disk);
        self.wait_for(slot, need);
        self.say_on(slot, number, id::TX_COMMIT_OK).end();
    }

    /// Does what the channel has queued.
    pub(super) fn commit_ops(&mut self, slot: usize, number: u16, now: Now) -> Outcome {
        let Mode::Tx(tx) = self.mode(slot, number) else {
            return Err(no_tx());
        };
        let mut tx = std::mem::take(tx);
        let outcome = match tx.is_begun || self.make_room_for(&tx) {
            false => {
                self.block_cold(slot);
                Err(Fault::Again)
            }
            true => {
                tx.is_begun = true;
                self.run_ops(slot, number, &mut tx, now)
            }
        };
        if let Err(fault) = outcome {
            if let (Fault::Again, Mode::Tx(kept)) = (&fault, self.mode(slot, number)) {
                *kept = tx;
            }
            return Err(fault);
        }
        Ok(())
    }

    /// Sees to it that all of a transaction stands in one record of the log; false if that has to wait.
    fn make_room_for(&mut self, tx: &Tx) -> bool {
        if self.engine.log.is_none() {
            return true;
        }
        let (mut bytes, mut rows) = (0, 0);
        let mut reached = Reached::default();
        for op in &tx.ops {
            let Op::Publish {
                exchange,
                key,
                properties,
                body,
                ..
            } = op
            else {
                bytes += crate::log::SETTLE_BYTES_MAX.max(crate::log::RELEASE_BYTES_MAX);
                continue;
            };
            let headers = Properties::decode(properties)
                .ok()
                .and_then(|it| it.headers);
            let found = self.engine.exchanges.find(exchange);
            self.engine
                .reach(found, key, headers.unwrap_or_default(), &mut reached);
            let beside = SECTIONS_BYTES_MAX + properties.len() + exchange.len() + key.len();
            bytes += publish_many_bytes(reached.queues.len(), &[], body) + beside;
            rows += reached.queues.len();
        }
        match &mut self.engine.log {
            // A full disk, or more than a segment holds: each message is asked for itself.
            Some(log) => !matches!(log.begin_many(bytes, rows), Room::NoSegment),
            None => true,
        }
    }

    fn run_ops(&mut self, slot: usize, number: u16, tx: &mut Tx, now: Now) -> Outcome {
        while let Some(op) = tx.ops.pop_front() {
            if planted(Planted::CommitInTwoRecords) {
                self.engine.before_commit();
                if let Some(log) = &mut self.engine.log {
                    log.commit(now.us, false);
                }
            }
            match &op {
                Op::Publish {
                    exchange,
                    key,
                    mandatory,
                    properties,
                    body,
                } => {
                    let publish = Publish {
                        exchange,
                        key,
                        mandatory: *mandatory,
                        immediate: false,
                    };
                    let own = Body::Owned(body.clone());
                    // What goes to other shards was queued there.
                    let outcome = self.publish_here(slot, number, &publish, properties, &own, now);
                    if let Err(fault) = outcome {
                        if let Fault::Again = fault {
                            tx.ops.push_front(op);
                        }
                        return Err(fault);
                    }
                }
                Op::Ack { tag, multiple } => self.ack_now(slot, number, *tag, *multiple)?,
                Op::Nack {
                    tag,
                    multiple,
                    requeue,
                } => self.nack_now(slot, number, *tag, *multiple, *requeue, now)?,
            }
        }
        *tx = Tx::default();
        Ok(())
    }

    /// `tx.rollback`
    pub(super) fn roll_back_tx(&mut self, slot: usize, number: u16) -> Outcome {
        let Mode::Tx(tx) = self.mode(slot, number) else {
            return Err(no_tx());
        };
        **tx = Tx::default();
        self.say_on(slot, number, id::TX_ROLLBACK_OK).end();
        Ok(())
    }
}

fn no_tx() -> Fault {
    let text = "the channel has no transactions; tx.select begins with them";
    channel_fault(code::PRECONDITION_FAILED, text)
}
