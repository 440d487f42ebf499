//! A sign-up e-mail is tried again, a little later each time, and becomes a dead letter in the end.

use std::time::Duration;

use ringmq::client::{Client, Error, Nack, Publish, Pull};

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut client = Client::connect(&addr)?;
    // Three tries, 20 ms after the first and 40 ms after the second; a real queue waits for minutes.
    client.set("emails", "maxdeliver=3 backoff=20ms..1s")?;
    for user in ["ann@example.org", "flaky@example.org", "nobody@invalid"] {
        client.publish(&Publish::new("emails", user).header("template", "welcome"))?;
    }
    let pull = Pull::new("emails").wait(Duration::from_secs(1));
    while let Some(email) = client.pull(&pull)?.pop() {
        match send(&email.text(), email.tries()) {
            Ok(()) => client.ack(&email)?,
            Err(why) => client.nack(&email, &Nack::new().why(why))?,
        };
    }
    let dead = client.pull(&Pull::new("emails.dead"))?.remove(0);
    let why = String::from_utf8_lossy(dead.header("dead-why").unwrap_or_default());
    println!("{} was given up: {why}", dead.text());
    assert_eq!(why, "no such host");
    client.ack(&dead)?; // Or `client.ask("MOVE emails.dead emails")`, which tries again.
    Ok(())
}

/// The mail server of this example.
fn send(user: &str, tries: u64) -> Result<(), &'static str> {
    println!("try {tries}: to {user}");
    match user.split_once('@') {
        Some((_, "invalid")) => Err("no such host"),
        Some(("flaky", _)) if tries == 1 => Err("try again later"),
        _ => Ok(()),
    }
}
