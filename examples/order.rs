//! An order is handed to one worker, however many there are.
//!
//! Two workers subscribe to the same queue; each order goes to the one that has room. An order that is
//! not acked when a worker dies would go to the other one.

use std::thread;
use std::time::Duration;

use ringmq::client::{Client, Error, Publish, Subscribe};

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let workers = ["ann", "bob"].map(|name| {
        let addr = addr.clone();
        thread::spawn(move || work(name, &addr))
    });
    let mut shop = Client::connect(&addr)?;
    for number in 1..=10 {
        let receipt = shop.publish(&Publish::new("orders", format!("order {number}")))?;
        println!("order {number} is accepted at {}", receipt.level.receipt());
    }
    let done = workers.map(|worker| worker.join().expect("a worker does not panic"));
    let mut done = done.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    done.sort_unstable();
    assert_eq!(done.len(), 10, "each order was worked on once: {done:?}");
    Ok(())
}

fn work(name: &str, addr: &str) -> Result<Vec<Option<u64>>, Error> {
    let mut client = Client::connect(addr)?;
    let mut done = Vec::new();
    client.subscribe(&Subscribe::new("orders").credit(1))?;
    while let Some(order) = client.receive(Duration::from_secs(1))? {
        println!("{name} works on {}", order.text());
        client.ack(&order)?;
        done.push(order.id());
    }
    Ok(done)
}
