//! AMQP 0-9-1 against the real binary: what programs written for RabbitMQ rely on without saying so.

use crate::support::amqp::*;
use crate::support::{Launch, TempDir};

#[test]
fn an_answer_behind_a_reject_tells_that_the_dead_letter_is_there() {
    let dir = TempDir::new("amqp-clients");
    let broker = Launch::data(&dir.data()).start();
    let mut client = Client::open(broker.address);
    for target in ["dead", "copy"] {
        client.declare(target, DURABLE, b"");
        client.bind(target, "amq.fanout", "");
    }
    let to = texts(&[("x-dead-letter-exchange", "amq.fanout")]);
    client.declare("dies", DURABLE, &to);
    for nth in 0..20 {
        client.publish("", "dies", &nth.to_string());
        let (got, _) = client.get("dies", 0).expect("it was published before");
        client.reject(got.tag, false);
        // The disk has both copies before this is answered.
        for target in ["dead", "copy"] {
            let (dead, _) = client.get(target, NO_ACK).expect("it was rejected before");
            assert_eq!(dead.body(), nth.to_string());
        }
    }
}
