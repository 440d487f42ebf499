//! Questions to the consumers of a queue, and their answers.

use std::time::Duration;

use super::Client;
use super::error::Error;
use super::message::Message;
use super::publish::duration;
use super::session::Answer;
use super::wire::{Reply, typed_name, typed_value};

impl Client {
    /// Asks the consumers of a queue and waits for one answer. It is sent once: a question may not be
    /// harmless to ask again.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), ringmq::client::Error> {
    /// # use ringmq::client::Client;
    /// # use std::time::Duration;
    /// let mut client = Client::connect("127.0.0.1:7766")?;
    /// let sum = client.request("sums", "1+1", Duration::from_secs(2))?;
    /// assert_eq!(sum.text(), "2");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NoConsumer`](super::Code::NoConsumer) when nobody could answer,
    /// with [`Code::Timeout`](super::Code::Timeout) when nobody did in time. [`Error::Lost`] when the
    /// connection broke before: it may have been worked on. [`Error::Invalid`] for a body that the broker
    /// does not take, [`Error::Connect`] when it stays away.
    pub fn request(
        &mut self,
        queue: &str,
        body: impl AsRef<[u8]>,
        timeout: Duration,
    ) -> Result<Message, Error> {
        let line = format!("REQ {} timeout={}", typed_name(queue), duration(timeout));
        match self.asked(line, body.as_ref(), timeout)? {
            Reply::End(1) if self.session.pulled.len() == 1 => Ok(self.session.pulled.remove(0)),
            reply => Err(Error::unexpected(reply)),
        }
    }

    /// Answers a request. It does not ack it: do both.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a message that asks for no answer, [`Error::Refused`] with
    /// [`Code::Stale`](super::Code::Stale) when nobody waits for it any more, and those of
    /// [`Client::request`].
    pub fn reply(&mut self, request: &Message, body: impl AsRef<[u8]>) -> Result<(), Error> {
        let token = request
            .reply_to()
            .and_then(|token| std::str::from_utf8(token).ok());
        let token = token.ok_or_else(|| Error::Invalid("nobody asked for an answer".to_owned()))?;
        let line = format!("REP {}", typed_value(token));
        match self.asked(line, body.as_ref(), Duration::ZERO)? {
            Reply::Ok(_) => Ok(()),
            reply => Err(Error::unexpected(reply)),
        }
    }

    /// A command with a body, sent once.
    fn asked(&mut self, line: String, body: &[u8], wait: Duration) -> Result<Reply, Error> {
        self.session.ensure_connected()?;
        let command = self.session.counted(line, body).map_err(Error::Invalid)?;
        match self.session.ask(&command, wait)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Lost => Err(self.session.lost()),
        }
    }
}
