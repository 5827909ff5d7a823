"""Charts as SVG text: lines, points and bars, readable in light and dark, by eye and by screen reader.

A chart is one string with no script, no style sheet and no reference; colours are CSS variables with built-in
values, so it follows the page's theme and also stands alone. A million points cost a few hundred: of those
that fall into one pixel column, the first, lowest, highest and last are drawn, so a spike of one step is
never lost. Rejected: matplotlib (a 30 MB dependency for two kinds of chart), JavaScript charts (a report
opens anywhere, for ever)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stablelm.reporting.scales import Array, Scale, drawable, fit
from stablelm.reporting.text import escape, number, shorten

# Light-theme colours (dark ones are in page.py): apart in hue and in lightness, also for red-green blindness.
PALETTE = ("#1f5fbf", "#c4500a", "#0b7a66", "#8a3ab9", "#a8184b", "#8a6a00", "#3d4f63", "#0086a8")
INK, MUTED, GRID = "var(--ink, #1d2430)", "var(--muted, #5b6575)", "var(--rule, #dde2ea)"
DASHES = ("", "6 3", "2 3", "8 3 2 3")
LETTER = 6.4  # average width of a character at 12 px; text is measured by its length


@dataclass(frozen=True)
class Series:
    """Points (x, y) under one name; a y that is not finite is a gap in a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "points"] = "line"

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x values and {len(self.y)} y values")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    width: int = 720,
    height: int = 320,
) -> str:
    """An SVG of lines or points over a numeric x; with `log_y`, values of 0 and below are gaps."""
    points = [_ordered(one) for one in series]
    x = np.concatenate([np.zeros(0), *(x for x, _ in points)])
    y = np.concatenate([np.zeros(0), *(y for _, y in points)])
    shown = drawable(y, log_y)
    legend = [(one.name, one.style == "points") for one in series]
    frame = _Frame(title, y_label, x_label, legend, width, height)
    y_scale = fit(y, frame.bottom, frame.top, log=log_y, margin=0.04)
    y_ticks = y_scale.ticks(max(2, (frame.bottom - frame.top) // 48))
    left = frame.left_of([label for _, label in y_ticks])
    x_scale = fit(x[shown], left, frame.right)
    body = frame.axes(left, y_ticks)
    body += frame.x_axis(x_scale.ticks(max(2, round((frame.right - left) / 90))), left) if shown.any() else []
    for index, (one, (xs, ys)) in enumerate(zip(series, points, strict=True)):
        body += _marks(one, index, xs, ys, x_scale, y_scale)
    return frame.svg(
        body,
        [_spoken(one, ys, log_y) for one, (_, ys) in zip(series, points, strict=True)],
        bool(shown.any()),
    )


def bar_chart(
    labels: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str,
    width: int = 720,
    height: int = 320,
) -> str:
    """An SVG of upright bars from 0, one of each group per label; a value that is not finite has no bar."""
    values = {name: np.asarray(list(group), dtype=np.float64) for name, group in groups.items()}
    for name, group in values.items():
        if len(group) != len(labels):
            raise ValueError(f"group {name!r}: {len(group)} values for {len(labels)} labels")
    every = np.concatenate([np.zeros(0), *values.values()])
    shown = drawable(every)
    legend = [(name, False) for name in groups] if len(groups) > 1 else []
    frame = _Frame(title, y_label, "", legend, width, height)
    below = 16 if (every[shown] < 0).any() else 0  # room for the numbers at the bars' ends
    scale = fit(every, frame.bottom - below, frame.top + 16, zero=True)
    ticks = scale.ticks(max(2, (frame.bottom - frame.top) // 48))
    left = frame.left_of([label for _, label in ticks])
    slot = (frame.right - left) / max(1, len(labels))
    bar = min(56.0, slot * 0.8 / max(1, len(groups)))
    base = float(scale.place(np.zeros(1))[0])
    zero = f'<path d="M{left:.1f} {base:.1f}H{frame.right}" style="fill:none;stroke:{MUTED}"/>'
    body = [*frame.axes(left, ticks), zero]
    for position, label in enumerate(labels):
        middle = left + slot * (position + 0.5)
        text = escape(shorten(str(label), max(3, int(slot / LETTER))))
        body.append(_text(middle, frame.bottom + 18, text, anchor="middle", title=str(label)))
        for index, (name, group) in enumerate(values.items()):
            edge = middle + (index - len(values) / 2) * bar
            body += _bar(edge, bar, base, scale, float(group[position]), index, f"{label}, {name}")
    spoken = [
        f"{name}: "
        + ", ".join(f"{label} {number(v)}" for label, v in zip(labels, group.tolist(), strict=True))
        for name, group in values.items()
    ]
    return frame.svg(body, spoken, bool(shown.any()))


def histogram_chart(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    width: int = 340,
    height: int = 190,
) -> str:
    """An SVG of how often values fall between n + 1 ascending edges: bars of one width, whatever the edges,
    labelled where a bar begins. A bar that is not empty is seen, however low it is."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"histogram {title!r}: {len(edges)} edges around {len(counts)} counts")
    values = np.asarray(list(counts), dtype=np.float64)
    frame = _Frame(title, y_label, x_label, [], width, height)
    scale = fit(values, frame.bottom, frame.top, zero=True)
    ticks = scale.ticks(max(2, (frame.bottom - frame.top) // 40))
    left = frame.left_of([label for _, label in ticks])
    bar = min(24.0, (frame.right - left) / max(1, len(values)))
    labels = [number(float(edge), 3) for edge in edges]
    every = max(1, math.ceil((max(map(len, labels)) + 2) * LETTER / bar))
    places = [(left + bar * i, labels[i]) for i in range(0, len(values), every)]
    body = [*frame.axes(left, ticks), *(frame.x_axis(places, left) if len(values) else [])]
    for index, value in enumerate(values.tolist()):
        tall = frame.bottom - float(scale.place(np.array([value]))[0])
        if value > 0:
            tall, x = max(1.0, tall), left + bar * index + 0.5
            size = f'width="{max(0.5, bar - 1):.1f}" height="{tall:.1f}"'
            hover = f"{labels[index]} to {labels[index + 1]}: {number(value)}"
            rectangle = f'<rect x="{x:.1f}" y="{frame.bottom - tall:.1f}" {size} style="fill:{_colour(0)}">'
            body.append(f"{rectangle}<title>{escape(hover)}</title></rect>")
    spoken = [f"{number(values.sum())} in {len(values)} bins from {labels[0]} to {labels[-1]}"]
    if len(values):
        top = int(values.argmax())
        spoken.append(f"most, {number(values[top])}, from {labels[top]} to {labels[top + 1]}")
    return frame.svg(body, spoken, bool((values > 0).any()))


def share_chart(shares: Mapping[str, float], *, title: str, width: int = 720) -> str:
    """An SVG of parts of a whole: one bar from left to right, with names and percentages in the legend.

    `shares` are at least 0 and add up to 1; a part too thin to be seen is still named."""
    named = [(f"{name} {100 * share:.1f} %", False) for name, share in shares.items()]
    frame = _Frame(title, "", "", named, width, 96)
    frame.height = frame.top + 30
    body, x = [], 0.0
    for index, (name, share) in enumerate(shares.items()):
        wide = share * width
        size = f'width="{max(0.0, wide - 1):.1f}" height="26" style="fill:{_colour(index)}"'
        body.append(f'<rect x="{x:.1f}" y="{frame.top - 4}" {size}><title>{escape(name)}</title></rect>')
        x += wide
    return frame.svg(body, [text for text, _ in named], bool(shares))


def _ordered(series: Series) -> tuple[Array, Array]:
    """x and y as arrays in order of x, without the points whose x has no place."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    placed = drawable(x)
    x, y = x[placed], y[placed]
    if x.size and (np.diff(x) < 0).any():
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    return x, y


def decimate(x: Array, y: Array) -> tuple[Array, Array]:
    """Of the points of one pixel column (pixels in, x ascending): the first, lowest, highest and last."""
    column = np.floor(x)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(column) != 0]))
    if 4 * len(starts) >= len(x):
        return x, y
    ends = np.append(starts[1:], len(x))
    kept = [
        {first, first + int(y[first:end].argmin()), first + int(y[first:end].argmax()), end - 1}
        for first, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    index = np.array(sorted(set().union(*kept)))
    return x[index], y[index]


def _marks(series: Series, index: int, x: Array, y: Array, x_scale: Scale, y_scale: Scale) -> list[str]:
    """The SVG elements of one series."""
    colour, good = _colour(index), drawable(y, y_scale.log)
    if series.style == "points":
        places = zip(
            x_scale.place(x[good]).round(1).tolist(), y_scale.place(y[good]).round(1).tolist(), strict=True
        )
        return [_dot(px, py, 3, colour) for px, py in dict.fromkeys(places)]
    px, py = x_scale.place(x[good]), y_scale.place(y[good])
    gap = (np.diff(np.flatnonzero(good)) > 1) & (
        np.diff(px) >= 1
    )  # a gap narrower than a pixel cannot be seen
    marks, path = [], []
    for run in np.split(np.arange(len(px)), np.flatnonzero(gap) + 1) if len(px) else []:
        xs, ys = decimate(px[run], py[run])
        if len(xs) == 1:  # a line of one point is invisible
            marks.append(_dot(xs[0], ys[0], 2.5, colour))
        else:
            path.append(
                "M" + " ".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs.tolist(), ys.tolist(), strict=True))
            )
    if path:
        style = f"fill:none;stroke:{colour};stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round"
        marks.append(f'<path d="{"".join(path)}" style="{style}{_dash(index)}"/>')
    return marks


def _bar(
    edge: float, width: float, base: float, scale: Scale, value: float, index: int, name: str
) -> list[str]:
    """One bar with its value above (below, when negative)."""
    middle, size = edge + width / 2, 11 if width >= 34 else 9
    if not drawable(np.array([value])).all():
        return [_text(middle, base - 4, "n/a", anchor="middle", size=size, colour=MUTED, title=name)]
    place = float(scale.place(np.array([value]))[0])
    top, tall = min(place, base), abs(place - base)
    rectangle = (
        f'x="{edge + 1:.1f}" y="{top:.1f}" width="{max(0.5, width - 2):.1f}" height="{tall:.1f}" rx="2"'
    )
    hover = f"<title>{escape(name)}: {number(value)}</title>"
    marks = [f'<rect {rectangle} style="fill:{_colour(index)}">{hover}</rect>']
    if width >= 18:
        below = place + 12 if value < 0 else place - 4
        digits = 3 if width >= 26 else 2  # neighbours' numbers must not run into one another
        marks.append(_text(middle, below, number(value, digits), anchor="middle", size=size))
    return marks


@dataclass
class _Frame:
    """What surrounds the data: title, legend, axes and their names; and where the plot area lies."""

    title: str
    y_label: str
    x_label: str
    names: list[tuple[str, bool]]  # of the series, and whether they are points
    width: int
    height: int

    def __post_init__(self) -> None:
        self.right = self.width - 16
        self.legend, rows = self._legend()
        self.top = 52 + 20 * rows
        self.height += 20 * max(0, rows - 1)  # more rows of legend never squeeze the plot
        self.bottom = max(self.top + 40, self.height - (46 if self.x_label else 30))
        self.height = max(self.height, self.bottom + 30)

    def _legend(self) -> tuple[list[str], int]:
        """The legend's elements, from left to right on as many rows as they need; and the number of rows."""
        marks: list[str] = []
        x, row = 0.0, 0
        for index, (name, points) in enumerate(self.names):
            text = shorten(name, 40)
            needed = 28 + LETTER * len(text) + 14
            if x and x + needed > self.right:
                x, row = 0.0, row + 1
            y = 42 + 20 * row
            line = f"stroke:{_colour(index)};stroke-width:3{_dash(index)}"
            swatch = f'<line x1="{x:.0f}" y1="{y}" x2="{x + 20:.0f}" y2="{y}" style="{line}"/>'
            marks.append(_dot(x + 10, y, 4, _colour(index)) if points else swatch)
            marks.append(_text(x + 26, y + 4, escape(text), title=name if text != name else ""))
            x += needed
        return marks, row + 1 if self.names else 0

    def left_of(self, labels: Sequence[str]) -> float:
        """The plot area's left edge: room for the longest tick label."""
        return 20 + LETTER * max((len(label) for label in labels), default=1)

    def axes(self, left: float, ticks: list[tuple[float, str]]) -> list[str]:
        """Horizontal grid lines with labels, and the name of the y axis."""
        marks = [_text(0, self.top - 10, escape(shorten(self.y_label, 60)), size=11, colour=MUTED)]
        for y, label in ticks:
            line = f'x1="{left:.1f}" y1="{y:.1f}" x2="{self.right}" y2="{y:.1f}"'
            marks.append(f'<line {line} style="stroke:{GRID}"/>')
            marks.append(_text(left - 8, y + 4, label, anchor="end", colour=MUTED))
        return marks

    def x_axis(self, ticks: list[tuple[float, str]], left: float) -> list[str]:
        """The base line, its ticks with labels, and the name of the x axis."""
        marks = [f'<path d="M{left:.1f} {self.bottom}H{self.right}" style="fill:none;stroke:{MUTED}"/>']
        for x, label in ticks:
            marks.append(f'<path d="M{x:.1f} {self.bottom}v4" style="fill:none;stroke:{MUTED}"/>')
            near = x + LETTER * len(label) / 2 > self.right + 14
            anchor, at = ("end", self.right + 14) if near else ("middle", x)
            marks.append(_text(at, self.bottom + 18, label, anchor=anchor, colour=MUTED))
        middle = (left + self.right) / 2
        name = escape(shorten(self.x_label, 80))
        return [*marks, _text(middle, self.bottom + 36, name, anchor="middle", size=11, colour=MUTED)]

    def svg(self, body: Sequence[str], spoken: Sequence[str], data: bool) -> str:
        """The whole element; `spoken` is what a screen reader says after the title."""
        x, y = self.width / 2, (self.top + self.bottom) / 2
        empty = [] if data else [_text(x, y, "no data", anchor="middle", colour=MUTED)]
        heading = escape(shorten(self.title, int(self.width / 8)))
        described = escape(f"{self.y_label}. " + ". ".join(spoken) + "." if data else "no data")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.title)}" '
            f'viewBox="0 0 {self.width} {self.height}" width="100%" '
            f'style="max-width:{self.width}px;height:auto;font-family:system-ui,sans-serif">'
            f"<title>{escape(self.title)}</title><desc>{described}</desc>"
            f'<text x="0" y="22" style="font-size:14px;font-weight:600;fill:{INK}">{heading}</text>'
            + "".join([*self.legend, *body, *empty])
            + "</svg>"
        )


def _colour(index: int) -> str:
    place = index % len(PALETTE)
    return f"var(--series-{place}, {PALETTE[place]})"


def _dash(index: int) -> str:
    """Each turn through the palette has its own dashes, so no two series look the same before the 32nd."""
    dash = DASHES[index // len(PALETTE) % len(DASHES)]
    return f";stroke-dasharray:{dash}" if dash else ""


def _dot(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = INK,
    title: str = "",
) -> str:
    """A text element; `text` is already escaped, `title` (shown on hover) is not."""
    hover = f"<title>{escape(title)}</title>" if title else ""
    style = f"font-size:{size}px;fill:{colour};font-variant-numeric:tabular-nums"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{hover}{text}</text>'


def _spoken(series: Series, y: Array, log: bool) -> str:
    """One sentence about a series for those who cannot see it."""
    good = y[drawable(y, log)]
    if not good.size:
        return f"{series.name}: no data"
    first, last, low, high = (number(float(v)) for v in (good[0], good[-1], good.min(), good.max()))
    if math.isclose(float(good.min()), float(good.max())):
        return f"{series.name}: {number(len(good))} points, all {last}"
    return f"{series.name}: {number(len(good))} points, from {first} to {last}, lowest {low}, highest {high}"
