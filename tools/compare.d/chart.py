"""SVG charts without any library: bars on a logarithmic axis, and ranges of latency."""

import math
from xml.sax.saxutils import escape

COLOURS = {
    "ringmq": "#0b6e99", "ringmq PULL": "#4a9cc0", "ringmq ACK!": "#86c1dc",
    "redis": "#d1495b", "redis pop n": "#e59aa4", "redis streams": "#a63446", "nats": "#3a9d5d", "beanstalkd": "#b8860b",
    "rabbitmq": "#e07a1f", "forwarder": "#9aa0a6", "write + fdatasync": "#5f6368",
}
WIDTH, LEFT, RIGHT, ROW, GAP, TOP = 900, 150, 110, 17, 30, 92


def nice(value):
    """A number with three digits that count."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


class Canvas:
    """Elements of a drawing, appended one after another."""

    def __init__(self, title, note, height):
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="12" role="img">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        ]
        self.text(20, 30, title, size=19, weight="bold")
        self.text(20, 50, note, fill="#555555")

    def text(self, x, y, words, anchor="start", size=12, weight="normal", fill="#222222"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
                          f'font-weight="{weight}" fill="{fill}">{escape(words)}</text>')

    def rect(self, x, y, width, height, fill, opacity=1.0):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" '
                          f'fill="{fill}" fill-opacity="{opacity}" rx="1.5"/>')

    def line(self, x1, y1, x2, y2, colour="#e3e3e3", width=1.0):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
                          f'stroke-width="{width}"/>')

    def done(self):
        return "\n".join([*self.parts, "</svg>", ""])


class Axis:
    """A logarithmic axis over whole decades."""

    def __init__(self, values):
        values = [value for value in values if value > 0] or [1]
        self.low = math.floor(math.log10(min(values)) - 0.15)
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)

    def x(self, value):
        part = (math.log10(max(value, 10.0 ** self.low)) - self.low) / (self.high - self.low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def draw(self, canvas, top, bottom, unit):
        for decade in range(self.low, self.high + 1):
            x = self.x(10.0 ** decade)
            canvas.line(x, top, x, bottom)
            words = f"{10 ** decade:,}" if decade >= 0 else f"{10.0 ** decade:g}"
            canvas.text(x, top - 6, words, anchor="middle", fill="#777777", size=11)
        canvas.text(20, top - 6, f"{unit}, log scale", fill="#777777", size=11)


def bars(title, note, unit, groups):
    """Horizontal bars: groups are (label, [(who, value, words behind the bar)])."""
    groups = [(label, [bar for bar in those if bar[1]]) for label, those in groups]
    groups = [(label, those) for label, those in groups if those]
    height = TOP + sum(GAP + ROW * len(those) for _, those in groups) + 20
    canvas = Canvas(title, note, height)
    axis = Axis([value for _, those in groups for _, value, _ in those])
    axis.draw(canvas, TOP, height - 20, unit)
    y = TOP
    for label, those in groups:
        canvas.text(20, y + 19, label, weight="bold", size=13)
        y += GAP - 4
        for who, value, words in those:
            canvas.rect(LEFT, y + 2, axis.x(value) - LEFT, ROW - 4, COLOURS.get(who, "#777777"))
            canvas.text(LEFT - 8, y + 13, who, anchor="end", weight="bold" if who.startswith("ringmq") else "normal")
            canvas.text(axis.x(value) + 5, y + 13, words, size=11)
            y += ROW
        y += 4
    return canvas.done()


def ranges(title, note, unit, groups):
    """From the median to the far percentiles: groups are (label, [(who, [p50, p99, p99.9])])."""
    groups = [(label, [(who, v) for who, v in those if v and all(v)]) for label, those in groups]
    groups = [(label, those) for label, those in groups if those]
    height = TOP + sum(GAP + ROW * len(those) for _, those in groups) + 20
    canvas = Canvas(title, note, height)
    axis = Axis([value for _, those in groups for _, values in those for value in values])
    axis.draw(canvas, TOP, height - 20, unit)
    y = TOP
    for label, those in groups:
        canvas.text(20, y + 19, label, weight="bold", size=13)
        y += GAP - 4
        for who, values in those:
            colour = COLOURS.get(who, "#777777")
            first, middle, last = (axis.x(value) for value in values)
            canvas.rect(first, y + 6, last - first, ROW - 12, colour, 0.35)
            canvas.rect(first, y + 4, middle - first, ROW - 8, colour, 0.6)
            for x in (first, middle, last):
                canvas.rect(x - 1.5, y + 2, 3, ROW - 4, colour)
            canvas.text(LEFT - 8, y + 13, who, anchor="end", weight="bold" if who.startswith("ringmq") else "normal")
            canvas.text(last + 7, y + 13, " / ".join(nice(value) for value in values), size=11)
            y += ROW
        y += 4
    return canvas.done()
