//! Two shards and one connection, whose commands go to a queue of the other one: what passing on costs beside the work
//! itself. Mail is carried as the event loops carry it, without their threads.

use ringmq::broker::id::Level;
use ringmq::config::Config;
use ringmq::log::NoStorage;
use ringmq::shard::{ConnKey, Now, Shard, shard_of};

use super::shard::{NOW, ack_behind, acks_of, config, first_handle, publishes, take_output};
use super::{Body, OPERATIONS, Work, body, copy};

/// Everything in memory, a hundred commands a turn.
pub const MEMORY: &[Body] = &[
    body("publish_passed_on", || Box::new(Publish::new())),
    body("turn_publish_push_ack_passed_on", || Box::new(Whole::new())),
];

/// Commands of a turn, as many as a busy client has in flight.
const IN_A_TURN: usize = 100;

struct Pair {
    shards: [Shard<NoStorage>; 2],
    conn: ConnKey,
    now: Now,
    out: Vec<u8>,
}

impl Pair {
    fn open() -> Pair {
        assert_eq!(
            shard_of(b"jobs", 2),
            1,
            "the connection is at the other one"
        );
        let open = |me: u32| {
            let config = Config {
                shards: 2,
                shard: me,
                ..config(Level::None)
            };
            let opened = Shard::open(&config, None, NOW, 1);
            opened.expect("there is nothing to be recovered").0
        };
        let mut shards = [open(0), open(1)];
        let conn = shards[0].handle_accept("bench", NOW);
        let mut pair = Pair {
            conn: conn.expect("there is room"),
            shards,
            now: NOW,
            out: Vec::new(),
        };
        // They tell each other that they have started.
        pair.turns([0, 1]);
        pair.turns([0, 1]);
        pair
    }

    /// A turn of these, one after another.
    fn turns<const N: usize>(&mut self, order: [usize; N]) {
        for me in order {
            self.shards[me].handle_turn_end(self.now);
            while let Some((to, bag)) = self.shards[me].poll_post() {
                self.shards[to as usize].handle_post(me as u32, bag, self.now);
            }
        }
    }

    /// Bytes arrive at one shard, are passed on, and what is answered comes back and is taken.
    fn answered(&mut self, input: &[u8]) {
        self.now.us += 100;
        let space = self.shards[0].receive_space(self.conn);
        let space = &mut space.expect("the connection is read")[..input.len()];
        copy(space, input);
        self.shards[0].handle_received(self.conn, input.len(), self.now);
        self.turns([0, 1, 0]);
        self.out.clear();
        take_output(&mut self.shards[0], self.now, &mut self.out);
        let is_fine = !self.out.is_empty() && !self.out.starts_with(b"ERR");
        assert!(is_fine, "{}", String::from_utf8_lossy(&self.out));
    }
}

/// Publishing is measured.
struct Publish {
    pair: Pair,
    publishes: Vec<u8>,
}

impl Publish {
    fn new() -> Publish {
        Publish {
            pair: Pair::open(),
            publishes: publishes(100, IN_A_TURN),
        }
    }
}

impl Work for Publish {
    fn prepare(&mut self) {
        while self.pair.shards[1].messages() > 0 {
            self.pair
                .answered(format!("PULL jobs {IN_A_TURN}\n").as_bytes());
            let acks = acks_of(&self.pair.out, true);
            self.pair.answered(&acks);
        }
    }

    fn run(&mut self) {
        for _ in 0..OPERATIONS / IN_A_TURN {
            self.pair.answered(&self.publishes);
        }
    }
}

/// The whole way of messages, in turns: some are published and pushed, and those of the turn before are acked.
struct Whole {
    pair: Pair,
    publishes: Vec<u8>,
    turns: Vec<Vec<u8>>,
}

impl Whole {
    fn new() -> Whole {
        let mut pair = Pair::open();
        pair.answered(format!("SUB jobs credit={OPERATIONS}\n").as_bytes());
        let publishes = publishes(100, IN_A_TURN);
        pair.answered(&publishes);
        Whole {
            pair,
            publishes,
            turns: vec![Vec::new(); OPERATIONS / IN_A_TURN],
        }
    }
}

impl Work for Whole {
    fn prepare(&mut self) {
        let last = first_handle(&self.pair.out);
        for (turn, input) in self.turns.iter_mut().enumerate() {
            *input = ack_behind(last, (turn * IN_A_TURN) as u64, IN_A_TURN as u64);
            input.extend_from_slice(&self.publishes);
        }
    }

    fn run(&mut self) {
        for input in &self.turns {
            self.pair.answered(input);
        }
        let left = self.pair.shards[1].messages();
        assert_eq!(left, IN_A_TURN as u64, "only the last ones are not acked");
    }
}
