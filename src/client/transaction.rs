//! Publishes, acks and nacks that the broker does all or none.

use super::Client;
use super::consume::Nack;
use super::error::{Code, Error};
use super::message::{Message, Settled};
use super::publish::{Limits, Publish};
use super::session::Answer;
use super::wire::Reply;

/// What is to happen as one: collected here, done by [`Client::commit`].
///
/// ```no_run
/// use ringmq::client::{Client, Publish, Pull, Settled, Transaction};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), ringmq::client::Error> {
/// let mut client = Client::connect("127.0.0.1:7766")?;
/// loop {
///     for message in client.pull(&Pull::new("orders").wait(Duration::from_secs(60)))? {
///         let bill = format!("bill for {}", message.text());
///         let work = Transaction::new()
///             .publish(Publish::new("bills", bill))
///             .ack(&message);
///         // Whatever it says, each order has its bill once in the end.
///         let _: Settled = client.commit(&work)?;
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Publish),
    Line(String),
}

impl Transaction {
    /// An empty one.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Adds a publish. It has an id for deduplication only if it brings one ([`Publish::once`]).
    pub fn publish(mut self, publish: Publish) -> Transaction {
        self.steps.push(Step::Publish(publish));
        self
    }

    /// Adds that this message is done with. One without a handle needs no ack.
    pub fn ack(mut self, message: &Message) -> Transaction {
        let line = message
            .handle
            .as_ref()
            .map(|handle| format!("ACK {handle}\n"));
        self.steps.extend(line.map(Step::Line));
        self
    }

    /// Adds that this message is given back.
    pub fn nack(mut self, message: &Message, nack: &Nack) -> Transaction {
        let line = message.handle.as_ref().map(|handle| nack.encode(handle));
        self.steps.extend(line.map(Step::Line));
        self
    }

    /// The commands between `BEGIN` and `COMMIT`; the error says what cannot be sent.
    pub(super) fn encode(&self, limits: &Limits) -> Result<Vec<Vec<u8>>, String> {
        let commands = self.steps.iter().map(|step| match step {
            Step::Publish(publish) => publish.encode(None, limits),
            Step::Line(line) => Ok(line.clone().into_bytes()),
        });
        commands.collect()
    }
}

impl Client {
    /// Does all of a transaction, or none of it, and waits until the broker says which.
    ///
    /// [`Settled::Confirmed`]: all of it is done. [`Settled::Stale`]: a lease had ended, so nothing is; its message
    /// comes again, to this consumer or another. [`Settled::Unknown`]: the connection broke before the answer;
    /// all of it was done, or nothing and the messages come again. It is sent once.
    ///
    /// # Errors
    /// [`Error::Refused`] when the broker does not take one of its parts: nothing is done.
    /// [`Error::Invalid`] for a part that cannot be sent: nothing was. [`Error::Connect`] or
    /// [`Error::Lost`] when the broker stays away.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Settled, Error> {
        self.session.ensure_connected()?;
        let commands = self.session.encoded(transaction).map_err(Error::Invalid)?;
        match self.session.transact(&commands)? {
            Answer::Lost => Ok(Settled::Unknown),
            Answer::Reply(Reply::Ok(_)) => Ok(Settled::Confirmed),
            Answer::Reply(Reply::Error(refusal)) => match refusal.code {
                Code::Stale => Ok(Settled::Stale),
                Code::UnknownResult => Ok(Settled::Unknown),
                _ => Err(Error::Refused(refusal)),
            },
            Answer::Reply(reply) => Err(Error::unexpected(reply)),
        }
    }
}
