//! How a client behaves.

use std::time::Duration;

use super::error::Error;
use super::{Client, session::Session};

/// How a [`Client`] behaves; everything has a default.
///
/// ```no_run
/// # fn main() -> Result<(), ringmq::client::Error> {
/// use ringmq::client::Options;
/// use std::time::Duration;
///
/// let mut client = Options::new("127.0.0.1:7766")
///     .name("billing")
///     .window(100)
///     .patience(Duration::from_secs(10))
///     .connect()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) addr: String,
    pub(super) name: Option<String>,
    pub(super) window: usize,
    pub(super) window_bytes: usize,
    pub(super) answer_timeout: Duration,
    pub(super) give_up_after: Duration,
    pub(super) patience: Duration,
    pub(super) remembered: usize,
}

impl Options {
    /// The defaults, for a broker at `host:port`.
    pub fn new(addr: &str) -> Options {
        Options {
            addr: addr.to_owned(),
            name: None,
            window: 1000,
            window_bytes: 8 << 20,
            answer_timeout: Duration::from_secs(30),
            give_up_after: Duration::from_secs(60),
            patience: Duration::ZERO,
            remembered: 65_536,
        }
    }

    /// A name that the broker's `STATS conns` shows.
    pub fn name(mut self, name: &str) -> Options {
        self.name = Some(name.to_owned());
        self
    }

    /// Most publishes without a receipt, at least 1; 1,000 if not said. They are kept to be sent again.
    pub fn window(mut self, publishes: usize) -> Options {
        self.window = publishes.max(1);
        self
    }

    /// Most bytes of publishes without a receipt; 8 MiB if not said. One that is larger goes alone.
    pub fn window_bytes(mut self, bytes: usize) -> Options {
        self.window_bytes = bytes;
        self
    }

    /// A connection on which an answer is due and nothing has come for so long is given up; 30 s if not
    /// said.
    pub fn answer_timeout(mut self, limit: Duration) -> Options {
        self.answer_timeout = limit;
        self
    }

    /// How long to look for a broker that has gone before a call fails; 60 s if not said. What has no
    /// receipt is kept even then and sent by a later call that finds the broker.
    pub fn give_up_after(mut self, limit: Duration) -> Options {
        self.give_up_after = limit;
        self
    }

    /// A publish that is refused with `retry=` (the queue is full or paused, the disk is full) is sent
    /// again for so long before it counts as refused; not at all if not said. It then arrives behind
    /// publishes that were taken meanwhile.
    pub fn patience(mut self, limit: Duration) -> Options {
        self.patience = limit;
        self
    }

    /// How many settled messages are remembered, so that one whose ack was lost is not shown again;
    /// 65,536 if not said, about 100 bytes each.
    pub fn remembered(mut self, messages: usize) -> Options {
        self.remembered = messages;
        self
    }

    /// Connects, and fails at once if that is not possible.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens, [`Error::Protocol`] when it is no broker,
    /// [`Error::Refused`] when it does not want this client.
    pub fn connect(self) -> Result<Client, Error> {
        Ok(Client {
            session: Session::open(self)?,
        })
    }
}
