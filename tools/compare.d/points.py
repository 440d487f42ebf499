"""What is measured: points, each the same work for every server."""

from dataclasses import dataclass, field

# Which sets a point belongs to; every set includes those before it.
QUICK, GOALS, FULL = "quick", "goals", "full"
SETS = [QUICK, GOALS, FULL]


@dataclass(frozen=True)
class Point:
    """One kind of work with its numbers."""

    work: str  # publish, drain, e2e, rate, fanout, durable, depth, idle, start
    size: int = 128  # body bytes
    producers: int = 1
    consumers: int = 1
    window: int = 1  # messages in flight for each producer
    rate: int = 0  # messages a second of an open loop
    count: int = 0  # messages of a drain or depth, connections that idle, starts
    set: str = GOALS  # the smallest set it belongs to
    variants: tuple = ()  # ways to use RingMQ and Redis beside the usual one
    only: tuple = ()  # these servers alone
    calls: bool = field(default=False)  # system calls are counted in a run of its own

    @property
    def name(self):
        size = human(self.size)
        at = f"{self.producers}x{self.consumers} W={self.window}"
        return {
            "publish": f"publish {size}, {self.producers} x W={self.window}",
            "drain": f"drain {self.count:,} of {size}",
            "e2e": f"end to end {size} {at}",
            "rate": f"open loop {size}, {self.rate:,}/s",
            "fanout": f"fan-out to {self.consumers}, {size}, W={self.window}",
            "durable": f"durable {size}, {self.producers} x W={self.window}",
            "depth": f"depth {self.count:,} of {size}",
            "idle": f"{self.count:,} idle connections",
            "start": "start, empty directory",
        }[self.work]

    @property
    def id(self):
        """The name for --only and file names: letters, digits, dashes."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower().replace(",", "")).replace("--", "-")


def human(size):
    """Bytes for people: 128 B, 16 KiB, 1 MiB."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


STREAMS = ("redis streams",)
PULL = ("ringmq PULL", "redis pop n", *STREAMS)
QUIET = ("ringmq ACK!",)

POINTS = [
    Point("e2e", 128, 1, 1, 1, set=QUICK, calls=True, variants=STREAMS),
    Point("e2e", 128, 1, 1, 10, set=FULL),
    Point("e2e", 128, 1, 1, 100),
    Point("e2e", 128, 4, 4, 100, set=QUICK, variants=PULL),
    Point("e2e", 128, 1, 1, 1000, variants=PULL),
    Point("e2e", 128, 16, 16, 10, set=FULL),
    Point("e2e", 128, 64, 64, 1, variants=QUIET, calls=True),
    Point("e2e", 128, 64, 64, 10),
    Point("e2e", 128, 1000, 1000, 1, set=FULL, only=("forwarder", "ringmq"), calls=True),
    Point("e2e", 16, 4, 4, 100, set=FULL),
    Point("e2e", 1 << 10, 4, 4, 100, set=QUICK, variants=STREAMS),
    Point("e2e", 16 << 10, 4, 4, 10),
    Point("e2e", 256 << 10, 4, 4, 2, set=FULL),
    Point("e2e", 1 << 20, 1, 1, 2, set=FULL),
    Point("publish", 128, 4, 0, 100, set=QUICK, variants=STREAMS),
    Point("publish", 16, 1, 0, 1000),
    Point("publish", 1 << 10, 4, 0, 100, set=FULL),
    Point("publish", 1 << 20, 1, 0, 2, set=FULL),
    Point("drain", 128, 1, 1, 1000, count=200_000, set=QUICK, variants=PULL),
    Point("drain", 128, 4, 4, 100, count=1_000_000, set=FULL, variants=PULL),
    Point("fanout", 128, 1, 10, 100, set=QUICK),
    Point("fanout", 1 << 10, 1, 64, 10, set=FULL),
    Point("rate", 100, 1, 1, 1000, rate=10_000, set=QUICK, variants=STREAMS),
    Point("rate", 100, 4, 4, 1000, rate=100_000, set=FULL),
    Point("durable", 100, 1, 0, 1, set=QUICK, calls=True),
    Point("durable", 100, 1, 0, 100, calls=True),
    Point("durable", 100, 16, 0, 1, calls=True),
    Point("durable", 100, 16, 0, 100, set=QUICK, calls=True, variants=STREAMS),
    Point("depth", 100, 1, 1, 1000, count=1_000_000, set=QUICK),
    Point("idle", 16, 0, 1, 1, count=1_000, set=QUICK),
    Point("idle", 16, 0, 1, 1, count=10_000, only=("forwarder", "ringmq", "redis", "nats", "beanstalkd")),
    Point("start", 16, 0, 0, 1, count=10, set=QUICK),
]


def chosen(which, words):
    """The points of a set; with words, those whose name or id contains one of them, of any set."""
    if words:
        found = [p for p in POINTS if any(w in p.name.lower() or w in p.id for w in words)]
        inside = [p for p in found if SETS.index(p.set) <= SETS.index(which)]
        return inside or found
    return [p for p in POINTS if SETS.index(p.set) <= SETS.index(which)]
