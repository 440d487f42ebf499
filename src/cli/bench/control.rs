//! What happens before and after a run: the server's version, the queue made and deleted.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::cli::error::CliError;

use super::plan::Plan;
use super::wire::{self, Dialect};

/// How long what was not answered, acks of some protocols, may take to show.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// The server under test.
#[derive(Debug)]
pub struct Server {
    /// How it is talked to.
    pub dialect: Box<dyn Dialect>,
    /// Where the generator connects to.
    pub addr: SocketAddr,
    /// `ringmq/0.1.0`, `redis/7.0.15`.
    pub version: String,
    /// The queue was made for the run and goes with it.
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
        let mut dialect = wire::dialect(plan, &queue, addr);
        let is_own = plan.queue.is_none();
        let version = dialect.prepare(is_own)?;
        Ok(Server {
            dialect,
            addr,
            version,
            is_own,
        })
    }

    /// Messages that are left in a queue made for the run; `None` when that cannot be told. Asks
    /// again for a while when they are not `expected`.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    pub fn held(&self, expected: u64) -> Result<Option<u64>, CliError> {
        if !self.is_own {
            return Ok(None);
        }
        let began = Instant::now();
        loop {
            let held = self.dialect.held()?;
            if held.is_none_or(|held| held == expected) || began.elapsed() > SETTLED_WITHIN {
                return Ok(held);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Deletes the queue if it was made for the run.
    ///
    /// # Errors
    /// `CliError::Failed` when the server has gone or refuses.
    pub fn clean_up(&self) -> Result<(), CliError> {
        if self.is_own {
            self.dialect.clean_up()?;
        }
        Ok(())
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
