//! A status change is fanned out to every monitor that wants to know, and kept for the record.
//!
//! Monitors get copies while they are there; one that reads too slowly is told how many it has missed.
//! The record is a queue: it keeps what is cast to its pattern until that is read.

use std::time::Duration;

use ringmq::client::{Client, Error, Pull, Subscribe};

const SECOND: Duration = Duration::from_secs(1);

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut plant = Client::connect(&addr)?;
    plant.ask("BIND status.# status-record")?;
    let mut monitors = Vec::new();
    for _ in 0..50 {
        let mut monitor = Client::connect(&addr)?;
        monitor.subscribe(&Subscribe::live("status.*.pump"))?;
        monitors.push(monitor);
    }
    plant.ask("CAST status.hall2.pump :running")?;
    plant.ask("CAST status.hall2.lamp :off")?;
    for monitor in &mut monitors {
        let change = monitor.receive(SECOND)?.expect("a copy for each");
        println!("{} is {}", change.source, change.text());
        assert_eq!((&*change.text(), monitor.missed()), ("running", 0));
    }
    let record = plant.pull(&Pull::new("status-record").count(10).wait(SECOND))?;
    assert_eq!(record.len(), 2, "both changes are on record");
    for change in &record {
        plant.ack(change)?;
    }
    plant.ask("QDEL status-record").map(|_| ())
}
