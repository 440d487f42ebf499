//! The help pages: one screen each.

use std::ffi::OsString;

use super::error::CliError;

/// What `--version` prints.
pub const VERSION: &str = concat!("ringmq ", env!("CARGO_PKG_VERSION"));

/// The page of a subcommand.
///
/// # Errors
/// `CliError::Usage` when there is no such subcommand; it names the one that was perhaps meant.
pub fn page(command: &str) -> Result<&'static str, CliError> {
    if let Some((_, page)) = PAGES.iter().find(|(name, _)| *name == command) {
        return Ok(page);
    }
    let near = PAGES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| distance(name, command) <= 2)
        .min_by_key(|name| distance(name, command));
    let hint = near.map_or(String::new(), |name| format!("; did you mean {name}?"));
    Err(CliError::usage(
        "ringmq",
        format!("there is no command '{command}'{hint}"),
    ))
}

/// Whether `-h` or `--help` is among the options.
pub fn is_asked_for(words: &[OsString]) -> bool {
    let options = words.iter().take_while(|word| *word != "--");
    options
        .into_iter()
        .any(|word| word == "-h" || word == "--help")
}

/// How many letters must be added, removed or changed to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

const PAGES: &[(&str, &str)] = &[
    ("ringmq", MAIN),
    ("serve", SERVE),
    ("pub", PUB),
    ("pull", PULL),
    ("sub", SUB),
    ("ack", ACK),
    ("stats", STATS),
    ("bench", BENCH),
    ("reshard", RESHARD),
    ("check", CHECK),
    ("dump", DUMP),
];

/// The page of the program itself.
pub const MAIN: &str = "\
RingMQ, a message broker that you can type to

  ringmq [serve] [OPTIONS]        run a broker: 127.0.0.1:7766, data in ./ringmq-data
  ringmq pub QUEUE [BODY...]      publish arguments, or each line of stdin
  ringmq pull QUEUE [-n N]        take messages: --wait 5s to wait, --ack to settle
  ringmq sub QUEUE                print messages as they come, until Ctrl-C
  ringmq ack HANDLE...            settle messages that were pulled
  ringmq stats [QUEUE]            what the broker, or one queue, is doing
  ringmq bench [MODE]             measure a broker: throughput, latency, CPU
  ringmq reshard --shards N       give a data directory another number of shards
  ringmq check DIR                verify a data directory
  ringmq dump DIR                 print the records of a data directory

  ringmq help COMMAND             the options of a command
  ringmq --version

A first session, in two terminals:

  ringmq serve                    ringmq pub jobs 'Hello, world'
                                  ringmq pull jobs --wait 10s --ack
or without any client:
                                  nc localhost 7766
                                  HELP

The commands that talk to a broker take --addr HOST:PORT or the environment's RINGMQ_ADDR.
Exit codes: 0 done, 1 failed, 2 bad arguments, 3 data directory refused.";

const SERVE: &str = "\
ringmq [serve] [OPTIONS]          run a broker until SIGTERM or Ctrl-C

Where
  -l, --listen ADDR:PORT          repeatable; text:// http:// resp:// pins it [127.0.0.1:7766]
      --insecure                  allow --listen beyond loopback: there is no authentication yet
  -d, --data DIR                  the data directory, made if missing [./ringmq-data]
      --data-must-exist           refuse a missing or empty data directory
  -m, --memory                    keep nothing on disk; every queue is durable=none

Queues
      --durable none|os|disk      when new queues confirm: in memory, written, synced [disk]
  -s, --set KEY=VALUE             default of new queues, repeatable; keys and values of QSET:
                                  lease=30s maxdeliver=5 backoff=1s..5m dedup=2m ttl= maxlen= ...

Resources
      --memory-budget SIZE        for messages, index and buffers [25 % of memory]
      --max-connections N         [100000]      --max-handles N         per ACK [1000]
      --max-body SIZE             [1M]          --max-line SIZE         [64K]
      --max-batch N               [1048576]     --max-batch-bytes SIZE  [32M]
      --max-send SIZE             unread output of a connection before it is read no more [1M]
      --stall-timeout DUR         a frame without a byte for so long closes [60s]
      --segment SIZE              [64M]         --flush-interval DUR    of os queues [50ms]
      --checkpoint SIZE           log between two checkpoints [256M]
      --resp-pop safe|classic     what RESP pops: leased until its reply was read, or gone [safe]
      --shards N                  event loops, each with queues of its own; auto = one a core [1]
      --pin 0,1 | auto            keep each event loop's thread on a core of its own
      --spin                      poll without sleeping: lowest latency, one core always busy

      --log-level LEVEL           off error warn info debug trace, or RUST_LOG [info]

SIZE: 64K 512M 4G. DUR: 500ms 5s 2m. docs/configuration.md explains each.
Exit codes: 0 stopped when asked, 1 failed, 2 bad arguments, 3 data directory refused.";

const PUB: &str = "\
ringmq pub QUEUE [BODY...]        publish, and wait until it is confirmed

Each BODY is one message and gets one line: OK, its id, how safe it is. Without BODY, or with -,
each line of stdin is a message, and one line at the end counts them.

      --delay DUR                 ready only after this time
      --ttl DUR                   dropped when nobody took it in time
      --pri N                     0 to 255, higher leaves first
      --key KEY                   messages of one key are worked on one at a time, in order
      --once ID                   published only once, however often it is sent; one BODY only
  -H, --header NAME=VALUE         repeatable
  -q, --quiet                     say nothing when all went well
  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]

  ringmq pub jobs 'first' 'second'
  seq 1 1000000 | ringmq pub jobs";

const PULL: &str = "\
ringmq pull QUEUE[/GROUP]         take messages; each body is one line of stdout

  -n, --count N                   at most so many [1]
  -w, --wait DUR                  wait so long for the first one [0]
      --ack                       settle them once they are printed
      --lease DUR                 time to work on them before somebody else gets them [the queue's]
      --from WHERE                where a group begins: first, new, an id, or a time such as -5m
      --handles                   print the handle and a tab before each body
      --json                      one JSON object for each message
  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]

Without --ack a message is only leased: its handle is told on stderr (or stdout with --handles or
--json) and 'ringmq ack HANDLE' settles it. What is not settled comes back when the lease ends.
With --ack a message is settled after it was printed, so a crash in between prints it again later.";

const SUB: &str = "\
ringmq sub QUEUE[/GROUP]          print messages as they come; each body is one line of stdout

  -n, --count N                   stop after so many
      --credit N                  at most so many on the way at once [100]
      --lease DUR                 time to print one before it comes back [the queue's]
      --no-ack                    leave them in the queue: they come back when this ends
      --from WHERE                where a group begins: first, new, an id, or a time such as -5m
      --handles                   print the handle and a tab before each body
      --json                      one JSON object for each message
  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]

A message is settled after it was printed. Ctrl-C, or a reader of stdout that goes away, ends it.";

const ACK: &str = "\
ringmq ack HANDLE...              settle messages that were pulled

A handle is what 'ringmq pull' told, like 1.42.7. One that is no longer leased (settled before, or
its lease has ended) has no effect; it is named on stderr and the exit code is 1.

  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]";

const STATS: &str = "\
ringmq stats [QUEUE]              what the broker, or one queue, is doing

      --json                      as one JSON object
  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]";

const BENCH: &str = "\
ringmq bench [MODE] [OPTIONS]     measure a broker from outside, with one generator thread

  publish                         publish with receipts
  pull                            fill a queue, then take and settle everything
  e2e                             both at once: publish, receive, settle [the default]
  fanout                          every consumer receives every message
  idle                            memory and CPU of connections that do nothing
  floor                           no broker: one exchange over loopback, one synced write in --data
  forwarder                       serve fixed frames on --addr: one thread, no protocol, no state

      --count N, --duration DUR   so many messages, or for so long [5s; pull: 1000000 messages]
      --warmup DUR                not measured before that [1s; 0 with --count]
      --size SIZE                 body bytes [100]
      --producers N               connections that publish [1]
      --consumers N               connections that receive [1]
      --window N                  messages on the way, per connection [1000]
      --backlog N                 closed e2e loop: most published and not received [10 windows]
      --batch N, --pull-batch N   messages in one MPUB, PULL n; in one write of floor [1]
      --ack-batch N               most handles in one ACK [100]; --quiet-acks: by ACK!
      --consume sub|pull          how messages are received [sub; mode pull: pull]
      --rate N                    open loop: N messages a second; latency counts from the time a
                                  message should have been sent, so stalls are not hidden
      --durable none|os|disk      of the queue measured [the broker's default]
      --queue NAME                instead of one made for the run and deleted after it
      --filled                    pull what a publish run of --count has left in --queue
      --server-pid PID            tell the server's CPU time per message
      --redis HOST:PORT           the same work with another server; also --redis-streams, --nats,
                                  --beanstalkd, --amqp (RabbitMQ), --frames (the forwarder)
      --stall DUR                 give up when nothing moves for so long [30s]
      --spin                      the generator polls without sleeping
      --label TEXT, --json        kept in the result; the result as one JSON object
      --data DIR                  where floor writes [.]
  -a, --addr HOST:PORT            the broker [RINGMQ_ADDR or 127.0.0.1:7766]

Every message carries a number; one lost or delivered twice is reported and the exit code is 1.";

const RESHARD: &str = "\
ringmq reshard --shards N         give a data directory another number of shards

  -d, --data DIR                  the data directory [./ringmq-data]
      --shards N                  how many it is to have; with 1 the log lies in DIR itself
      --dry-run                   tell what would be done, and change nothing

The broker must be stopped. Everything that is stored stays as it is: messages with their ids, order
and times, settings, groups, schedules, what once= remembers. The new shards are written beside the
old ones, which are removed when the new ones are whole and on stable storage; until then there must
be space for both. Interrupted, it can be run again, and 'ringmq serve' serves what counts.
Exit codes: 0 done, or nothing to do; 1 failed; 3 the directory is refused.";

const CHECK: &str = "\
ringmq check DIR                  verify a data directory and print what it holds

Reads every record and every body and changes nothing, of all shards or, where DIR is that of one
shard, of that. The broker must be stopped.
Exit codes: 0 sound, 3 damaged or not a data directory.";

const DUMP: &str = "\
ringmq dump DIR                   print the records of a data directory

Of all shards one after another, or of the one whose directory DIR is. Changes nothing. The broker
must be stopped. Exit codes: 0 sound, 3 damaged or not one.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_fits_a_screen() {
        for (name, page) in PAGES {
            assert!(
                page.lines().count() <= 36,
                "{name} has {} lines",
                page.lines().count()
            );
            for line in page.lines() {
                assert!(line.len() <= 100, "{name}: {line:?}");
            }
        }
    }

    #[test]
    fn a_typing_error_is_recognised() {
        let error = page("sevre").expect_err("no such command").to_string();
        assert!(error.contains("did you mean serve?"), "{error}");
        let error = page("frobnicate").expect_err("no such command").to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
}
