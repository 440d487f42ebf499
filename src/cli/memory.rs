//! How much memory this process may use: the machine's, or its control group's when that is less.

use std::fs;
use std::path::{Path, PathBuf};

/// What is assumed when the system tells nothing, bytes.
const UNKNOWN_BYTES: u64 = 4 << 30;

/// A quarter of the memory this process may use, bytes.
pub fn budget_bytes_default() -> usize {
    let available = available_bytes(Path::new("/"));
    usize::try_from(available / 4).unwrap_or(usize::MAX)
}

/// Memory this process may use, bytes, read from the files under `root` (`/` but in tests).
fn available_bytes(root: &Path) -> u64 {
    let total = fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| total_bytes(&text));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limit = group_limit_bytes(root, &groups);
    match (total, limit) {
        (Some(total), Some(limit)) => total.min(limit),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => UNKNOWN_BYTES,
    }
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The lowest limit of this process's control groups and of those above them, bytes.
fn group_limit_bytes(root: &Path, groups: &str) -> Option<u64> {
    let mut lowest = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mount = root.join(mount);
        let mut group: PathBuf = mount.join(path.trim_start_matches('/'));
        loop {
            let text = fs::read_to_string(group.join(file)).unwrap_or_default();
            if let Ok(limit) = text.trim().parse::<u64>() {
                lowest = Some(lowest.map_or(limit, |lowest: u64| lowest.min(limit)));
            }
            if group == mount || !group.pop() {
                break;
            }
        }
    }
    lowest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for one test, with the given files.
    fn root(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root =
            std::env::temp_dir().join(format!("ringmq-memory-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a file has a directory")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        root
    }

    fn check(name: &str, files: &[(&str, &str)], want: u64) {
        let root = root(name, files);
        assert_eq!(available_bytes(&root), want, "{name}");
        fs::remove_dir_all(&root).ok();
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemFree: 1 kB\nMemTotal:  8388608 kB\nX: 1\n",
    );

    #[test]
    fn the_lower_of_machine_and_group() {
        check("nothing", &[], UNKNOWN_BYTES);
        check("machine", &[MEMINFO], 8 << 30);
        let member = ("proc/self/cgroup", "0::/a/b\n");
        check(
            "unlimited",
            &[MEMINFO, member, ("sys/fs/cgroup/a/b/memory.max", "max\n")],
            8 << 30,
        );
        check(
            "parent is lower",
            &[
                MEMINFO,
                member,
                ("sys/fs/cgroup/a/b/memory.max", "2147483648\n"),
                ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ],
            1 << 30,
        );
        check(
            "own root only, as in a container",
            &[MEMINFO, member, ("sys/fs/cgroup/memory.max", "536870912\n")],
            512 << 20,
        );
        check(
            "version 1",
            &[
                MEMINFO,
                ("proc/self/cgroup", "9:name=systemd:/\n4:memory:/x\n"),
                (
                    "sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                    "268435456\n",
                ),
                (
                    "sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
            256 << 20,
        );
    }
}
