//! Signals as events of the loop: the first SIGTERM or SIGINT ends the broker gracefully, a second
//! one at once.
//!
//! What must happen at once happens in the handler itself, so that it works even while the loop is
//! busy or the broker is still recovering.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// The signals that end the broker.
const ENDING: [i32; 2] = [SIGTERM, SIGINT];

/// The signals' end of the loop. Lives as long as the process: handlers are never taken back.
#[derive(Debug)]
pub struct Signals {
    pipe: mio::net::UnixStream,
    /// Nothing runs yet that has to be ended with care.
    starting: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers. Until [`Signals::started`] the first signal ends the process at
    /// once with exit code 0: recovery is safe to be cut off at any point.
    ///
    /// # Errors
    /// If the system refuses a handler or the pipe.
    pub fn install() -> io::Result<Signals> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        let starting = Arc::new(AtomicBool::new(true));
        let ending = Arc::new(AtomicBool::new(false));
        for signal in ENDING {
            // They run in this order: the flag is looked at before it is set.
            flag::register_conditional_shutdown(signal, 0, Arc::clone(&starting))?;
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ending))?;
            flag::register(signal, Arc::clone(&ending))?;
            low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Signals {
            pipe: mio::net::UnixStream::from_std(receiver),
            starting,
        })
    }

    /// From now on the first signal is an event of the loop.
    pub fn started(&self) {
        self.starting.store(false, Ordering::SeqCst);
    }

    /// What to register with the loop's poll.
    pub(super) fn source(&mut self) -> &mut mio::net::UnixStream {
        &mut self.pipe
    }

    /// Empties the pipe; true if a signal had come.
    pub(super) fn take(&mut self) -> bool {
        let mut bytes = [0; 16];
        let mut came = false;
        loop {
            match self.pipe.read(&mut bytes) {
                Ok(count) if count > 0 => came = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return came,
            }
        }
    }
}
