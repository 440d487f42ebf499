//! A service that is asked and answers: `REQ` and `REP` over a queue.
//!
//! More processes that subscribe to the queue share the questions; when there is none, the one who asks is
//! told at once.

use std::thread;
use std::time::Duration;

use ringmq::client::{Client, Error, Subscribe};

const TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut service = Client::connect(&addr)?;
    service.subscribe(&Subscribe::new("squares"))?;
    let service = thread::spawn(move || serve(&mut service));
    let mut client = Client::connect(&addr)?;
    for number in 1..=5_u64 {
        let answer = client.request("squares", number.to_string(), TIMEOUT)?;
        println!("{number} * {number} = {}", answer.text());
        assert_eq!(answer.text(), (number * number).to_string());
    }
    service.join().expect("it does not panic")?;
    let nobody = client.request("squares", "6", TIMEOUT).expect_err("gone");
    println!("{nobody}");
    Ok(())
}

fn serve(service: &mut Client) -> Result<(), Error> {
    while let Some(question) = service.receive(Duration::from_millis(500))? {
        let number = question.text().parse::<u64>().unwrap_or(0);
        service.reply(&question, (number * number).to_string())?;
        service.ack(&question)?;
    }
    Ok(())
}
