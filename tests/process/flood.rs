//! Very many connections: thousands at once, opened and closed without end, and more than the
//! process may have files for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::os::{self, Limit};
use crate::support::{Launch, eventually};

/// Connects a client that is not yet known to be served.
fn connect(address: SocketAddr) -> Client {
    Client::try_connect(address).expect("the kernel completes connects for a listening broker")
}

/// One line for one line, on a bare socket: a client costs one descriptor.
fn ping(stream: &mut TcpStream) {
    stream.write_all(b"PING :here\n").expect("the broker reads");
    let mut answer = [0; 11];
    stream.read_exact(&mut answer).expect("the broker answers");
    assert_eq!(&answer, b"PONG :here\n");
}

#[test]
fn ten_thousand_connects_at_once_are_served() {
    let files = os::raise_open_files();
    let count = if files > 11_000 { 10_000 } else { files / 2 };
    let mut broker = Launch::memory().start();
    let pid = broker.process.pid();
    broker.assert_well();
    let before = os::resident_bytes(pid);
    let address = broker.address;
    let start = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                let connect = |_| TcpStream::connect(address).expect("the broker listens");
                let mut clients: Vec<TcpStream> = (0..count / 4).map(connect).collect();
                for client in &mut clients {
                    client
                        .set_read_timeout(Some(Duration::from_secs(20)))
                        .expect("a valid timeout");
                    ping(client);
                }
                clients
            })
        })
        .collect();
    let clients: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("every client was served"))
        .collect();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let each = os::resident_bytes(pid).saturating_sub(before) / clients.len() as u64;
    println!(
        "{} clients served in {took:?}, {each} bytes each",
        clients.len()
    );
    assert!(each < 4096, "an idle connection holds {each} bytes");
    broker.assert_well();
    drop(clients);
    eventually(
        "every descriptor is closed",
        Duration::from_secs(10),
        || os::open_files(pid) < 50,
    );
    broker.assert_well();
}

#[test]
fn connections_opened_and_closed_without_end_leave_nothing_behind() {
    let mut broker = Launch::memory().start();
    broker.assert_well();
    let address = broker.address;
    let threads: Vec<_> = (0..4)
        .map(|worker| {
            thread::spawn(move || {
                for n in 0..1_500 {
                    match TcpStream::connect(address) {
                        Ok(stream) if (n + worker) % 3 == 0 => {
                            let socket = socket2::Socket::from(stream);
                            socket
                                .set_linger(Some(Duration::ZERO))
                                .expect("a socket takes it");
                        }
                        Ok(stream) => drop(stream),
                        Err(error) => panic!("connect {n}: {error}"),
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("every connect was taken");
    }
    eventually(
        "every descriptor is closed",
        Duration::from_secs(10),
        || os::open_files(broker.process.pid()) < 50,
    );
    assert!(os::resident_bytes(broker.process.pid()) < 256 << 20);
    broker.assert_well();
}

/// Served, or closed without an answer; never left hanging.
fn is_served(client: &mut Client) -> bool {
    let stream = client.stream();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a valid timeout");
    match client.try_ask("PING :x") {
        Ok(answer) => {
            assert_eq!(answer, "PONG :x");
            true
        }
        Err(error) => {
            let kind = error.kind();
            let timed_out = matches!(
                kind,
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            );
            assert!(!timed_out, "neither served nor refused");
            false
        }
    }
}

#[test]
fn a_small_limit_of_files_refuses_some_and_disturbs_nobody() {
    let mut broker = Launch::memory().limit("-n 96").start();
    let mut clients: Vec<Client> = Vec::new();
    let mut refused = 0;
    for _ in 0..200 {
        let mut client = connect(broker.address);
        if is_served(&mut client) {
            clients.push(client);
        } else {
            refused += 1;
        }
    }
    assert!(
        clients.len() >= 40,
        "only {} of 96 files serve clients",
        clients.len()
    );
    assert!(refused >= 100, "{refused} of 200 refused");
    assert!(
        clients.iter_mut().all(is_served),
        "somebody who was served is not any more"
    );
    clients.truncate(10);
    eventually("room is used again", Duration::from_secs(2), || {
        is_served(&mut connect(broker.address))
    });
    broker.assert_well();
}

#[test]
fn running_out_of_files_does_not_spin_and_heals() {
    let mut broker = Launch::memory().start();
    let pid = broker.process.pid();
    let mut first = broker.client();
    assert!(is_served(&mut first));
    // As if others had taken all of them: the broker cannot know this limit beforehand.
    os::set_limit(pid, Limit::OpenFiles, Some(os::open_files(pid) as u64 + 10));
    let mut clients: Vec<Client> = Vec::new();
    let mut waiting: Vec<TcpStream> = Vec::new();
    for _ in 0..60 {
        let mut client = connect(broker.address);
        if is_served(&mut client) {
            clients.push(client);
        } else {
            waiting.push(
                client
                    .stream()
                    .try_clone()
                    .expect("our own limit is higher"),
            );
        }
    }
    assert!(
        (5..=11).contains(&clients.len()),
        "{} served with 10 files left",
        clients.len()
    );
    assert!(!waiting.is_empty());
    for mut stream in waiting {
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert!(is_served(&mut first), "an existing client suffers");
    let ticks = os::cpu_ticks(pid);
    thread::sleep(Duration::from_secs(1));
    let used = os::cpu_ticks(pid) - ticks;
    assert!(
        used < 30,
        "{used} % of a core while nothing can be accepted"
    );
    assert!(is_served(&mut first), "an existing client suffers");
    drop(clients);
    eventually(
        "accepting resumes by itself",
        Duration::from_secs(2),
        || is_served(&mut connect(broker.address)),
    );
    os::set_limit(pid, Limit::OpenFiles, None);
    broker.assert_well();
    let stderr = broker.process.stderr();
    assert!(stderr.contains("no file descriptor left"), "{stderr:?}");
}
