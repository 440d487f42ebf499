//! The verbs of the line protocol: which are built, which can be quiet, how each is typed.

/// The verbs that this version runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    Hello,
    Ping,
    Quit,
    Help,
    Pub,
    Mpub,
    Pull,
    Ack,
    Nack,
    Touch,
    Sub,
    Credit,
    Unsub,
    Qset,
    Qget,
    Qls,
    Qdel,
    Del,
    Purge,
    Peek,
    Move,
    Sync,
    Stats,
    Cancel,
    Why,
    Kill,
    Drain,
    Req,
    Rep,
    Cast,
    Bind,
    Unbind,
    Begin,
    Commit,
    Abort,
    Seek,
}

/// What a word in the place of a verb turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// One that runs.
    Built(Verb),
    /// One of the protocol that this version does not have, in capitals.
    Planned(&'static str),
    /// No verb at all.
    Unknown,
}

/// Verbs of the protocol that are still to come.
const PLANNED: [&str; 2] = ["AUTH", "ROUTE"];

/// Every verb that runs, the commonest first.
const WORDS: [(&str, Verb); 37] = [
    ("PUB", Verb::Pub),
    ("PULL", Verb::Pull),
    ("POP", Verb::Pull),
    ("ACK", Verb::Ack),
    ("NACK", Verb::Nack),
    ("MPUB", Verb::Mpub),
    ("TOUCH", Verb::Touch),
    ("SUB", Verb::Sub),
    ("CREDIT", Verb::Credit),
    ("UNSUB", Verb::Unsub),
    ("QSET", Verb::Qset),
    ("QGET", Verb::Qget),
    ("QLS", Verb::Qls),
    ("QDEL", Verb::Qdel),
    ("DEL", Verb::Del),
    ("PURGE", Verb::Purge),
    ("PEEK", Verb::Peek),
    ("MOVE", Verb::Move),
    ("SYNC", Verb::Sync),
    ("STATS", Verb::Stats),
    ("CANCEL", Verb::Cancel),
    ("WHY", Verb::Why),
    ("KILL", Verb::Kill),
    ("DRAIN", Verb::Drain),
    ("REQ", Verb::Req),
    ("REP", Verb::Rep),
    ("CAST", Verb::Cast),
    ("BIND", Verb::Bind),
    ("UNBIND", Verb::Unbind),
    ("BEGIN", Verb::Begin),
    ("COMMIT", Verb::Commit),
    ("ABORT", Verb::Abort),
    ("SEEK", Verb::Seek),
    ("HELLO", Verb::Hello),
    ("PING", Verb::Ping),
    ("QUIT", Verb::Quit),
    ("HELP", Verb::Help),
];

/// The same words, each as a number: its length, then its letters.
const PACKED: [u64; WORDS.len()] = {
    let mut out = [0; WORDS.len()];
    let mut nth = 0;
    while nth < WORDS.len() {
        out[nth] = match packed(WORDS[nth].0.as_bytes()) {
            Some(packed) => packed,
            None => panic!("a verb is too long to be packed"),
        };
        nth += 1;
    }
    out
};

/// A word in capitals as a number; `None` if it is longer than any verb.
#[inline]
const fn packed(word: &[u8]) -> Option<u64> {
    if word.len() > 7 {
        return None;
    }
    let mut out = word.len() as u64;
    let mut at = 0;
    while at < word.len() {
        out = out << 8 | word[at].to_ascii_uppercase() as u64;
        at += 1;
    }
    Some(out)
}

impl Verb {
    /// Finds a verb, in capitals or not.
    pub fn lookup(word: &[u8]) -> Lookup {
        let Some(packed) = packed(word) else {
            return Lookup::Unknown;
        };
        if let Some(nth) = PACKED.iter().position(|known| *known == packed) {
            return Lookup::Built(WORDS[nth].1);
        }
        let planned = |known: &&str| known.as_bytes().eq_ignore_ascii_case(word);
        PLANNED
            .iter()
            .find(|known| planned(known))
            .map_or(Lookup::Unknown, |known| Lookup::Planned(known))
    }

    /// The verb in capitals.
    pub fn word(self) -> &'static str {
        self.usage()
            .split([' ', '['])
            .next()
            .expect("a usage begins with its verb")
    }

    /// Success is one `OK` line, so that a `!` can leave it out.
    pub fn can_be_quiet(self) -> bool {
        match self {
            Verb::Hello
            | Verb::Quit
            | Verb::Pub
            | Verb::Mpub
            | Verb::Ack
            | Verb::Nack
            | Verb::Touch
            | Verb::Credit
            | Verb::Unsub
            | Verb::Qset
            | Verb::Qdel
            | Verb::Del
            | Verb::Purge
            | Verb::Move
            | Verb::Sync
            | Verb::Cancel
            | Verb::Kill
            | Verb::Drain
            | Verb::Rep
            | Verb::Cast
            | Verb::Bind
            | Verb::Unbind
            | Verb::Begin
            | Verb::Commit
            | Verb::Abort
            | Verb::Seek => true,
            Verb::Ping
            | Verb::Help
            | Verb::Pull
            | Verb::Sub
            | Verb::Qget
            | Verb::Qls
            | Verb::Peek
            | Verb::Stats
            | Verb::Why
            | Verb::Req => false,
        }
    }

    /// It takes one message as its body.
    pub fn takes_message(self) -> bool {
        matches!(self, Verb::Pub | Verb::Cast | Verb::Req | Verb::Rep)
    }

    /// How it is typed, optional parts in brackets.
    pub fn usage(self) -> &'static str {
        match self {
            Verb::Hello => "HELLO [1] [name=x] [expired=1]",
            Verb::Ping => "PING [:text]",
            Verb::Quit => "QUIT",
            Verb::Help => "HELP [verb]",
            Verb::Pub => "PUB queue [options] :text",
            Verb::Mpub => "MPUB queue [options] *lines",
            Verb::Pull => "PULL queue[/group][,queue] [n] [options]",
            Verb::Ack => "ACK handle [handle]",
            Verb::Nack => "NACK handle [handle] [options]",
            Verb::Touch => "TOUCH handle [handle] [lease=30s]",
            Verb::Sub => "SUB queue[/group] [options]",
            Verb::Credit => "CREDIT queue n",
            Verb::Unsub => "UNSUB queue",
            Verb::Qset => "QSET queue [options]",
            Verb::Qget => "QGET queue",
            Verb::Qls => "QLS [pattern]",
            Verb::Qdel => "QDEL queue[/group]",
            Verb::Del => "DEL queue id [id]",
            Verb::Purge => "PURGE queue [state=ready]",
            Verb::Peek => "PEEK queue [n] [options]",
            Verb::Move => "MOVE queue target [n]",
            Verb::Sync => "SYNC [level]",
            Verb::Stats => "STATS [q queue] [conns]",
            Verb::Cancel => "CANCEL @tag",
            Verb::Why => "WHY queue",
            Verb::Kill => "KILL conn",
            Verb::Drain => "DRAIN [30s]",
            Verb::Req => "REQ queue [options] :text",
            Verb::Rep => "REP token :text",
            Verb::Cast => "CAST topic [options] :text",
            Verb::Bind => "BIND pattern queue",
            Verb::Unbind => "UNBIND pattern queue",
            Verb::Begin => "BEGIN",
            Verb::Commit => "COMMIT",
            Verb::Abort => "ABORT",
            Verb::Seek => "SEEK queue/group to=first",
        }
    }

    /// The options it takes; empty if none.
    pub fn options(self) -> &'static str {
        match self {
            Verb::Hello => "name= expired=",
            Verb::Pub => "delay= at= ttl= pri= key= once= sync= every= reply= h.<name>=",
            Verb::Mpub | Verb::Cast => "delay= at= ttl= pri= key= once= sync= reply= h.<name>=",
            Verb::Req => "timeout= pri= key= h.<name>=",
            Verb::Pull => "wait= lease= from= ack=auto hold=1 bytes= ts=1",
            Verb::Nack => "delay= dead=1 why=",
            Verb::Touch => "lease=",
            Verb::Sub => "credit= lease= from= ack=auto ts=1 mode=live",
            Verb::Qset => {
                "durable= lease= maxdeliver= dead= deadon= backoff= dedup= full= maxlen= maxbytes= \
                 ttl= retain= fair= single= rate= pri= pause="
            }
            Verb::Seek => "to=",
            Verb::Purge => "state=",
            Verb::Peek => "state= from=",
            _ => "",
        }
    }
}
