//! Which command a word means; and the commands about the connection, the server and keys.

use std::fmt::Write;

use super::super::super::conn::{Blocked, Life};
use super::super::super::peers::Wait;
use super::super::super::session::Flow;
use super::super::super::{Now, Shard};
use super::lists::{End, integer};
use super::{What, encode, text};
use crate::broker::command::{Source, Typed};
use crate::broker::queue::QueueKey;
use crate::log::disk::Storage;
use crate::protocol::resp::encode::Version;
use crate::protocol::resp::glob;

/// The version of Redis whose commands these are, for clients that look at it.
const REDIS_VERSION: &str = "7.0.0";

/// A command: its name, the fewest and the most words it has, itself included; 0 = any number.
type Known = (&'static str, usize, usize);

/// Every command that is answered.
const COMMANDS: &[Known] = &[
    ("AUTH", 2, 3),
    ("BLMPOP", 5, 0),
    ("BLPOP", 3, 0),
    ("BRPOP", 3, 0),
    ("CLIENT", 2, 0),
    ("COMMAND", 1, 0),
    ("CONFIG", 2, 0),
    ("DBSIZE", 1, 1),
    ("DEL", 2, 0),
    ("DISCARD", 1, 1),
    ("ECHO", 2, 2),
    ("EXEC", 1, 1),
    ("EXISTS", 2, 0),
    ("HELLO", 1, 0),
    ("INFO", 1, 0),
    ("KEYS", 2, 2),
    ("LINDEX", 3, 3),
    ("LLEN", 2, 2),
    ("LMPOP", 4, 0),
    ("LPOP", 2, 3),
    ("LPUSH", 3, 0),
    ("LPUSHX", 3, 0),
    ("LRANGE", 4, 4),
    ("MULTI", 1, 1),
    ("PING", 1, 2),
    ("PSUBSCRIBE", 2, 0),
    ("PUBLISH", 3, 3),
    ("PUNSUBSCRIBE", 1, 0),
    ("QUIT", 1, 0),
    ("RESET", 1, 1),
    ("RPOP", 2, 3),
    ("RPUSH", 3, 0),
    ("RPUSHX", 3, 0),
    ("SCAN", 2, 0),
    ("SELECT", 2, 2),
    ("SUBSCRIBE", 2, 0),
    ("TYPE", 2, 2),
    ("UNLINK", 2, 0),
    ("UNSUBSCRIBE", 1, 0),
    ("XACK", 4, 0),
    ("XADD", 5, 0),
    ("XAUTOCLAIM", 6, 0),
    ("XDEL", 3, 0),
    ("XGROUP", 2, 0),
    ("XLEN", 2, 2),
    ("XPENDING", 3, 0),
    ("XRANGE", 4, 6),
    ("XREADGROUP", 7, 0),
];

/// The command of that name in capitals.
pub(super) fn known(name: &str) -> Option<&'static Known> {
    COMMANDS.iter().find(|(known, ..)| *known == name)
}

/// Words of a peer in an error: short, and nothing that breaks a line.
fn shown(word: &[u8]) -> String {
    String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned()
}

impl<S: Storage> Shard<S> {
    /// Is it a command, and has it as many words as that takes? Else it is refused.
    pub(super) fn check_words(
        &mut self,
        slot: usize,
        words: &[&[u8]],
    ) -> Result<&'static str, Flow> {
        let name = String::from_utf8_lossy(words[0]).to_ascii_uppercase();
        let Some((name, least, most)) = known(&name) else {
            let mut text = format!(
                "unknown command '{}', with args beginning with: ",
                shown(words[0])
            );
            for word in words[1..].iter().take(4) {
                let _ = write!(text, "'{}' ", shown(word));
            }
            return Err(self.say_err(slot, &text));
        };
        if words.len() < *least || (*most > 0 && words.len() > *most) {
            let text = format!(
                "wrong number of arguments for '{}' command",
                name.to_ascii_lowercase()
            );
            return Err(self.say_err(slot, &text));
        }
        Ok(name)
    }

    /// Runs a command; `frame` is what stands of it in the input.
    pub(super) fn run_words(
        &mut self,
        slot: usize,
        words: &[&[u8]],
        frame: &[u8],
        now: Now,
    ) -> Flow {
        let name = match self.check_words(slot, words) {
            Ok(name) => name,
            Err(flow) => {
                self.fail_multi(slot);
                return flow;
            }
        };
        let session = self.conns[slot].resp();
        let is_outside = !matches!(name, "EXEC" | "DISCARD" | "MULTI" | "QUIT" | "RESET");
        if session.multi.is_some() && is_outside {
            return self.queue_words(slot, name, frame);
        }
        let is_narrow = session.version == Version::Two && session.is_subscribed();
        if is_narrow
            && !matches!(
                name,
                "SUBSCRIBE"
                    | "PSUBSCRIBE"
                    | "UNSUBSCRIBE"
                    | "PUNSUBSCRIBE"
                    | "PING"
                    | "QUIT"
                    | "RESET"
            )
        {
            let text = format!(
                "Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
                name.to_ascii_lowercase()
            );
            return self.say_err(slot, &text);
        }
        self.run_known(slot, name, words, frame, now)
    }

    /// Runs a command that was looked at, on this shard.
    pub(super) fn run_here(
        &mut self,
        slot: usize,
        name: &'static str,
        words: &[&[u8]],
        now: Now,
    ) -> Flow {
        match name {
            "RPUSH" => self.push(slot, words, End::Right, false, now),
            "LPUSH" => self.push(slot, words, End::Left, false, now),
            "RPUSHX" => self.push(slot, words, End::Right, true, now),
            "LPUSHX" => self.push(slot, words, End::Left, true, now),
            "LPOP" => self.pop_now(slot, words, End::Left, now),
            "RPOP" => self.pop_now(slot, words, End::Right, now),
            "BLPOP" => self.pop_waiting(slot, words, End::Left, now),
            "BRPOP" => self.pop_waiting(slot, words, End::Right, now),
            "LMPOP" => self.pop_many(slot, words, false, now),
            "BLMPOP" => self.pop_many(slot, words, true, now),
            "LLEN" => self.llen(slot, words),
            "LRANGE" | "LINDEX" => self.range(slot, words, now),
            "PUBLISH" => self.publish_to(slot, words, now),
            "SUBSCRIBE" => self.subscribe_channels(slot, words, false),
            "PSUBSCRIBE" => self.subscribe_channels(slot, words, true),
            "UNSUBSCRIBE" => self.unsubscribe_channels(slot, words, false),
            "PUNSUBSCRIBE" => self.unsubscribe_channels(slot, words, true),
            "MULTI" => self.multi(slot),
            "EXEC" => self.exec(slot, now),
            "DISCARD" => self.discard(slot),
            "XADD" => self.xadd(slot, words, now),
            "XREADGROUP" => self.xreadgroup(slot, words, now),
            "XACK" => self.xack(slot, words),
            "XDEL" => self.xdel(slot, words, now),
            "XLEN" => self.xlen(slot, words),
            "XRANGE" => self.xrange(slot, words, now),
            "XGROUP" => self.xgroup(slot, words, now),
            "XPENDING" => self.xpending(slot, words, now),
            "XAUTOCLAIM" => self.xautoclaim(slot, words, now),
            "DEL" | "UNLINK" => self.delete_keys(slot, words),
            "EXISTS" => self.exists(slot, words),
            "TYPE" => self.type_of(slot, words),
            "KEYS" => self.keys_like(slot, words),
            "SCAN" => self.scan(slot, words),
            "DBSIZE" => self.dbsize(slot),
            "PING" => self.ping(slot, words),
            "ECHO" => self.say(slot, |out| encode::bulk(out, words[1])),
            "SELECT" => match words[1] {
                b"0" => self.say_ok(slot),
                _ => self.say_err(slot, "DB index is out of range"),
            },
            "AUTH" => match words.len() {
                2 => self.say_err(slot, "AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"),
                _ => self.say_ok(slot),
            },
            "QUIT" => {
                self.say_ok(slot);
                self.end_interests(slot, now);
                self.guests_quit(slot);
                self.conns[slot].life = Life::Closing;
                Flow::Done
            }
            "RESET" => self.reset(slot),
            "HELLO" => self.hello_resp(slot, words),
            "CLIENT" => self.client(slot, words, now),
            "COMMAND" => self.command(slot, words),
            "CONFIG" => self.config(slot, words),
            "INFO" => {
                let info = self.info(now);
                self.say(slot, |out| encode::bulk(out, info.as_bytes()))
            }
            other => unreachable!("{other} is in the table and nowhere else"),
        }
    }

    // --- The connection ---

    fn ping(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        let session = self.conns[slot].resp();
        if session.version == Version::Two && session.is_subscribed() {
            return self.say(slot, |out| {
                encode::array(out, 2);
                encode::bulk(out, b"pong");
                encode::bulk(out, words.get(1).copied().unwrap_or_default());
            });
        }
        self.say(slot, |out| match words.get(1) {
            Some(text) => encode::bulk(out, text),
            None => encode::simple(out, b"PONG"),
        })
    }

    fn reset(&mut self, slot: usize) -> Flow {
        self.conns[slot].resp().multi = None;
        self.forget_channels(slot);
        self.conns[slot].resp().version = Version::Two;
        self.conns[slot].rare.set_name(b"");
        self.guests_speak(slot);
        self.guests_named(slot);
        self.say(slot, |out| encode::simple(out, b"RESET"))
    }

    fn hello_resp(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        let mut version = self.conns[slot].resp().version;
        let mut rest = &words[1..];
        if let [asked, more @ ..] = rest {
            version = match *asked {
                b"2" => Version::Two,
                b"3" => Version::Three,
                word if integer(word).is_some() => {
                    let text = "unsupported protocol version";
                    return self.say(slot, |out| encode::error(out, "NOPROTO", text));
                }
                _ => {
                    return self
                        .say_err(slot, "Protocol version is not an integer or out of range");
                }
            };
            rest = more;
        }
        let mut name = None;
        loop {
            rest = match rest {
                [] => break,
                // There are no users yet.
                [word, _, _, more @ ..] if word.eq_ignore_ascii_case(b"AUTH") => more,
                [word, own, more @ ..] if word.eq_ignore_ascii_case(b"SETNAME") => {
                    name = Some(*own);
                    more
                }
                _ => return self.say_err(slot, "syntax error in HELLO"),
            };
        }
        if let Some(name) = name {
            self.conns[slot].rare.set_name(name);
            self.guests_named(slot);
        }
        let id = self.client_id(slot);
        self.conns[slot].resp().version = version;
        self.guests_speak(slot);
        self.say(slot, |out| {
            encode::map(out, version, 7);
            let text = |out: &mut Vec<u8>, key: &str, value: &str| {
                encode::bulk(out, key.as_bytes());
                encode::bulk(out, value.as_bytes());
            };
            text(out, "server", "redis");
            text(out, "version", REDIS_VERSION);
            encode::bulk(out, b"proto");
            encode::integer(out, if version == Version::Three { 3 } else { 2 });
            encode::bulk(out, b"id");
            encode::integer(out, id);
            text(out, "mode", "standalone");
            text(out, "role", "master");
            encode::bulk(out, b"modules");
            encode::array(out, 0);
        })
    }

    fn client(&mut self, slot: usize, words: &[&[u8]], now: Now) -> Flow {
        let what = words[1].to_ascii_uppercase();
        match (what.as_slice(), &words[2..]) {
            (b"ID", []) => {
                let id = self.client_id(slot);
                self.say(slot, |out| encode::integer(out, id))
            }
            (b"GETNAME", []) => {
                let name = self.conns[slot].rare.name.clone();
                self.say_in(slot, |out, version| match name.is_empty() {
                    true => encode::nil(out, version),
                    false => encode::bulk(out, &name),
                })
            }
            (b"SETNAME", [name]) => {
                if name.iter().any(|octet| *octet <= b' ' || *octet > b'~') {
                    let text =
                        "Client names cannot contain spaces, newlines or special characters.";
                    return self.say_err(slot, text);
                }
                self.conns[slot].rare.set_name(name);
                self.guests_named(slot);
                self.say_ok(slot)
            }
            (b"SETINFO", [key, value]) if key.eq_ignore_ascii_case(b"LIB-NAME") => {
                self.conns[slot].resp().lib = value[..value.len().min(64)].into();
                self.say_ok(slot)
            }
            (b"SETINFO", [_, _]) | (b"NO-EVICT" | b"NO-TOUCH", [_]) => self.say_ok(slot),
            (b"INFO", []) => {
                let line = self.client_line(slot, now);
                self.say(slot, |out| encode::bulk(out, line.as_bytes()))
            }
            (b"LIST", _) => {
                let own = self.conns.iter().filter(|(_, conn)| conn.guest.is_none());
                let slots: Vec<usize> = own.map(|(slot, _)| slot).collect();
                let lines: String = slots
                    .into_iter()
                    .map(|slot| self.client_line(slot, now))
                    .collect();
                self.say(slot, |out| encode::bulk(out, lines.as_bytes()))
            }
            (b"UNBLOCK", [id]) => self.unblock(slot, id, false),
            (b"UNBLOCK", [id, how]) if how.eq_ignore_ascii_case(b"TIMEOUT") => {
                self.unblock(slot, id, false)
            }
            (b"UNBLOCK", [id, how]) if how.eq_ignore_ascii_case(b"ERROR") => {
                self.unblock(slot, id, true)
            }
            _ => {
                let text = format!(
                    "unknown subcommand or wrong number of arguments for '{}'. CLIENT takes ID, GETNAME, SETNAME, SETINFO, INFO, LIST, UNBLOCK, NO-EVICT, NO-TOUCH",
                    shown(words[1])
                );
                self.say_err(slot, &text)
            }
        }
    }

    /// What `CLIENT` calls a connection: it tells the shard too.
    fn client_id(&self, slot: usize) -> u64 {
        let (shards, me) = self.shards();
        u64::from(self.conns[slot].generation) * u64::from(shards) + u64::from(me)
    }

    fn client_line(&self, slot: usize, now: Now) -> String {
        let conn = &self.conns[slot];
        let idle_s = now.us.saturating_sub(conn.heard_us) / 1_000_000;
        let door = conn.session.word();
        let blocked = match self.is_waiting(slot) {
            true => 'b',
            false => 'N',
        };
        format!(
            "id={} addr={} name={} idle={idle_s} flags={blocked} door={door} omem={}\n",
            self.client_id(slot),
            conn.peer,
            shown(&conn.rare.name),
            conn.unsent()
        )
    }

    /// Does the connection wait for messages, and not only for a reply?
    fn is_waiting(&self, slot: usize) -> bool {
        let conn = &self.conns[slot];
        match (conn.blocked, &conn.session) {
            (Blocked::Pull(waiter), _) => self.pull_may_wait(slot, waiter),
            (Blocked::Away(Wait::Run(run)), super::Door::Resp(session)) => {
                session.blocking == Some(run)
            }
            (Blocked::Away(Wait::Run(_)), _) => true,
            _ => false,
        }
    }

    /// `CLIENT UNBLOCK`: a pop that waits ends with nothing, or with an error.
    fn unblock(&mut self, slot: usize, id: &[u8], with_error: bool) -> Flow {
        let wanted = integer(id).and_then(|id| u64::try_from(id).ok());
        let mut others = self.conns.iter().filter(|(_, conn)| {
            conn.guest.is_none() && matches!(conn.session, super::Door::Resp(_))
        });
        let found = others.find(|(other, _)| Some(self.client_id(*other)) == wanted);
        let found = found.map(|(other, conn)| (other, conn.blocked));
        let found = found.filter(|(other, _)| self.is_waiting(*other));
        let is_ended = match found {
            Some((other, Blocked::Pull(waiter))) => {
                self.end_with(other, with_error);
                self.finish_pull(waiter, 0);
                true
            }
            Some((other, Blocked::Away(Wait::Run(run)))) => {
                self.cancel_away(other, run, with_error);
                true
            }
            _ => false,
        };
        self.say(slot, |out| encode::integer(out, u64::from(is_ended)))
    }

    /// The wait of that connection that ends next ends so.
    pub(in super::super::super) fn end_with(&mut self, slot: usize, with_error: bool) {
        let error = ("UNBLOCKED", "client unblocked via CLIENT UNBLOCK");
        self.conns[slot].resp().unblocked = with_error.then_some(error);
    }

    // --- The server ---

    fn command(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        let what = words.get(1).map(|word| word.to_ascii_uppercase());
        match what.as_deref() {
            None => self.say(slot, |out| encode::array(out, 0)),
            Some(b"COUNT") => self.say(slot, |out| encode::integer(out, COMMANDS.len() as u64)),
            Some(b"DOCS") => self.say_in(slot, |out, version| encode::map(out, version, 0)),
            Some(b"LIST") => self.say(slot, |out| {
                encode::array(out, COMMANDS.len());
                for (name, ..) in COMMANDS {
                    encode::bulk(out, name.to_ascii_lowercase().as_bytes());
                }
            }),
            Some(_) => self.say(slot, |out| encode::array(out, 0)),
        }
    }

    fn config(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if !words[1].eq_ignore_ascii_case(b"GET") || words.len() < 3 {
            let text = "CONFIG takes GET only: a broker is set by its flags, a queue by QSET";
            return self.say_err(slot, text);
        }
        let budget = self.memory_budget_bytes * self.shards().0 as usize;
        let budget = budget.to_string();
        let known = [
            (
                "appendonly",
                if self.engine.log.is_some() {
                    "yes"
                } else {
                    "no"
                },
            ),
            ("databases", "1"),
            ("maxmemory", budget.as_str()),
            (
                "resp.pop",
                if self.limits.pop_is_classic {
                    "classic"
                } else {
                    "safe"
                },
            ),
            ("save", ""),
            ("timeout", "0"),
        ];
        let asked = &words[2..];
        let is_asked = |name: &str| {
            asked
                .iter()
                .any(|word| glob::matches(&word.to_ascii_lowercase(), name.as_bytes()))
        };
        let found: Vec<_> = known
            .into_iter()
            .filter(|(name, _)| is_asked(name))
            .collect();
        self.say_in(slot, |out, version| {
            encode::map(out, version, found.len());
            for (name, value) in found {
                encode::bulk(out, name.as_bytes());
                encode::bulk(out, value.as_bytes());
            }
        })
    }

    fn info(&mut self, now: Now) -> String {
        let memory = self.engine.count_memory(0);
        let totals = &self.totals;
        let blocked = self
            .conns
            .iter()
            .filter(|(_, conn)| matches!(conn.blocked, Blocked::Pull(_)));
        let mut text = String::new();
        let _ = write!(
            text,
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nringmq_version:{}\r\nuptime_in_seconds:{}\r\n\r\n",
            env!("CARGO_PKG_VERSION"),
            now.us.saturating_sub(totals.started_us) / 1_000_000
        );
        let _ = write!(
            text,
            "# Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\nblocked_clients:{}\r\n\r\n",
            self.connections(),
            self.limits.connections_max,
            blocked.count()
        );
        let _ = write!(
            text,
            "# Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\n\r\n# Persistence\r\nloading:0\r\naof_enabled:{}\r\n\r\n",
            memory,
            self.memory_budget_bytes,
            u8::from(self.engine.log.is_some())
        );
        let _ = write!(
            text,
            "# Stats\r\ntotal_connections_received:{}\r\ntotal_commands_processed:{}\r\ntotal_net_input_bytes:{}\r\ntotal_net_output_bytes:{}\r\nrejected_connections:{}\r\n\r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n",
            totals.connections,
            totals.commands,
            totals.bytes_in,
            totals.bytes_out,
            totals.connections_refused
        );
        let _ = write!(
            text,
            "# Keyspace\r\ndb0:keys={},expires=0,avg_ttl=0\r\n",
            self.keys_now().len()
        );
        text
    }

    // --- Keys ---

    /// What Redis calls a key: a list with something in it, or a stream.
    fn is_key(&self, key: QueueKey) -> bool {
        self.is_stream(key) || self.length(key) > 0
    }

    /// Every key with its name, in the order of names.
    fn keys_now(&self) -> Vec<(Box<[u8]>, QueueKey)> {
        let queues = self.engine.queues.iter();
        let mut keys: Vec<_> = queues
            .filter(|(_, queue)| queue.exists && queue.group.is_none())
            .map(|(key, queue)| (queue.name.clone(), QueueKey(key as u32)))
            .filter(|(_, key)| self.is_key(*key))
            .collect();
        keys.sort_unstable();
        keys
    }

    fn exists(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let is_there = |name: &&&[u8]| self.list(name).is_some_and(|key| self.is_key(key));
        let count = words[1..].iter().filter(is_there).count() as u64;
        self.say(slot, |out| encode::integer(out, count))
    }

    fn type_of(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let word = match self.list(words[1]) {
            Some(key) if self.is_stream(key) => "stream",
            Some(key) if self.is_key(key) => "list",
            _ => "none",
        };
        self.say(slot, |out| encode::simple(out, word.as_bytes()))
    }

    /// `DEL`: the queue with all that is in it.
    fn delete_keys(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        // What is on its way to another shard is there first.
        let is_leaving = words[1..].iter().any(|name| {
            let mut typed = Vec::new();
            text::typed(&mut typed, name);
            let queue = Typed(&typed);
            self.is_leaving(slot, Source { queue, group: None })
        });
        if is_leaving {
            return Flow::Again;
        }
        let mut count = 0;
        for name in &words[1..] {
            let Some(key) = self.list(name) else { continue };
            count += u64::from(self.is_key(key));
            let mut typed = Vec::new();
            text::typed(&mut typed, name);
            let source = Source {
                queue: Typed(&typed),
                group: None,
            };
            self.conns[slot].resp().what = What::Silent;
            if let Err(error) = self.queue_delete(Self::asker(slot), source) {
                return self.say_error(slot, &error);
            }
        }
        self.say(slot, |out| encode::integer(out, count))
    }

    fn keys_like(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let mut keys = self.keys_now();
        keys.retain(|(name, _)| glob::matches(words[1], name));
        self.say(slot, |out| {
            encode::array(out, keys.len());
            for (name, _) in keys {
                encode::bulk(out, &name);
            }
        })
    }

    /// `SCAN`: everything at once, and a cursor that says so.
    fn scan(&mut self, slot: usize, words: &[&[u8]]) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        if integer(words[1]) != Some(0) {
            let text = if integer(words[1]).is_none() {
                "invalid cursor"
            } else {
                "no such cursor: every SCAN gives all keys at once"
            };
            return self.say_err(slot, text);
        }
        let (mut pattern, mut kind) = (None, None);
        for option in words[2..].chunks(2) {
            match option {
                [word, value] if word.eq_ignore_ascii_case(b"MATCH") => pattern = Some(*value),
                [word, value] if word.eq_ignore_ascii_case(b"TYPE") => {
                    kind = Some(value.to_ascii_lowercase())
                }
                [word, value]
                    if word.eq_ignore_ascii_case(b"COUNT") && integer(value).is_some() => {}
                _ => return self.say_err(slot, "syntax error"),
            }
        }
        let mut keys = self.keys_now();
        keys.retain(|(name, key)| {
            let word: &[u8] = if self.is_stream(*key) {
                b"stream"
            } else {
                b"list"
            };
            pattern.is_none_or(|pattern| glob::matches(pattern, name))
                && kind.as_ref().is_none_or(|kind| kind == word)
        });
        self.say(slot, |out| {
            encode::array(out, 2);
            encode::bulk(out, b"0");
            encode::array(out, keys.len());
            for (name, _) in keys {
                encode::bulk(out, &name);
            }
        })
    }

    fn dbsize(&mut self, slot: usize) -> Flow {
        if self.wait_for_publishes(slot) {
            return Flow::Again;
        }
        let count = self.keys_now().len() as u64;
        self.say(slot, |out| encode::integer(out, count))
    }
}
