//! Large bodies that are received where they stay are nothing that a client could see: whatever pieces a stream comes in, and
//! wherever they are received to, the answers are the same.

use std::io::IoSlice;

use ringmq::config::Config;
use ringmq::log::NoStorage;
use ringmq::shard::{ConnKey, Now, Room, Shard};

/// A broker with one client that sends a stream.
struct Driver {
    shard: Shard<NoStorage>,
    conn: ConnKey,
    now: Now,
    out: Vec<u8>,
    /// Reads that went to more than one place.
    spread: u32,
}

impl Driver {
    fn new() -> Driver {
        let mut config = Config::default();
        config.limits.body_bytes_max = 200_000;
        let now = Now {
            us: 1_700_000_000_000_000,
            wall_us: 1_700_000_000_000_000,
        };
        let opened = Shard::open(&config, None, now, 1);
        let (mut shard, _) = opened.expect("memory is always there");
        let conn = shard
            .handle_accept("127.0.0.1:1", now)
            .expect("it is the first");
        Driver {
            shard,
            conn,
            now,
            out: Vec::new(),
            spread: 0,
        }
    }

    /// Receives the first of these bytes; returns how many. Time passes while nothing is read.
    fn receive(&mut self, bytes: &[u8], ahead: bool) -> usize {
        let count = if ahead {
            let room = self.shard.receive_room(self.conn);
            let is_spread = matches!(room, Some(Room::Several(..)));
            self.spread += u32::from(is_spread);
            room.map_or(0, |mut room| room.fill(bytes))
        } else {
            self.shard.receive_space(self.conn).map_or(0, |space| {
                let count = space.len().min(bytes.len());
                space[..count].copy_from_slice(&bytes[..count]);
                count
            })
        };
        match count {
            0 => self.now.us += 300_000,
            count => self.shard.handle_received(self.conn, count, self.now),
        }
        count
    }

    fn end_turn(&mut self) {
        self.shard.handle_turn_end(self.now);
        while self.shard.poll_resume().is_some() {}
        while let Some(conn) = self.shard.poll_output() {
            let mut slices = [IoSlice::new(&[]); 64];
            let filled = self.shard.output(conn, &mut slices);
            let mut taken = 0;
            for slice in &slices[..filled] {
                self.out.extend_from_slice(slice);
                taken += slice.len();
            }
            self.shard.handle_sent(conn, taken, self.now);
        }
    }

    /// Sends all of it, in pieces of the sizes given over and over, one or several in a turn.
    fn send(&mut self, mut stream: &[u8], pieces: &[usize], ahead: bool) -> &[u8] {
        let mut pieces = pieces.iter().cycle();
        let mut idle = 0;
        while !stream.is_empty() && idle < 20 {
            let piece = (*pieces.next().expect("they never end")).min(stream.len());
            let taken = self.receive(&stream[..piece], ahead);
            stream = &stream[taken..];
            idle = if taken == 0 { idle + 1 } else { 0 };
            if taken == 0 || !taken.is_multiple_of(3) {
                self.end_turn();
            }
        }
        for _ in 0..8 {
            self.now.us += 300_000;
            self.end_turn();
        }
        &self.out
    }
}

fn publish(line: &str, size: usize, octet: u8, end: &str) -> Vec<u8> {
    let head = format!("{line} ${size}\n");
    [head.as_bytes(), &vec![octet; size], end.as_bytes()].concat()
}

/// Publishes that are alike, with everything else between them.
fn stream() -> Vec<u8> {
    let mut stream = Vec::new();
    let mut say = |bytes: &[u8]| stream.extend_from_slice(bytes);
    let alike = |octet| publish("PUB q", 20_000, octet, "\n");
    for octet in b'a'..b'i' {
        say(&alike(octet));
    }
    say(b"PING\nPULL q 3\n");
    for octet in b'i'..b'm' {
        say(&alike(octet));
    }
    say(&publish("PUB other", 20_000, b'o', "\n"));
    say(&alike(b'm'));
    say(&publish("PUB q", 20_001, b'n', "\n"));
    say(&publish("PUB q", 20_000, b'o', "\r\n"));
    say(&alike(b'p').repeat(5));
    // What stands behind a command that waits is kept.
    say(b"PULL none wait=1s\n");
    say(&alike(b'q').repeat(9));
    say(b"BEGIN\n");
    say(&alike(b'r').repeat(4));
    say(b"COMMIT\n");
    say(&alike(b's').repeat(3));
    say(&publish("PUB q", 200_001, b't', "\n"));
    say(&alike(b'u').repeat(6));
    say(b"PUB q $20000 x\nPULL q 100\n");
    say(&publish("PUB q", 180_000, b'v', "\n").repeat(4));
    say(b"PULL q 100\n");
    stream
}

/// Says where they differ, and not all of them.
fn same(told: &[u8], expected: &[u8], what: &str) {
    let at = told
        .iter()
        .zip(expected)
        .take_while(|(a, b)| a == b)
        .count();
    let near = |bytes: &[u8]| {
        let near = &bytes[at.saturating_sub(60).min(bytes.len())..(at + 60).min(bytes.len())];
        String::from_utf8_lossy(near).into_owned()
    };
    let is_same = told == expected;
    assert!(
        is_same,
        "{what}, at {at}: {:?} and not {:?}",
        near(told),
        near(expected)
    );
}

#[test]
fn wherever_they_are_received_to_the_answers_are_the_same() {
    let stream = stream();
    let mut plain = Driver::new();
    let expected = plain.send(&stream, &[200_000], false).to_vec();
    assert!(expected.len() > 1_000_000, "it says something");
    let mut spread = 0;
    let cuts = [1_000, 4_096, 9_999, 20_001, 20_013, 40_027, 65_536, 200_000];
    for first in cuts {
        for second in cuts {
            for third in [first, 17] {
                let mut driver = Driver::new();
                let told = driver.send(&stream, &[first, second, third], true);
                same(
                    told,
                    &expected,
                    &format!("pieces of {first}, {second} and {third}"),
                );
                spread += driver.spread;
            }
        }
    }
    assert!(spread > 1_000, "only {spread} reads were spread");
}

#[test]
fn a_stream_that_breaks_ends_alike() {
    let mut stream = publish("PUB q", 20_000, b'a', "\n").repeat(7);
    // A byte too many: nobody knows where the next command begins.
    stream.extend_from_slice(&publish("PUB q", 20_000, b'b', "x\n"));
    stream.extend_from_slice(&publish("PUB q", 20_000, b'c', "\n").repeat(3));
    let mut plain = Driver::new();
    let expected = plain.send(&stream[..180_000], &[50_000], false).to_vec();
    assert!(String::from_utf8_lossy(&expected).contains("ERR PROTO"));
    for piece in [5_000, 20_020, 50_000, 180_000] {
        let mut driver = Driver::new();
        let told = driver.send(&stream[..180_000], &[piece], true);
        same(told, &expected, &format!("pieces of {piece}"));
    }
}
