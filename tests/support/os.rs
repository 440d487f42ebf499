//! What tests ask the system for about another process. Each unsafe block is one call into libc.
#![allow(unsafe_code)]

use std::fs;
use std::io;

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two integers and touches no memory of ours.
    let result = unsafe { libc::kill(pid as libc::pid_t, signal) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A limit of a process.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Writes beyond this offset of any file fail, bytes.
    FileSize,
    /// Descriptors open at once.
    OpenFiles,
}

/// Sets the soft limit of another process; `None` raises it to the hard one.
#[cfg(target_os = "linux")]
pub fn set_limit(pid: u32, limit: Limit, soft: Option<u64>) {
    let pid = libc::pid_t::try_from(pid).expect("process ids are small");
    let resource = match limit {
        Limit::FileSize => libc::RLIMIT_FSIZE,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
    };
    let mut values = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both pointers are valid or null, as prlimit allows.
    let result = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &mut values) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    values.rlim_cur = soft.unwrap_or(values.rlim_max);
    // SAFETY: both pointers are valid or null, as prlimit allows.
    let result = unsafe { libc::prlimit(pid, resource, &values, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Raises this process's own limit of open files and returns it.
pub fn raise_open_files() -> u64 {
    ringmq::net::os::raise_open_files_limit().expect("raising to the hard limit is always allowed")
}

/// Memory that a process has resident, bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.expect("the kernel tells it in kB") << 10
}

/// File descriptors that a process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process runs")
        .count()
}

/// Processor time that a process has used, clock ticks (100 a second).
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let after_name = stat
        .rsplit(')')
        .next()
        .expect("the name stands in parentheses");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |index: usize| fields[index].parse::<u64>().expect("a number");
    field(11) + field(12)
}
