//! A queue's messages in every state.

use super::*;
use crate::broker::arena::REQUEST;

fn queue() -> Queue {
    Queue::new(QueueUid(1), b"q", b"q".to_vec(), Settings::default())
}

fn plain(place: u64) -> Published {
    Published {
        place,
        size: 10,
        pri: 0,
        due_us: 0,
        expires_us: None,
        now_us: 0,
    }
}

#[test]
fn a_message_is_hidden_then_ready_then_leased_then_gone() {
    let mut queue = queue();
    let id = queue.publish(plain(5));
    assert_eq!((id, queue.state(1), queue.take()), (1, State::Hidden, None));
    queue.reveal(2);
    assert_eq!(queue.state(1), State::Ready);
    assert_eq!(queue.take(), Some((1, 0)));
    assert_eq!((queue.state(1), queue.leased()), (State::Leased, 1));
    queue.set_failed(1, 1);
    queue.put_back(1, 0, 0);
    assert_eq!((queue.take(), queue.next_try(1)), (Some((1, 0)), 2));
    queue.settle_leased(1, Some(10));
    assert_eq!(
        (queue.state(1), queue.leased(), queue.index.bytes()),
        (State::Gone, 0, 0)
    );
    assert_eq!(queue.next_try(1), 1);
}

#[test]
fn a_rate_lets_a_second_in_at_once_and_then_its_share() {
    let mut queue = queue();
    queue.settings.rate = Some(10);
    let mut now_us = 5_000_000;
    let publish = |queue: &mut Queue, now_us, count| {
        let wait_us = queue.wait_for_rate_us(now_us, count);
        if wait_us == 0 {
            queue.count_for_rate(now_us, count);
        }
        wait_us
    };
    for _ in 0..10 {
        assert_eq!(publish(&mut queue, now_us, 1), 0);
    }
    assert_eq!(publish(&mut queue, now_us, 1), 100_000);
    assert_eq!(publish(&mut queue, now_us, 5), 500_000);
    now_us += 100_000;
    assert_eq!(publish(&mut queue, now_us, 1), 0);
    assert_eq!(publish(&mut queue, now_us, 1), 100_000);
    // A batch of three seconds comes when nothing is ahead, and then waits are as long.
    now_us += 1_000_000;
    assert_eq!(publish(&mut queue, now_us, 30), 0);
    assert_eq!(publish(&mut queue, now_us, 1), 2_100_000);
    queue.settings.rate = Some(1_000_000);
    assert_eq!(publish(&mut queue, now_us + 10_000_000, 1_000_000), 0);
    assert_eq!(publish(&mut queue, now_us + 10_000_000, 1), 1);
}

#[test]
fn delayed_and_priority_messages_find_their_place() {
    let mut queue = queue();
    queue.publish(plain(1));
    queue.publish(Published {
        due_us: 50,
        pri: 3,
        ..plain(2)
    });
    queue.publish(Published { pri: 7, ..plain(3) });
    queue.publish(plain(4));
    queue.reveal(5);
    assert_eq!(
        (queue.ready(), queue.delayed(), queue.next_timer_us()),
        (3, 1, Some(50))
    );
    assert_eq!(queue.wake_due(49, 10), 0);
    assert_eq!(queue.wake_due(50, 10), 1);
    let order: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
    assert_eq!(order, [(3, 7), (2, 3), (1, 0), (4, 0)]);
}

#[test]
fn an_image_leaves_requests_out() {
    let mut queue = queue();
    for n in 0..12 {
        let place = if n % 3 == 0 { REQUEST | n } else { 1000 + n };
        queue.publish(plain(place));
    }
    queue.reveal(13);
    let (leased, pri) = queue.take().expect("some are ready");
    queue.set_failed(4, 2);
    let requests = queue.index.requests().collect();
    let image = queue.image(&[(leased, pri)], &requests);
    let runs = [(2, 2), (5, 2), (8, 2), (11, 2)];
    assert_eq!(image.lanes.values().collect::<Vec<_>>(), [&runs.to_vec()]);
    assert_eq!((image.next_id, image.tries.len()), (13, 0));
}

#[test]
fn an_image_keeps_every_state() {
    let mut queue = queue();
    for n in 0..10 {
        queue.publish(Published {
            due_us: if n == 4 { 99 } else { 0 },
            pri: (n % 3) as u8,
            ..plain(n)
        });
    }
    queue.reveal(8);
    let (leased, pri) = queue.take().expect("some are ready");
    queue.set_failed(leased, 2);
    queue.settle_waiting(1, None);
    let image = queue.image(&[(leased, pri)], &BTreeSet::new());
    let mut twin = Queue::new(QueueUid(1), b"q", b"q".to_vec(), Settings::default());
    for block in queue.index.images(|_| 0) {
        twin.index.restore(block).expect("it is whole");
    }
    twin.restore(&image);
    assert_eq!(twin.ready() + twin.delayed(), 9);
    assert_eq!(twin.next_try(leased), 3);
    assert_eq!(twin.state(5), State::Delayed);
    assert_eq!(twin.state(leased), State::Ready);
    assert_eq!(twin.next_id(), 11);
}
