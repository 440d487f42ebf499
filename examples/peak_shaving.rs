//! A burst meets a bounded queue: the broker takes what fits, the publisher waits with the rest, and the
//! consumer works at its own speed. Nothing grows without a limit, and nothing is lost.

use std::thread;
use std::time::Duration;

use ringmq::client::{Client, Error, Options, Publish, Subscribe};

const BURST: u64 = 500;

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut client = Client::connect(&addr)?;
    client.set("requests", "maxlen=20 durable=none")?;
    // Without patience, what does not fit is refused at once, and whoever asked can be told.
    assert_eq!(burst(&mut client)?, 20);
    client.ask("PURGE requests")?;
    client.subscribe(&Subscribe::new("requests").credit(5))?;
    let patient = Options::new(&addr).patience(Duration::from_secs(30));
    let publisher = thread::spawn(move || burst(&mut patient.connect()?));
    for _ in 0..BURST {
        let request = client.receive(Duration::from_secs(10))?.expect("it comes");
        client.ack(&request)?;
    }
    assert_eq!(publisher.join().expect("it does not panic")?, BURST);
    Ok(())
}

fn burst(client: &mut Client) -> Result<u64, Error> {
    for number in 0..BURST {
        client.publish_nowait(&Publish::new("requests", number.to_string()))?;
    }
    let flushed = client.flush()?;
    let refused = flushed.refused.len();
    println!("{} taken, {refused} refused", flushed.confirmed);
    Ok(flushed.confirmed)
}
