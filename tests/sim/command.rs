//! Commands as the simulated clients mean them, and how they are typed.

use crate::rng::Rng;

/// The durability words, weakest first; they compare by strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `none`, in receipts `mem`.
    None,
    /// `os`
    Os,
    /// `disk`
    Disk,
}

impl Level {
    /// As in a setting.
    pub fn word(self) -> &'static str {
        ["none", "os", "disk"][self as usize]
    }

    /// As in a receipt.
    pub fn of_receipt(word: &str) -> Option<Level> {
        match word {
            "mem" => Some(Level::None),
            "os" => Some(Level::Os),
            "disk" => Some(Level::Disk),
            _ => None,
        }
    }
}

/// What a `QSET` can say and the oracle follows. `u64::MAX` stands for "no limit" of `maxlen`,
/// `maxbytes` and `ttl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `durable=`
    Durable(Level),
    /// `lease=`, microseconds.
    Lease(u64),
    /// `maxdeliver=`, 0 = no limit.
    MaxDeliver(u64),
    /// `dead=`
    Dead(String),
    /// `deadon=`: tries, ttl, full.
    DeadOn(bool, bool, bool),
    /// `backoff=`, first and most, microseconds.
    Backoff(u64, u64),
    /// `dedup=`, microseconds.
    Dedup(u64),
    /// `full=dropold`
    DropOld(bool),
    /// `maxlen=`
    MaxLen(u64),
    /// `maxbytes=`
    MaxBytes(u64),
    /// `ttl=`, microseconds.
    Ttl(u64),
    /// `pri=`
    Pri(u64),
    /// `pause=`: in, out.
    Pause(bool, bool),
    /// `fair=key`
    Fair(bool),
    /// `single=`
    Single(bool),
}

impl Setting {
    /// `key=value` as typed.
    pub fn typed(&self) -> String {
        fn limit(value: u64) -> String {
            match value {
                u64::MAX => "none".to_string(),
                value => value.to_string(),
            }
        }
        fn words(set: &[(bool, &str)]) -> String {
            let words: Vec<&str> = set.iter().filter(|w| w.0).map(|w| w.1).collect();
            match words.is_empty() {
                true => "none".to_string(),
                false => words.join(","),
            }
        }
        match self {
            Setting::Durable(level) => format!("durable={}", level.word()),
            Setting::Lease(us) => format!("lease={us}us"),
            Setting::MaxDeliver(count) => format!("maxdeliver={count}"),
            Setting::Dead(name) => format!("dead={name}"),
            Setting::DeadOn(tries, ttl, full) => format!(
                "deadon={}",
                words(&[(*tries, "tries"), (*ttl, "ttl"), (*full, "full")])
            ),
            Setting::Backoff(0, 0) => "backoff=0".to_string(),
            Setting::Backoff(first, most) => format!("backoff={first}us..{most}us"),
            Setting::Dedup(us) => format!("dedup={us}us"),
            Setting::DropOld(drop) => format!("full={}", if *drop { "dropold" } else { "reject" }),
            Setting::MaxLen(count) => format!("maxlen={}", limit(*count)),
            Setting::MaxBytes(count) => format!("maxbytes={}", limit(*count)),
            Setting::Ttl(u64::MAX) => "ttl=none".to_string(),
            Setting::Ttl(us) => format!("ttl={us}us"),
            Setting::Pri(pri) => format!("pri={pri}"),
            Setting::Fair(fair) => format!("fair={}", if *fair { "key" } else { "none" }),
            Setting::Single(single) => format!("single={}", u8::from(*single)),
            Setting::Pause(input, output) => {
                format!("pause={}", words(&[(*input, "in"), (*output, "out")]))
            }
        }
    }
}

/// How a publish is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `PUB q :text`
    Inline,
    /// `PUB q $n`
    Counted,
    /// `MPUB q *n`
    Lines,
    /// `MPUB q $n` with counted messages inside.
    Blocks,
}

/// A publish of one message or of a batch.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Where to.
    pub queue: String,
    /// Numbers of the messages in the oracle, and their bodies.
    pub bodies: Vec<(usize, Vec<u8>)>,
    /// How it is typed.
    pub form: Form,
    /// `delay=`, microseconds.
    pub delay_us: u64,
    /// `at=`, unix milliseconds; then `delay_us` is 0.
    pub at_ms: Option<u64>,
    /// `ttl=`, microseconds.
    pub ttl_us: Option<u64>,
    /// `pri=`
    pub pri: Option<u64>,
    /// `key=`
    pub key: Option<String>,
    /// `once=`
    pub once: Option<String>,
    /// `sync=`
    pub sync: Option<Level>,
}

/// Which messages are meant by `state=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Ready,
    Delayed,
    Leased,
    Dead,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Delayed => "delayed",
            State::Leased => "leased",
            State::Dead => "dead",
        }
    }
}

/// A `PULL`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Pull {
    pub sources: Vec<String>,
    pub count: u64,
    pub wait_us: u64,
    pub lease_us: Option<u64>,
    pub auto: bool,
    pub hold: bool,
    pub bytes: Option<u64>,
    pub timestamps: bool,
    /// The last message is wanted, not the first: no command of the line protocol says so.
    pub tail: bool,
}

impl Pull {
    /// One message of one source, if it is there, leased for so long.
    pub fn one(source: String, lease_us: u64) -> Pull {
        Pull {
            sources: vec![source],
            count: 1,
            wait_us: 0,
            lease_us: Some(lease_us),
            auto: false,
            hold: false,
            bytes: None,
            timestamps: false,
            tail: false,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Kind {
    Hello {
        expired: bool,
    },
    Ping(Option<String>),
    Help,
    Quit,
    Publish(Publish),
    Pull(Pull),
    Ack(Vec<String>),
    Nack {
        handles: Vec<String>,
        delay_us: Option<u64>,
        dead: bool,
    },
    Touch {
        handles: Vec<String>,
        lease_us: Option<u64>,
    },
    Sub {
        source: String,
        credit: Option<u64>,
        lease_us: Option<u64>,
        auto: bool,
    },
    Credit {
        source: String,
        credit: u64,
    },
    Unsub(String),
    /// The same, of a consumer that has a name of its own: AMQP.
    UnsubTag {
        source: String,
        tag: String,
    },
    /// A method that is answered when what the connection has published is safe: AMQP.
    Barrier,
    /// `MULTI`: what is said between it and `EXEC` is run and answered with that: RESP.
    Multi,
    Exec,
    QSet {
        queue: String,
        settings: Vec<Setting>,
    },
    QGet(String),
    QLs,
    QDel(String),
    Del {
        queue: String,
        ids: Vec<String>,
    },
    Purge {
        queue: String,
        state: Option<State>,
    },
    Peek {
        queue: String,
        count: u64,
        state: State,
    },
    Move {
        from: String,
        to: String,
        count: Option<u64>,
    },
    Sync(Option<Level>),
    Stats,
    Cancel(String),
    Cast {
        topic: String,
        body: Vec<u8>,
    },
    Bind {
        pattern: String,
        queue: String,
    },
    Unbind {
        pattern: String,
        queue: String,
    },
    /// `SUB pattern mode=live`, always tagged.
    SubLive(String),
    /// `UNSUB` of such a pattern.
    UnsubLive(String),
    /// `REQ`, always tagged.
    Request {
        queue: String,
        timeout_us: u64,
        /// Number of the message in the oracle.
        message: usize,
        body: Vec<u8>,
    },
    /// `BEGIN`; what is typed between it and its end is done at its `COMMIT`.
    Begin,
    Commit,
    Abort,
    /// `DRAIN`, microseconds.
    Drain(u64),
    /// `REP`
    Answer {
        token: String,
        body: Vec<u8>,
    },
    /// An empty line: cancels a waiting untagged `PULL`, answers nothing itself.
    Empty,
    /// Anything that must be refused with one of the codes. With `closes` the connection ends.
    Bad {
        bytes: Vec<u8>,
        codes: &'static [&'static str],
        closes: bool,
    },
}

/// One command on its way.
#[derive(Clone, Debug)]
pub struct Command {
    /// Without the `@`.
    pub tag: Option<String>,
    /// Ends in `!`.
    pub quiet: bool,
    /// What is asked.
    pub kind: Kind,
}

/// Microseconds as a duration, typed in one of the units that can say it.
fn duration(us: u64, rng: &mut Rng) -> String {
    let units = [("us", 1), ("ms", 1000), ("", 1000), ("s", 1_000_000)];
    let fitting: Vec<_> = units
        .iter()
        .filter(|(_, unit)| us.is_multiple_of(*unit))
        .collect();
    let (name, unit) = rng.pick(&fitting);
    format!("{}{name}", us / unit)
}

impl Command {
    /// The octets to send.
    pub fn typed(&self, rng: &mut Rng) -> Vec<u8> {
        if let Kind::Bad { bytes, .. } = &self.kind {
            return bytes.clone();
        }
        let end: &[u8] = if rng.chance(250) { b"\r\n" } else { b"\n" };
        let mut out = Vec::new();
        if let Some(tag) = &self.tag {
            out.extend_from_slice(format!("@{tag} ").as_bytes());
        }
        let (verb, arguments) = self.words(rng);
        let verb = if rng.chance(200) {
            verb.to_lowercase()
        } else {
            verb.to_string()
        };
        out.extend_from_slice(verb.as_bytes());
        if self.quiet {
            out.push(b'!');
        }
        for argument in arguments {
            out.push(b' ');
            out.extend_from_slice(argument.as_bytes());
        }
        match &self.kind {
            Kind::Publish(publish) => publish.body(&mut out, end),
            Kind::Cast { body, .. } | Kind::Request { body, .. } | Kind::Answer { body, .. } => {
                out.extend_from_slice(format!(" ${}", body.len()).as_bytes());
                out.extend_from_slice(end);
                out.extend_from_slice(body);
                out.extend_from_slice(end);
            }
            _ => out.extend_from_slice(end),
        }
        out
    }

    fn words(&self, rng: &mut Rng) -> (&'static str, Vec<String>) {
        fn lease(lease_us: Option<u64>, rng: &mut Rng) -> Option<String> {
            lease_us.map(|us| format!("lease={}", duration(us, rng)))
        }
        match &self.kind {
            Kind::Hello { expired } => {
                let mut words = vec!["1".to_string(), "name=sim".to_string()];
                words.extend(expired.then(|| "expired=1".to_string()));
                ("HELLO", words)
            }
            Kind::Ping(body) => ("PING", body.iter().map(|body| format!(":{body}")).collect()),
            Kind::Help => ("HELP", Vec::new()),
            Kind::Quit => ("QUIT", Vec::new()),
            Kind::Publish(publish) => publish.words(rng),
            Kind::Pull(pull) => pull.words(rng),
            Kind::Ack(handles) => ("ACK", handles.clone()),
            Kind::Nack {
                handles,
                delay_us,
                dead,
            } => {
                let mut words = handles.clone();
                words.extend(delay_us.map(|us| format!("delay={}", duration(us, rng))));
                words.extend(dead.then(|| "dead=1".to_string()));
                words.extend(rng.chance(200).then(|| "why=no%20luck".to_string()));
                ("NACK", words)
            }
            Kind::Touch { handles, lease_us } => {
                let mut words = handles.clone();
                words.extend(lease(*lease_us, rng));
                ("TOUCH", words)
            }
            Kind::Sub {
                source,
                credit,
                lease_us,
                auto,
            } => {
                let mut words = vec![source.clone()];
                words.extend(credit.map(|credit| format!("credit={credit}")));
                words.extend(lease(*lease_us, rng));
                words.extend(auto.then(|| "ack=auto".to_string()));
                ("SUB", words)
            }
            Kind::Credit { source, credit } => ("CREDIT", vec![source.clone(), credit.to_string()]),
            Kind::Unsub(source) => ("UNSUB", vec![source.clone()]),
            Kind::QSet { queue, settings } => {
                let mut words = vec![queue.clone()];
                words.extend(settings.iter().map(Setting::typed));
                ("QSET", words)
            }
            Kind::QGet(queue) => ("QGET", vec![queue.clone()]),
            Kind::QLs => ("QLS", Vec::new()),
            Kind::QDel(queue) => ("QDEL", vec![queue.clone()]),
            Kind::Del { queue, ids } => ("DEL", [std::slice::from_ref(queue), &ids[..]].concat()),
            Kind::Purge { queue, state } => {
                let mut words = vec![queue.clone()];
                words.extend(state.map(|state| format!("state={}", state.word())));
                ("PURGE", words)
            }
            Kind::Peek {
                queue,
                count,
                state,
            } => (
                "PEEK",
                vec![
                    queue.clone(),
                    count.to_string(),
                    format!("state={}", state.word()),
                ],
            ),
            Kind::Move { from, to, count } => {
                let mut words = vec![from.clone(), to.clone()];
                words.extend(count.map(|count| count.to_string()));
                ("MOVE", words)
            }
            Kind::Sync(level) => (
                "SYNC",
                level.iter().map(|level| level.word().to_string()).collect(),
            ),
            Kind::Stats => ("STATS", Vec::new()),
            Kind::Cancel(tag) => ("CANCEL", vec![format!("@{tag}")]),
            Kind::Cast { topic, .. } => ("CAST", vec![topic.clone()]),
            Kind::Bind { pattern, queue } => ("BIND", vec![pattern.clone(), queue.clone()]),
            Kind::Unbind { pattern, queue } => ("UNBIND", vec![pattern.clone(), queue.clone()]),
            Kind::SubLive(pattern) => ("SUB", vec![pattern.clone(), "mode=live".to_string()]),
            Kind::UnsubLive(pattern) => ("UNSUB", vec![pattern.clone()]),
            Kind::Request {
                queue, timeout_us, ..
            } => {
                let timeout = format!("timeout={}", duration(*timeout_us, rng));
                ("REQ", vec![queue.clone(), timeout])
            }
            Kind::Answer { token, .. } => ("REP", vec![token.clone()]),
            Kind::Begin => ("BEGIN", Vec::new()),
            Kind::Commit => ("COMMIT", Vec::new()),
            Kind::Abort => ("ABORT", Vec::new()),
            Kind::Drain(us) => ("DRAIN", vec![duration(*us, rng)]),
            Kind::Empty => ("", Vec::new()),
            Kind::Bad { .. } => unreachable!("typed as it is"),
            Kind::Barrier | Kind::Multi | Kind::Exec | Kind::UnsubTag { .. } => {
                unreachable!("no line says so")
            }
        }
    }
}

impl Pull {
    fn words(&self, rng: &mut Rng) -> (&'static str, Vec<String>) {
        let mut words = vec![self.sources.join(",")];
        words.extend((self.count != 1 || rng.chance(300)).then(|| self.count.to_string()));
        words.extend((self.wait_us > 0).then(|| format!("wait={}", duration(self.wait_us, rng))));
        words.extend(
            self.lease_us
                .map(|us| format!("lease={}", duration(us, rng))),
        );
        words.extend(self.auto.then(|| "ack=auto".to_string()));
        words.extend(self.hold.then(|| "hold=1".to_string()));
        words.extend(self.bytes.map(|bytes| format!("bytes={bytes}")));
        words.extend(self.timestamps.then(|| "ts=1".to_string()));
        (if rng.chance(100) { "POP" } else { "PULL" }, words)
    }
}

impl Publish {
    fn words(&self, rng: &mut Rng) -> (&'static str, Vec<String>) {
        let mut words = vec![self.queue.clone()];
        words.extend(self.at_ms.map(|ms| format!("at=@{ms}")));
        if self.delay_us > 0 {
            words.push(format!("delay={}", duration(self.delay_us, rng)));
        }
        words.extend(self.ttl_us.map(|us| format!("ttl={}", duration(us, rng))));
        words.extend(self.pri.map(|pri| format!("pri={pri}")));
        words.extend(self.key.as_ref().map(|key| format!("key={key}")));
        words.extend(self.once.as_ref().map(|once| format!("once={once}")));
        words.extend(self.sync.map(|level| format!("sync={}", level.word())));
        words.extend(rng.chance(100).then(|| "h.colour=dark%20red".to_string()));
        match self.form {
            Form::Inline | Form::Counted => ("PUB", words),
            Form::Lines | Form::Blocks => ("MPUB", words),
        }
    }

    fn body(&self, out: &mut Vec<u8>, end: &[u8]) {
        match self.form {
            Form::Inline => {
                out.extend_from_slice(b" :");
                out.extend_from_slice(&self.bodies[0].1);
                out.extend_from_slice(end);
            }
            Form::Counted => {
                let body = &self.bodies[0].1;
                out.extend_from_slice(format!(" ${}", body.len()).as_bytes());
                out.extend_from_slice(end);
                out.extend_from_slice(body);
                out.extend_from_slice(end);
            }
            Form::Lines => {
                out.extend_from_slice(format!(" *{}", self.bodies.len()).as_bytes());
                out.extend_from_slice(end);
                for (_, body) in &self.bodies {
                    out.extend_from_slice(body);
                    out.extend_from_slice(end);
                }
            }
            Form::Blocks => {
                let mut blocks = Vec::new();
                for (_, body) in &self.bodies {
                    blocks.extend_from_slice(format!("{}\n", body.len()).as_bytes());
                    blocks.extend_from_slice(body);
                    blocks.push(b'\n');
                }
                out.extend_from_slice(format!(" ${}", blocks.len()).as_bytes());
                out.extend_from_slice(end);
                out.extend_from_slice(&blocks);
                out.extend_from_slice(end);
            }
        }
    }
}
