//! What only the operating system can be asked for: limits of the process, the allocator's habits,
//! entropy. The only unsafe code of the room; each block is one call into libc.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

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
