//! The index against what was located and settled.

use super::*;
use crate::broker::arena::REQUEST;

#[test]
fn finds_what_was_located_until_it_is_settled() {
    let mut index = Index::default();
    for id in 1..=5000u64 {
        index.locate(id, id * 100, 60);
    }
    assert_eq!((index.live(), index.bytes()), (5000, 300_000));
    assert_eq!(index.find(4097), Located::At(409_700));
    assert_eq!(index.find(5001), Located::Gone);
    for id in (1..=5000).step_by(2) {
        assert!(index.settle(id, Some(60)));
        assert!(!index.settle(id, Some(60)));
    }
    assert_eq!(index.next_live(1), Some(2));
    assert_eq!(index.next_live(2001), Some(2002));
    for id in (2..=5000).step_by(2) {
        assert!(index.settle(id, None));
    }
    assert_eq!((index.live(), index.bytes()), (0, 0));
    assert_eq!(index.next_live(1), None);
    assert!(index.memory() < 10_000, "{}", index.memory());
}

#[test]
fn a_run_is_located_as_its_messages_would_be_one_by_one() {
    // From the first id of a block, within one, after a gap, and where the column does not reach.
    let mut places = 7u64;
    let mut indexes = [Index::default(), Index::default()];
    for (first, count, jump) in [
        (1, 100, 0),
        (101, 1, 3),
        (102, 922, 0),
        (1024, 500, 9),
        (1600, 448, 1 << 20),
        (2048, 10, 1 << 33),
        (2058, 10, 1 << 33),
        (2068, 10, (1 << 32) - 2000),
        (5000, 10, 0),
    ] {
        places += jump;
        let offsets: Vec<u32> = (0..count).map(|nth| 50 + nth * 100).collect();
        let [one, all] = &mut indexes;
        for (id, offset) in (first..).zip(&offsets) {
            one.locate(id, places + u64::from(*offset), 60);
        }
        all.locate_run(first, places, &offsets, 60 * u64::from(count));
        for id in first..first + u64::from(count) {
            assert_eq!(all.find(id), one.find(id), "{id}");
        }
        assert_eq!((all.live(), all.bytes()), (one.live(), one.bytes()));
    }
    let [mut one, mut all] = indexes;
    for id in 1..=5010 {
        assert_eq!(all.settle(id, Some(60)), one.settle(id, Some(60)), "{id}");
    }
    assert_eq!((all.live(), all.bytes()), (0, 0));
}

/// What a restart makes of an index: its checkpoint read back.
fn restarted(index: &Index) -> Index {
    let mut twin = Index::default();
    for image in index.images(|_| 7) {
        twin.restore(image).expect("it is whole");
    }
    twin
}

#[test]
fn requests_are_found_and_left_out_of_a_checkpoint() {
    // A request may be first, last, in between, or all there is in a block.
    for of in [1, 2, 3, 700] {
        let mut index = Index::default();
        let is_request = |id: u64| id.is_multiple_of(of) || (1024..2048).contains(&id);
        for id in 1..=3000u64 {
            let (place, size) = match is_request(id) {
                true => (REQUEST | id, 7),
                false => ((5 << 26) + id * 100, 60),
            };
            index.locate(id, place, size);
        }
        let requests: Vec<_> = (1..=3000).filter(|id| is_request(*id)).collect();
        assert!(index.requests().eq(requests.iter().copied()));
        let mut twin = restarted(&index);
        for id in 1..=3000u64 {
            let found = index.find(id);
            let logged = Located::At((5 << 26) + id * 100);
            if is_request(id) {
                assert_eq!(
                    (found, twin.find(id)),
                    (Located::At(REQUEST | id), Located::Gone)
                );
            } else {
                assert_eq!((found, twin.find(id)), (logged, logged));
            }
        }
        let left = 3000 - requests.len() as u64;
        assert_eq!((twin.live(), twin.bytes()), (left, left * 60));
        for id in 1..=3000 {
            assert!(index.settle(id, None));
            assert_eq!(twin.settle(id, None), !is_request(id));
        }
        assert_eq!((twin.live(), index.requests().count()), (0, 0));
        twin.locate(3001, 9, 1);
        assert_eq!(twin.find(3001), Located::At(9));
    }
}

#[test]
fn ids_left_out_count_as_settled() {
    let mut index = Index::default();
    let ids = [1, 2, 5, 1000, 1030, 1031, 5000, 5001];
    for id in ids {
        index.locate(id, id * 10, 1);
    }
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(id) = index.next_live(from) {
        found.push(id);
        from = id + 1;
    }
    assert_eq!(found, ids);
    assert_eq!(index.live(), 8);
    let live = index.live_between(0, u64::MAX).expect("nothing is spilled");
    assert!(live.into_iter().eq(ids.map(|id| (id, id * 10))));
    for id in ids {
        assert_eq!(
            index.find(id + 1) == Located::Gone,
            !ids.contains(&(id + 1))
        );
        assert_eq!(index.find(id), Located::At(id * 10));
    }
    for id in ids {
        assert!(index.settle(id, None));
    }
    assert_eq!(index.next_live(0), None);
    assert!(index.blocks.len() <= 1, "what is settled is given back");
}

#[test]
fn places_further_than_the_column_reaches_are_kept_aside() {
    let mut index = Index::default();
    index.locate(1, 10, 1);
    index.locate(2, 10 + (1 << 40), 1);
    index.locate(3, 12, 1);
    assert_eq!(index.find(2), Located::At(10 + (1 << 40)));
    assert_eq!(index.find(3), Located::At(12));
    index.relocate(1, 1 << 63);
    assert_eq!(index.find(1), Located::At(1 << 63));
}

#[test]
fn a_spilled_column_comes_back() {
    let mut index = Index::default();
    for id in 0..3000u64 {
        index.locate(id, id * 7, 1);
    }
    let unsaved: Vec<_> = index.unsaved().collect();
    assert_eq!(
        unsaved
            .iter()
            .map(|(number, _)| *number)
            .collect::<Vec<_>>(),
        [0, 1]
    );
    for (number, _) in &unsaved {
        index.saved(*number, Slot(*number + 50));
    }
    index.turn = 10;
    assert!(index.evict(5) >= 8192);
    assert_eq!(index.find(1500), Located::Spilled(Slot(51)));
    assert_eq!(
        index.find(2500),
        Located::At(17_500),
        "the newest block stays"
    );
    assert_eq!(index.block_of(Slot(51)), Some(1));
    index.loaded(Slot(51), 1, &unsaved[1].1);
    assert_eq!(index.find(1500), Located::At(10_500));
    for id in 1024..2048 {
        index.settle(id, None);
    }
    assert_eq!(index.take_freed_slots(), [Slot(51)]);
}

#[test]
fn blocks_are_gathered_when_all_of_them_was_relocated() {
    const NEW: u64 = 1 << 63;
    let mut index = Index::default();
    for id in 0..2500u64 {
        index.locate(id, id * 7, 1);
    }
    for (number, _) in index.unsaved().collect::<Vec<_>>() {
        index.saved(number, Slot(number));
    }
    for id in 500..600 {
        index.settle(id, None);
    }
    // One was moved before, by a compaction: that does not count.
    index.relocate(3, NEW - 1);
    let places = |id: u64| NEW + if id == 9 { 1 << 40 } else { (5000 - id) * 8 };
    for id in (0..2500).filter(|id| *id != 3 && !(500..600).contains(id)) {
        index.relocate(id, places(id));
    }
    let gathered: Vec<u64> = index.gather(NEW).into_iter().map(|(at, _)| at).collect();
    assert_eq!(
        gathered,
        [1],
        "the first has an old place, the last is not full"
    );
    index.relocate(3, places(3));
    // Now the first is whole too, but one of its messages is too far away for the column.
    assert!(index.gather(NEW).is_empty() && index.gather(NEW).is_empty());
    let mut twin = restarted(&index);
    for id in 0..2500 {
        let found = match (500..600).contains(&id) {
            true => Located::Gone,
            false => Located::At(places(id)),
        };
        assert_eq!((index.find(id), twin.find(id)), (found, found), "{id}");
    }
    assert_eq!((twin.live(), twin.bytes()), (index.live(), index.bytes()));
    twin.locate(2500, 8, 1);
    assert_eq!(twin.find(2500), Located::At(8));
}

#[test]
fn a_checkpoint_says_it_all() {
    let mut index = Index::default();
    for id in 1..3000u64 {
        index.locate(id, id << 22, 5);
    }
    for id in 900..2100 {
        index.settle(id, Some(5));
    }
    let mut twin = Index::default();
    for image in index.images(|_| 0) {
        twin.restore(image).expect("it is whole");
    }
    assert_eq!((twin.live(), twin.bytes()), (index.live(), index.bytes()));
    for id in 0..3001 {
        assert_eq!(twin.find(id), index.find(id), "{id}");
    }
    twin.locate(3000, 3000 << 22, 5);
    assert_eq!(twin.find(3000), Located::At(3000 << 22));
}
