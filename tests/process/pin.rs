//! `--pin`: the event loops' threads run where they are told, and nothing else does not.

use std::collections::BTreeMap;
use std::fs;

use crate::support::Launch;

/// The cores that a status file of /proc lists, as in `0-2,5`.
fn cores(status: &str) -> Vec<usize> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = line.expect("Linux tells").trim().split(',');
    let number = |text: &str| -> usize { text.parse().expect("cores are numbers") };
    ranges
        .flat_map(|range| match range.split_once('-') {
            Some((first, last)) => (number(first)..=number(last)).collect::<Vec<_>>(),
            None => vec![number(range)],
        })
        .collect()
}

/// The cores of each thread of a process, by the thread's name; of the first thread it is `first`.
fn threads(pid: u32) -> BTreeMap<String, Vec<usize>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs") {
        let task = task.expect("it can be listed");
        let read = |file: &str| fs::read_to_string(task.path().join(file)).expect("it runs");
        let name = match task.file_name().to_str() == Some(&pid.to_string()) {
            true => "first".to_owned(),
            false => read("comm").trim().to_owned(),
        };
        threads.insert(name, cores(&read("status")));
    }
    threads
}

#[test]
fn each_event_loop_keeps_to_its_core() {
    let allowed = cores(&fs::read_to_string("/proc/self/status").expect("we run"));
    let shards = allowed.len().min(2);
    let dir = crate::support::TempDir::new("pin");
    let mut reversed: Vec<usize> = allowed[..shards].to_vec();
    reversed.reverse();
    let named: Vec<String> = reversed.iter().map(usize::to_string).collect();
    for (pin, wanted) in [
        ("auto".to_owned(), allowed[..shards].to_vec()),
        (named.join(","), reversed),
    ] {
        let launch = Launch::data(&dir.data()).arg(&format!("--shards {shards} --pin {pin}"));
        let mut broker = launch.start();
        assert_eq!(
            broker.client().ask("PUB jobs :x").split(' ').next(),
            Some("OK")
        );
        let threads = threads(broker.process.pid());
        for (shard, core) in wanted.iter().enumerate() {
            let name = match shard {
                0 => "first".to_owned(),
                shard => format!("shard-{shard}"),
            };
            assert_eq!(threads[&name], [*core], "{pin}: {name} of {threads:?}");
        }
        assert_eq!(threads["log-sync"], allowed, "{pin}: {threads:?}");
        let banner = broker.banner().join("\n");
        assert!(banner.contains("pinned to cores"), "{banner}");
        broker.terminate();
    }
}

#[test]
fn cores_that_cannot_be_had_are_refused() {
    for (arguments, said) in [
        ("--pin 9999", "may not use"),
        ("--pin 0,1", "there is one event loop"),
        (
            "--shards 256 --memory-budget 8G --pin auto",
            "--pin auto needs a core",
        ),
        ("--pin one", "--pin takes"),
    ] {
        let (code, text) = Launch::memory().arg(arguments).refused();
        assert_eq!(code, Some(2), "{arguments}: {text}");
        assert!(text.contains(said), "{arguments}: {text}");
    }
}
