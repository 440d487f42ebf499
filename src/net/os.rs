//! What only the operating system can be asked for: limits of the process, the allocator's habits,
//! entropy. The only unsafe code of the room; each block is one call into libc.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(target_os = "linux")]
use std::time::Duration;

/// Waits below this are worth more than the millisecond's precision that every system has.
#[cfg(target_os = "linux")]
const FINE_WAITS: Duration = Duration::from_millis(2);

/// The system has no finer waits, or does not let this process use them.
#[cfg(target_os = "linux")]
static IS_COARSE: AtomicBool = AtomicBool::new(false);

/// Raises the number of files this process may open to the most it is allowed, and returns it.
///
/// # Errors
/// If the system refuses; the limit is unchanged then.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// Bytes in a TCP socket's send queue that its peer has not acknowledged.
///
/// # Errors
/// If the system does not tell.
pub fn unacknowledged(socket: &impl AsRawFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as the socket is borrowed; the call fills one integer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    match result {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An event of [`epoll_wait`]: `epoll_event` of the system.
#[cfg(target_os = "linux")]
pub(super) type EpollEvent = libc::epoll_event;

/// Sleeps until descriptors that an epoll watches are ready, and replaces the events by theirs, as many as there is
/// room for. At most for so long (`None` = for ever): to the microsecond below 2 ms, if the system can (Linux 5.11),
/// otherwise rounded up to the millisecond.
///
/// # Errors
/// If the system refuses, or a signal came (`Interrupted`); there are no events then.
#[cfg(target_os = "linux")]
pub(super) fn epoll_wait(
    epoll: std::os::fd::RawFd,
    events: &mut Vec<EpollEvent>,
    at_most: Option<Duration>,
) -> io::Result<()> {
    events.clear();
    let room = libc::c_int::try_from(events.capacity()).unwrap_or(libc::c_int::MAX);
    let is_fine = at_most.is_some_and(|wait| !wait.is_zero() && wait < FINE_WAITS);
    if let Some(wait) = at_most.filter(|_| is_fine && !IS_COARSE.load(Ordering::Relaxed)) {
        let wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let no_signals = std::ptr::null::<libc::sigset_t>();
        // SAFETY: the call writes at most `room` events to the vector's memory, which has that room, and only reads
        // `wait`; the last argument is the size of a set of signals that is not given.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll,
                events.as_mut_ptr(),
                room,
                &raw const wait,
                no_signals,
                0_usize,
            )
        };
        if let Ok(count) = usize::try_from(count) {
            // SAFETY: so many events were written.
            unsafe { events.set_len(count) };
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            return Err(error);
        }
        IS_COARSE.store(true, Ordering::Relaxed);
    }
    let wait_ms = at_most.map_or(-1, |wait| {
        libc::c_int::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: as above.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, wait_ms) };
    let Ok(count) = usize::try_from(count) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: so many events were written.
    unsafe { events.set_len(count) };
    Ok(())
}

/// Makes the allocator give large freed blocks back to the system at once instead of keeping them
/// for ever, so that memory follows the queues down as well as up. Does nothing where the
/// allocator is not glibc's.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const BYTES: libc::c_int = 128 << 10;
        // SAFETY: mallopt takes two integers and only sets the allocator's own parameters.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, BYTES);
        }
    }
}

/// Gives back to the system what the allocator keeps in gaps between blocks that are in use, of all threads. Takes
/// about a millisecond for each few MiB that it finds, and holds up threads that allocate meanwhile. Does nothing where
/// the allocator is not glibc's.
pub fn trim_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes an integer and touches nothing but what is free.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Makes a write beyond the process's file size limit an error (`EFBIG`) like a full disk, instead
/// of a signal that kills.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is a valid disposition; no handler runs.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// User and system time that a process has used, ended threads included, nanoseconds: the sum that
/// `/proc/PID/stat` tells in steps of 10 ms. `None` when the process is not there, or the system
/// has no such clock.
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0)?;
        let mut clock = 0;
        // SAFETY: `clock` is a valid clock id that the call fills.
        if unsafe { libc::clock_getcpuclockid(pid, &mut clock) } != 0 {
            return None;
        }
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is a valid timespec that the call fills.
        if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
            return None;
        }
        Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// A seed that nobody can guess.
///
/// # Errors
/// If the system's source of entropy cannot be read.
pub fn random_seed() -> io::Result<u64> {
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(u64::from_ne_bytes(seed))
}

/// Bytes that may still be written to the filesystem that a path is on.
///
/// # Errors
/// If the system does not say.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The cores that this thread may run on, by the system's numbers.
///
/// # Errors
/// If the system does not say, or is not Linux.
#[cfg(target_os = "linux")]
pub fn cores() -> io::Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|core| allowed.is_set(*core))
        .collect())
}

/// From now on this thread, and those that it starts, run on that core only.
///
/// # Errors
/// If the process may not use the core, or the system is not Linux.
#[cfg(target_os = "linux")]
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut only = rustix::thread::CpuSet::new();
    only.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &only)?)
}

/// The cores that this thread may run on: only Linux says.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn cores() -> io::Result<Vec<usize>> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "only Linux pins threads to cores",
    ))
}

/// Only Linux pins threads to cores.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn pin_thread(_: usize) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "only Linux pins threads to cores",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_can_be_raised_twice_and_stays() {
        let first = raise_open_files_limit().expect("raising to the hard limit is always allowed");
        let second = raise_open_files_limit().expect("raising to the hard limit is always allowed");
        assert_eq!(first, second);
        assert!(first >= 64);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_short_wait_is_not_rounded_up() {
        let poll = mio::Poll::new().expect("the system gives one");
        let mut events = Vec::with_capacity(8);
        let wait = Duration::from_micros(100);
        // The machine may be busy; the fastest of many is not.
        let waits = (0..50).map(|_| {
            let begun = std::time::Instant::now();
            epoll_wait(poll.as_raw_fd(), &mut events, Some(wait)).expect("it is an epoll");
            assert!(events.is_empty());
            begun.elapsed()
        });
        let fastest = waits.min().expect("there were some");
        let most = Duration::from_millis(if IS_COARSE.load(Ordering::Relaxed) {
            3
        } else {
            1
        });
        assert!(fastest >= wait && fastest < most, "{fastest:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_uses_time() {
        let own = || process_cpu_ns(std::process::id()).expect("it is alive");
        let (before, mut sum) = (own(), 0_u64);
        while own() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own() > before, "after {sum} rounds");
        assert_eq!(process_cpu_ns(0), None);
        assert_eq!(process_cpu_ns(u32::MAX), None);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn gaps_between_blocks_go_back_to_the_system() {
        const BLOCKS: usize = 64 << 10;
        let resident_kib = || {
            let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
            let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
            pages.map_or(0, |pages: usize| pages * 4)
        };
        let mut blocks: Vec<Option<Vec<u8>>> = (0..BLOCKS).map(|_| Some(vec![1; 1024])).collect();
        for (nth, block) in blocks.iter_mut().enumerate() {
            if nth % 64 != 0 {
                *block = None;
            }
        }
        let before = resident_kib();
        trim_freed_memory();
        let after = resident_kib();
        assert!(
            after + (32 << 10) < before,
            "{before} KiB, then {after} with gaps of 63 MiB"
        );
        assert_eq!(blocks.iter().flatten().count(), BLOCKS / 64);
    }

    #[test]
    fn seeds_differ() {
        let seed = || random_seed().expect("this system has /dev/urandom");
        assert_ne!(seed(), seed());
    }
}
