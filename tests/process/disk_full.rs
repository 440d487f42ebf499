//! A disk without space: publishes are refused with a time to try again, acks and pulls go on, and
//! it heals by itself; where a small filesystem may be mounted, with a disk that is really full.
//! A file size limit takes away space that the broker had.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::os::{self, Limit};
use crate::support::{Broker, Launch, TempDir, eventually};

const BODY_BYTES: usize = 200_000;

/// The body of the nth message.
fn body(n: usize) -> Vec<u8> {
    let mut body = format!("{n} ").into_bytes();
    body.resize(BODY_BYTES, b'a' + (n % 26) as u8);
    body
}

/// Publishes until the disk refuses; the number that was confirmed.
fn fill(client: &mut Client, most: usize) -> usize {
    for n in 0..most {
        let answer = client
            .publish("jobs", &body(n))
            .expect("the broker stays up");
        if answer.starts_with("ERR") {
            assert!(answer.starts_with("ERR DISK retry="), "{answer}");
            return n;
        }
        assert_eq!(answer, format!("OK {} disk", n + 1));
    }
    panic!("{most} messages of {BODY_BYTES} bytes fit where they should not");
}

/// Pulls and acks go on; the number that was acked.
fn assert_consumers_go_on(broker: &mut Broker, confirmed: usize) -> usize {
    broker.assert_well();
    let mut client = broker.client();
    let messages = client.pull("jobs 5 lease=60s").expect("pulls go on");
    assert_eq!(messages.len(), confirmed.min(5));
    for (n, message) in messages.iter().enumerate() {
        assert!(message.body == body(n), "message {n} has other octets");
        let start = Instant::now();
        let ack = format!("ACK {}", message.handle);
        if n % 2 == 0 {
            assert_eq!(client.ask(&ack), "OK 1");
        } else {
            // In a transaction too, unless it publishes.
            assert_eq!(client.ask("BEGIN"), "OK");
            let answer = client.publish("other", &body(n)).expect("it is up");
            assert_eq!(answer, "OK queued");
            assert_eq!(client.ask(&ack), "OK queued");
            let answer = client.ask("COMMIT");
            assert!(answer.starts_with("ERR DISK retry="), "{answer}");
            assert_eq!(client.ask("BEGIN"), "OK");
            assert_eq!(client.ask(&ack), "OK queued");
            assert_eq!(client.ask("COMMIT"), "OK 1");
        }
        assert!(start.elapsed() < Duration::from_secs(5));
    }
    messages.len()
}

/// The files of a data directory with their sizes, and the space of the disk they are on.
fn what_is_there(data: &Path) -> String {
    let mut list = Command::new("sh");
    list.args(["-c", "ls -lR \"$1\"; df \"$1\"", "sh"])
        .arg(data);
    let output = list.output().expect("there is a shell");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// After space has come back: publishes are taken again; then nothing confirmed is missing after a
/// kill, and nothing acked or refused is there.
fn assert_heals(mut broker: Broker, launch: &Launch, data: &Path, confirmed: usize, acked: usize) {
    let mut client = broker.client();
    eventually("publishes are taken again", Duration::from_secs(10), || {
        let answer = client
            .publish("jobs", b"healed")
            .expect("the broker stays up");
        assert!(
            answer.starts_with("OK ") || answer.starts_with("ERR DISK retry="),
            "{answer}"
        );
        answer.starts_with("OK ")
    });
    broker.process.kill();
    // Shown if the start fails.
    println!("{}", what_is_there(data));
    let broker = launch.start();
    let mut client = broker.client();
    let mut bodies = Vec::new();
    loop {
        let messages = client.pull("jobs 100 lease=60s").expect("an answer");
        if messages.is_empty() {
            break;
        }
        bodies.extend(messages.into_iter().map(|message| message.body));
    }
    assert_eq!(bodies.pop().as_deref(), Some(&b"healed"[..]));
    assert_eq!(bodies.len(), confirmed - acked);
    for (index, got) in bodies.iter().enumerate() {
        assert!(
            *got == body(acked + index),
            "message {} has other octets",
            acked + index
        );
    }
}

/// Segments have their space before they are used. A limit that is set later takes it away again,
/// as a filesystem that copies on write may.
#[test]
fn space_that_is_taken_away_leaves_no_client_without_an_answer() {
    let dir = TempDir::new("limit");
    let launch = Launch::data(&dir.data());
    let mut broker = launch.start();
    let mut client = broker.client();
    // Now the first segment is there in its whole size.
    assert_eq!(client.ask("PUB other :x"), "OK 1 disk");
    os::set_limit(broker.process.pid(), Limit::FileSize, Some(8 << 20));
    let mut confirmed = 0;
    let unknown = loop {
        let answer = client
            .publish("jobs", &body(confirmed))
            .expect("the broker stays up");
        if answer != format!("OK {} disk", confirmed + 1) {
            break answer;
        }
        confirmed += 1;
        assert!(confirmed < 50, "{confirmed} messages fit 8 MiB");
    };
    assert!(confirmed > 30, "only {confirmed} messages fit 8 MiB");
    assert!(unknown.starts_with("ERR UNKNOWNRESULT :"), "{unknown}");
    let refused = client
        .publish("jobs", &body(0))
        .expect("the broker stays up");
    assert!(refused.starts_with("ERR DISK retry="), "{refused}");
    let messages = client.pull("jobs 5 lease=60s").expect("pulls go on");
    assert_eq!(messages.len(), 5);
    let acked = client.ask(&format!("ACK {}", messages[0].handle));
    assert!(acked.starts_with("ERR UNKNOWNRESULT :"), "{acked}");
    assert_eq!(client.ask("PING"), "PONG");
    broker.assert_well();

    os::set_limit(broker.process.pid(), Limit::FileSize, None);
    eventually("publishes are taken again", Duration::from_secs(10), || {
        let answer = client
            .publish("jobs", b"healed")
            .expect("the broker stays up");
        answer.starts_with("OK ")
    });
    broker.process.kill();
    let broker = launch.start();
    let mut client = broker.client();
    let mut bodies = Vec::new();
    loop {
        let messages = client.pull("jobs 100 lease=60s").expect("an answer");
        if messages.is_empty() {
            break;
        }
        bodies.extend(messages.into_iter().map(|message| message.body));
    }
    assert_eq!(bodies.pop().as_deref(), Some(&b"healed"[..]));
    // The acknowledged one may be there; so may the one whose result was unknown, behind the others.
    let first = usize::from(bodies[0] != body(0));
    let last = confirmed + usize::from(first + bodies.len() > confirmed);
    assert_eq!(first + bodies.len(), last);
    for (index, got) in bodies.iter().enumerate() {
        assert!(
            *got == body(first + index),
            "message {} has other octets",
            first + index
        );
    }
}

/// A mounted tmpfs, unmounted at the end.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(dir: &TempDir, size: &str) -> Option<SmallDisk> {
        let path = dir.path().join("disk");
        fs::create_dir(&path).expect("a directory of ours");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "ringmq-test"])
            .arg(&path);
        let status = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let mounted = status.is_ok_and(|status| status.success());
        mounted.then_some(SmallDisk { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a broker that was killed a moment ago may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Takes all the space that is left.
fn ballast(dir: &Path) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = fs::File::create(&path).expect("a directory of ours");
    let block = vec![0; 64 << 10];
    while file.write_all(&block).is_ok() {}
    while file.write_all(&block[..512]).is_ok() {}
    path
}

/// Gives the space back. A process that another test was starting at the moment may have had the file
/// open with us, and then the space comes when it does no more.
fn remove_ballast(path: &Path) {
    fs::remove_file(path).expect("a file of ours");
    let probe = path.with_file_name("probe");
    eventually("the space comes back", Duration::from_secs(10), || {
        let written = fs::write(&probe, vec![0; 1 << 20]);
        fs::remove_file(&probe).expect("a file of ours");
        written.is_ok()
    });
}

#[test]
fn a_full_disk_refuses_publishes_and_nothing_else() {
    let dir = TempDir::new("full");
    let Some(disk) = SmallDisk::mount(&dir, "24m") else {
        println!("mounting is not permitted here; tests/log/faults.rs fills a disk of its own");
        return;
    };
    let data = disk.path.join("data");
    let launch = Launch::data(&data).arg("--segment 1M --checkpoint 1M");
    let mut broker = launch.start();
    let mut client = broker.client();
    assert_eq!(client.ask("PUB other :x"), "OK 1 disk");
    // Segments that are prepared ahead have their space; what comes after them has none.
    let path = ballast(&disk.path);
    let confirmed = fill(&mut client, 1000);
    let acked = assert_consumers_go_on(&mut broker, confirmed);
    remove_ballast(&path);
    assert_heals(broker, &launch, &data, confirmed, acked);
}

#[test]
fn a_disk_that_is_full_at_start_is_told() {
    let dir = TempDir::new("fullstart");
    let Some(disk) = SmallDisk::mount(&dir, "4m") else {
        println!("mounting is not permitted here");
        return;
    };
    let data = disk.path.join("data");
    fs::create_dir(&data).expect("a directory of ours");
    let path = ballast(&disk.path);
    let launch = Launch::data(&data).arg("--segment 1M --checkpoint 1M");
    let (code, stderr) = launch.refused();
    assert!(matches!(code, Some(1 | 3)), "{code:?} {stderr}");
    assert!(stderr.to_lowercase().contains("space"), "{stderr}");
    remove_ballast(&path);
    let mut broker = launch.start();
    broker.assert_well();
}
