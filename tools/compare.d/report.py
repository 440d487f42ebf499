"""The report: Markdown, charts, and every single result as JSON, in one folder."""

import json
import statistics
import sys

import chart
import peers
from chart import nice

CEILING = "forwarder"
FLOOR = "write + fdatasync"


class Cell:
    """The accepted runs of one server at one point."""

    def __init__(self, point, peer, records, rounds):
        self.point, self.peer = point, peer
        self.calls = next((r for r in records if "calls" in r), None)
        runs = [r for r in records if "calls" not in r]
        self.runs = [r for r in runs if not r["why_not"]]
        self.was_tried = bool(runs)
        needed = 1 if point.work in ("depth", "idle") else (rounds + 1) // 2
        self.is_good = len(self.runs) >= needed
        self.why_not = "" if self.is_good else next((r["why_not"] for r in reversed(runs) if r["why_not"]), "not run")
        self.is_loaded = any(r["is_loaded"] for r in self.runs)

    def all(self, *path):
        """A figure in every accepted run."""
        found = []
        for run in self.runs:
            value = run
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, (int, float)):
                found.append(value)
        return found

    def median(self, *path):
        """The median of a figure over the rounds; None when there is none to report."""
        values = self.all(*path) if self.is_good else []
        return statistics.median(values) if values else None

    def spread(self, *path):
        """Smallest and largest of the rounds."""
        values = self.all(*path) if self.is_good else []
        return (min(values), max(values)) if values else None

    @property
    def rate(self):
        return self.median("messages_per_s")

    @property
    def cpu(self):
        return self.median("server_cpu_us_per_message")

    @property
    def latency(self):
        """Median, 99 % and 99.9 % from due to arrival, or to the receipt where nothing arrives."""
        kind = "receipt_us" if self.point.work in ("publish", "durable") else "arrival_us"
        values = [self.median(kind, name) for name in ("p50", "p99", "p999")]
        return values if self.median(kind, "count") else None

    @property
    def mark(self):
        """! for a loaded machine, * for a weaker promise."""
        weaker = "*" if self.peer and self.peer.weaker(self.point.work) and self.peer.name != CEILING else ""
        return weaker + ("!" if self.is_loaded else "")


class Report:
    def __init__(self, about, points, kinds, results):
        self.about, self.points, self.kinds = about, points, {kind.name: kind for kind in kinds}
        self.cells = {}
        # Other ways to use a server stand behind it.
        order = [kind.name for kind in peers.KINDS]
        names = sorted(self.kinds, key=lambda name: order.index(name.split(" ")[0])) + [FLOOR]
        for point in points:
            for name in names:
                records = [r for r in results if r["point"] == point.id and r["peer"] == name]
                if records:
                    self.cells[point.id, name] = Cell(point, self.kinds.get(name), records, about["rounds"])
        self.names = [name for name in names if any(who == name for _, who in self.cells)]

    def at(self, point, name):
        return self.cells.get((point.id, name))

    def of(self, *works):
        """Points of these kinds of work that were run."""
        return [p for p in self.points if p.work in works and any(self.at(p, n) for n in self.names)]

    def matrix(self, points, figure, words=nice):
        """Rows are points, columns servers: the figure and its ratio to the forwarder's."""
        names = [n for n in self.names if any(self.at(p, n) for p in points)]
        lines = [["", *names]]
        for point in points:
            base = figure(self.at(point, CEILING)) if self.at(point, CEILING) else None
            row = [point.name]
            for name in names:
                cell = self.at(point, name)
                value = figure(cell) if cell else None
                if not cell:
                    row.append("")
                elif value is None:
                    row.append("not reported" if not cell.is_good else "–")
                else:
                    ratio = f" ({nice(value / base)})" if base and name != CEILING else ""
                    row.append(f"{words(value)}{ratio}{cell.mark}")
            lines.append(row)
        return table(lines)

    def text(self):
        about = self.about
        timed = self.of("e2e", "publish", "drain", "fanout", "rate", "durable")
        parts = [
            "# RingMQ and its peers",
            f"`{about['command']}`, {about['date']}, revision {about['revision']}.",
            f"Machine: {about['machine']}. Load before {about['load_before']:.2f}, after {about['load_after']:.2f}; a run is "
            f"reported only if processes of others used at most {about['load_max']:g} CPUs meanwhile"
            + (" (**--force: not enforced**, such figures are marked `!`)." if about["force"] else "."),
            f"{about['rounds']} rounds of {about['duration_s']:g} s after {about['warmup_s']:g} s of warm-up, servers in turns, a fresh "
            "server for every run (RabbitMQ, which takes seconds to start, is halted meanwhile); medians of the rounds.",
            "**How to read it.** *Server CPU a message* is the figure to trust: it comes from the server's process times and does not "
            "depend on what the generator or others do with the other CPU. *Rates* are what one generator thread and the server do "
            "together. In parentheses: the ratio to the *forwarder*, one thread that passes fixed frames on, parses nothing and keeps "
            "nothing; lower is better for CPU, higher for rates. `*`: a weaker promise, [told below](#what-is-weaker). Every run "
            "proved that each message arrived exactly once; what did not is not reported.",
        ]
        if timed:
            parts += ["## Server CPU a message, µs (× forwarder)", "![](cpu.svg)", self.matrix(timed, lambda c: c.cpu)]
            parts += ["## Throughput, messages a second (× forwarder)", "![](throughput.svg)",
                      "A fan-out counts deliveries. An open loop is held at its rate.",
                      self.matrix(timed, lambda c: c.rate, short)]
        if self.latency_points():
            parts += ["## Latency, µs", "![](latency.svg)",
                      "From the time a message was due to its arrival (a publish alone: to its receipt): median / 99 % / 99.9 %, "
                      "in parentheses how much the median is above the forwarder's. In an open loop a message is due by the clock, so a server that stalls cannot hide it.",
                      self.latencies()]
        parts += self.durable() + self.memory() + self.calls() + self.against()
        if timed:
            parts += ["## Every point", self.details(timed)]
        parts += ["## What is weaker", self.weaker(), "## Servers", self.servers()]
        refused = self.refused()
        if refused:
            parts += ["## Not reported", refused]
        return "\n\n".join(parts) + "\n"

    def latency_points(self):
        return [p for p in self.of("rate", "e2e") if p.work == "rate" or p.window == 1]

    def latencies(self):
        lines = [["", *[n for n in self.names if n != FLOOR]]]
        for point in self.latency_points():
            row = [point.name]
            ceiling = self.at(point, CEILING)
            base = ceiling.latency if ceiling else None
            for name in lines[0][1:]:
                cell = self.at(point, name)
                values = cell.latency if cell else None
                more = f" ({values[0] - base[0]:+.1f})" if values and base and name != CEILING else ""
                row.append(" / ".join(nice(v) for v in values) + more + cell.mark if values else "")
            lines.append(row)
        return table(lines)

    def durable(self):
        points = self.of("durable")
        if not points:
            return []
        lines = [["", "server", "messages/s", "of the bare loop", "server CPU, µs", "receipt p50 / p99, µs", "messages a sync", "syncs by"]]
        for point in points:
            floor = self.at(point, FLOOR)
            base = floor.rate if floor else None
            forwarder = self.at(point, CEILING)
            if base and point.producers * point.window == 1 and forwarder and forwarder.rate:
                # One at a time cannot overlap: the sync and the way there and back add up.
                base = 1 / (1 / base + 1 / forwarder.rate)
            for name in [FLOOR, *[n for n in self.names if n != FLOOR]]:
                cell = self.at(point, name)
                if not cell or not cell.is_good or name == CEILING:
                    continue
                syncs, by = "", ""
                if name == FLOOR:
                    syncs, by = str(point.producers * point.window), "fdatasync, nothing else"
                elif cell.calls:
                    syncs, by = sync_words(cell.calls)
                values = cell.latency or [None, None]
                lines.append([point.name, name, short(cell.rate), nice(cell.rate / base) if base and name != FLOOR else "",
                              nice(cell.cpu) + cell.mark if cell.cpu is not None else "",
                              " / ".join(nice(v) for v in values[:2]) if values[0] else "", syncs, by])
        return ["## Durable publishes", "![](durable.svg)",
                "The bare loop writes as many messages with each `pwrite` + `fdatasync` as are in flight, into space that was written "
                "before; with one in flight the forwarder's way there and back is added to it. Syncs were counted in a run of their own.",
                table(lines)]

    def memory(self):
        parts = []
        lines = [["", "server", "memory a message", "after the drain", "first tenth drained, messages/s (× forwarder's drain)"]]
        for point in self.of("depth"):
            base = self.at(point, CEILING)
            base = base.median("first_tenth_per_s") if base else None
            for name in self.names:
                cell = self.at(point, name)
                if not cell or not cell.is_good:
                    continue
                each, left, tenth = cell.median("bytes_per_message"), cell.median("drained_part"), cell.median("first_tenth_per_s")
                lines.append([point.name, name, f"{each:.0f} bytes" if each else "–", f"{left * 100:.0f} %" if left else "–",
                              f"{short(tenth)} ({nice(tenth / base)})" if tenth and base else short(tenth) if tenth else "–"])
        if len(lines) > 1:
            parts += ["## Memory", "![](memory.svg)", "Resident memory by message queued, and what is left of it two seconds after all were "
                      "taken, of what it was when full.", table(lines)]
        lines = [["", "server", "memory a connection", "CPU meanwhile"]]
        for point in self.of("idle"):
            for name in self.names:
                cell = self.at(point, name)
                if cell and cell.is_good:
                    lines.append([point.name, name, f"{cell.median('bytes_per_connection'):,.0f} bytes",
                                  f"{cell.median('server_cpu_ms_per_s'):.1f} ms/s"])
        if len(lines) > 1:
            parts += ["## Idle connections", "Memory of the process; the system's socket buffers are not in it.", table(lines)]
        lines = [["server", "connected after, ms", "first answer after, ms (× forwarder)"]]
        for point in self.of("start"):
            for name in self.names:
                cell = self.at(point, name)
                base = self.at(point, CEILING).median("start_ms") if self.at(point, CEILING) else None
                if cell and cell.is_good:
                    took = cell.median("start_ms")
                    ratio = f" ({nice(took / base)})" if base and name != CEILING else ""
                    lines.append([name, nice(cell.median("connected_ms")), nice(took) + ratio])
        if len(lines) > 1:
            parts += ["## Start", "From the start of the process with an empty directory until a connection was there, and until it was answered.",
                      table(lines)]
        return parts

    def calls(self):
        lines = [["", *[n for n in self.names if n != FLOOR]]]
        for point in self.points:
            cells = [self.at(point, name) for name in lines[0][1:]]
            if any(c and c.calls and c.calls["calls"] for c in cells):
                lines.append([point.name, *(nice(c.calls["calls"]) if c and c.calls and c.calls["calls"] else "" for c in cells)])
        if len(lines) == 1:
            return []
        return ["## System calls a message", "Of the server, counted by `strace` in a run of its own, which it slows down.", table(lines)]

    def against(self):
        """RingMQ's figures as ratios to each other server's."""
        lines = []
        names = [n for n in self.names if n not in (FLOOR, "ringmq") and not n.startswith("ringmq ")]
        for point in self.of("e2e", "publish", "drain", "fanout", "rate", "durable"):
            own = self.at(point, "ringmq")
            if not own or not own.cpu:
                continue
            row = [point.name]
            for name in names:
                cell = self.at(point, name)
                row.append(f"{nice(own.cpu / cell.cpu)}{cell.mark}" if cell and cell.cpu else "")
            lines.append(row)
        if not lines or not names:
            return []
        return ["## RingMQ's server CPU a message, as a ratio to each", table([["", *names], *lines])]

    def details(self, points):
        lines = [["", "server", "messages/s", "server CPU, µs", "smallest–largest", "p50 / p99 / p99.9, µs",
                  "generator, CPUs", "others, CPUs", "runs"]]
        for point in points:
            for name in self.names:
                cell = self.at(point, name)
                if not cell or not cell.is_good or name == FLOOR:
                    continue
                spread = cell.spread("server_cpu_us_per_message")
                lines.append([point.name, name + cell.mark, short(cell.rate), nice(cell.cpu) if cell.cpu is not None else "–",
                              "–".join(nice(v) for v in spread) if spread else "",
                              " / ".join(nice(v) for v in cell.latency) if cell.latency else "–",
                              nice(cell.median("generator_cpu_cores")), nice(cell.median("others_cores")), str(len(cell.runs))])
        commands = []
        for point in points:
            cell = self.at(point, "ringmq") or self.at(point, CEILING)
            if cell and cell.runs:
                commands.append(f"- {point.name}: `{cell.runs[0]['command']}`")
        return table(lines) + "\n\nThe commands, for RingMQ:\n\n" + "\n".join(commands)

    def weaker(self):
        lines = [["server", "work", "what is weaker than receipt, stored until acked, answered ack"]]
        for name in self.names:
            kind = self.kinds.get(name)
            for work in dict.fromkeys(point.work for point in self.points):
                told = kind.weaker(work) if kind else ""
                if told and any(who == name and cell.point.work == work for (_, who), cell in self.cells.items()):
                    lines.append([name, work, told])
        durable = [f"- {name}, durable: {self.kinds[name].durable}" for name in self.names
                   if name in self.kinds and self.kinds[name].durable and any(self.at(p, name) for p in self.of("durable"))]
        proofs = {}
        for (_, name), cell in self.cells.items():
            for run in cell.runs:
                if run.get("proof"):
                    proofs.setdefault(run["proof"], set()).add(name)
        proved = [f"- {proof}: {', '.join(sorted(names))}" for proof, names in proofs.items()]
        return "\n\n".join(part for part in (table(lines) if len(lines) > 1 else "Nothing.", "\n".join(durable),
                                             "What was proved:\n\n" + "\n".join(proved) if proved else "") if part)

    def servers(self):
        lines = [["server", "version", "started as"]]
        for name, version in self.about["versions"].items():
            lines.append([name, version, "<br>".join(f"`{words}`" for words in self.about["flags"].get(name, []))])
        if self.about["missing"]:
            lines.append([", ".join(self.about["missing"]), "not installed", ""])
        return table(lines)

    def refused(self):
        lines = [f"- {cell.point.name}, {name}: {cell.why_not}" for (_, name), cell in self.cells.items()
                 if cell.was_tried and not cell.is_good]
        return "\n".join(lines)

    def charts(self):
        """File names and their SVG."""
        note = f"{self.about['machine']} · {self.about['date']} · medians of {self.about['rounds']}"
        note += " · * weaker promise"
        if self.about["force"]:
            note += " · ! loaded machine"
        timed = self.of("e2e", "publish", "drain", "fanout", "rate")
        found = {}

        def group(points, figure, words, names=self.names):
            groups = []
            for point in points:
                cells = [(name, self.at(point, name)) for name in names]
                groups.append((point.name, [(name, figure(cell), words(cell)) for name, cell in cells
                                            if cell and cell.is_good and figure(cell)]))
            return groups

        if timed:
            found["cpu.svg"] = chart.bars("Server CPU a message: shorter is better", note, "µs",
                                          group(timed, lambda c: c.cpu, lambda c: nice(c.cpu) + c.mark))
            found["throughput.svg"] = chart.bars(
                "Messages a second: longer is better", note, "messages/s",
                group([p for p in timed if p.work != "rate"], lambda c: c.rate, lambda c: short(c.rate) + c.mark))
        if self.latency_points():
            groups = [(p.name, [(n, self.at(p, n).latency) for n in self.names if self.at(p, n) and self.at(p, n).is_good])
                      for p in self.latency_points()]
            found["latency.svg"] = chart.ranges("From due to delivered: median, 99 %, 99.9 %", note, "µs", groups)
        if self.of("durable"):
            found["durable.svg"] = chart.bars("Durable publishes a second: longer is better", note, "messages/s",
                                              group(self.of("durable"), lambda c: c.rate, lambda c: short(c.rate) + c.mark,
                                                    [n for n in self.names if n != CEILING]))
        memory = group(self.of("depth"), lambda c: c.median("bytes_per_message"), lambda c: f"{c.median('bytes_per_message'):.0f}")
        memory += group(self.of("idle"), lambda c: c.median("bytes_per_connection"),
                        lambda c: f"{c.median('bytes_per_connection'):,.0f}")
        if any(those for _, those in memory):
            found["memory.svg"] = chart.bars("Memory for each message or connection: shorter is better", note, "bytes", memory)
        return found


def short(rate):
    """A rate for people: 14.1 M, 506 k, 287."""
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if rate >= 0.9995 * unit:
            return f"{rate / unit:.{2 if rate < 9.995 * unit else 1 if rate < 99.95 * unit else 0}f}{name}"
    return nice(rate)


def sync_words(calls):
    """Messages for each sync, and which calls these were."""
    if calls["why_not"]:
        return "", calls["why_not"]
    if not calls["syncs"]:
        return "no sync", ""
    by = ", ".join(f"{name} {count}" for name, count in calls["by_name"].items() if "sync" in name and name != "rt_sigsync")
    return nice(calls["messages"] / calls["syncs"]), f"{by} for {calls['messages']} messages"


def table(lines):
    """A Markdown table; the first line is its head."""
    def row(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    head = "|" + "---|" * len(lines[0])
    return "\n".join([row(lines[0]), head, *map(row, lines[1:])])


def write(out, about, points, kinds, results):
    """Writes the folder; 0 if every run could be reported, else 1."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps({**about, "runs": results}, indent=1) + "\n")
    report = Report(about, points, kinds, results)
    for name, svg in report.charts().items():
        (out / name).write_text(svg)
    (out / "README.md").write_text(report.text())
    refused = report.refused()
    print(f"{out}/README.md")
    if refused:
        print(f"compare: not reported:\n{refused}", file=sys.stderr)
    return 1 if refused else 0
