//! A report is made in the background, and tells how far it is.
//!
//! The request names a queue for the answers; the worker publishes progress to it, and at last the
//! report. Both sides may be restarted in between.

use std::thread;
use std::time::Duration;

use ringmq::client::{Client, Error, Publish, Pull};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Error> {
    let addr = std::env::var("RINGMQ_ADDR").unwrap_or_else(|_| "127.0.0.1:7766".to_owned());
    let mut client = Client::connect(&addr)?;
    let answers = format!("report-answers-{}", std::process::id());
    client.publish(&Publish::new("reports", "sales of May").reply_to(&answers))?;
    println!("asked for; something else could be done now");
    let worker = thread::spawn(move || make_report(&mut Client::connect(&addr)?));
    let mut said = String::new();
    while !said.starts_with("report") {
        let answer = client.pull(&Pull::new(&answers).wait(PATIENCE))?.remove(0);
        client.ack(&answer)?;
        said = answer.text().into_owned();
        println!("{said}");
    }
    client.ask(&format!("QDEL {answers}"))?;
    worker.join().expect("the worker does not panic")
}

fn make_report(client: &mut Client) -> Result<(), Error> {
    let request = client.pull(&Pull::new("reports").wait(PATIENCE))?.remove(0);
    let answers = String::from_utf8_lossy(request.reply_to().unwrap_or_default());
    for answer in ["10 %", "60 %", "report: 42 were sold"] {
        client.publish(&Publish::new(&answers, answer).ttl(Duration::from_secs(3600)))?;
    }
    client.ack(&request).map(|_| ())
}
