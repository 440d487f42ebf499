//! The machine a figure was measured on, and the CPU time of a process.

use std::fs;

use crate::net::os;

/// What the result says of the machine.
pub fn describe() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cpus} CPUs, Linux {}", kernel.trim())
}

/// User and system time that a process and its ended threads have used, nanoseconds; `None` when
/// it is not there. Where the system has no clock for a process, in steps of 10 ms.
pub fn cpu_ns(pid: u32) -> Option<u64> {
    if let Some(used_ns) = os::process_cpu_ns(pid) {
        return Some(used_ns);
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat_ticks(&stat)? * (1_000_000_000 / TICKS_PER_SECOND))
}

/// Resident memory of a process, bytes; `None` when it is not there.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// `USER_HZ`, which is the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// utime + stime, fields 14 and 15; the name before them may hold anything.
fn stat_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_behind_a_strange_name() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 250 7 0 0 20 0 1 0 5 6 7";
        assert_eq!(stat_ticks(stat), Some(257));
        assert_eq!(stat_ticks("nonsense"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let bytes = resident_bytes(std::process::id()).expect("it is alive");
        assert!((100_000..100_000_000_000).contains(&bytes), "{bytes}");
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn this_process_uses_time() {
        let before = cpu_ns(std::process::id()).expect("it is alive");
        let (mut after, mut sum) = (before, 0_u64);
        while after == before {
            sum = (0..1_000_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
            after = cpu_ns(std::process::id()).expect("it is alive");
        }
        assert!(after > before, "{before} then {after}, {sum}");
        assert_eq!(cpu_ns(u32::MAX), None);
    }

    #[test]
    fn both_ways_to_ask_for_time_agree() {
        let pid = std::process::id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is alive");
        let ticks_ns = stat_ticks(&stat).expect("it has times") * 1_000_000_000 / TICKS_PER_SECOND;
        let clock_ns = cpu_ns(pid).expect("it is alive");
        // Other tests run in this process at the same time.
        let between_ns = clock_ns.abs_diff(ticks_ns);
        assert!(between_ns < 500_000_000, "{clock_ns} and {ticks_ns}");
    }
}
