//! The texts of `HELP`: one screen that teaches, and one for each verb.

use crate::broker::reply::Error;

use super::value::{shown, unknown};
use super::verb::{Lookup, Verb};

/// `HELP` alone: fits 80 columns and 24 lines together with the command as typed, the answer's first
/// line, its line end, and the cursor.
pub const SCREEN: &str = "\
PUB jobs :Hello, world      <- type this; then PULL jobs; then ACK <the handle>

PUB q :text | PUB q $5      store a message; OK <id> <level> when it is safe
MPUB q *3                   store the next 3 lines as 3 messages, all or none
PULL q [n] [wait=10s]       take messages: MSG <q> <handle> $<n>, then END <k>
ACK h   NACK h   TOUCH h    done with it / give it back / need more time
SUB q [credit=100]          messages as they come; CREDIT q n, UNSUB q
SYNC                        wait until all quiet publishes (PUB!) are safe
CAST news.eu :text          a copy for each queue of BIND news.# q (UNBIND)
REQ q :text                 ask a consumer of q; REP <reply> :text answers
BEGIN ... COMMIT | ABORT    the PUB, MPUB, ACK, NACK between: all or none
QSET q maxdeliver=3 ttl=1h  create a queue or change it, live
QGET q   WHY q   QLS [a.#]  counts, settings / why nothing moves / all queues
SUB q/group  SEEK q/group   every group gets every message / replay it
PEEK q   MOVE q.dead q      look at messages / put dead letters back to work
DEL q id  PURGE q  QDEL q   delete a message / all of them / the queue itself
STATS [q jobs] [conns]      counts of broker, queue, clients; KILL conn; DRAIN
HELLO PING QUIT CANCEL @7   limits / still there? / leave / end a tagged wait
Times: 500ms 30s 5m 2h 7d. @7 in front of a command tags its answers. A message
not acked within its lease (30 s) is back; after 5 tries in q.dead. HELP PUB
";

/// The text for `HELP` or `HELP verb`.
///
/// # Errors
/// `UNKNOWN` for a verb that there is not, or not yet.
pub fn text(verb: Option<&[u8]>) -> Result<&'static str, Error> {
    let Some(word) = verb else {
        return Ok(SCREEN);
    };
    match Verb::lookup(word.strip_suffix(b"!").unwrap_or(word)) {
        Lookup::Built(verb) => Ok(of(verb)),
        Lookup::Planned(word) => Err(unknown(format!(
            "{word} is not built yet: HELP lists what is"
        ))),
        Lookup::Unknown => Err(unknown(format!(
            "there is no verb {}: HELP lists them",
            shown(word)
        ))),
    }
}

fn of(verb: Verb) -> &'static str {
    match verb {
        Verb::Hello => {
            "\
HELLO [1] [name=x] [expired=1]
  Tells the broker's version and limits; needed by nobody. name= is shown by
  STATS conns. expired=1: be told EXPIRED <handle> when a lease is lost.
  -> OK proto=1 server=ringmq/... max_body=... auth=0 node=...
"
        }
        Verb::Ping => {
            "\
PING [:text]
  -> PONG [:text]
"
        }
        Verb::Quit => {
            "\
QUIT
  -> OK bye, and the connection is closed when all before it is answered.
"
        }
        Verb::Help => {
            "\
HELP [verb]
  -> DATA $<n> and n octets of text.
"
        }
        Verb::Pub => {
            "\
PUB queue [options] :text            the rest of the line, for people
PUB queue [options] $5               5 octets and a line end follow
  Stores one message; a missing queue is created. PUB! says nothing on success.
  delay=5m      ready only then             at=2026-01-31T09:00:00Z   the same
  ttl=1h        gone if not taken by then   pri=0..255       higher goes first
  key=x         one at a time, in order, among messages of the same key
  once=x        a second publish with this id within the dedup window is not
                stored again: OK <first id> <level> dup=1
  sync=none|os  answer earlier than the queue's own level
  every=1h      again and again, as once= names it; every=0 ends that
  reply=x       carried along for whoever answers    h.type=x  a header
  -> OK <id> <level>       level: mem, os (written), disk (synced)
"
        }
        Verb::Mpub => {
            "\
MPUB queue [options] *3              3 lines follow, each is a message
MPUB queue [options] $12             12 octets follow: <len> LF <octets> LF ...
  Stores all or nothing, with consecutive ids. Options as for PUB; once= names
  the batch.      (echo MPUB jobs *1000; seq 1 1000) | nc -N localhost 7766
  -> OK <first id> <count> <level>
"
        }
        Verb::Pull => {
            "\
PULL queue[,queue] [n] [options]     (POP is the same)
  Takes up to n messages (1 if not said), each for the time of its lease.
  wait=10s   wait for the first one      lease=1m   instead of the queue's
  ack=auto   settled before it is sent   bytes=64K  stop after so many
  hold=1     the lease outlives this connection once the answer was sent
  ts=1       tell the time of publish
  PULL orders/billing: every group gets every message once, and shares it among
  its consumers. from=first|new|<id>|-5m where a new group begins
  -> MSG <queue> <handle> [try=2 ...] $<n>, n octets, line end; then END <k>
"
        }
        Verb::Ack => {
            "\
ACK handle [handle ...]
  Done with these messages: they are deleted.
  -> OK <k>   or   OK <k> stale=h,h   (those were no live leases any more)
"
        }
        Verb::Nack => {
            "\
NACK handle [handle ...] [delay=5s] [dead=1] [why=text]
  Gives messages back: ready again after delay= or the queue's backoff, in the
  dead-letter queue with dead=1 or after the queue's maxdeliver tries.
  -> OK <k>   or   OK <k> stale=h,h
"
        }
        Verb::Touch => {
            "\
TOUCH handle [handle ...] [lease=1m]
  Needs more time: the lease begins anew.
  -> OK <k>   or   OK <k> stale=h,h
"
        }
        Verb::Sub => {
            "\
SUB queue[/group] [credit=100] [lease=1m] [from=new] [ack=auto] [ts=1]
  Messages are sent as they come, at most credit= unacked ones at a time. A
  second SUB of the same queue changes the options.
SUB pattern mode=live [ts=1]
  Copies of what is CAST to such topics, stored nowhere: SUB news.# mode=live.
  -> OK, then MSG ... as for PULL; LAG <pattern> dropped=<n> to a slow reader
"
        }
        Verb::Credit => {
            "\
CREDIT queue n
  Sets the credit of a subscription; 0 pauses it.
  -> OK
"
        }
        Verb::Unsub => {
            "\
UNSUB queue | UNSUB pattern
  Ends a subscription; messages sent before stay leased.
  -> OK
"
        }
        Verb::Qset => {
            "\
QSET queue [key=value ...]           keys not said stay as they are
  durable=none|os|disk  the level of publishes    lease=30s
  maxdeliver=5 (0: no limit)    dead=<queue>.dead    deadon=tries,ttl,full
  backoff=1s..5m  doubling wait after NACK; 0: none    dedup=2m
  maxlen=1000 maxbytes=10M  full=reject|dropold   ttl=1h (none: for ever)
  fair=key  keys have turns (none: do not)    single=1  one consumer at a time
  rate=100/s (none: any)   pri=0  of publishes that say none   pause=in,out
  retain=24h,1G  keep acked for SEEK       head=1  pri=255: last in, first out
  -> OK created   or   OK updated
"
        }
        Verb::Qget => {
            "\
QGET queue[/group]
  Counts, consumers and settings, one key=value a line.
  -> DATA $<n>
"
        }
        Verb::Qls => {
            "\
QLS [pattern]
  The names of queues. In a pattern * is one word between dots and # is any
  number of them: QLS jobs.#
  -> DATA $<n>
"
        }
        Verb::Qdel => {
            "\
QDEL queue | QDEL queue/group
  Deletes a queue and every message in it, or one of its groups.
  -> OK
"
        }
        Verb::Del => {
            "\
DEL queue id [id ...]
  Deletes ready or delayed messages by id (the middle number of a handle).
  -> OK <k>   or   OK <k> stale=17,18
"
        }
        Verb::Purge => {
            "\
PURGE queue [state=ready|delayed]
  Deletes all ready messages, all delayed ones, or both if not said.
  -> OK <k>
"
        }
        Verb::Peek => {
            "\
PEEK queue [n] [state=ready|delayed|leased|dead] [from=id]
  Shows messages and takes none.
  -> MSG <queue> - id=<id> $<n> ...; then END <k>
"
        }
        Verb::Move => {
            "\
MOVE queue target [n]
  Moves ready messages, oldest first, with their tries counted anew:
  MOVE jobs.dead jobs
  -> OK <k>
"
        }
        Verb::Sync => {
            "\
SYNC [none|os|disk]
  Waits until every quiet publish (PUB! ...) of this connection is safe.
  -> OK accepted=<n> rejected=<m> <weakest level>
"
        }
        Verb::Stats => {
            "\
STATS | STATS q queue | STATS conns
  Counters, one a line: connections, messages, requests, transactions (open,
  begun, committed, aborted, voided), schedules (and what they published), the
  log. Names that end in _total only grow.
  -> DATA $<n>
"
        }
        Verb::Why => {
            "\
WHY queue
  Why nothing moves: counts, who holds messages and for how long, and the
  reasons in words. Changes nothing.
  -> DATA $<n>
"
        }
        Verb::Kill => {
            "\
KILL conn
  Closes a connection, named as STATS conns prints it; what it holds is ready
  again at once, but for what it took with hold=1.
  -> OK   or   ERR STALE (there is no such connection any more)
"
        }
        Verb::Drain => {
            "\
DRAIN [30s]
  Goes down, but lets those who hold messages settle them first: nothing is
  taken or handed out any more (ERR DRAINING), subscriptions end, and when
  nothing is leased, or after that time, the broker ends as after SIGTERM.
  A second one can only shorten it; DRAIN 0 ends at once.
  -> OK
"
        }
        Verb::Cast => {
            "\
CAST topic [options] :text           (or $5)
  A copy for each queue bound to a pattern that means the topic; each takes or
  refuses it for itself. Nothing is stored under the topic. Options as for PUB.
  -> OK <receivers> <level> [refused=k]     level: the weakest of them
"
        }
        Verb::Bind => {
            "\
BIND pattern queue
  The queue takes what is cast to such topics from now on, once however many of
  its patterns match. * is one word between dots, # any number: BIND news.# q
  -> OK
"
        }
        Verb::Unbind => {
            "\
UNBIND pattern queue
  Ends a binding, named as QGET tells it.
  -> OK
"
        }
        Verb::Req => {
            "\
REQ queue [timeout=2s] [pri=] [key=] [h.<name>=] :text      (or $5)
  Asks the consumers of a queue and waits for the first answer. The request is
  kept in memory and gone after its timeout; it carries reply=<token>.
  -> MSG <queue> - $<n>, n octets, line end; then END 1
     ERR NOCONSUMER at once when nobody could answer, ERR TIMEOUT in time
"
        }
        Verb::Rep => {
            "\
REP token :text                      (or $5)
  Answers the request whose MSG said reply=<token>; ACK that one as always.
  -> OK   or   ERR STALE (nobody waits for it any more)
"
        }
        Verb::Begin => {
            "\
BEGIN
  From here on PUB, MPUB, ACK and NACK answer OK queued, and nothing happens
  until COMMIT, which does all of them at once or none, whatever crashes. ABORT
  or the end of the connection: none. After an ERR in between too: none.
  -> OK
"
        }
        Verb::Commit => {
            "\
COMMIT
  Does all that was queued since BEGIN, or nothing when any of it cannot be.
  -> OK <k> commands, when all of them are as safe as their queues promise
     ERR STALE stale=h,h   leases were lost: nothing was done, nothing is left
"
        }
        Verb::Abort => {
            "\
ABORT
  Forgets what was queued since BEGIN; leases stay as they are.
  -> OK
"
        }
        Verb::Seek => {
            "\
SEEK queue[/group] to=first|new|<id>|<time>
  The group reads from there on: again what is still stored (QSET retain= keeps
  what was acked), or not what it passes over. Its leases end. A time is
  2026-01-31T09:00:00Z, @<unix ms>, or -5m (ago).
  -> OK
"
        }
        Verb::Cancel => {
            "\
CANCEL @tag
  Ends the wait of a tagged PULL, which answers END @tag 0, or of a tagged REQ,
  which answers ERR @tag TIMEOUT.
  -> OK 1   or   OK 0 (nothing waits under that tag)
"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_fits_its_screen() {
        let verbs = [
            "HELLO", "PING", "QUIT", "HELP", "PUB", "MPUB", "PULL", "POP", "ACK", "NACK", "TOUCH",
            "SUB", "CREDIT", "UNSUB", "QSET", "QGET", "QLS", "QDEL", "DEL", "PURGE", "PEEK",
            "MOVE", "SYNC", "STATS", "CANCEL", "WHY", "KILL", "REQ", "REP", "CAST", "BIND",
            "UNBIND", "BEGIN", "COMMIT", "ABORT", "SEEK", "DRAIN",
        ];
        for verb in verbs {
            let text = text(Some(verb.as_bytes())).expect("the verb is built");
            assert!(text.contains(verb), "{verb}");
            assert!(text.lines().count() <= 16, "{verb}");
            assert!(
                SCREEN.contains(verb) || verb == "POP",
                "HELP does not name {verb}"
            );
        }
        let texts = verbs.map(|verb| text(Some(verb.as_bytes())).expect("the verb is built"));
        for text in texts.into_iter().chain([SCREEN]) {
            assert!(text.ends_with('\n') && text.is_ascii());
            for line in text.lines() {
                assert!(line.len() <= 79, "{line}");
            }
        }
        assert!(SCREEN.lines().count() <= 20);
    }

    #[test]
    fn other_words_are_told_apart() {
        assert!(text(Some(b"pub!")).is_ok());
        assert_eq!(
            text(Some(b"route")).map_err(|error| error.text.contains("not built")),
            Err(true)
        );
        assert_eq!(
            text(Some(b"x")).map_err(|error| error.text.contains("no verb")),
            Err(true)
        );
    }
}
