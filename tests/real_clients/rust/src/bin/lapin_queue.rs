//! lapin: confirms, prefetch, redelivery, topics, gets, returns, and its automatic recovery while the broker is killed.
//!
//! lapin_queue PORT RESTART: RESTART is a command that kills the broker and starts it again on its port and data.

use std::collections::BTreeSet;
use std::process::Command;

use futures_lite::StreamExt;
use lapin::message::Delivery;
use lapin::options::*;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, Result,
};

const PERSISTENT: u8 = 2;

async fn declare(channel: &Channel, queue: &str, arguments: FieldTable) -> Result<u32> {
    let declared = channel
        .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
        .await?;
    Ok(declared.message_count())
}

/// Publishes without waiting between, then reads every confirm.
async fn publish(channel: &Channel, queue: &str, bodies: &[String]) -> Result<()> {
    let mut confirms = Vec::new();
    for body in bodies {
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let options = BasicPublishOptions::default();
        confirms.push(
            channel
                .basic_publish(
                    "".into(),
                    queue.into(),
                    options,
                    body.as_bytes(),
                    properties,
                )
                .await?,
        );
    }
    for confirm in confirms {
        assert!(confirm.await?.is_ack());
    }
    Ok(())
}

async fn consume(channel: &Channel, queue: &str, tag: &str) -> Result<Consumer> {
    let options = BasicConsumeOptions::default();
    channel
        .basic_consume(queue.into(), tag.into(), options, FieldTable::default())
        .await
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.data.clone()).expect("it was text")
}

fn bodies(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|nth| format!("message {nth}")).collect()
}

async fn work_queue(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    declare(&channel, "task_queue", FieldTable::default()).await?;
    let sent = bodies(0..1000);
    publish(&channel, "task_queue", &sent).await?;
    channel.basic_qos(10, BasicQosOptions::default()).await?;
    let mut consumer = consume(&channel, "task_queue", "worker").await?;
    let (mut got, mut again) = (BTreeSet::new(), 0);
    let mut last_first = None;
    while got.len() < sent.len() {
        let delivery = consumer.next().await.expect("it goes on")?;
        let body = text(&delivery);
        let nth: u32 = body[8..].parse().expect("a number");
        if nth.is_multiple_of(10) && !delivery.redelivered {
            assert!(
                delivery
                    .nack(BasicNackOptions {
                        requeue: true,
                        ..Default::default()
                    })
                    .await?
            );
            continue;
        }
        if delivery.redelivered {
            again += 1;
            let headers = delivery
                .properties
                .headers()
                .as_ref()
                .expect("it was handed out before");
            assert_eq!(
                headers.inner().get("x-delivery-count"),
                Some(&AMQPValue::LongLongInt(1))
            );
        } else {
            // What is new comes in the order of its publish.
            assert!(last_first < Some(nth), "{last_first:?} {nth}");
            last_first = Some(nth);
        }
        assert!(got.insert(body), "each once");
        assert!(delivery.ack(BasicAckOptions::default()).await?);
    }
    assert_eq!((got, again), (sent.into_iter().collect(), 100));
    channel
        .basic_cancel("worker".into(), BasicCancelOptions::default())
        .await?;

    // Gets, and what goes back with its channel.
    publish(&channel, "task_queue", &bodies(0..1)).await?;
    let other = connection.create_channel().await?;
    let held = other
        .basic_get("task_queue".into(), BasicGetOptions::default())
        .await?
        .expect("it is there");
    assert!(!held.delivery.redelivered);
    assert!(
        channel
            .basic_get("task_queue".into(), BasicGetOptions::default())
            .await?
            .is_none()
    );
    other.close(200, "done".into()).await?;
    let back = channel
        .basic_get("task_queue".into(), BasicGetOptions::default())
        .await?
        .expect("it is back");
    assert!(back.delivery.redelivered);
    back.delivery.ack(BasicAckOptions::default()).await?;

    // A publish that reaches nobody comes back with its confirm.
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let confirm = channel
        .basic_publish(
            "".into(),
            "nowhere".into(),
            options,
            b"back",
            BasicProperties::default(),
        )
        .await?
        .await?;
    assert!(confirm.is_ack());
    let returned = confirm.take_message().expect("it came back");
    assert_eq!(
        (returned.reply_code, &returned.delivery.data[..]),
        (312, &b"back"[..])
    );
    channel.close(200, "done".into()).await
}

async fn topics(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .exchange_declare(
            "logs".into(),
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        )
        .await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..Default::default()
    };
    let queue = channel
        .queue_declare("".into(), options, FieldTable::default())
        .await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(
            queue.name().clone(),
            "logs".into(),
            "*.error".into(),
            options,
            FieldTable::default(),
        )
        .await?;
    let mut headers = FieldTable::default();
    headers.insert("nth".into(), AMQPValue::LongInt(7));
    headers.insert("flag".into(), AMQPValue::Boolean(true));
    headers.insert("when".into(), AMQPValue::Timestamp(1_700_000_000));
    headers.insert("ratio".into(), AMQPValue::Double(0.25));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_content_type("text/plain".into())
        .with_correlation_id("c".into())
        .with_priority(3);
    for key in ["a.error", "a.info", "b.error"] {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(
                "logs".into(),
                key.into(),
                options,
                key.as_bytes(),
                properties.clone(),
            )
            .await?;
    }
    let mut consumer = consume(&channel, queue.name().as_str(), "").await?;
    for key in ["a.error", "b.error"] {
        let delivery = consumer.next().await.expect("it goes on")?;
        assert_eq!(
            (text(&delivery), delivery.routing_key.as_str()),
            (key.to_owned(), key)
        );
        assert_eq!(delivery.exchange.as_str(), "logs");
        assert_eq!(delivery.properties, properties);
        delivery.ack(BasicAckOptions::default()).await?;
    }
    // A queue's error closes its channel.
    let error = channel
        .queue_declare(
            "none".into(),
            QueueDeclareOptions {
                passive: true,
                ..Default::default()
            },
            FieldTable::default(),
        )
        .await
        .expect_err("there is no such queue");
    assert!(
        error.to_string().contains("NOT_FOUND") || error.to_string().contains("NOT-FOUND"),
        "{error}"
    );
    Ok(())
}

/// The client's own recovery connects again, opens its channel, declares and consumes as before.
async fn recovers(uri: &str, restart: &str) -> Result<()> {
    let connection =
        Connection::connect(uri, ConnectionProperties::default().enable_auto_recover()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    declare(&channel, "recovered", FieldTable::default()).await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let sent = bodies(0..50);
    publish(&channel, "recovered", &sent).await?;
    let mut consumer = consume(&channel, "recovered", "worker").await?;
    let first = consumer.next().await.expect("it goes on")?;
    assert_eq!(text(&first), sent[0]);
    let status = Command::new("sh")
        .args(["-c", restart])
        .status()
        .expect("sh is there");
    assert!(status.success());
    // Nothing was acked; all that was confirmed comes to the consumer that has come back by itself.
    let mut got = Vec::new();
    while got.len() < sent.len() {
        match consumer.next().await.expect("it goes on") {
            Ok(delivery) => {
                got.push(text(&delivery));
                delivery.ack(BasicAckOptions::default()).await?;
            }
            Err(error) => channel.wait_for_recovery(error).await?,
        }
    }
    assert_eq!(got, sent);
    connection.close(200, "done".into()).await
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().expect("a port");
    let restart = arguments.next().expect("a command");
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("it starts");
    runtime.block_on(async {
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
        work_queue(&connection).await?;
        topics(&connection).await?;
        connection.close(200, "done".into()).await?;
        recovers(&uri, &restart).await
    })
}
