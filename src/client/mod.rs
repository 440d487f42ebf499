//! A client for Rust programs: blocking, pipelined, and back by itself when the broker was away.
//!
//! ```no_run
//! use ringmq::client::{Client, Publish, Pull};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), ringmq::client::Error> {
//! let mut client = Client::connect("127.0.0.1:7766")?;
//! let receipt = client.publish(&Publish::new("jobs", "Hello, world"))?;
//! println!("message {} is at level {}", receipt.id, receipt.level.receipt());
//!
//! for message in client.pull(&Pull::new("jobs").wait(Duration::from_secs(10)))? {
//!     println!("{}", message.text());
//!     client.ack(&message)?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What it promises, on top of what the broker does:
//!
//! - **A publish is stored once.** It carries an id (`once=`) that nobody else uses. When the connection
//!   breaks, everything without a receipt is sent again over the next one, in order. The queue's `dedup`
//!   window (2 minutes unless set) must be longer than the outage; the time that the broker itself was
//!   down does not count.
//! - **What you have acked is not shown again.** If the broker died before it took the ack, the message
//!   comes again; the client knows it by queue, id and time of publish, acks it again and hides it. It
//!   remembers the last 65,536 messages, as long as it lives.
//! - **A subscription is renewed**, and waits until the broker is back.
//!
//! One client is one connection and belongs to one thread; there is no thread behind it. It reads and
//! writes while a call is under way, so leases run and pipelined publishes rest while you work.
//!
//! [`Connection`] is the layer below: one connection, nothing is tried again.
#![allow(
    clippy::disallowed_methods,
    reason = "a client runs in somebody else's process, where it waits and measures by their clock"
)]

mod connection;
mod consume;
mod error;
mod memory;
mod message;
mod options;
mod publish;
mod request;
mod session;
mod transaction;
mod wire;

pub use connection::Connection;
pub use consume::{Nack, Pull, Subscribe};
pub use error::{Code, Error, Refusal};
pub use message::{Flushed, Level, Message, Receipt, Settled};
pub use options::Options;
pub use publish::Publish;
pub use transaction::Transaction;
pub use wire::{Reply, Tagged, typed_name, typed_sources, typed_value};

use std::time::{Duration, Instant};

use crate::protocol::text::value;

use session::{Answer, Session};

/// Longest single wait of a pull; a longer one is several.
const PULL_STEP: Duration = Duration::from_secs(10);
/// Between two pulls from a broker that goes down and does not say how long to wait.
const DRAIN_STEP: Duration = Duration::from_millis(100);

/// A client that hides restarts of its broker. See the [module](self).
#[derive(Debug)]
pub struct Client {
    session: Session,
}

impl Client {
    /// Connects to `host:port` with the default [`Options`].
    ///
    /// # Errors
    /// Those of [`Options::connect`].
    pub fn connect(addr: &str) -> Result<Client, Error> {
        Options::new(addr).connect()
    }

    /// Publishes and waits for the receipt.
    ///
    /// # Errors
    /// [`Error::Refused`] when the broker does not take it: it is not stored. [`Error::Invalid`] when it
    /// cannot be sent. [`Error::Connect`] or [`Error::Lost`] when the broker stays away for longer than
    /// the options give; then it is kept, and sent by the next call that finds the broker.
    pub fn publish(&mut self, publish: &Publish) -> Result<Receipt, Error> {
        self.session.publish_and_wait(publish)
    }

    /// Publishes without waiting; the number names it in [`Flushed::refused`]. It leaves with many
    /// others, at the latest with the next call that waits or with [`Client::send`]; its receipt is
    /// waited for by [`Client::flush`]. Waits while the window of
    /// publishes without a receipt is full.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), ringmq::client::Error> {
    /// # use ringmq::client::{Client, Publish};
    /// # let mut client = Client::connect("127.0.0.1:7766")?;
    /// for number in 0..1_000_000 {
    ///     client.publish_nowait(&Publish::new("numbers", number.to_string()))?;
    /// }
    /// assert!(client.flush()?.refused.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Client::publish`]; on any of them this one is not taken. [`Error::Refused`] when a whole
    /// window of earlier ones was refused: [`Client::flush`] tells which.
    pub fn publish_nowait(&mut self, publish: &Publish) -> Result<u64, Error> {
        self.session.publish(publish)
    }

    /// Sends what [`Client::publish_nowait`] has collected, without waiting for receipts. While there is
    /// no connection it does nothing.
    pub fn send(&mut self) {
        self.session.push();
    }

    /// Waits until every publish has its receipt and every ack its answer.
    ///
    /// # Errors
    /// [`Error::Connect`] or [`Error::Lost`] when the broker stays away; nothing is forgotten, so it can
    /// be called again.
    pub fn flush(&mut self) -> Result<Flushed, Error> {
        self.session.flush()
    }

    /// Takes messages. What this client has settled already is not among them. While the broker is
    /// away it takes longer than it was asked to wait.
    ///
    /// # Errors
    /// [`Error::Refused`] when the broker does not want it, [`Error::Connect`] or [`Error::Lost`] when it
    /// stays away.
    pub fn pull(&mut self, pull: &Pull) -> Result<Vec<Message>, Error> {
        let began = Instant::now();
        loop {
            self.session.ensure_connected()?;
            let left = pull.wait.saturating_sub(began.elapsed());
            let wait = left.min(PULL_STEP);
            let count = match self.session.ask(pull.encode(wait).as_bytes(), wait)? {
                Answer::Reply(Reply::End(count)) => count,
                // It goes down, and will be back; what is held can be settled until then.
                Answer::Reply(Reply::Error(refusal)) if refusal.code == Code::Draining => {
                    self.session.step(refusal.retry.unwrap_or(DRAIN_STEP))?;
                    continue;
                }
                Answer::Reply(reply) => return Err(Error::unexpected(reply)),
                Answer::Lost => continue,
            };
            let mut messages = std::mem::take(&mut self.session.pulled);
            messages.retain(|message| self.is_new(message));
            if !messages.is_empty() || count == 0 && left == wait {
                return Ok(messages);
            }
        }
    }

    /// Begins a subscription; [`Client::receive`] has its messages. It is renewed on every new
    /// connection.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), ringmq::client::Error> {
    /// # use ringmq::client::{Client, Subscribe};
    /// # use std::time::Duration;
    /// let mut client = Client::connect("127.0.0.1:7766")?;
    /// client.subscribe(&Subscribe::new("jobs").credit(50))?;
    /// loop {
    ///     while let Some(message) = client.receive(Duration::from_secs(60))? {
    ///         println!("{}", message.text());
    ///         client.ack_nowait(&message);
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] when the broker does not want it, [`Error::Connect`] or [`Error::Lost`] when it
    /// stays away.
    pub fn subscribe(&mut self, subscribe: &Subscribe) -> Result<(), Error> {
        self.session.subscribe(subscribe)
    }

    /// The next message of the subscriptions, `None` when none has come for so long. What this client
    /// has settled already is acked again and not given.
    ///
    /// # Errors
    /// [`Error::Invalid`] without a subscription, [`Error::Ended`] and [`Error::Refused`] when one has
    /// ended by itself, [`Error::Connect`] or [`Error::Lost`] when the broker stays away.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Message>, Error> {
        let mut began = None;
        loop {
            if let Some(error) = self.session.ended.pop_front() {
                return Err(error);
            }
            while let Some(message) = self.session.arrived.pop_front() {
                if self.is_new(&message) {
                    return Ok(Some(message));
                }
            }
            if !self.session.is_subscribed() {
                let text = "nothing is subscribed to, so nothing can come";
                return Err(Error::Invalid(text.to_owned()));
            }
            let began = *began.get_or_insert_with(Instant::now);
            let left = wait.saturating_sub(began.elapsed());
            if !self.session.step(left)? && began.elapsed() >= wait {
                return Ok(None);
            }
        }
    }

    /// Live copies that the broker could not send since this client was made, because it read them too slowly.
    /// What was cast while the connection was broken is not among them.
    pub fn missed(&self) -> u64 {
        self.session.missed
    }

    /// Forgets what was settled, so that messages which come again are shown: to be said before a `SEEK` that
    /// goes back.
    pub fn forget_settled(&mut self) {
        self.session.memory.clear();
    }

    /// Whether a message is to be shown. One that is not is acked: its first ack was lost.
    fn is_new(&mut self, message: &Message) -> bool {
        let is_new = !self.session.memory.contains(message);
        if let (false, Some(handle)) = (is_new, &message.handle) {
            self.session.send(&format!("ACK {handle}\n"));
        }
        is_new
    }

    /// Is done with a message, and waits until the broker knows. Whatever the answer, this client does
    /// not show it again.
    ///
    /// # Errors
    /// [`Error::Refused`] for an answer that the broker gives to no ack, and an answer that is none.
    pub fn ack(&mut self, message: &Message) -> Result<Settled, Error> {
        self.session.memory.insert(message);
        self.settle(message, |handle| format!("ACK {handle}\n"))
    }

    /// As [`Client::ack`], without waiting: the ack is sent, and if it is lost, or too late, the message
    /// comes again and is acked again. [`Client::flush`] waits for the answers.
    pub fn ack_nowait(&mut self, message: &Message) {
        self.session.memory.insert(message);
        if let Some(handle) = &message.handle {
            self.session.send(&format!("ACK {handle}\n"));
        }
    }

    /// Gives a message back, and waits until the broker knows.
    ///
    /// # Errors
    /// Those of [`Client::ack`].
    pub fn nack(&mut self, message: &Message, nack: &Nack) -> Result<Settled, Error> {
        self.settle(message, |handle| nack.encode(handle))
    }

    /// Makes the lease of a message begin anew: for so long, or if that is not said for the longer of
    /// the queue's lease and the one it had.
    ///
    /// # Errors
    /// Those of [`Client::ack`].
    pub fn touch(&mut self, message: &Message, lease: Option<Duration>) -> Result<Settled, Error> {
        let option = lease.map(|lease| format!(" lease={}", publish::duration(lease)));
        let option = option.unwrap_or_default();
        self.settle(message, |handle| format!("TOUCH {handle}{option}\n"))
    }

    fn settle(
        &mut self,
        message: &Message,
        command: impl Fn(&str) -> String,
    ) -> Result<Settled, Error> {
        let Some(handle) = &message.handle else {
            return Ok(Settled::Confirmed);
        };
        match self
            .session
            .ask(command(handle).as_bytes(), Duration::ZERO)?
        {
            Answer::Lost => Ok(Settled::Unknown),
            Answer::Reply(Reply::Ok(rest)) if rest.contains("stale=") => Ok(Settled::Stale),
            Answer::Reply(Reply::Ok(_)) => Ok(Settled::Confirmed),
            Answer::Reply(Reply::Error(refusal)) if refusal.code == Code::UnknownResult => {
                Ok(Settled::Unknown)
            }
            Answer::Reply(reply) => Err(Error::unexpected(reply)),
        }
    }

    /// Creates a queue or changes one: `settings` as in `maxlen=1000 lease=1m`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the broker does not want it, [`Error::Connect`] or [`Error::Lost`] when it
    /// stays away.
    pub fn set(&mut self, queue: &str, settings: &str) -> Result<(), Error> {
        let line = format!("QSET {} {settings}", typed_name(queue));
        loop {
            // Saying it again does no harm.
            match self.ask(&line) {
                Ok(_) => return Ok(()),
                Err(Error::Lost { .. }) if !self.session.is_connected() => {
                    self.session.ensure_connected()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Any other command that is one line and is answered by one reply, as in `MOVE jobs.dead jobs` or
    /// `QGET jobs`. It is sent once.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection broke before the answer: whether it was run is unknown.
    /// [`Error::Refused`] for an `ERR`. [`Error::Invalid`] for lines that are not one such command.
    /// [`Error::Connect`] when the broker stays away.
    pub fn ask(&mut self, line: &str) -> Result<Reply, Error> {
        if let Some(fault) = fault_of(line) {
            return Err(Error::Invalid(format!("'{line}' {fault}")));
        }
        self.session.ensure_connected()?;
        let answer = self
            .session
            .ask(format!("{line}\n").as_bytes(), Duration::ZERO)?;
        match answer {
            Answer::Reply(reply @ Reply::Error(_)) => Err(Error::unexpected(reply)),
            Answer::Reply(reply) => Ok(reply),
            Answer::Lost => Err(self.session.lost()),
        }
    }
}

/// Why a line can't be sent as one command that has one reply.
fn fault_of(line: &str) -> Option<&'static str> {
    let verb = line.split(' ').next().unwrap_or_default();
    let is_counted = |word: &str| {
        let count = word.strip_prefix(['$', '*']);
        count.is_some_and(|count| value::decimal(count.as_bytes()).is_some())
    };
    if line.contains(['\n', '\r']) {
        return Some("is more than one line");
    }
    if verb.is_empty() || verb.starts_with('@') || verb.ends_with('!') {
        return Some("has no answer of its own: leave out the tag and the !");
    }
    if ["SUB", "PULL", "POP", "PEEK", "REQ", "QUIT"].contains(&verb.to_uppercase().as_str()) {
        return Some("is not answered by one reply");
    }
    if ["BEGIN", "COMMIT", "ABORT"].contains(&verb.to_uppercase().as_str()) {
        return Some("is for Client::commit to say");
    }
    match line.rsplit_once(' ') {
        Some((words, last)) if !words.contains(" :") && is_counted(last) => {
            Some("announces a body that does not follow")
        }
        _ => None,
    }
}
