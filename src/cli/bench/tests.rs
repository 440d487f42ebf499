//! The generator against a broker of a few lines, which can also do wrong on purpose.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::measure;
use super::plan::{self, Plan};

/// What the broker does wrong, with the id of the message it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Lose(u64),
    Repeat(u64),
    Damage(u64),
    Refuse(u64),
    Stale,
    Forget(u64),
}

#[derive(Default)]
struct State {
    ready: VecDeque<(u64, Vec<u8>)>,
    published: u64,
    delivered: u64,
    deleted: bool,
}

struct Broker {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// Starts a broker; its threads end with their connections and the process.
fn broker(fault: Fault) -> Broker {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let addr = listener.local_addr().expect("it is bound");
    let state = Arc::new(Mutex::new(State::default()));
    let shared = Arc::clone(&state);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&shared);
            std::thread::spawn(move || Session::new(stream, state, fault).serve());
        }
    });
    Broker { addr, state }
}

struct Session {
    stream: TcpStream,
    state: Arc<Mutex<State>>,
    fault: Fault,
    /// Deliveries still allowed; 0 without a subscription.
    credit: u64,
    output: Vec<u8>,
}

impl Session {
    fn new(stream: TcpStream, state: Arc<Mutex<State>>, fault: Fault) -> Session {
        let limit = Duration::from_millis(1);
        stream
            .set_read_timeout(Some(limit))
            .expect("a limit above 0");
        Session {
            stream,
            state,
            fault,
            credit: 0,
            output: Vec::new(),
        }
    }

    fn serve(mut self) {
        let (mut input, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            let mut taken = 0;
            while let Some(used) = self.command(&input[taken..]) {
                taken += used;
            }
            input.drain(..taken);
            while self.credit > 0 && self.deliver() {
                self.credit -= 1;
            }
            if self.stream.write_all(&self.output).is_err() {
                return;
            }
            self.output.clear();
        }
    }

    /// Runs the first command of the input if it is whole; its length.
    fn command(&mut self, input: &[u8]) -> Option<usize> {
        let end = memchr::memchr(b'\n', input)?;
        let line = String::from_utf8_lossy(&input[..end]).into_owned();
        let words: Vec<&str> = line.split(' ').collect();
        let mut used = end + 1;
        match words[0] {
            "PING" => self.say("PONG"),
            "HELLO" => self.say("OK proto=1 server=fake/1"),
            "QGET" => {
                let ready = self
                    .state
                    .lock()
                    .expect("no test panics with it")
                    .ready
                    .len();
                let text = format!("ready={ready}\nleased=0\n");
                self.say(&format!("DATA ${}\n{text}", text.len()));
            }
            "QSET" => self.say("OK created"),
            "QDEL" => {
                self.state.lock().expect("no test panics with it").deleted = true;
                self.say("OK");
            }
            "PUB" | "MPUB" => {
                let size: usize = words.last()?.strip_prefix('$')?.parse().ok()?;
                let body = input.get(used..used + size + 1)?[..size].to_vec();
                used += size + 1;
                self.publish(words[0] == "MPUB", &body);
            }
            "PULL" => {
                let wanted: u64 = words[2].parse().ok()?;
                let given = (0..wanted).take_while(|_| self.deliver()).count();
                self.say(&format!("END {given}"));
            }
            "SUB" => {
                self.credit = words[2].strip_prefix("credit=")?.parse().ok()?;
                self.say("OK");
            }
            "ACK" => {
                let count = words.len() - 1;
                self.credit += count as u64;
                match self.fault {
                    Fault::Stale => self.say(&format!("OK {} stale={}", count - 1, words[1])),
                    _ => self.say(&format!("OK {count}")),
                }
            }
            other => panic!("the generator sent {other:?}"),
        }
        Some(used)
    }

    fn publish(&mut self, batch: bool, mut body: &[u8]) {
        let mut bodies = Vec::new();
        while batch && !body.is_empty() {
            let end = memchr::memchr(b'\n', body).expect("a length");
            let size: usize = String::from_utf8_lossy(&body[..end])
                .parse()
                .expect("digits");
            bodies.push(body[end + 1..end + 1 + size].to_vec());
            body = &body[end + 2 + size..];
        }
        if !batch {
            bodies.push(body.to_vec());
        }
        let mut state = self.state.lock().expect("no test panics with it");
        let first = state.published + 1;
        if self.fault == Fault::Refuse(first) {
            drop(state);
            return self.say("ERR MEM retry=100 :the memory is full");
        }
        let count = bodies.len();
        for body in bodies {
            state.published += 1;
            let id = state.published;
            if self.fault != Fault::Forget(id) {
                state.ready.push_back((id, body));
            }
        }
        drop(state);
        match batch {
            true => self.say(&format!("OK {first} {count} mem")),
            false => self.say(&format!("OK {first} mem")),
        }
    }

    /// Sends the next message; false when there is none.
    fn deliver(&mut self) -> bool {
        let mut state = self.state.lock().expect("no test panics with it");
        let Some((id, mut body)) = state.ready.pop_front() else {
            return false;
        };
        state.delivered += 1;
        let serial = state.delivered;
        match self.fault {
            Fault::Lose(which) if which == id => return true,
            Fault::Repeat(which) if which == id && serial == id => {
                state.ready.push_front((id, body.clone()));
            }
            Fault::Damage(which) if which == id => body[20] ^= 1,
            _ => {}
        }
        drop(state);
        self.say(&format!("MSG q 1.{id}.{serial} ${}", body.len()));
        self.output.extend_from_slice(&body);
        self.output.push(b'\n');
        true
    }

    fn say(&mut self, line: &str) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
    }
}

fn plan_for(broker: &Broker, line: &str) -> Plan {
    let addr = broker.addr.to_string();
    let words = line.split_whitespace().chain(["--addr", &addr]);
    plan::parse(lexopt::Parser::from_args(words)).expect("the arguments are good")
}

/// A good run: no fault, and everything that was published is counted.
fn sound(line: &str, want: u64) -> String {
    let broker = broker(Fault::None);
    let (text, faults) = measure(&plan_for(&broker, line)).expect("the run ends");
    assert_eq!(faults, Vec::<String>::new(), "{line}\n{text}");
    let state = broker.state.lock().expect("no session panics");
    assert!(
        want == 0 || state.published == want,
        "{line}: {}",
        state.published
    );
    assert!(state.deleted, "the queue of the run goes with it");
    text
}

fn faulty(fault: Fault, line: &str, want: &str) {
    let broker = broker(fault);
    let (text, faults) = measure(&plan_for(&broker, line)).expect("the run ends");
    assert!(
        faults.join("; ").contains(want),
        "{fault:?}: {faults:?}\n{text}"
    );
}

#[test]
fn every_mode_counts_every_message() {
    sound("publish --count 5000", 5000);
    sound("publish --count 5001 --batch 100 --producers 3", 5001);
    sound("pull --count 5000", 5000);
    sound(
        "pull --count 5000 --batch 64 --consumers 3 --window 128",
        5000,
    );
    sound("e2e --count 5000", 5000);
    sound("e2e --count 5000 --consume pull --batch 7", 5000);
    sound(
        "e2e --count 5000 --producers 4 --consumers 4 --window 10 --size 16",
        5000,
    );
    sound("e2e --count 100 --window 1", 100);
    sound("e2e --count 20 --size 300000 --window 4", 20);
}

/// Good runs over a protocol: nothing is wrong, and every message has arrived.
fn sound_over(option: &str, addr: SocketAddr, lines: &[&str]) {
    for line in lines {
        let words = format!("{line} {option} {addr} --stall 5s --json");
        let args = lexopt::Parser::from_args(words.split_whitespace());
        let plan = plan::parse(args).expect("the arguments are good");
        let (text, faults) = measure(&plan).expect("the run ends");
        assert_eq!(faults, Vec::<String>::new(), "{line}: {text}");
        let arrived = match plan.mode {
            plan::Mode::Publish => 0,
            _ => plan.count.expect("given") * plan.copies(),
        };
        let count = format!("\"total_confirmed\":{},", plan.count.expect("given"));
        assert!(
            plan.mode == plan::Mode::Pull || text.contains(&count),
            "{line}: {text}"
        );
        let arrived = format!("\"total_arrived\":{arrived},");
        assert!(text.contains(&arrived), "{line}: {text}");
    }
}

#[test]
fn what_is_never_confirmed_is_counted_when_it_arrives() {
    let lines = [
        "publish --count 3000 --producers 3 --window 100",
        "e2e --count 500 --window 1 --backlog 1",
        "e2e --count 3000 --producers 3 --consumers 2 --window 10 --backlog 30",
        "fanout --count 1000 --consumers 3 --window 50 --backlog 50",
    ];
    for line in lines {
        sound_over("--nats", super::fakes::nats(), &[line]);
    }
}

#[test]
fn consumers_that_must_ask_wait_and_hold_nothing_up() {
    let lines = [
        "e2e --count 500 --window 1 --backlog 1",
        "e2e --count 3000 --producers 4 --consumers 4 --window 100 --backlog 400",
        "e2e --count 1000 --producers 2 --consumers 8 --window 2 --backlog 4",
        "pull --count 2000 --consumers 2 --window 50",
    ];
    for line in lines {
        sound_over("--beanstalkd", super::fakes::beanstalkd(), &[line]);
    }
}

#[test]
fn fixed_frames_go_through_the_forwarder() {
    let lines = [
        "publish --count 5000 --producers 3",
        "pull --count 5000 --size 300",
        "e2e --count 5000 --window 1",
        "e2e --count 5000 --producers 3 --consumers 2 --window 10 --backlog 30",
        "e2e --count 20 --size 300000 --window 4",
        "fanout --count 3000 --consumers 5 --window 100 --backlog 100",
    ];
    sound_over("--frames", super::forwarder::start(), &lines);
}

#[test]
fn a_run_can_be_limited_by_time() {
    let text = sound("e2e --duration 300ms --warmup 100ms", 0);
    let seconds = |before: &str| -> f64 {
        let after = text.split(before).nth(1).expect("it is told");
        let number = after.split_whitespace().next().expect("a number");
        number.parse().expect("a number")
    };
    // A machine that is busy elsewhere makes it longer; what begins late is a little shorter.
    assert!((0.2..10.0).contains(&seconds("measured ")), "{text}");
    assert!((0.05..10.0).contains(&seconds(" s after ")), "{text}");
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let text = sound("e2e --duration 1s --warmup 0 --rate 2000 --json", 0);
    let rate = text
        .split("\"published_per_s\":")
        .nth(1)
        .expect("it is told");
    let rate: f64 = rate
        .split(',')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!((1000.0..2100.0).contains(&rate), "{rate}");
}

#[test]
fn an_open_loop_counts_from_the_time_a_message_was_due() {
    // A window of 1 at a rate the broker's 1 ms turns cannot follow: the backlog must show.
    let text = sound("publish --count 3000 --rate 100000 --window 1 --json", 3000);
    let p50 = text.split("\"receipt_us\":{").nth(1).expect("it is told");
    let p50 = p50.split("\"p50\":").nth(1).expect("it is told");
    let p50: f64 = p50
        .split(',')
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(p50 > 5_000.0, "half of 3000 messages were late by {p50} us");
}

#[test]
fn what_a_broker_does_wrong_is_told() {
    faulty(
        Fault::Repeat(70),
        "e2e --count 1000",
        "1 messages arrived again",
    );
    faulty(
        Fault::Stale,
        "e2e --count 100 --ack-batch 100",
        "acks were too late",
    );
    faulty(
        Fault::Refuse(500),
        "e2e --count 1000",
        "the server refused: ERR MEM",
    );
    faulty(
        Fault::Refuse(500),
        "pull --count 1000",
        "the server refused: ERR MEM",
    );
}

#[test]
fn a_lost_or_damaged_message_is_told() {
    let lost = std::thread::spawn(|| {
        faulty(
            Fault::Lose(70),
            "e2e --count 1000 --stall 1s",
            "1 messages never arrived",
        );
    });
    faulty(
        Fault::Damage(70),
        "pull --count 1000 --stall 1s",
        "1 messages were damaged",
    );
    lost.join().expect("the lost one is told");
}
