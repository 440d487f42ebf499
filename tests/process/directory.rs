//! Data directories that must be refused, and one that disappears: exit codes, clear lines, and
//! nothing deleted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Broker, Launch, TempDir, contents};

/// A directory with a few confirmed messages, its broker killed.
fn used_directory(data: &Path) {
    let mut broker = Launch::data(data).start();
    let mut client = broker.client();
    for n in 0..200 {
        let receipt = client.ask(&format!("PUB jobs :this is message number {n}"));
        assert_eq!(receipt, format!("OK {} disk", n + 1));
    }
    broker.process.kill();
}

/// Refused with exit code 3 and a sentence, and not one byte is different afterwards.
fn assert_refused(launch: &Launch, data: &Path) -> String {
    let before = contents(data);
    let (code, stderr) = launch.refused();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(
        stderr.trim().len() > 20,
        "refused without a sentence: {stderr:?}"
    );
    let after = contents(data);
    let names = |files: &[(std::path::PathBuf, Vec<u8>)]| -> Vec<String> {
        files
            .iter()
            .map(|(path, bytes)| format!("{} {}", path.display(), bytes.len()))
            .collect()
    };
    assert_eq!(names(&before), names(&after), "files came or went");
    assert!(before == after, "a refused directory was changed");
    stderr
}

fn assert_all_there(broker: &Broker) {
    let messages = broker.client().pull("jobs 1000").expect("an answer");
    assert_eq!(messages.len(), 200);
    for (n, message) in messages.iter().enumerate() {
        let want = format!("this is message number {n}");
        assert_eq!(message.body, want.into_bytes());
    }
}

#[test]
fn a_second_broker_is_refused_and_the_first_goes_on() {
    let dir = TempDir::new("locked");
    let launch = Launch::data(&dir.data());
    let mut first = launch.start();
    let mut client = first.client();
    assert_eq!(client.ask("PUB q :before"), "OK 1 disk");
    for _ in 0..3 {
        let (code, stderr) = launch.refused();
        assert_eq!(code, Some(3), "{stderr}");
        let holder = format!("process {}", first.process.pid());
        assert!(stderr.contains(&holder), "{stderr}");
    }
    assert_eq!(client.ask("PUB q :after"), "OK 2 disk");
    first.process.kill();

    let second = launch.start();
    let bodies: Vec<_> = second.client().pull("q 10").expect("an answer");
    let bodies: Vec<_> = bodies
        .iter()
        .map(|message| message.body.as_slice())
        .collect();
    assert_eq!(bodies, [&b"before"[..], b"after"]);
}

#[test]
fn a_foreign_directory_is_refused_and_not_touched() {
    let dir = TempDir::new("foreign");
    fs::write(dir.path().join("thesis.txt"), "years of work").expect("a directory of ours");
    fs::create_dir(dir.path().join("photos")).expect("a directory of ours");
    fs::write(dir.path().join("photos/cat.raw"), [7; 1000]).expect("a directory of ours");
    assert_refused(&Launch::data(dir.path()), dir.path());
}

#[test]
fn a_missing_or_empty_directory_is_made_unless_it_must_exist() {
    let dir = TempDir::new("missing");
    let data = dir.data();
    let must_exist = || Launch::data(&data).arg("--data-must-exist");
    let (code, stderr) = must_exist().refused();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("--data-must-exist"), "{stderr}");
    assert!(!data.exists(), "it was made all the same");

    fs::create_dir(&data).expect("a directory of ours");
    assert_refused(&must_exist(), &data);

    let mut broker = Launch::data(&data).start();
    assert!(broker.banner().join("\n").contains("NEW, empty"));
    assert_eq!(broker.client().ask("PUB q :x"), "OK 1 disk");
    broker.terminate();

    let broker = must_exist().start();
    assert!(!broker.banner().join("\n").contains("NEW"));
    assert_eq!(broker.client().pull("q").expect("an answer").len(), 1);
}

#[test]
fn a_damaged_manifest_is_refused_and_mended_by_its_copy() {
    let dir = TempDir::new("manifest");
    let data = dir.data();
    used_directory(&data);
    let manifest = data.join("MANIFEST");
    let whole = fs::read(&manifest).expect("a data directory has a MANIFEST");
    let launch = Launch::data(&data);
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&manifest, &damaged).expect("a file of ours");
        let stderr = assert_refused(&launch, &data);
        assert!(stderr.contains("MANIFEST"), "{stderr}");
    }
    fs::write(&manifest, &whole[..whole.len() / 2]).expect("a file of ours");
    assert_refused(&launch, &data);
    fs::remove_file(&manifest).expect("a file of ours");
    assert_refused(&launch, &data);

    fs::write(&manifest, &whole).expect("a file of ours");
    assert_all_there(&launch.start());
}

#[test]
fn damage_behind_which_valid_records_stand_is_never_delivered_nor_cut() {
    let dir = TempDir::new("damage");
    let data = dir.data();
    used_directory(&data);
    let needle = b"this is message number 77";
    let (path, mut bytes, at) = contents(&data)
        .into_iter()
        .find_map(|(path, bytes)| {
            let at = bytes
                .windows(needle.len())
                .position(|window| window == needle)?;
            Some((path, bytes, at))
        })
        .expect("bodies are stored as they are");
    bytes[at + 3] ^= 1;
    fs::write(&path, &bytes).expect("a file of ours");
    let launch = Launch::data(&data);
    let stderr = assert_refused(&launch, &data);
    let name = path
        .file_name()
        .expect("a file")
        .to_string_lossy()
        .into_owned();
    assert!(
        stderr.contains(&name) && stderr.contains("offset"),
        "{stderr}"
    );

    bytes[at + 3] ^= 1;
    fs::write(&path, &bytes).expect("a file of ours");
    assert_all_there(&launch.start());
}

#[test]
fn a_directory_deleted_underneath_stops_the_broker() {
    let dir = TempDir::new("deleted");
    let data = dir.data();
    let mut broker = Launch::data(&data).start();
    let mut client = broker.client();
    assert_eq!(client.ask("PUB q :x"), "OK 1 disk");
    // The broker may lay out its next segment just now.
    let removed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        fs::remove_dir_all(&data).is_ok() || !data.exists()
    });
    assert!(removed, "a directory of ours");
    let status = broker.process.wait(Duration::from_secs(4));
    let status = status.expect("it goes on without a directory");
    assert_eq!(status.code(), Some(1), "{}", broker.process.stderr());
    // Whichever comes first, the look after the directory or a write that fails.
    let stderr = broker.process.stderr();
    assert!(stderr.contains("nothing more can be confirmed"), "{stderr}");
    assert!(!data.exists(), "it came back");
}
