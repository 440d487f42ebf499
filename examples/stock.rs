//! Orders are taken while the stock system is down; it catches up when it is back.
//!
//! The shop knows a queue and not the stock system, so neither waits for the other. An order that is
//! told twice, by a shop that was restarted, counts once: `once=` is its number.

use std::time::Duration;

use ringmq::client::{Client, Error, Publish, Pull};

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut shop = Client::connect(&addr)?;
    let run = std::process::id();
    for number in (0..100).chain([99]) {
        let order = Publish::new("stock-changes", "-2").once(&format!("order-{run}-{number}"));
        shop.publish_nowait(&order)?;
    }
    let flushed = shop.flush()?;
    println!("{} told, {} twice", flushed.confirmed, flushed.duplicates);

    let mut stock_system = Client::connect(&addr)?;
    let mut stock = 1000;
    let wait = Duration::from_millis(200);
    let pull = Pull::new("stock-changes").count(50).wait(wait);
    loop {
        let changes = stock_system.pull(&pull)?;
        if changes.is_empty() {
            break;
        }
        for change in &changes {
            stock += change.text().parse::<i64>().expect("a number");
            stock_system.ack_nowait(change);
        }
        println!("{} changes, {stock} left", changes.len());
    }
    assert_eq!((stock, flushed.duplicates), (800, 1));
    stock_system.flush().map(|_| ())
}
