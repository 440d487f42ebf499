//! What the tests of real broker processes share: starting and stopping one, a small line client,
//! temporary directories, and a random generator whose seed a failure prints.
//!
//! Speaks only the documented protocol; knows nothing of the broker's insides.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests watch a real process"
)]

pub mod amqp;
pub mod client;
pub mod http;
pub mod ledger;
pub mod load;
pub mod os;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a broker may take to start on what these tests leave behind.
const START_MAX: Duration = Duration::from_secs(30);

/// A directory of its own for each test, removed at the end unless the test fails.
pub struct TempDir {
    path: PathBuf,
}

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!(
            "{name}-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the target directory is writable");
        TempDir { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside that does not exist yet.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("left for inspection: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// How a broker is started.
pub struct Launch {
    args: Vec<String>,
    /// `ulimit` arguments of the shell that becomes the broker, as in `-n 64`.
    limits: Vec<String>,
}

impl Launch {
    /// With its data in a directory.
    pub fn data(path: &Path) -> Launch {
        let path = path.to_str().expect("temporary paths are UTF-8");
        Launch {
            args: ["serve", "--listen", "127.0.0.1:0", "--data", path]
                .map(str::to_owned)
                .to_vec(),
            limits: Vec::new(),
        }
    }

    /// With `--memory`.
    pub fn memory() -> Launch {
        Launch {
            args: ["serve", "--listen", "127.0.0.1:0", "--memory"]
                .map(str::to_owned)
                .to_vec(),
            limits: Vec::new(),
        }
    }

    /// At this port, so that clients find it again after a restart.
    pub fn port(mut self, port: u16) -> Launch {
        for argument in &mut self.args {
            if argument == "127.0.0.1:0" {
                *argument = format!("127.0.0.1:{port}");
            }
        }
        self
    }

    /// One more argument, or several separated by spaces.
    pub fn arg(mut self, text: &str) -> Launch {
        self.args.extend(text.split(' ').map(str::to_owned));
        self
    }

    /// Under a limit of the shell's `ulimit`, as in `-n 64`.
    pub fn limit(mut self, ulimit: &str) -> Launch {
        self.limits.push(ulimit.to_owned());
        self
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_ringmq");
        let mut command = if self.limits.is_empty() {
            let mut command = Command::new(program);
            command.args(&self.args);
            command
        } else {
            // The shell becomes the broker, so the process id stays.
            let limits: String = self
                .limits
                .iter()
                .map(|l| format!("ulimit {l} && "))
                .collect();
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(format!("{limits}exec \"$0\" \"$@\""));
            command.arg(program).args(&self.args);
            command
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it and returns at once.
    pub fn spawn(&self) -> Process {
        let mut child = self
            .command()
            .spawn()
            .expect("the binary was built for this test");
        let stderr = Arc::new(Mutex::new(String::new()));
        let mut pipe = child.stderr.take().expect("stderr is piped");
        let collected = Arc::clone(&stderr);
        let collector = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                collected
                    .lock()
                    .expect("nobody panics with it")
                    .push_str(&text);
            }
        });
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Process {
            child,
            lines,
            stderr,
            collector: Some(collector),
        }
    }

    /// Starts it and waits until it serves.
    pub fn start(&self) -> Broker {
        let process = self.spawn();
        let address = process.address();
        Broker { process, address }
    }

    /// Starts one that must not serve: its exit code and what it said on stderr.
    pub fn refused(&self) -> (Option<i32>, String) {
        let mut process = self.spawn();
        let status = process.wait(START_MAX).expect("it neither serves nor ends");
        (status.code(), process.stderr())
    }
}

/// A started process, serving or not. Killed when it goes out of scope.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    /// Reads stderr to its end.
    collector: Option<JoinHandle<()>>,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("nobody panics with it").clone()
    }

    /// The next line on stdout.
    pub fn line(&self, within: Duration) -> Option<String> {
        self.lines.recv_timeout(within).ok()
    }

    fn address(&self) -> SocketAddr {
        let Some(first) = self.line(START_MAX) else {
            panic!("the broker did not start: {}", self.stderr());
        };
        let address = first
            .strip_prefix("listening on ")
            .and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("the first line is {first:?}"))
    }

    pub fn signal(&self, signal: i32) {
        os::signal(self.pid(), signal);
    }

    /// Ended already?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits for the end, and for the last of what it said.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                if let Some(collector) = self.collector.take() {
                    collector.join().expect("it only reads");
                }
                return Some(status);
            }
            if start.elapsed() > within {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// kill -9 of a process that must not have ended by itself.
    pub fn kill_running(&mut self) {
        self.kill();
        let ended = self.ended().expect("it was waited for");
        assert_eq!(ended.signal(), Some(libc::SIGKILL), "it had ended: {ended}");
    }

    /// kill -9, and it is gone when this returns.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the broker's stderr:\n{}", self.stderr());
        }
    }
}

/// A broker that serves.
pub struct Broker {
    pub process: Process,
    pub address: SocketAddr,
}

impl Broker {
    /// The rest of the banner, as far as it comes at once.
    pub fn banner(&self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.process.line(Duration::from_millis(300)) {
            lines.push(line);
        }
        lines
    }

    pub fn client(&self) -> client::Client {
        client::Client::connect(self.address)
    }

    /// SIGTERM, and exit code 0 within a bound that leaves a slow disk its time.
    pub fn terminate(&mut self) {
        self.process.signal(libc::SIGTERM);
        let status = self.process.wait(Duration::from_secs(10));
        let status = status.expect("SIGTERM ends the broker");
        assert_eq!(status.code(), Some(0), "{}", self.process.stderr());
    }

    /// Answers a ping on a new connection within a bound.
    pub fn assert_well(&mut self) {
        assert!(
            self.process.ended().is_none(),
            "the broker ended: {}",
            self.process.stderr()
        );
        let mut client = self.client();
        assert_eq!(client.ask("PING :are you well"), "PONG :are you well");
    }
}

/// A small random generator (splitmix64): the same seed gives the same numbers.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// From the environment, or from the clock.
    pub fn seed_from(variable: &str) -> u64 {
        match std::env::var(variable) {
            Ok(text) => text.parse().expect("a seed is a whole number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_nanos() as u64),
        }
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Changes, removes or adds a byte, or cuts the rest off; never shorter than the mutations that may follow.
    pub fn garble(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() as u64) as usize;
        match self.below(4) {
            0 => bytes[at] = self.next() as u8,
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, self.next() as u8),
            _ => bytes.truncate(at.max(8)),
        }
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// A port that nobody listens on, outside the range from which the system takes those of outgoing
/// connections: it stays free while a broker on it is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = u64::from(std::process::id()) * 7;
    for _ in 0..12_000 {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 20_000 + u16::try_from(offset).expect("it is below 12,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("every port is taken");
}

/// Every file under a directory with its contents, to see that nothing was touched. The lock file
/// is left out: it says who looked last.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the directory is there") {
            let path = entry.expect("the directory can be read").path();
            if path.is_dir() {
                dirs.push(path);
            } else if !path.ends_with("LOCK") {
                let bytes = fs::read(&path).expect("the file can be read");
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}

/// Waits until something becomes true.
pub fn eventually(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
