//! Listening sockets: bound before anything else, accepted from in bounded bites, and never stuck
//! when the process runs out of file descriptors. Knows nothing of what a connection is for.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::token::{LISTENERS_MAX, Source};

/// Connections that the kernel completes for us before we accept them, for each listener.
const BACKLOG: i32 = 4096;

/// After an error that only time can mend, accept is tried again so much later, microseconds.
const RETRY_US: u64 = 250_000;

/// The shortest time between two warnings about accept, microseconds.
const WARN_US: u64 = 1_000_000;

/// The event loop cannot be set up: the operator's to mend.
#[derive(Debug)]
pub enum BindError {
    /// An address cannot be listened on.
    Address {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The system gives no poll, not even to a process that has just begun.
    Poll {
        /// What the system said.
        cause: io::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, cause) = match self {
            BindError::Address { address, cause } => (address, cause),
            BindError::Poll { cause } => {
                return write!(
                    f,
                    "the system does not let this process wait for events: {cause}"
                );
            }
        };
        write!(f, "cannot listen on {address}: ")?;
        match cause.kind() {
            io::ErrorKind::AddrInUse => f.write_str(
                "another program is listening there; stop it or choose another port with --listen",
            ),
            io::ErrorKind::AddrNotAvailable => {
                f.write_str("this machine has no such address; see --listen")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str("ports below 1024 need privileges; choose another with --listen")
            }
            _ => write!(f, "{cause}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BindError::Address { cause, .. } | BindError::Poll { cause } => Some(cause),
        }
    }
}

/// One listening socket.
#[derive(Debug)]
struct Listener {
    socket: TcpListener,
    /// Connections may be waiting; false once accept has said that there are none.
    ready: bool,
}

/// What a call of accept came to.
enum Accepted {
    Connection(TcpStream, SocketAddr),
    /// This one is gone, there may be others.
    Skip,
    /// None is waiting.
    None,
    /// Not before some time has passed.
    Later,
}

/// All listening sockets of one reactor.
///
/// Running out of file descriptors: a listener that cannot accept gets no further event for the
/// connections already waiting, and they would hang. So one descriptor is kept spare; it is given
/// up to accept the waiting connection, which is closed at once (a clear refusal), and taken back.
#[derive(Debug)]
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    spare: Option<File>,
    /// When to try again after an error, on the clock of `Now::us`.
    retry_us: Option<u64>,
    /// Before this no further warning is written, on the clock of `Now::us`.
    quiet_until_us: u64,
}

impl Listeners {
    /// Binds and listens on every address; nothing is accepted yet, but clients may connect. Shared ones
    /// can be bound again, by other loops of this process.
    ///
    /// # Errors
    /// The first address that failed, and why.
    pub(super) fn bind(addresses: &[SocketAddr], shared: bool) -> Result<Listeners, BindError> {
        assert!(
            addresses.len() <= LISTENERS_MAX,
            "few addresses fit a command line"
        );
        let bound = addresses.iter().map(|address| {
            listen(*address, shared).map_err(|cause| BindError::Address {
                address: *address,
                cause,
            })
        });
        Ok(Listeners {
            listeners: bound.collect::<Result<_, _>>()?,
            spare: spare(),
            retry_us: None,
            quiet_until_us: 0,
        })
    }

    /// Where they listen, with the ports that the system chose for port 0.
    ///
    /// # Errors
    /// If the system does not say.
    pub(super) fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses = self
            .listeners
            .iter()
            .map(|listener| listener.socket.local_addr());
        addresses.collect()
    }

    /// Begins to get events.
    pub(super) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let token = Source::Listener(index).token();
            registry.register(&mut listener.socket, token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// An event of one listener.
    pub(super) fn handle_ready(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.ready = true;
        }
    }

    /// There is something to accept now, without waiting for an event.
    pub(super) fn ready(&self) -> bool {
        self.retry_us.is_none() && self.listeners.iter().any(|listener| listener.ready)
    }

    /// When accept is to be tried again, on the clock of `Now::us`.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        self.retry_us
    }

    /// The next waiting connection, with the index of its listener. `left` counts the attempts of this turn down.
    pub(super) fn accept(
        &mut self,
        left: &mut usize,
        now_us: u64,
    ) -> Option<(usize, TcpStream, SocketAddr)> {
        if self.retry_us.is_some_and(|retry_us| retry_us > now_us) {
            return None;
        }
        self.retry_us = None;
        while *left > 0 {
            let index = self.listeners.iter().position(|listener| listener.ready)?;
            *left -= 1;
            match self.accept_from(index, now_us) {
                Accepted::Connection(socket, peer) => return Some((index, socket, peer)),
                Accepted::Skip => {}
                Accepted::None => self.listeners[index].ready = false,
                Accepted::Later => {
                    self.retry_us = Some(now_us + RETRY_US);
                    return None;
                }
            }
        }
        None
    }

    fn accept_from(&mut self, index: usize, now_us: u64) -> Accepted {
        let error = match self.listeners[index].socket.accept() {
            Ok((socket, peer)) => return Accepted::Connection(socket, peer),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Accepted::None,
            Some(libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => Accepted::Skip,
            Some(libc::EMFILE | libc::ENFILE) => {
                self.warn(
                    now_us,
                    "no file descriptor left for another connection; refusing it",
                    &error,
                );
                self.refuse(index)
            }
            _ => {
                self.warn(now_us, "accept failed; trying again", &error);
                Accepted::Later
            }
        }
    }

    /// Accepts one connection with the spare descriptor, only to close it.
    fn refuse(&mut self, index: usize) -> Accepted {
        if self.spare.take().is_none() {
            self.spare = spare();
            return Accepted::Later;
        }
        let refused = self.listeners[index].socket.accept();
        let outcome = match &refused {
            Ok(_) => Accepted::Skip,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::None,
            Err(_) => Accepted::Later,
        };
        drop(refused);
        self.spare = spare();
        outcome
    }

    fn warn(&mut self, now_us: u64, what: &str, error: &io::Error) {
        if now_us >= self.quiet_until_us {
            self.quiet_until_us = now_us + WARN_US;
            log::warn!("{what}: {error}");
        }
    }

    /// Listens no more: whoever connects from now on is refused by the kernel.
    pub(super) fn close(&mut self, registry: &Registry) {
        for mut listener in self.listeners.drain(..) {
            if let Err(error) = registry.deregister(&mut listener.socket) {
                log::debug!("a listener could not be deregistered: {error}");
            }
        }
        self.retry_us = None;
    }
}

/// A descriptor to be given up in need.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Finds out whether addresses that are going to be shared are free, which sharing them would not tell.
///
/// # Errors
/// The first one that is not.
pub(super) fn probe(addresses: &[SocketAddr]) -> Result<(), BindError> {
    for address in addresses.iter().filter(|address| address.port() != 0) {
        listen(*address, false).map_err(|cause| BindError::Address {
            address: *address,
            cause,
        })?;
    }
    Ok(())
}

/// How long nothing is heard of a peer before the system asks whether it is there, how long it waits for an answer, and how
/// often it asks: a peer that has gone without a word is found out in eight minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_RETRIES: u32 = 3;

/// A listening socket whose accepted sockets send small writes at once, and find out when nobody is there any more
/// (they inherit it).
fn listen(address: SocketAddr, shared: bool) -> io::Result<Listener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(Listener {
        socket: TcpListener::from_std(socket.into()),
        ready: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_send_small_writes_at_once_and_miss_their_peers() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let mut listeners = Listeners::bind(&[address], false).expect("port 0 is always free");
        let address = listeners.addresses().expect("it is bound")[0];
        let client = std::net::TcpStream::connect(address).expect("it listens");
        listeners.handle_ready(0);
        let start = std::time::Instant::now();
        let accepted = loop {
            listeners.handle_ready(0);
            if let Some((_, stream, peer)) = listeners.accept(&mut 10, 0) {
                assert_eq!(peer, client.local_addr().expect("it is connected"));
                break stream;
            }
            assert!(start.elapsed().as_secs() < 10, "never accepted");
        };
        assert!(accepted.nodelay().expect("a socket tells it"));
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.keepalive().expect("a socket tells it"));
        let time = accepted.tcp_keepalive_time();
        assert_eq!(time.expect("a socket tells it"), KEEPALIVE_TIME);
        assert!(listeners.accept(&mut 10, 0).is_none());
        assert!(!listeners.ready(), "an emptied backlog is not asked again");
    }

    #[test]
    fn a_turn_accepts_no_more_than_its_share() {
        let address = "127.0.0.1:0".parse().expect("an address");
        let mut listeners = Listeners::bind(&[address], false).expect("port 0 is always free");
        let address = listeners.addresses().expect("it is bound")[0];
        let clients: Vec<_> = (0..5)
            .map(|_| std::net::TcpStream::connect(address).expect("it listens"))
            .collect();
        let mut served = 0;
        let mut turns = 0;
        while served < clients.len() {
            listeners.handle_ready(0);
            let mut left = 2;
            let mut bite = 0;
            while listeners.accept(&mut left, 0).is_some() {
                bite += 1;
            }
            assert!(bite <= 2);
            served += bite;
            turns += 1;
            assert!(turns < 1_000_000, "{served} accepted");
        }
    }
}
