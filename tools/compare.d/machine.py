"""What the machine was doing meanwhile, and what a process takes: from /proc."""

import os
import time

TICKS = os.sysconf("SC_CLK_TCK")


def describe():
    """Processor, number of CPUs, kernel, memory."""
    model = "unknown CPU"
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as meminfo:
        memory = int(meminfo.readline().split()[1]) >> 20
    uname = os.uname()
    return f"{model}, {os.cpu_count()} CPUs, {memory} GiB, {uname.sysname} {uname.release}"


def load1():
    """The load average of the last minute."""
    return os.getloadavg()[0]


def cpu_s(pid):
    """User and system time of a process, seconds; 0 when it is not there."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident(pid):
    """Resident memory of a process, bytes."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def busy_s():
    """Time that all CPUs have spent in processes, or taken away by the host, seconds. Interrupts are left out:
    those of the loopback are part of what is measured."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, _, _, steal = (int(word) for word in stat.readline().split()[1:9])
    return (user + nice + system + steal) / TICKS


class Others:
    """How many CPUs others have used between two moments."""

    def __init__(self, pid):
        self.pid, self.busy, self.server = pid, busy_s(), cpu_s(pid)
        self.own, self.began = sum(os.times()[:4]), time.monotonic()

    def cores(self):
        """Of what was busy, what neither this process and its ended children nor the server has used."""
        busy = busy_s() - self.busy
        ours = sum(os.times()[:4]) - self.own + cpu_s(self.pid) - self.server
        return max(0.0, (busy - ours) / max(time.monotonic() - self.began, 0.01))
