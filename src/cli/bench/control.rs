//! What happens before and after a run: the server's version, the queue made and deleted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::cli::args::count;
use crate::cli::error::CliError;
use crate::client::{Connection, typed_name};

use super::plan::{Plan, Protocol};

/// Lease of a queue made for a run: long enough that nothing comes back during it.
const LEASE: &str = "1h";

/// The server under test.
#[derive(Debug)]
pub struct Server {
    protocol: Protocol,
    addr_text: String,
    /// Where the generator connects to.
    pub addr: SocketAddr,
    /// `ringmq/0.1.0`, `redis/7.0.15`.
    pub version: String,
    /// The queue as the protocol types it.
    pub queue: String,
    /// It was made for the run and goes with it.
    is_own: bool,
}

impl Server {
    /// Asks for the version and makes the queue.
    ///
    /// # Errors
    /// `CliError::Failed` when there is no server, or it refuses.
    pub fn prepare(plan: &Plan) -> Result<Server, CliError> {
        let queue = match &plan.queue {
            Some(name) => name.clone(),
            None => format!("bench-{}", std::process::id()),
        };
        let addr = resolve(&plan.addr)?;
        let mut server = Server {
            protocol: plan.protocol,
            addr_text: plan.addr.clone(),
            addr,
            version: String::new(),
            queue: match plan.protocol {
                Protocol::Text => typed_name(&queue),
                Protocol::Redis => queue,
            },
            is_own: plan.queue.is_none(),
        };
        match plan.protocol {
            Protocol::Text => server.prepare_text(plan)?,
            Protocol::Redis => {
                let info = redis(addr, "INFO server\r\n")?;
                let version = info
                    .lines()
                    .find_map(|line| line.strip_prefix("redis_version:"));
                server.version = format!("redis/{}", version.unwrap_or("unknown"));
                if server.is_own {
                    redis(addr, &format!("DEL {}\r\n", server.queue))?;
                }
            }
        }
        Ok(server)
    }

    fn prepare_text(&mut self, plan: &Plan) -> Result<(), CliError> {
        let mut client = Connection::open(&self.addr_text)?;
        client.output().extend_from_slice(b"HELLO 1 name=bench\n");
        let hello = client.expect_ok()?;
        let version = hello
            .split(' ')
            .find_map(|word| word.strip_prefix("server="));
        self.version = version.unwrap_or("unknown").to_owned();
        let mut settings = String::new();
        if self.is_own {
            settings = format!(" lease={LEASE}");
        }
        if let Some(level) = plan.durable {
            settings += &format!(" durable={}", level.setting());
        }
        if !settings.is_empty() {
            let command = format!("QSET {}{settings}\n", self.queue);
            client.output().extend_from_slice(command.as_bytes());
            client.expect_ok()?;
        }
        Ok(())
    }

    /// Messages that are ready in a queue made for the run; `None` when that cannot be told.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    pub fn ready(&self) -> Result<Option<u64>, CliError> {
        if !self.is_own {
            return Ok(None);
        }
        let told = match self.protocol {
            Protocol::Text => {
                let mut client = Connection::open(&self.addr_text)?;
                let command = format!("QGET {}\n", self.queue);
                client.output().extend_from_slice(command.as_bytes());
                let data = client.expect_data()?;
                let text = String::from_utf8_lossy(&data).into_owned();
                let mut words = text.split_whitespace();
                words.find_map(|word| count(word.strip_prefix("ready=")?))
            }
            Protocol::Redis => {
                let answer = redis(self.addr, &format!("LLEN {}\r\n", self.queue))?;
                answer
                    .lines()
                    .next()
                    .and_then(|line| count(line.strip_prefix(':')?))
            }
        };
        Ok(told)
    }

    /// Deletes the queue if it was made for the run.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    pub fn clean_up(&self) -> Result<(), CliError> {
        if !self.is_own {
            return Ok(());
        }
        match self.protocol {
            Protocol::Text => {
                let mut client = Connection::open(&self.addr_text)?;
                let command = format!("QDEL {}\n", self.queue);
                client.output().extend_from_slice(command.as_bytes());
                client.expect_ok()?;
                Ok(())
            }
            Protocol::Redis => redis(self.addr, &format!("DEL {}\r\n", self.queue)).map(|_| ()),
        }
    }
}

fn resolve(addr: &str) -> Result<SocketAddr, CliError> {
    let mut resolved = addr
        .to_socket_addrs()
        .map_err(|error| CliError::failed(format!("cannot connect to {addr}: {error}")))?;
    resolved
        .next()
        .ok_or_else(|| CliError::failed(format!("{addr} has no address")))
}

/// One inline command to a Redis server; its answer without the length of a bulk string.
fn redis(addr: SocketAddr, command: &str) -> Result<String, CliError> {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(command.as_bytes())?;
        stream.write_all(b"QUIT\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange()
        .map_err(|error| CliError::failed(format!("no Redis server answers at {addr}: {error}")))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.starts_with('-') {
        true => Err(CliError::failed(format!(
            "Redis refused {}: {answer}",
            command.trim()
        ))),
        false => Ok(answer),
    }
}
