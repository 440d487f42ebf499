//! DRAIN: the broker goes down, and those who hold messages finish first.

use crate::script::{disk, memory};

#[test]
fn nothing_new_begins_and_what_is_held_is_settled() {
    disk(
        "C: MPUB jobs *3
         C: a
         C: b
         C: c
         S: OK 1 3 disk
         C: PULL jobs 2
         S: MSG jobs 1.1.1 $1
         S: a
         S: MSG jobs 1.2.2 $1
         S: b
         S: END 2
         C2: DRAIN
         S2: OK
         # Nothing is taken or handed out any more.
         C: PUB jobs :d
         S: ERR DRAINING retry=… :the broker is going down; ask again when it is back
         C: @m MPUB jobs *1
         C: d
         S: ERR @m DRAINING retry=… :…
         C: CAST news :x
         S: ERR DRAINING retry=… :…
         C: REQ jobs :x
         S: ERR DRAINING retry=… :…
         C: PULL jobs
         S: ERR DRAINING retry=… :…
         C: SUB jobs
         S: ERR DRAINING retry=… :…
         C: @l SUB news.# mode=live
         S: ERR @l DRAINING retry=… :…
         C: PUB! jobs :e
         S: ERR DRAINING retry=… :…
         C: SYNC
         S: OK accepted=0 rejected=1 disk
         # A queue that is not there is not made by what is refused.
         C: PUB other :x
         S: ERR DRAINING retry=… :…
         C: QGET other
         S: ERR NOQUEUE :…
         # One can look, and settle, on a new connection too.
         C3: PEEK jobs
         S3: MSG jobs - id=3 $1
         S3: c
         S3: END 1
         C3: NACK 1.2.2 delay=0
         S3: OK 1
         C: TOUCH 1.1.1
         S: OK 1
         C: ACK 1.1.1
         S: OK 1
         # Nothing is leased any more: that was it.
         S: (closes)
         S2: (closes)
         S3: (closes)
         -- ends
         C: PULL jobs 10
         S: MSG jobs 2.2.1 try=2 $1
         S: b
         S: MSG jobs 2.3.2 $1
         S: c
         S: END 2",
    );
}

#[test]
fn subscriptions_end_behind_what_they_were_sent() {
    memory(
        "C: SUB jobs
         S: OK
         C: @n SUB news.# mode=live
         S: OK @n
         C2: @p PULL others wait=1h
         C3: PULL others wait=1h
         C4: PUB jobs :a
         S4: OK 1 mem
         S: MSG jobs <h> $1
         S: a
         C4: CAST news.eu :hi
         S4: OK 1 mem
         S: MSG @n news.eu - $2
         S: hi
         C4: DRAIN 1h
         S4: OK
         S: END @n news.# gone=drain
         S: END jobs gone=drain
         S2: END @p 0
         S3: END 0
         C: UNSUB jobs
         S: ERR CONFLICT :…
         C: UNSUB news.#
         S: ERR CONFLICT :…
         C4: STATS
         S4: …
         S4: draining=1
         S4: …
         S4: 
         C: ACK <h>
         S: OK 1
         S: (closes)
         S2: (closes)
         S3: (closes)
         S4: (closes)
         -- ends",
    );
}

#[test]
fn the_time_is_a_limit_and_a_second_one_only_shortens_it() {
    memory(
        "C: PUB jobs :a
         S: OK 1 mem
         C: PULL jobs
         S: MSG jobs <h> $1
         S: a
         S: END 1
         -- mark
         C: DRAIN 1h
         S: OK
         C: DRAIN! 800ms
         C: DRAIN 2h
         S: OK
         C: PING
         S: PONG
         S: (closes)
         -- at least 700ms
         -- at most 10s
         -- ends",
    );
}

#[test]
fn with_nothing_held_it_is_over_at_once() {
    disk(
        "C: PUB jobs :a
         S: OK 1 disk
         C: @q PULL jobs ack=auto
         S: MSG @q jobs - id=1 $1
         S: a
         S: END @q 1
         C: DRAIN
         S: OK
         S: (closes)
         -- ends
         C: PULL jobs
         S: END 0
         C: PUB jobs :b
         S: OK 2 disk",
    );
}

#[test]
fn a_request_that_somebody_works_on_can_be_answered() {
    memory(
        "C: SUB sums
         S: OK
         C2: @a REQ sums timeout=1h :1+1
         S: MSG sums <h> reply=<token> $3
         S: 1+1
         C3: SUB slow credit=0
         S3: OK
         C2: @b REQ slow timeout=1h :2+2
         C2: PING
         S2: PONG
         C3: DRAIN
         S3: END slow gone=drain
         S3: OK
         S: END sums gone=drain
         C: REP <token> :2
         S: OK
         S2: MSG @a sums - $1
         S2: 2
         S2: END @a 1
         C: ACK <h>
         S: OK 1
         S2: ERR @b DRAINING retry=… :…
         S2: (closes)
         S: (closes)
         S3: (closes)
         -- ends",
    );
}

#[test]
fn what_makes_no_sense_begins_nothing() {
    memory(
        "C: DRAIN soon
         S: ERR SYNTAX :the time of DRAIN is a duration such as 1500ms, …
         C: DRAIN 1s 2s
         S: ERR SYNTAX :2s is one argument too many: DRAIN [30s]
         C: DRAIN wait=1s
         S: ERR UNKNOWN :DRAIN takes no options such as wait=
         C: PUB jobs :a
         S: OK 1 mem",
    );
}
