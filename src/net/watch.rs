//! Sleeping until something is ready.
//!
//! On Linux any number of threads may watch the sockets of one poll; each event comes to one of them. Elsewhere only
//! its own thread can.

use std::io;
use std::time::Duration;

use mio::Waker;

use super::token::Source;

/// Most events taken from the system at once.
const EVENTS_MAX: usize = 1024;

/// What has happened to a socket, or to something else that is polled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    /// Where.
    pub source: Source,
    /// There is something to read.
    pub readable: bool,
    /// There is room for more.
    pub writable: bool,
    /// The peer sends no more.
    pub read_closed: bool,
    /// The connection is broken, or its peer takes no more.
    pub hung_up: bool,
}

/// Wakes a thread that watches, from any other; the next turn begins at once. About one system call.
pub(super) fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        log::error!("an event loop could not be woken: {error}");
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::Watch;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Watch;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsRawFd;

    use mio::{Poll, Registry, Token};

    use super::super::os::{self, EpollEvent};
    use super::*;

    /// One thread's view of a poll.
    #[derive(Debug)]
    pub(in super::super) struct Watch {
        /// Keeps the poll open.
        registry: Registry,
        events: Vec<EpollEvent>,
    }

    impl Watch {
        /// Watches what is registered with that poll.
        ///
        /// # Errors
        /// If the system has no file descriptor left.
        pub fn new(poll: Poll) -> io::Result<Watch> {
            Watch::of(poll.registry())
        }

        /// The same for another thread, where several can.
        ///
        /// # Errors
        /// As [`Watch::new`].
        pub fn another(registry: &Registry) -> io::Result<Option<Watch>> {
            Watch::of(registry).map(Some)
        }

        fn of(registry: &Registry) -> io::Result<Watch> {
            Ok(Watch {
                registry: registry.try_clone()?,
                events: Vec::with_capacity(EVENTS_MAX),
            })
        }

        /// Sleeps until something happens, at most that long (`None` = for ever); a signal ends it too.
        ///
        /// # Errors
        /// If polling fails.
        pub fn sleep(&mut self, at_most: Option<Duration>) -> io::Result<()> {
            match os::epoll_wait(self.registry.as_raw_fd(), &mut self.events, at_most) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                waited => waited,
            }
        }

        /// What has happened.
        pub fn events(&self) -> impl Iterator<Item = Ready> {
            self.events.iter().map(|event| {
                let (flags, token) = (event.events, event.u64);
                let has = |flag: libc::c_int| flags & flag as u32 != 0;
                let is_over = has(libc::EPOLLHUP);
                Ready {
                    source: Source::from(Token(token as usize)),
                    readable: has(libc::EPOLLIN | libc::EPOLLPRI),
                    writable: has(libc::EPOLLOUT),
                    read_closed: is_over || has(libc::EPOLLRDHUP),
                    hung_up: is_over || has(libc::EPOLLERR),
                }
            })
        }

        /// Forgets what has happened.
        pub fn clear(&mut self) {
            self.events.clear();
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use mio::{Events, Poll, Registry};

    use super::*;

    /// The view of the thread whose poll it is.
    #[derive(Debug)]
    pub(in super::super) struct Watch {
        poll: Poll,
        events: Events,
    }

    impl Watch {
        /// Watches what is registered with that poll.
        ///
        /// # Errors
        /// None here.
        pub fn new(poll: Poll) -> io::Result<Watch> {
            Ok(Watch {
                poll,
                events: Events::with_capacity(EVENTS_MAX),
            })
        }

        /// The same for another thread, where several can: not here.
        ///
        /// # Errors
        /// None here.
        pub fn another(_: &Registry) -> io::Result<Option<Watch>> {
            Ok(None)
        }

        /// Sleeps until something happens, at most that long (`None` = for ever); a signal ends it too.
        ///
        /// # Errors
        /// If polling fails.
        pub fn sleep(&mut self, at_most: Option<Duration>) -> io::Result<()> {
            match self.poll.poll(&mut self.events, at_most) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.events.clear();
                    Ok(())
                }
                polled => polled,
            }
        }

        /// What has happened.
        pub fn events(&self) -> impl Iterator<Item = Ready> {
            self.events.iter().map(|event| Ready {
                source: Source::from(event.token()),
                readable: event.is_readable(),
                writable: event.is_writable(),
                read_closed: event.is_read_closed(),
                hung_up: event.is_error() || event.is_write_closed(),
            })
        }

        /// Forgets what has happened.
        pub fn clear(&mut self) {
            self.events.clear();
        }
    }
}
