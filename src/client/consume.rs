//! How messages are asked for and given back.

use std::time::Duration;

use super::publish::duration;
use super::wire::{typed_name, typed_sources, typed_value};

/// A pull: takes messages, and waits for the first one if asked to.
///
/// ```
/// use ringmq::client::Pull;
/// use std::time::Duration;
///
/// let ten = Pull::new("jobs").count(10).wait(Duration::from_secs(30));
/// let urgent_first = Pull::new("urgent,jobs").lease(Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct Pull {
    source: String,
    count: u64,
    pub(super) wait: Duration,
    options: String,
}

impl Pull {
    /// One message of a queue, `queue/group`, or several with commas between, the first that has any.
    pub fn new(source: &str) -> Pull {
        Pull {
            source: typed_sources(source),
            count: 1,
            wait: Duration::ZERO,
            options: String::new(),
        }
    }

    /// Up to so many messages.
    pub fn count(mut self, count: u64) -> Pull {
        self.count = count;
        self
    }

    /// How long to wait for the first message; not at all if not said.
    pub fn wait(mut self, wait: Duration) -> Pull {
        self.wait = wait;
        self
    }

    /// The lease, instead of the queue's.
    pub fn lease(mut self, lease: Duration) -> Pull {
        self.options += &format!(" lease={}", duration(lease));
        self
    }

    /// Where a group begins that begins with this: `first`, `new`, an id such as `17`, an age such as `-5m`, or a
    /// time such as `2026-01-31T09:00:00Z` or `@1769850000000` (unix milliseconds).
    pub fn from(mut self, position: &str) -> Pull {
        self.options += &format!(" from={}", typed_value(position));
        self
    }

    /// Settled by the broker before they are sent: nothing to ack, and lost when the connection breaks.
    pub fn auto_ack(mut self) -> Pull {
        self.options += " ack=auto";
        self
    }

    pub(super) fn encode(&self, wait: Duration) -> String {
        let mut line = format!("PULL {} {} ts=1{}", self.source, self.count, self.options);
        if !wait.is_zero() {
            line += &format!(" wait={}", duration(wait));
        }
        line + "\n"
    }
}

/// A subscription: messages are sent as they come.
#[derive(Clone, Debug)]
pub struct Subscribe {
    source: String,
    options: String,
}

impl Subscribe {
    /// To a queue, or `queue/group`.
    pub fn new(source: &str) -> Subscribe {
        Subscribe {
            source: typed_sources(source),
            options: String::new(),
        }
    }

    /// To copies of what is cast to such topics, as in `news.#`: nothing is stored and nothing is to be
    /// acked. What the broker could not send because this client read too slowly, or while the connection
    /// was broken, is missed; [`Client::missed`](super::Client::missed) counts the former.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), ringmq::client::Error> {
    /// # use ringmq::client::{Client, Subscribe};
    /// # use std::time::Duration;
    /// let mut client = Client::connect("127.0.0.1:7766")?;
    /// client.subscribe(&Subscribe::live("news.#"))?;
    /// while let Some(message) = client.receive(Duration::from_secs(60))? {
    ///     println!("{}: {}", message.source, message.text());
    /// }
    /// println!("{} missed", client.missed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn live(pattern: &str) -> Subscribe {
        // A pattern's wildcards are words of their own; the other words are typed as names are.
        let word = |word: &str| match word {
            "*" | "#" => word.to_owned(),
            word => typed_name(word),
        };
        Subscribe {
            source: pattern.split('.').map(word).collect::<Vec<_>>().join("."),
            options: " mode=live".to_owned(),
        }
    }

    /// Most unacked messages at a time; the broker's default is 100. Their leases run while they
    /// wait here, so slow work wants a small number.
    pub fn credit(mut self, credit: u64) -> Subscribe {
        self.options += &format!(" credit={credit}");
        self
    }

    /// The lease, instead of the queue's.
    pub fn lease(mut self, lease: Duration) -> Subscribe {
        self.options += &format!(" lease={}", duration(lease));
        self
    }

    /// Where a group begins that begins with this: `first`, `new`, an id such as `17`, an age such as `-5m`, or a
    /// time such as `2026-01-31T09:00:00Z` or `@1769850000000` (unix milliseconds).
    pub fn from(mut self, position: &str) -> Subscribe {
        self.options += &format!(" from={}", typed_value(position));
        self
    }

    /// Settled by the broker before they are sent: nothing to ack, and lost when the connection breaks.
    pub fn auto_ack(mut self) -> Subscribe {
        self.options += " ack=auto";
        self
    }

    pub(super) fn encode(&self, tag: u64) -> String {
        format!("@s{tag} SUB {} ts=1{}\n", self.source, self.options)
    }
}

/// How a message is given back.
#[derive(Clone, Debug, Default)]
pub struct Nack {
    options: String,
}

impl Nack {
    /// With the queue's backoff for that try.
    pub fn new() -> Nack {
        Nack::default()
    }

    /// Ready again after so long, instead of the queue's backoff.
    pub fn delay(mut self, delay: Duration) -> Nack {
        self.options += &format!(" delay={}", duration(delay));
        self
    }

    /// To the dead-letter queue at once.
    pub fn dead(mut self) -> Nack {
        self.options += " dead=1";
        self
    }

    /// A reason, kept with the message if it becomes a dead letter.
    pub fn why(mut self, why: &str) -> Nack {
        self.options += &format!(" why={}", typed_value(why));
        self
    }

    pub(super) fn encode(&self, handle: &str) -> String {
        format!("NACK {handle}{}\n", self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let pull = Pull::new("a b,c/d").count(10).lease(Duration::from_secs(1));
        assert_eq!(
            pull.encode(Duration::from_millis(2)),
            "PULL a%20b,c/d 10 ts=1 lease=1000000us wait=2000us\n"
        );
        assert_eq!(
            Pull::new("q").auto_ack().encode(Duration::ZERO),
            "PULL q 1 ts=1 ack=auto\n"
        );
        assert_eq!(
            Subscribe::new("q").credit(5).encode(3),
            "@s3 SUB q ts=1 credit=5\n"
        );
        assert_eq!(
            Subscribe::live("news.*.a b.#").encode(4),
            "@s4 SUB news.*.a%20b.# ts=1 mode=live\n"
        );
        let nack = Nack::new().dead().why("no paper");
        assert_eq!(nack.encode("1.2.3"), "NACK 1.2.3 dead=1 why=no%20paper\n");
    }
}
