//! How a connection begins and ends: the handshake, what is agreed on, closing by either side.

use super::{
    Amqp, CHANNELS_MAX, FRAME_BYTES_MAX, Fault, HEARTBEAT_S, Outcome, Phase, Understands,
    connection_fault, shown,
};
use crate::broker::headers::{self, Value};
use crate::log::disk::Storage;
use crate::protocol::amqp::encode::{self, Frame};
use crate::protocol::amqp::frame::FRAME_BYTES_MIN;
use crate::protocol::amqp::method::{Id, Method, id};
use crate::protocol::amqp::{PREAMBLE, code, table};
use crate::shard::conn::{Life, Need};
use crate::shard::{Now, Shard};

/// The only virtual host.
const VHOST: &[u8] = b"/";

/// What the broker says of itself and what it offers.
fn server_properties() -> Vec<u8> {
    let mut offers = Vec::new();
    for name in [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
        "direct_reply_to",
    ] {
        // Consumers of one queue are equal here.
        let is_offered = name != "consumer_priorities";
        table::put_bool(&mut offers, name.as_bytes(), is_offered);
    }
    let mut properties = Vec::new();
    table::put_inner(&mut properties, b"capabilities", b'F', &offers);
    for (name, value) in [
        ("product", "RingMQ"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("platform", "Rust"),
        ("information", "docs/amqp.md tells what is offered"),
    ] {
        table::put_text(&mut properties, name.as_bytes(), value.as_bytes());
    }
    properties
}

impl<S: Storage> Shard<S> {
    pub(super) fn amqp(&mut self, slot: usize) -> &mut Amqp {
        self.conns[slot]
            .amqp()
            .expect("only connections of this protocol come here")
    }

    /// Begins to write a method of a channel.
    pub(super) fn say_on(&mut self, slot: usize, channel: u16, id: Id) -> Frame<'_> {
        Frame::method(self.conns[slot].out.writer(&mut self.pool), channel, id)
    }

    /// Looks at the protocol's name and version; how many bytes were used up. `None`: not all is there.
    pub(super) fn run_preamble(&mut self, slot: usize, input: &[u8]) -> Option<usize> {
        let preamble = input.first_chunk::<8>()?;
        if preamble != PREAMBLE {
            let out = self.conns[slot].out.writer(&mut self.pool);
            out.extend_from_slice(PREAMBLE);
            self.amqp(slot).phase = Phase::Closed;
            self.conns[slot].life = Life::Closing;
            return Some(input.len());
        }
        self.amqp(slot).phase = Phase::Starting;
        let properties = server_properties();
        self.say_on(slot, 0, id::CONNECTION_START)
            .octet(0)
            .octet(9)
            .longstr(&properties)
            .longstr(b"PLAIN AMQPLAIN")
            .longstr(b"en_US")
            .end();
        Some(PREAMBLE.len())
    }

    /// A method of the connection itself.
    pub(super) fn run_connection(&mut self, slot: usize, method: &Method<'_>, now: Now) -> Outcome {
        let phase = self.amqp(slot).phase;
        match (phase, method) {
            (
                Phase::Starting,
                Method::StartOk {
                    properties,
                    mechanism,
                    response,
                },
            ) => self.begin_session(slot, properties, mechanism, response),
            (
                Phase::Tuning,
                Method::TuneOk {
                    channel_max,
                    frame_bytes_max,
                    heartbeat_s,
                },
            ) => self.tune(slot, *channel_max, *frame_bytes_max, *heartbeat_s, now),
            (Phase::Opening, Method::Open { vhost }) => self.open_vhost(slot, vhost),
            (_, Method::Close { code, text }) => {
                if *code != code::SUCCESS {
                    let peer = &self.conns[slot].peer;
                    ::log::debug!("{peer} closes its connection: {code} {}", shown(text));
                }
                if self.has_front(slot) {
                    if self.settle_parts(slot) {
                        return Err(Fault::Again);
                    }
                    if self.close_parts(slot) {
                        self.awaits_answers(slot);
                        return Err(Fault::Again);
                    }
                }
                if self.wait_for_own(slot) {
                    return Err(Fault::Again);
                }
                self.flush_confirms(slot);
                self.end_channels(slot, now);
                self.drop_exclusive(slot);
                self.say_on(slot, 0, id::CONNECTION_CLOSE_OK).end();
                self.amqp(slot).phase = Phase::Closed;
                self.conns[slot].life = Life::Closing;
                Ok(())
            }
            (Phase::Running, Method::UpdateSecret) => {
                // Nothing is asked of who connects, so any secret will do.
                self.say_on(slot, 0, id::CONNECTION_UPDATE_SECRET_OK).end();
                Ok(())
            }
            (_, Method::CloseOk) => {
                self.conns[slot].life = Life::Closing;
                Ok(())
            }
            _ => Err(connection_fault(
                code::COMMAND_INVALID,
                "this method means nothing at this point of the connection",
            )),
        }
    }

    fn begin_session(
        &mut self,
        slot: usize,
        properties: &[u8],
        mechanism: &[u8],
        response: &[u8],
    ) -> Outcome {
        let user = match mechanism {
            b"PLAIN" => {
                let mut parts = response.splitn(3, |octet| *octet == 0);
                let (_, user) = (parts.next(), parts.next());
                user.unwrap_or_default()
            }
            b"AMQPLAIN" => match headers::find(response, b"LOGIN") {
                Some(Value::Text(user)) => user,
                _ => b"",
            },
            other => {
                return Err(connection_fault(
                    code::ACCESS_REFUSED,
                    format!(
                        "there is no mechanism {}, only PLAIN and AMQPLAIN",
                        shown(other)
                    ),
                ));
            }
        };
        let capabilities = table::find(properties, b"capabilities")
            .and_then(|value| table::inner(value, b'F'))
            .unwrap_or_default();
        let has = |name: &[u8]| headers::find(capabilities, name) == Some(Value::Bool(true));
        let amqp = self.amqp(slot);
        let understands = Understands {
            cancel: has(b"consumer_cancel_notify"),
            blocked: has(b"connection.blocked"),
            nack: has(b"basic.nack"),
        };
        amqp.understands = match &mut amqp.front {
            Some(front) => {
                front.understands = understands;
                Understands::ALL
            }
            None => understands,
        };
        amqp.user = user.into();
        amqp.phase = Phase::Tuning;
        if let Some(Value::Text(name)) = headers::find(properties, b"connection_name") {
            self.conns[slot].rare.set_name(name);
        }
        self.say_on(slot, 0, id::CONNECTION_TUNE)
            .short(CHANNELS_MAX)
            .long(FRAME_BYTES_MAX)
            .short(HEARTBEAT_S)
            .end();
        Ok(())
    }

    fn tune(
        &mut self,
        slot: usize,
        channel_max: u16,
        frame_bytes_max: u32,
        heartbeat_s: u16,
        now: Now,
    ) -> Outcome {
        let not_allowed = |text: &str| Err(connection_fault(code::NOT_ALLOWED, text));
        if frame_bytes_max != 0 && frame_bytes_max < FRAME_BYTES_MIN {
            return not_allowed("frames may not be smaller than 4096 bytes");
        }
        if frame_bytes_max > FRAME_BYTES_MAX || channel_max > CHANNELS_MAX {
            return not_allowed("what was proposed is the most");
        }
        let amqp = self.amqp(slot);
        // 0 means that the client sets no limit.
        let chosen = |said: u32, most: u32| if said == 0 { most } else { said };
        amqp.frame_bytes_max = chosen(frame_bytes_max, FRAME_BYTES_MAX);
        amqp.channels_max = chosen(u32::from(channel_max), u32::from(CHANNELS_MAX)) as u16;
        amqp.heartbeat_us = u64::from(heartbeat_s) * 1_000_000;
        amqp.phase = Phase::Opening;
        self.begin_heartbeats(slot, now);
        Ok(())
    }

    fn open_vhost(&mut self, slot: usize, vhost: &[u8]) -> Outcome {
        if vhost != VHOST {
            return Err(connection_fault(
                code::NOT_ALLOWED,
                format!("there is no vhost {}, only /", shown(vhost)),
            ));
        }
        self.amqp(slot).phase = Phase::Running;
        self.say_on(slot, 0, id::CONNECTION_OPEN_OK)
            .shortstr(b"")
            .end();
        Ok(())
    }

    /// Says why a method was not done, and closes what it was asked on.
    pub(super) fn answer_fault(
        &mut self,
        slot: usize,
        channel: u16,
        cause: Id,
        fault: Fault,
        now: Now,
    ) {
        match fault {
            Fault::Again => unreachable!("it comes again"),
            Fault::Channel(code, text) if channel != 0 => {
                let text = format!("{} - {text}", code::name(code));
                // What was published before has its answer first.
                self.settle_confirms(slot);
                self.end_channel(slot, channel, now);
                let out = self.conns[slot].out.writer(&mut self.pool);
                encode::close(out, channel, code, &text, cause);
                if let Some(channel) = self.amqp(slot).channel(channel) {
                    channel.is_closed = true;
                }
                if self.has_front(slot) {
                    self.close_at_parts(slot, channel, false);
                }
            }
            Fault::Channel(code, text) | Fault::Connection(code, text) => {
                self.close_connection(slot, code, &text, cause, now);
            }
        }
    }

    /// The broker closes a connection.
    pub(super) fn close_connection(
        &mut self,
        slot: usize,
        code: u16,
        text: &str,
        cause: Id,
        now: Now,
    ) {
        if self.amqp(slot).phase == Phase::Closed {
            return;
        }
        ::log::debug!("{} is closed: {code} {text}", self.conns[slot].peer);
        self.settle_confirms(slot);
        self.end_channels(slot, now);
        let text = format!("{} - {text}", code::name(code));
        let conn = &mut self.conns[slot];
        let mut out = std::mem::take(conn.out.writer(&mut self.pool));
        if let Some(amqp) = conn.amqp() {
            amqp.close_with(&mut out, code, &text, cause);
        }
        *conn.out.writer(&mut self.pool) = out;
        conn.life = Life::Closing;
        self.mark_dirty(slot);
    }

    /// Every message that was published has its confirm in the output, which leaves when they are safe.
    fn settle_confirms(&mut self, slot: usize) {
        self.flush_confirms(slot);
        self.hold_for_publishes(slot);
        self.give_confirms(slot, |_| true);
    }

    /// What is said from now on leaves when what the connection has published is safe.
    fn hold_for_publishes(&mut self, slot: usize) {
        let mut need = Need::NOW;
        for other in self.conns[slot].published.needs() {
            if !self.engine.reached(other) {
                need = need.and(other);
            }
        }
        if need != Need::NOW {
            let serial = self.engine.leases.next_serial();
            self.conns[slot].gate(need, serial);
            self.mark_dirty(slot);
        }
    }

    /// The broker ends, and every client of this protocol is told: once all shards have said what became of its
    /// publishes, or when nobody waits for that any more. Asked again and again; true if there were any to tell.
    pub(in crate::shard) fn close_all_amqp(&mut self, at_last: bool, now: Now) -> bool {
        let mut has_closed = false;
        for slot in self.amqp.members() {
            let amqp = self.amqp(slot);
            if amqp.phase != Phase::Closed && (at_last || !amqp.awaits_reports()) {
                let text = "the broker is going down";
                self.close_connection(slot, code::CONNECTION_FORCED, text, (0, 0), now);
                has_closed = true;
            }
        }
        has_closed
    }
}
