//! Servers of a few lines that speak other brokers' protocols, for tests: the generator must do the
//! same work with those that push without receipts and with those that must be asked.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Serves each connection on a thread of its own; they end with their connections and the process.
fn serve(session: impl Fn(Lines) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_nodelay(true).expect("it is a TCP stream");
            let session = session.clone();
            std::thread::spawn(move || session(Lines(BufReader::new(stream))));
        }
    });
    addr
}

/// One connection, read by lines.
struct Lines(BufReader<TcpStream>);

impl Lines {
    /// The words of the next line; `None` when the other side has closed.
    fn next(&mut self) -> Option<Vec<String>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(1..) => Some(line.split_whitespace().map(str::to_owned).collect()),
            _ => None,
        }
    }

    /// A body of as many bytes as the word says.
    fn body(&mut self, size: &str) -> Vec<u8> {
        let mut body = vec![0; size.parse::<usize>().expect("a size") + 2];
        self.0.read_exact(&mut body).expect("the body follows");
        body.truncate(body.len() - 2);
        body
    }

    fn say(&mut self, octets: &[u8]) {
        // Whoever has gone needs no answer.
        self.0.get_mut().write_all(octets).ok();
    }
}

/// NATS, for one run: subscribers of a group take turns, those without one get everything.
pub fn nats() -> SocketAddr {
    type Subscribers = Arc<Mutex<VecDeque<(bool, TcpStream)>>>;
    let subscribers = Subscribers::default();
    serve(move |mut lines: Lines| {
        lines.say(b"INFO {\"version\":\"9.9.9\"}\r\n");
        while let Some(words) = lines.next() {
            match words[0].as_str() {
                "CONNECT" => {}
                "PING" => lines.say(b"PONG\r\n"),
                "SUB" => {
                    let stream = lines.0.get_ref().try_clone().expect("it can be cloned");
                    let mut subscribers = subscribers.lock().expect("no session panics with it");
                    subscribers.push_back((words.len() == 4, stream));
                }
                "PUB" => {
                    let body = lines.body(&words[2]);
                    let head = format!("MSG {} 1 {}\r\n", words[1], body.len());
                    let message = [head.as_bytes(), &body, b"\r\n"].concat();
                    let mut subscribers = subscribers.lock().expect("no session panics with it");
                    let in_turn = subscribers.iter().position(|(group, _)| *group);
                    for (index, (group, stream)) in subscribers.iter_mut().enumerate() {
                        if !*group || in_turn == Some(index) {
                            stream.write_all(&message).ok();
                        }
                    }
                    if !subscribers.is_empty() {
                        subscribers.rotate_left(1);
                    }
                }
                other => panic!("the generator sent {other:?}"),
            }
        }
    })
}

#[derive(Default)]
struct Tube {
    ready: VecDeque<(u64, Vec<u8>)>,
    put: u64,
    reserved: u64,
}

/// beanstalkd: a `reserve` that waits holds up what comes behind it on its connection.
pub fn beanstalkd() -> SocketAddr {
    let tube = Arc::new((Mutex::new(Tube::default()), Condvar::new()));
    serve(move |mut lines: Lines| {
        let (tube, is_filled) = &*tube;
        let lock = || tube.lock().expect("no session panics with it");
        while let Some(words) = lines.next() {
            match words[0].as_str() {
                "use" => lines.say(b"USING q\r\n"),
                "watch" | "ignore" => lines.say(b"WATCHING 1\r\n"),
                "put" => {
                    let body = lines.body(&words[4]);
                    let mut tube = lock();
                    tube.put += 1;
                    let id = tube.put;
                    tube.ready.push_back((id, body));
                    drop(tube);
                    is_filled.notify_one();
                    lines.say(format!("INSERTED {id}\r\n").as_bytes());
                }
                "reserve" | "reserve-with-timeout" => {
                    let waits = words.len() == 1;
                    let mut tube = is_filled
                        .wait_while(lock(), |tube| waits && tube.ready.is_empty())
                        .expect("no session panics with it");
                    let Some((id, body)) = tube.ready.pop_front() else {
                        drop(tube);
                        lines.say(b"TIMED_OUT\r\n");
                        continue;
                    };
                    tube.reserved += 1;
                    drop(tube);
                    let head = format!("RESERVED {id} {}\r\n", body.len());
                    lines.say(&[head.as_bytes(), &body, b"\r\n"].concat());
                }
                "delete" => {
                    lock().reserved -= 1;
                    lines.say(b"DELETED\r\n");
                }
                "stats" | "stats-tube" => {
                    let tube = lock();
                    let text = format!(
                        "---\nversion: \"9.9\"\ncurrent-jobs-ready: {}\ncurrent-jobs-reserved: {}\n",
                        tube.ready.len(),
                        tube.reserved
                    );
                    drop(tube);
                    lines.say(format!("OK {}\r\n{text}\r\n", text.len()).as_bytes());
                }
                other => panic!("the generator sent {other:?}"),
            }
        }
    })
}
