//! One change of exchanges, bindings or a queue's declaration, and the octets that the log keeps of it.
//!
//! ```text
//! change   = kind:u8 fields      field = length:varint octets      (numbers are varints)
//! 1 exchange made   name kind:u8 flags:u8 arguments
//! 2 exchange gone   name
//! 3 bound           source target key arguments
//! 4 unbound         source target key arguments
//! 5 queue declared  uid flags:u8 arguments
//! 6 queue gone      uid                        (of another shard: its bindings end)
//! target   = 0 uid | 1 name
//! ```

use super::{Kind, Target};
use crate::broker::headers::{self, Value};
use crate::broker::id::QueueUid;
use crate::broker::varint;

/// It survives a restart.
pub const FLAG_DURABLE: u8 = 1;
/// It goes when nobody uses it any more.
pub const FLAG_AUTO_DELETE: u8 = 2;
/// Only exchanges may publish to it.
pub const FLAG_INTERNAL: u8 = 4;
/// Only the connection that has declared it may use it.
pub const FLAG_EXCLUSIVE: u8 = 8;

/// How a queue was declared, and what of its arguments is not among a queue's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// [`FLAG_DURABLE`], [`FLAG_AUTO_DELETE`], [`FLAG_EXCLUSIVE`].
    pub flags: u8,
    /// The arguments as they came, a table.
    pub arguments: Box<[u8]>,
    /// It goes when nobody has used it for so long, microseconds.
    pub expires_us: Option<u64>,
    /// The highest priority; without one all messages are equal.
    pub pri_max: u8,
    /// Where dead letters go.
    pub dead: Option<DeadRoute>,
}

/// Where a queue's dead letters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadRoute {
    /// The exchange.
    pub exchange: Box<[u8]>,
    /// The key; that of the message if there is none.
    pub key: Option<Box<[u8]>>,
}

impl Declared {
    /// Reads what the broker needs out of the arguments, whose types were checked before.
    pub fn new(flags: u8, arguments: &[u8]) -> Declared {
        let text = |name: &[u8]| match headers::find(arguments, name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        };
        let dead = text(b"x-dead-letter-exchange").map(|exchange| DeadRoute {
            exchange: exchange.into(),
            key: text(b"x-dead-letter-routing-key").map(Into::into),
        });
        let number = |name: &[u8]| headers::find(arguments, name)?.as_unsigned();
        Declared {
            flags,
            arguments: arguments.into(),
            expires_us: number(b"x-expires").map(|ms| ms.saturating_mul(1000)),
            pri_max: number(b"x-max-priority").map_or(0, |most| most.min(255) as u8),
            dead,
        }
    }

    /// It was declared so.
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// It does not survive a restart of the broker.
    pub fn is_transient(&self) -> bool {
        !self.is(FLAG_DURABLE) || self.is(FLAG_EXCLUSIVE)
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// An exchange was made.
    Exchange {
        /// Its name.
        name: &'a [u8],
        /// Its kind.
        kind: Kind,
        /// Its flags.
        flags: u8,
        /// Its arguments, a table.
        arguments: &'a [u8],
    },
    /// An exchange was deleted, with its bindings.
    ExchangeGone {
        /// Its name.
        name: &'a [u8],
    },
    /// Something was bound.
    Bind {
        /// The exchange that messages come from.
        source: &'a [u8],
        /// Where they go.
        target: Target,
        /// The binding key.
        key: &'a [u8],
        /// Arguments, a table.
        arguments: &'a [u8],
    },
    /// A binding was ended.
    Unbind {
        /// The exchange that messages came from.
        source: &'a [u8],
        /// Where they went.
        target: Target,
        /// The binding key.
        key: &'a [u8],
        /// Arguments, a table.
        arguments: &'a [u8],
    },
    /// A queue was declared.
    Queue {
        /// Its identity.
        uid: QueueUid,
        /// How.
        declared: Declared,
    },
    /// A queue of another shard is deleted: its bindings end.
    QueueGone {
        /// Its identity.
        uid: QueueUid,
    },
}

const EXCHANGE: u8 = 1;
const EXCHANGE_GONE: u8 = 2;
const BIND: u8 = 3;
const UNBIND: u8 = 4;
const QUEUE: u8 = 5;
const QUEUE_GONE: u8 = 6;

impl<'a> Change<'a> {
    /// Appends the octets that the log keeps.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Change::Exchange {
                name,
                kind,
                flags,
                arguments,
            } => {
                out.push(EXCHANGE);
                put_octets(out, name);
                out.extend_from_slice(&[kind_octet(*kind), *flags]);
                put_octets(out, arguments);
            }
            Change::ExchangeGone { name } => {
                out.push(EXCHANGE_GONE);
                put_octets(out, name);
            }
            Change::Bind {
                source,
                target,
                key,
                arguments,
            }
            | Change::Unbind {
                source,
                target,
                key,
                arguments,
            } => {
                let is_bind = matches!(self, Change::Bind { .. });
                out.push(if is_bind { BIND } else { UNBIND });
                put_octets(out, source);
                match target {
                    Target::Queue(uid) => {
                        out.push(0);
                        varint::put(out, uid.0);
                    }
                    Target::Exchange(name) => {
                        out.push(1);
                        put_octets(out, name);
                    }
                }
                put_octets(out, key);
                put_octets(out, arguments);
            }
            Change::Queue { uid, declared } => {
                out.push(QUEUE);
                varint::put(out, uid.0);
                out.push(declared.flags);
                put_octets(out, &declared.arguments);
            }
            Change::QueueGone { uid } => {
                out.push(QUEUE_GONE);
                varint::put(out, uid.0);
            }
        }
    }

    /// Reads what [`Change::encode`] wrote; `None` if it is something else.
    pub fn decode(octets: &'a [u8]) -> Option<Change<'a>> {
        let (kind, rest) = octets.split_first()?;
        let mut rest = rest;
        let change = match *kind {
            EXCHANGE => Change::Exchange {
                name: take(&mut rest)?,
                kind: kind_of(octet(&mut rest)?)?,
                flags: octet(&mut rest)?,
                arguments: take(&mut rest)?,
            },
            EXCHANGE_GONE => Change::ExchangeGone {
                name: take(&mut rest)?,
            },
            BIND | UNBIND => {
                let source = take(&mut rest)?;
                let target = match octet(&mut rest)? {
                    0 => Target::Queue(QueueUid(number(&mut rest)?)),
                    1 => Target::Exchange(take(&mut rest)?.into()),
                    _ => return None,
                };
                let (key, arguments) = (take(&mut rest)?, take(&mut rest)?);
                match *kind {
                    BIND => Change::Bind {
                        source,
                        target,
                        key,
                        arguments,
                    },
                    _ => Change::Unbind {
                        source,
                        target,
                        key,
                        arguments,
                    },
                }
            }
            QUEUE => {
                let uid = QueueUid(number(&mut rest)?);
                let flags = octet(&mut rest)?;
                let declared = Declared::new(flags, take(&mut rest)?);
                Change::Queue { uid, declared }
            }
            QUEUE_GONE => Change::QueueGone {
                uid: QueueUid(number(&mut rest)?),
            },
            _ => return None,
        };
        rest.is_empty().then_some(change)
    }
}

fn kind_octet(kind: Kind) -> u8 {
    match kind {
        Kind::Direct => 0,
        Kind::Fanout => 1,
        Kind::Topic => 2,
        Kind::Headers => 3,
    }
}

fn kind_of(octet: u8) -> Option<Kind> {
    [Kind::Direct, Kind::Fanout, Kind::Topic, Kind::Headers]
        .get(usize::from(octet))
        .copied()
}

fn put_octets(out: &mut Vec<u8>, octets: &[u8]) {
    varint::put(out, octets.len() as u64);
    out.extend_from_slice(octets);
}

fn octet(rest: &mut &[u8]) -> Option<u8> {
    let (octet, after) = rest.split_first()?;
    *rest = after;
    Some(*octet)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let octet = octet(rest)?;
        number |= u64::from(octet & 0x7f) << shift;
        if octet < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}
