//! What clients say: the methods of the specification and of its extensions, with borrowed arguments.

use super::wire::{Malformed, Reader};

/// Class and method, as the specification numbers them.
pub type Id = (u16, u16);

/// Numbers of the methods.
#[allow(missing_docs)]
pub mod id {
    use super::Id;

    pub const CONNECTION_START: Id = (10, 10);
    pub const CONNECTION_START_OK: Id = (10, 11);
    pub const CONNECTION_SECURE_OK: Id = (10, 21);
    pub const CONNECTION_TUNE: Id = (10, 30);
    pub const CONNECTION_TUNE_OK: Id = (10, 31);
    pub const CONNECTION_OPEN: Id = (10, 40);
    pub const CONNECTION_OPEN_OK: Id = (10, 41);
    pub const CONNECTION_CLOSE: Id = (10, 50);
    pub const CONNECTION_CLOSE_OK: Id = (10, 51);
    pub const CONNECTION_BLOCKED: Id = (10, 60);
    pub const CONNECTION_UNBLOCKED: Id = (10, 61);
    pub const CONNECTION_UPDATE_SECRET: Id = (10, 70);
    pub const CONNECTION_UPDATE_SECRET_OK: Id = (10, 71);
    pub const CHANNEL_OPEN: Id = (20, 10);
    pub const CHANNEL_OPEN_OK: Id = (20, 11);
    pub const CHANNEL_FLOW: Id = (20, 20);
    pub const CHANNEL_FLOW_OK: Id = (20, 21);
    pub const CHANNEL_CLOSE: Id = (20, 40);
    pub const CHANNEL_CLOSE_OK: Id = (20, 41);
    pub const ACCESS_REQUEST: Id = (30, 10);
    pub const ACCESS_REQUEST_OK: Id = (30, 11);
    pub const EXCHANGE_DECLARE: Id = (40, 10);
    pub const EXCHANGE_DECLARE_OK: Id = (40, 11);
    pub const EXCHANGE_DELETE: Id = (40, 20);
    pub const EXCHANGE_DELETE_OK: Id = (40, 21);
    pub const EXCHANGE_BIND: Id = (40, 30);
    pub const EXCHANGE_BIND_OK: Id = (40, 31);
    pub const EXCHANGE_UNBIND: Id = (40, 40);
    pub const EXCHANGE_UNBIND_OK: Id = (40, 51);
    pub const QUEUE_DECLARE: Id = (50, 10);
    pub const QUEUE_DECLARE_OK: Id = (50, 11);
    pub const QUEUE_BIND: Id = (50, 20);
    pub const QUEUE_BIND_OK: Id = (50, 21);
    pub const QUEUE_PURGE: Id = (50, 30);
    pub const QUEUE_PURGE_OK: Id = (50, 31);
    pub const QUEUE_DELETE: Id = (50, 40);
    pub const QUEUE_DELETE_OK: Id = (50, 41);
    pub const QUEUE_UNBIND: Id = (50, 50);
    pub const QUEUE_UNBIND_OK: Id = (50, 51);
    pub const BASIC_QOS: Id = (60, 10);
    pub const BASIC_QOS_OK: Id = (60, 11);
    pub const BASIC_CONSUME: Id = (60, 20);
    pub const BASIC_CONSUME_OK: Id = (60, 21);
    pub const BASIC_CANCEL: Id = (60, 30);
    pub const BASIC_CANCEL_OK: Id = (60, 31);
    pub const BASIC_PUBLISH: Id = (60, 40);
    pub const BASIC_RETURN: Id = (60, 50);
    pub const BASIC_DELIVER: Id = (60, 60);
    pub const BASIC_GET: Id = (60, 70);
    pub const BASIC_GET_OK: Id = (60, 71);
    pub const BASIC_GET_EMPTY: Id = (60, 72);
    pub const BASIC_ACK: Id = (60, 80);
    pub const BASIC_REJECT: Id = (60, 90);
    pub const BASIC_RECOVER_ASYNC: Id = (60, 100);
    pub const BASIC_RECOVER: Id = (60, 110);
    pub const BASIC_RECOVER_OK: Id = (60, 111);
    pub const BASIC_NACK: Id = (60, 120);
    pub const CONFIRM_SELECT: Id = (85, 10);
    pub const CONFIRM_SELECT_OK: Id = (85, 11);
    pub const TX_SELECT: Id = (90, 10);
    pub const TX_SELECT_OK: Id = (90, 11);
    pub const TX_COMMIT: Id = (90, 20);
    pub const TX_COMMIT_OK: Id = (90, 21);
    pub const TX_ROLLBACK: Id = (90, 30);
    pub const TX_ROLLBACK_OK: Id = (90, 31);
}

/// A method that a client may send. Texts are octets as they came; tables are without their length, and
/// whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method<'a> {
    StartOk {
        properties: &'a [u8],
        mechanism: &'a [u8],
        response: &'a [u8],
    },
    TuneOk {
        channel_max: u16,
        frame_bytes_max: u32,
        heartbeat_s: u16,
    },
    Open {
        vhost: &'a [u8],
    },
    Close {
        code: u16,
        text: &'a [u8],
    },
    CloseOk,
    UpdateSecret,
    ChannelOpen,
    ChannelFlow {
        active: bool,
    },
    ChannelFlowOk,
    ChannelClose {
        code: u16,
        text: &'a [u8],
    },
    ChannelCloseOk,
    AccessRequest,
    ExchangeDeclare {
        exchange: &'a [u8],
        kind: &'a [u8],
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        nowait: bool,
        arguments: &'a [u8],
    },
    ExchangeDelete {
        exchange: &'a [u8],
        if_unused: bool,
        nowait: bool,
    },
    ExchangeBind {
        binding: Binding<'a>,
        nowait: bool,
    },
    ExchangeUnbind {
        binding: Binding<'a>,
        nowait: bool,
    },
    QueueDeclare {
        queue: &'a [u8],
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        nowait: bool,
        arguments: &'a [u8],
    },
    QueueBind {
        binding: Binding<'a>,
        nowait: bool,
    },
    QueueUnbind {
        binding: Binding<'a>,
    },
    QueuePurge {
        queue: &'a [u8],
        nowait: bool,
    },
    QueueDelete {
        queue: &'a [u8],
        if_unused: bool,
        if_empty: bool,
        nowait: bool,
    },
    Qos {
        bytes: u32,
        count: u16,
        global: bool,
    },
    Consume {
        queue: &'a [u8],
        tag: &'a [u8],
        no_local: bool,
        no_ack: bool,
        exclusive: bool,
        nowait: bool,
        arguments: &'a [u8],
    },
    Cancel {
        tag: &'a [u8],
        nowait: bool,
    },
    CancelOk,
    Publish(Publish<'a>),
    Get {
        queue: &'a [u8],
        no_ack: bool,
    },
    Ack {
        tag: u64,
        multiple: bool,
    },
    Reject {
        tag: u64,
        requeue: bool,
    },
    Nack {
        tag: u64,
        multiple: bool,
        requeue: bool,
    },
    RecoverAsync {
        requeue: bool,
    },
    Recover {
        requeue: bool,
    },
    ConfirmSelect {
        nowait: bool,
    },
    TxSelect,
    TxCommit,
    TxRollback,
}

/// Where a message is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// The exchange; empty for the default one.
    pub exchange: &'a [u8],
    /// The routing key.
    pub key: &'a [u8],
    /// It comes back if no queue takes it.
    pub mandatory: bool,
    /// It comes back if no consumer takes it at once.
    pub immediate: bool,
}

/// What binds and unbinds name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The queue or exchange that messages go to.
    pub destination: &'a [u8],
    /// The exchange that they come from.
    pub source: &'a [u8],
    /// The binding key.
    pub key: &'a [u8],
    /// Arguments, a table.
    pub arguments: &'a [u8],
}

/// Why a method cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodError {
    /// Its arguments are cut or make no sense, or the frame is too short to hold a method.
    Malformed(Option<Id>),
    /// There is none of that number, or servers send it and not clients.
    Unknown(Id),
}

/// Bits packed into octets, low ones first.
#[derive(Clone, Copy)]
struct Bits(u8);

impl Bits {
    fn read(reader: &mut Reader<'_>) -> Result<Bits, Malformed> {
        Ok(Bits(reader.octet()?))
    }

    fn get(self, nth: u8) -> bool {
        self.0 >> nth & 1 != 0
    }
}

impl<'a> Method<'a> {
    /// Reads the payload of a method frame.
    ///
    /// # Errors
    /// See [`MethodError`].
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<(Id, Method<'a>), MethodError> {
        let mut reader = Reader::new(payload);
        let id = match (reader.short(), reader.short()) {
            (Ok(class), Ok(method)) => (class, method),
            _ => return Err(MethodError::Malformed(None)),
        };
        match arguments(id, &mut reader) {
            Ok(Some(method)) if reader.is_empty() => Ok((id, method)),
            Ok(None) => Err(MethodError::Unknown(id)),
            Ok(Some(_)) | Err(Malformed) => Err(MethodError::Malformed(Some(id))),
        }
    }

    /// It is answered when everything before it on its connection has taken effect.
    pub fn is_synchronous(&self) -> bool {
        !matches!(
            self,
            Method::Publish(_)
                | Method::Ack { .. }
                | Method::Reject { .. }
                | Method::Nack { .. }
                | Method::RecoverAsync { .. }
                | Method::ChannelFlowOk
                | Method::ChannelCloseOk
                | Method::CloseOk
                | Method::CancelOk
        )
    }
}

/// `None`: there is no such method for a client.
#[inline]
fn arguments<'a>(id: Id, reader: &mut Reader<'a>) -> Result<Option<Method<'a>>, Malformed> {
    let method = match id {
        id::BASIC_PUBLISH => {
            reader.short()?;
            let (exchange, key) = (reader.shortstr()?, reader.shortstr()?);
            let bits = Bits::read(reader)?;
            Method::Publish(Publish {
                exchange,
                key,
                mandatory: bits.get(0),
                immediate: bits.get(1),
            })
        }
        id::BASIC_ACK => Method::Ack {
            tag: reader.longlong()?,
            multiple: Bits::read(reader)?.get(0),
        },
        id::BASIC_REJECT => Method::Reject {
            tag: reader.longlong()?,
            requeue: Bits::read(reader)?.get(0),
        },
        id::BASIC_NACK => {
            let tag = reader.longlong()?;
            let bits = Bits::read(reader)?;
            Method::Nack {
                tag,
                multiple: bits.get(0),
                requeue: bits.get(1),
            }
        }
        (60, _) => return basic(id, reader),
        (10 | 20, _) => return connection(id, reader),
        (40, _) => return exchange(id, reader),
        (50, _) => return queue(id, reader),
        id::ACCESS_REQUEST => {
            reader.shortstr()?;
            reader.octet()?;
            Method::AccessRequest
        }
        id::CONFIRM_SELECT => Method::ConfirmSelect {
            nowait: Bits::read(reader)?.get(0),
        },
        id::TX_SELECT => Method::TxSelect,
        id::TX_COMMIT => Method::TxCommit,
        id::TX_ROLLBACK => Method::TxRollback,
        _ => return Ok(None),
    };
    Ok(Some(method))
}

fn connection<'a>(id: Id, reader: &mut Reader<'a>) -> Result<Option<Method<'a>>, Malformed> {
    let method = match id {
        id::CONNECTION_START_OK => {
            let method = Method::StartOk {
                properties: reader.table()?,
                mechanism: reader.shortstr()?,
                response: reader.longstr()?,
            };
            reader.shortstr()?;
            method
        }
        id::CONNECTION_TUNE_OK => Method::TuneOk {
            channel_max: reader.short()?,
            frame_bytes_max: reader.long()?,
            heartbeat_s: reader.short()?,
        },
        id::CONNECTION_OPEN => {
            let vhost = reader.shortstr()?;
            reader.shortstr()?;
            reader.octet()?;
            Method::Open { vhost }
        }
        id::CONNECTION_CLOSE | id::CHANNEL_CLOSE => {
            let (code, text) = (reader.short()?, reader.shortstr()?);
            reader.long()?;
            match id {
                id::CONNECTION_CLOSE => Method::Close { code, text },
                _ => Method::ChannelClose { code, text },
            }
        }
        id::CONNECTION_CLOSE_OK => Method::CloseOk,
        id::CONNECTION_UPDATE_SECRET => {
            reader.longstr()?;
            reader.shortstr()?;
            Method::UpdateSecret
        }
        id::CHANNEL_OPEN => {
            reader.shortstr()?;
            Method::ChannelOpen
        }
        id::CHANNEL_FLOW => Method::ChannelFlow {
            active: Bits::read(reader)?.get(0),
        },
        id::CHANNEL_FLOW_OK => {
            reader.octet()?;
            Method::ChannelFlowOk
        }
        id::CHANNEL_CLOSE_OK => Method::ChannelCloseOk,
        _ => return Ok(None),
    };
    Ok(Some(method))
}

/// Destination, source, key; the arguments stand behind what differs.
fn binding<'a>(reader: &mut Reader<'a>) -> Result<Binding<'a>, Malformed> {
    reader.short()?;
    Ok(Binding {
        destination: reader.shortstr()?,
        source: reader.shortstr()?,
        key: reader.shortstr()?,
        arguments: &[],
    })
}

/// A binding, whether no answer is wanted, and the arguments.
fn binding_nowait<'a>(reader: &mut Reader<'a>) -> Result<(Binding<'a>, bool), Malformed> {
    let binding = binding(reader)?;
    let nowait = Bits::read(reader)?.get(0);
    let arguments = reader.table()?;
    Ok((
        Binding {
            arguments,
            ..binding
        },
        nowait,
    ))
}

fn exchange<'a>(id: Id, reader: &mut Reader<'a>) -> Result<Option<Method<'a>>, Malformed> {
    let method = match id {
        id::EXCHANGE_DECLARE => {
            reader.short()?;
            let (exchange, kind) = (reader.shortstr()?, reader.shortstr()?);
            let bits = Bits::read(reader)?;
            Method::ExchangeDeclare {
                exchange,
                kind,
                passive: bits.get(0),
                durable: bits.get(1),
                auto_delete: bits.get(2),
                internal: bits.get(3),
                nowait: bits.get(4),
                arguments: reader.table()?,
            }
        }
        id::EXCHANGE_DELETE => {
            reader.short()?;
            let exchange = reader.shortstr()?;
            let bits = Bits::read(reader)?;
            Method::ExchangeDelete {
                exchange,
                if_unused: bits.get(0),
                nowait: bits.get(1),
            }
        }
        id::EXCHANGE_BIND => {
            let (binding, nowait) = binding_nowait(reader)?;
            Method::ExchangeBind { binding, nowait }
        }
        id::EXCHANGE_UNBIND => {
            let (binding, nowait) = binding_nowait(reader)?;
            Method::ExchangeUnbind { binding, nowait }
        }
        _ => return Ok(None),
    };
    Ok(Some(method))
}

fn queue<'a>(id: Id, reader: &mut Reader<'a>) -> Result<Option<Method<'a>>, Malformed> {
    let method = match id {
        id::QUEUE_DECLARE => {
            reader.short()?;
            let queue = reader.shortstr()?;
            let bits = Bits::read(reader)?;
            Method::QueueDeclare {
                queue,
                passive: bits.get(0),
                durable: bits.get(1),
                exclusive: bits.get(2),
                auto_delete: bits.get(3),
                nowait: bits.get(4),
                arguments: reader.table()?,
            }
        }
        id::QUEUE_BIND => {
            let (binding, nowait) = binding_nowait(reader)?;
            Method::QueueBind { binding, nowait }
        }
        id::QUEUE_UNBIND => {
            let binding = Binding {
                arguments: &[],
                ..binding(reader)?
            };
            let arguments = reader.table()?;
            Method::QueueUnbind {
                binding: Binding {
                    arguments,
                    ..binding
                },
            }
        }
        id::QUEUE_PURGE => {
            reader.short()?;
            Method::QueuePurge {
                queue: reader.shortstr()?,
                nowait: Bits::read(reader)?.get(0),
            }
        }
        id::QUEUE_DELETE => {
            reader.short()?;
            let queue = reader.shortstr()?;
            let bits = Bits::read(reader)?;
            Method::QueueDelete {
                queue,
                if_unused: bits.get(0),
                if_empty: bits.get(1),
                nowait: bits.get(2),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(method))
}

fn basic<'a>(id: Id, reader: &mut Reader<'a>) -> Result<Option<Method<'a>>, Malformed> {
    let method = match id {
        id::BASIC_QOS => Method::Qos {
            bytes: reader.long()?,
            count: reader.short()?,
            global: Bits::read(reader)?.get(0),
        },
        id::BASIC_CONSUME => {
            reader.short()?;
            let (queue, tag) = (reader.shortstr()?, reader.shortstr()?);
            let bits = Bits::read(reader)?;
            Method::Consume {
                queue,
                tag,
                no_local: bits.get(0),
                no_ack: bits.get(1),
                exclusive: bits.get(2),
                nowait: bits.get(3),
                arguments: reader.table()?,
            }
        }
        id::BASIC_CANCEL => Method::Cancel {
            tag: reader.shortstr()?,
            nowait: Bits::read(reader)?.get(0),
        },
        id::BASIC_CANCEL_OK => {
            reader.shortstr()?;
            Method::CancelOk
        }
        id::BASIC_GET => {
            reader.short()?;
            Method::Get {
                queue: reader.shortstr()?,
                no_ack: Bits::read(reader)?.get(0),
            }
        }
        id::BASIC_RECOVER_ASYNC => Method::RecoverAsync {
            requeue: Bits::read(reader)?.get(0),
        },
        id::BASIC_RECOVER => Method::Recover {
            requeue: Bits::read(reader)?.get(0),
        },
        _ => return Ok(None),
    };
    Ok(Some(method))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|octet| *octet != b' ').collect();
        let pairs = digits.chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).expect("it is text");
            u8::from_str_radix(pair, 16).expect("it is hexadecimal")
        });
        pairs.collect()
    }

    /// The payload is read as that method, and no shorter or longer one is.
    fn check(payload: &[u8], want: Method<'_>) {
        let id = (
            u16::from_be_bytes([payload[0], payload[1]]),
            u16::from_be_bytes([payload[2], payload[3]]),
        );
        assert_eq!(Method::decode(payload), Ok((id, want)));
        for cut in 0..payload.len() {
            let known = (cut >= 4).then_some(id);
            let got = Method::decode(&payload[..cut]);
            assert_eq!(got, Err(MethodError::Malformed(known)), "cut at {cut}");
        }
        let more = [payload, b"x"].concat();
        assert_eq!(Method::decode(&more), Err(MethodError::Malformed(Some(id))));
    }

    #[test]
    fn methods_are_read_from_the_octets_of_the_specification() {
        check(
            &hex("003c 0028 0000 00 01 71 03"),
            Method::Publish(Publish {
                exchange: b"",
                key: b"q",
                mandatory: true,
                immediate: true,
            }),
        );
        check(
            &hex("003c 0050 0000000000000102 01"),
            Method::Ack {
                tag: 258,
                multiple: true,
            },
        );
        check(
            &hex("003c 0078 0000000000000003 02"),
            Method::Nack {
                tag: 3,
                multiple: false,
                requeue: true,
            },
        );
        check(
            &hex("003c 005a 0000000000000003 01"),
            Method::Reject {
                tag: 3,
                requeue: true,
            },
        );
        check(
            &hex("0032 000a 0000 01 71 1a 00000000"),
            Method::QueueDeclare {
                queue: b"q",
                passive: false,
                durable: true,
                exclusive: false,
                auto_delete: true,
                nowait: true,
                arguments: b"",
            },
        );
        check(
            &hex("0028 000a 0000 01 65 05 746f706963 02 00000003 016156"),
            Method::ExchangeDeclare {
                exchange: b"e",
                kind: b"topic",
                passive: false,
                durable: true,
                auto_delete: false,
                internal: false,
                nowait: false,
                arguments: b"\x01aV",
            },
        );
        let binding = Binding {
            destination: b"q",
            source: b"e",
            key: b"k",
            arguments: b"",
        };
        check(
            &hex("0032 0014 0000 0171 0165 016b 01 00000000"),
            Method::QueueBind {
                binding,
                nowait: true,
            },
        );
        check(
            &hex("0032 0032 0000 0171 0165 016b 00000000"),
            Method::QueueUnbind { binding },
        );
        check(
            &hex("0028 001e 0000 0171 0165 016b 00 00000000"),
            Method::ExchangeBind {
                binding,
                nowait: false,
            },
        );
        check(
            &hex("000a 001f 07ff 00020000 003c"),
            Method::TuneOk {
                channel_max: 2047,
                frame_bytes_max: 131_072,
                heartbeat_s: 60,
            },
        );
        check(
            &hex("000a 000b 00000000 05 504c41494e 00000003 006100 05 656e5f5553"),
            Method::StartOk {
                properties: b"",
                mechanism: b"PLAIN",
                response: b"\0a\0",
            },
        );
        check(&hex("000a 0028 01 2f 00 00"), Method::Open { vhost: b"/" });
        check(
            &hex("0014 0028 00c8 02 6f6b 0000 0000"),
            Method::ChannelClose {
                code: 200,
                text: b"ok",
            },
        );
        check(
            &hex("003c 0014 0000 0171 0163 06 00000000"),
            Method::Consume {
                queue: b"q",
                tag: b"c",
                no_local: false,
                no_ack: true,
                exclusive: true,
                nowait: false,
                arguments: b"",
            },
        );
        check(
            &hex("003c 000a 00000000 0001 00"),
            Method::Qos {
                bytes: 0,
                count: 1,
                global: false,
            },
        );
    }

    #[test]
    fn what_clients_do_not_send_has_a_number_in_the_answer() {
        for (payload, id) in [
            ("003c 003c", (60, 60)),
            ("000a 000a", (10, 10)),
            ("0055 000b", (85, 11)),
            ("0001 0001", (1, 1)),
        ] {
            assert_eq!(
                Method::decode(&hex(payload)),
                Err(MethodError::Unknown(id)),
                "{payload}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_refused(
            class in 0u16..100,
            method in 0u16..130,
            rest in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &rest].concat();
            if let Ok((id, _)) = Method::decode(&payload) {
                prop_assert_eq!(id, (class, method));
            }
        }
    }
}
