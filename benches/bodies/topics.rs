//! What a cast costs by how many patterns there are, and by how many of them mean its topic.

use ringmq::broker::id::Level;
use ringmq::log::NoStorage;

use super::shard::{Driver, config};
use super::{Body, OPERATIONS, Work, body};

/// A thousand casts of 100 bytes a turn, to so many queues of so many patterns; one operation is one
/// cast, with all its copies.
pub const MEMORY: &[Body] = &[
    body("cast_to_1_of_10_patterns", || cast(1, 10)),
    body("cast_to_1_of_10000_patterns", || cast(1, 10_000)),
    body("cast_to_8_of_10_patterns", || cast(8, 10)),
    body("cast_to_8_of_1000_patterns", || cast(8, 1000)),
    body("cast_to_8_of_10000_patterns", || cast(8, 10_000)),
];

/// What is cast to.
const TOPIC: &str = "stock.eu.price";
/// Patterns that mean it.
const MEANT: [&str; 8] = [
    "stock.eu.price",
    "stock.eu.*",
    "stock.*.price",
    "*.eu.price",
    "*.*.price",
    "stock.#",
    "#.price",
    "#",
];

/// A pattern that does not, though it begins or ends as those that do.
fn other(number: usize) -> String {
    match number % 5 {
        0 => format!("stock.eu.item{number}"),
        1 => format!("stock.city{number}.price"),
        2 => format!("desk{number}.eu.price"),
        3 => format!("stock.*.item{number}"),
        _ => format!("#.item{number}"),
    }
}

struct Cast {
    driver: Driver<NoStorage>,
    casts: Vec<u8>,
    purges: Vec<u8>,
    matches: usize,
}

fn cast(matches: usize, patterns: usize) -> Box<dyn Work> {
    let mut driver = Driver::open(&config(Level::None), None).0;
    let meant = MEANT.iter().take(matches).enumerate();
    let binds: String = meant
        .map(|(number, pattern)| format!("BIND {pattern} q{number}\n"))
        .chain((matches..patterns).map(|number| format!("BIND {} others\n", other(number))))
        .collect();
    driver.answered(binds.as_bytes());
    let purges: String = (0..matches)
        .map(|number| format!("PURGE q{number}\n"))
        .collect();
    let casts = format!("CAST {TOPIC} $100\n{}\n", "x".repeat(100)).repeat(OPERATIONS);
    Box::new(Cast {
        driver,
        casts: casts.into_bytes(),
        purges: purges.into_bytes(),
        matches,
    })
}

impl Work for Cast {
    fn prepare(&mut self) {
        self.driver.answered(&self.purges);
        // A purge is a job of several turns.
        while self.driver.shard.messages() > 0 {
            self.driver.end_turn();
        }
    }

    fn run(&mut self) {
        self.driver.answered(&self.casts);
        let copies = (OPERATIONS * self.matches) as u64;
        assert_eq!(self.driver.shard.messages(), copies, "each queue has each");
    }
}
