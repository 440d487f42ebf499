//! A whole broker, of one shard or several, on a disk in memory: commands in, lines out, and the mail between the
//! shards carried at once.

use std::io::IoSlice;

use ringmq::config::Config;
use ringmq::log::{Below, Foreground, OpenError, layout};
use ringmq::shard::{ConnKey, Now, Shard};

use crate::bench::{MemDisk, config};

type OnDisk<'d> = Shard<Foreground<Below<'d, MemDisk>>>;

/// A broker with one connection, which lives on its first shard.
pub struct World<'d> {
    shards: Vec<OnDisk<'d>>,
    conn: ConnKey,
    now: Now,
}

impl<'d> World<'d> {
    /// Opened at that time.
    pub fn open(disk: &'d MemDisk, count: u32, now_us: u64) -> Result<World<'d>, OpenError> {
        let now = Now {
            us: now_us,
            wall_us: now_us,
        };
        let config = Config {
            shards: count,
            memory_budget_bytes: 256 << 20,
            log: config(),
            ..Config::default()
        };
        let mut shards = Vec::new();
        for (shard, directory) in (0..count).zip(layout::prepare(disk, count, false)?) {
            let storage = Foreground::new(Below::new(disk, &directory));
            let seed = 7 + u64::from(shard);
            let (shard, _) = Shard::open(&config.of_shard(shard), Some(storage), now, seed)?;
            shards.push(shard);
        }
        let conn = shards[0].handle_accept("peer", now);
        let mut world = World {
            conn: conn.expect("there is room"),
            shards,
            now,
        };
        // Several serve nobody before each has heard of all others; what is due is done by then.
        world.turns();
        Ok(world)
    }

    /// Lets time pass.
    pub fn wait(&mut self, us: u64) {
        self.now.us += us;
        self.now.wall_us += us;
        self.turns();
    }

    /// Sends commands, each with its line end, and returns all that comes back.
    pub fn ask(&mut self, commands: &str) -> String {
        let mut out = String::new();
        for command in commands.lines() {
            self.now.us += 10;
            let bytes = format!("{command}\n").into_bytes();
            let space = self.shards[0].receive_space(self.conn);
            let space = space.expect("everything before was answered");
            space[..bytes.len()].copy_from_slice(&bytes);
            self.shards[0].handle_received(self.conn, bytes.len(), self.now);
            out += &self.turns();
        }
        out
    }

    /// Turns of all shards until none has anything to do.
    fn turns(&mut self) -> String {
        let mut out = Vec::new();
        let mut quiet = 0;
        while quiet < 4 {
            quiet += 1;
            for shard in 0..self.shards.len() {
                self.shards[shard].handle_turn_end(self.now);
                while let Some((to, bag)) = self.shards[shard].poll_post() {
                    self.shards[to as usize].handle_post(shard as u32, bag, self.now);
                    quiet = 0;
                }
                let before = out.len();
                self.take_output(shard, &mut out);
                if out.len() > before {
                    quiet = 0;
                }
            }
        }
        String::from_utf8(out).expect("answers are text here")
    }

    fn take_output(&mut self, shard: usize, out: &mut Vec<u8>) {
        let shard = &mut self.shards[shard];
        while let Some(conn) = shard.poll_output() {
            loop {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = shard.output(conn, &mut slices);
                let mut taken = 0;
                for slice in &slices[..filled] {
                    out.extend_from_slice(slice);
                    taken += slice.len();
                }
                if taken == 0 || !shard.handle_sent(conn, taken, self.now) {
                    break;
                }
            }
        }
    }
}
