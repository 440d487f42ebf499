//! A message, or a batch of them, on its way to a queue.

use std::time::Duration;

use super::message::Level;
use super::wire::{typed_name, typed_value};

/// A publish: one message with [`Publish::new`], or several that are stored all or none with
/// [`Publish::batch`].
///
/// ```
/// use ringmq::client::Publish;
/// use std::time::Duration;
///
/// let reminder = Publish::new("mail", "your trial ends")
///     .delay(Duration::from_secs(3600))
///     .priority(9)
///     .header("template", "trial");
/// let lines = Publish::batch("log", ["one", "two", "three"]);
/// ```
#[derive(Clone, Debug)]
pub struct Publish {
    verb: &'static str,
    queue: String,
    options: String,
    has_once: bool,
    body: Vec<u8>,
    /// What cannot be sent.
    fault: Option<String>,
}

impl Publish {
    /// One message.
    pub fn new(queue: &str, body: impl Into<Vec<u8>>) -> Publish {
        Publish::with("PUB", queue, body.into())
    }

    /// Messages that are stored together or not at all, with ids one after another.
    pub fn batch<B: AsRef<[u8]>>(queue: &str, bodies: impl IntoIterator<Item = B>) -> Publish {
        let mut counted = Vec::new();
        for body in bodies {
            let body = body.as_ref();
            counted.extend_from_slice(body.len().to_string().as_bytes());
            counted.push(b'\n');
            counted.extend_from_slice(body);
            counted.push(b'\n');
        }
        Publish::with("MPUB", queue, counted)
    }

    fn with(verb: &'static str, queue: &str, body: Vec<u8>) -> Publish {
        Publish {
            verb,
            queue: typed_name(queue),
            options: String::new(),
            has_once: false,
            body,
            fault: None,
        }
    }

    fn option(mut self, key: &str, value: &str) -> Publish {
        self.options += &format!(" {key}={value}");
        self
    }

    /// Not ready before so long has passed; microseconds count.
    pub fn delay(self, delay: Duration) -> Publish {
        self.option("delay", &duration(delay))
    }

    /// Gone when nobody has taken it for so long.
    pub fn ttl(self, ttl: Duration) -> Publish {
        self.option("ttl", &duration(ttl))
    }

    /// Higher ones leave first; 0 if not said.
    pub fn priority(self, priority: u8) -> Publish {
        self.option("pri", &priority.to_string())
    }

    /// A key that its consumer is told.
    pub fn key(self, key: &str) -> Publish {
        self.option("key", &typed_value(key))
    }

    /// Where its consumer is to send an answer.
    pub fn reply_to(self, reply: &str) -> Publish {
        self.option("reply", &typed_value(reply))
    }

    /// The receipt may come as soon as this level is reached. The message is stored at its queue's own
    /// level all the same.
    pub fn receipt_at(self, level: Level) -> Publish {
        self.option("sync", level.setting())
    }

    /// A header. Its name is letters, digits, `.`, `-` and `_`.
    pub fn header(mut self, name: &str, value: &str) -> Publish {
        let allowed = |octet: u8| octet.is_ascii_alphanumeric() || b".-_".contains(&octet);
        if name.is_empty() || !name.bytes().all(allowed) {
            self.fault = Some(format!(
                "'{name}' is no name of a header: letters, digits, '.', '-' and '_'"
            ));
        }
        self.option(&format!("h.{name}"), &typed_value(value))
    }

    /// An id of yours instead of the one that the client makes up: within the queue's `dedup` window
    /// a second publish with it stores nothing, whichever process it comes from.
    pub fn once(mut self, id: &str) -> Publish {
        self.has_once = true;
        self.option("once", &typed_value(id))
    }

    /// The command as it is sent, with this id for deduplication unless it has one of its own; the error
    /// says what cannot be sent.
    pub(super) fn encode(&self, once: Option<&str>, limits: &Limits) -> Result<Vec<u8>, String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let mut line = format!("{} {}{}", self.verb, self.queue, self.options);
        if let (Some(once), false) = (once, self.has_once) {
            line += &format!(" once={once}");
        }
        let most = match self.is_batch() {
            true => limits.batch_bytes,
            false => limits.body_bytes,
        };
        limits.counted(line, &self.body, most)
    }

    pub(super) fn is_batch(&self) -> bool {
        self.verb == "MPUB"
    }
}

/// What a broker takes, as its `HELLO` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub body_bytes: usize,
    pub line_bytes: usize,
    pub batch_bytes: usize,
}

impl Limits {
    /// A command and its body of at most so many bytes; the error says what cannot be sent.
    pub fn counted(&self, mut line: String, body: &[u8], most: usize) -> Result<Vec<u8>, String> {
        line += &format!(" ${}\n", body.len());
        // A broker closes the connection at a line that is too long, and what it closes for would be
        // sent again for ever.
        if line.len() > self.line_bytes {
            return Err(format!(
                "the options take {} bytes, and the broker takes lines of at most {}",
                line.len(),
                self.line_bytes
            ));
        }
        if body.len() > most {
            return Err(format!(
                "the body has {} bytes, and the broker takes at most {most}",
                body.len()
            ));
        }
        let mut command = line.into_bytes();
        command.reserve_exact(body.len() + 1);
        command.extend_from_slice(body);
        command.push(b'\n');
        Ok(command)
    }

    /// What follows the `OK` of a `HELLO`; what it does not name is not limited here.
    pub fn parse(hello: &str) -> Limits {
        let number = |key: &str| {
            let mut words = hello.split(' ').filter_map(|word| word.split_once('='));
            let value = words.find_map(|(found, value)| (found == key).then_some(value));
            value
                .and_then(|value| value.parse().ok())
                .unwrap_or(usize::MAX)
        };
        Limits {
            body_bytes: number("max_body"),
            line_bytes: number("max_line"),
            batch_bytes: number("max_batch_bytes"),
        }
    }
}

/// A duration as the protocol types it.
pub(super) fn duration(duration: Duration) -> String {
    format!("{}us", duration.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        body_bytes: 10,
        line_bytes: 60,
        batch_bytes: 20,
    };

    fn encoded(publish: &Publish) -> Result<String, String> {
        let bytes = publish.encode(Some("me-1"), &LIMITS)?;
        Ok(String::from_utf8(bytes).expect("it is text"))
    }

    #[test]
    fn commands() {
        assert_eq!(
            encoded(&Publish::new("a b", "x\ny")).expect("good"),
            "PUB a%20b once=me-1 $3\nx\ny\n"
        );
        let all = Publish::new("q", "")
            .delay(Duration::from_millis(5))
            .priority(9)
            .header("k", "v 1")
            .once("order 17");
        assert_eq!(
            encoded(&all).expect("good"),
            "PUB q delay=5000us pri=9 h.k=v%201 once=order%2017 $0\n\n"
        );
        assert_eq!(
            encoded(&Publish::batch("q", ["four", "ab"])).expect("good"),
            "MPUB q once=me-1 $12\n4\nfour\n2\nab\n\n"
        );
    }

    #[test]
    fn what_cannot_be_sent() {
        let refused = |publish: Publish| encoded(&publish).expect_err("it cannot be sent");
        assert!(refused(Publish::new("q", "12345678901")).contains("at most 10"));
        assert!(refused(Publish::new("q", "").key(&"k".repeat(60))).contains("at most 60"));
        assert!(refused(Publish::new("q", "").header("a b", "")).contains("no name of a header"));
        assert!(encoded(&Publish::new("q", "1234567890")).is_ok());
    }

    #[test]
    fn limits_are_read_and_may_be_missing() {
        let limits = Limits::parse("proto=1 server=x max_body=5 max_line=6 new=1");
        assert_eq!(
            (limits.body_bytes, limits.line_bytes, limits.batch_bytes),
            (5, 6, usize::MAX)
        );
    }
}
