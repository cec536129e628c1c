"""Pictures of the machine, as SVG: an array's structure, signals over time, a timeline.

Each is made from what it shows: array parameters, values that a simulation has given, a
:class:`~bitwright.sim.trace.Trace`. Colors of text and lines are those of the page that shows the picture, through its
style sheet's variables; by itself a picture has a dark text.
"""

import itertools
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import BANK, BUS_WIDTH, ArraySpec
from bitwright.sim.trace import SKIPPED, TRACKS, Slice, Trace

Ints = npt.NDArray[np.int64]

TEXT = "var(--color-foreground-primary, #222)"
MUTED = "var(--color-foreground-muted, #666)"
LINE = "var(--color-foreground-border, #999)"
PAPER = "var(--color-background-primary, #fff)"

# Fills are of middle brightness: dark text is legible on them, and they stand out from light and dark pages.
MEMORY, LOGIC, ARRAY, CONTROL, STREAM = "#9ec5e8", "#f2c58f", "#b5d99c", "#d8c2ea", "#f0aeb2"
ON_FILL = "#1b1b1b"


_STEPS = tuple(digit * 10**power for power in range(9) for digit in (1, 2, 5))
"""Cycles from one number of an axis to the next."""


class Canvas:
    """Collects shapes of a picture.

    Parameters
    ----------
    width, height
        Of the picture, in pixels.
    title
        What a reader who does not see the picture is told.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, tip: str = "", radius: float = 2) -> None:
        """Filled rectangle."""
        hint = f"<title>{escape(tip)}</title>" if tip else ""
        self.shapes.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" rx="{radius}" fill="{fill}" '
            f'stroke="{LINE}" stroke-width="{min(0.7, width / 20, height / 10):.2f}">{hint}</rect>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        anchor: str = "middle",
        fill: str = TEXT,
        bold: bool = False,
    ) -> None:
        """Line of text around the height ``y``."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x:.2f}" y="{y:.2f}" dy="0.35em" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{fill}"{weight}>{escape(text)}</text>'
        )

    def block(self, x: float, y: float, width: float, height: float, fill: str, lines: Sequence[str]) -> None:
        """Rectangle with lines of text: a name and what there is to say about it."""
        self.box(x, y, width, height, fill, radius=4)
        top = y + height / 2 - 7.5 * (len(lines) - 1)
        for number, line in enumerate(lines):
            size = 12 if number == 0 else 10.5
            self.text(x + width / 2, top + 15 * number, line, size=size, fill=ON_FILL, bold=number == 0)

    def line(self, *points: tuple[float, float], arrow: bool = False, stroke: str = MUTED, width: float = 1.2) -> None:
        """Line through points."""
        path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}"{end}/>')

    def svg(self) -> str:
        """The picture."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'width="{self.width:.0f}" role="img" style="max-width: 100%; height: auto" font-family="sans-serif">'
            f"<title>{escape(self.title)}</title>"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0.5 L8,4 L0,7.5 z" fill="{MUTED}"/></marker></defs>'
            + "".join(self.shapes)
            + "</svg>"
        )


def _bits(count: int) -> str:
    """Size of a memory."""
    return f"{count:,} bits" if count < 8192 else f"{count / 8192:,.4g} KiB"


def _number(count: int, what: str) -> str:
    """So many of something whose plural ends in s."""
    return f"{count} {what}{'s' if count > 1 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# The array


def array_svg(spec: ArraySpec) -> str:
    """Structure of an array: its memories, copies, banks, columns and rows, and what there is how often."""
    return _ArrayPicture(spec).svg()


class _ArrayPicture:
    """Places the parts of an array: what columns have in the middle, what rows have beside it, control at the right."""

    LEFT = 290.0
    """Left edge of column 0."""
    CONTROL = 806.0
    """Left edge of the control blocks."""
    COPIES, PACKERS, WINDOWS, GRID = 92.0, 180.0, 234.0, 306.0
    """Upper edges of the copies of the activation memory, the packers, the window buffers, the PEs."""

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self.cell = min(84.0, 336 / spec.columns)
        self.step = min(24.0, 224 / spec.rows)
        # Between columns and between rows.
        self.gap_x, self.gap_y = min(4.0, self.cell / 5), min(3.0, self.step / 5)
        self.right = self.LEFT + self.cell * spec.columns
        self.bottom = self.GRID + self.step * spec.rows
        shape = f"{_number(spec.rows, 'row')}, {_number(spec.columns, 'column')} and {spec.lanes} lanes"
        self.canvas = Canvas(1000, self.bottom + 132, f"Structure of an array of {shape}")

    def svg(self) -> str:
        """Draw all of it."""
        self._columns()
        self._grid()
        self._outputs()
        self._control()
        return self.canvas.svg()

    def _note(self, y: float, *lines: str) -> None:
        """Lines of text at the left of the columns."""
        for number, line in enumerate(lines):
            place = y + 16 * number - 8 * (len(lines) - 1)
            color, size = (TEXT, 12.0) if number == 0 else (MUTED, 10.5)
            self.canvas.text(self.LEFT - 14, place, line, anchor="end", size=size, fill=color, bold=number == 0)

    def _columns(self) -> None:
        """Copies of the activation memory, packers, window buffers."""
        canvas, spec, cell, gap = self.canvas, self.spec, self.cell, self.gap_x
        share, derived, heads = spec.columns_per_copy, spec.derived, self.cell > 8
        for copy in range(derived.copies):
            x, width = self.LEFT + copy * share * cell + gap / 2, share * cell - gap
            bank = width / derived.banks
            for number in range(derived.banks):
                tip = f"Copy {copy}, bank {number}: {BANK} lanes"
                canvas.box(x + number * bank, self.COPIES, bank, 62, MEMORY, tip, 1)
            middle = x + width / 2
            canvas.line((middle, self.COPIES + 62), (middle, self.PACKERS), arrow=True)
            canvas.box(x, self.PACKERS, width, 30, LOGIC, f"Packer of copy {copy}")
            for column in range(copy * share, (copy + 1) * share):
                x = self.LEFT + column * cell
                canvas.line((x + cell / 2, self.PACKERS + 30), (x + cell / 2, self.WINDOWS), arrow=heads)
                tip = f"Window buffer of column {column}"
                canvas.box(x + gap / 2, self.WINDOWS, cell - gap, 36, MEMORY, tip, gap / 2)
                canvas.line((x + gap / 2, self.WINDOWS + 18), (x + cell - gap / 2, self.WINDOWS + 18), stroke=LINE)
                canvas.line((x + cell / 2, self.WINDOWS + 36), (x + cell / 2, self.GRID), arrow=heads)
        self._note(
            self.COPIES + 31,
            f"activation memory: {derived.copies} {'copies' if derived.copies > 1 else 'copy'}",
            f"{derived.banks} banks of {BANK} lanes × {spec.activation_depth:,} words",
            f"{_bits(spec.lanes * spec.activation_depth)} each",
        )
        served = f"serves {_number(share, 'column')}"
        each = served if derived.copies == 1 else f"each {served}"
        self._note(self.PACKERS + 15, _number(derived.copies, "window packer"), each)
        halves = f"2 × {spec.window_depth} words of {spec.lanes} lanes"
        self._note(self.WINDOWS + 18, _number(spec.columns, "window buffer"), halves)

    def _grid(self) -> None:
        """PEs; at their right the weights of each row, at their left its comparators and thresholds."""
        canvas, spec, cell, step = self.canvas, self.spec, self.cell, self.step
        left, right, height, gap, heads = self.LEFT, self.right, step - self.gap_y, self.gap_x, step > 8
        for row in range(spec.rows):
            y = self.GRID + row * step + self.gap_y / 2
            middle = y + height / 2
            for column in range(spec.columns):
                tip = f"PE of row {row}, column {column}"
                canvas.box(left + column * cell + gap / 2, y, cell - gap, height, ARRAY, tip, gap / 2)
            canvas.box(right + 22, y, 104, height, MEMORY, f"Weight memory of row {row}")
            canvas.line((right + 22, middle), (right, middle), arrow=heads)
            if spec.coefficient_bits:
                canvas.box(right + 130, y, 28, height, MEMORY, f"Coefficient memory of row {row}")
            canvas.line((left, middle), (left - 20, middle), arrow=heads)
            width = 60 / spec.drain_planes
            for comparator in range(spec.drain_planes):
                tip = f"Comparator {comparator} of row {row}"
                canvas.box(left - 81 + comparator * width, y, width - 2, height, LOGIC, tip)
            canvas.line((left - 94, middle), (left - 82, middle), arrow=heads)
            canvas.box(left - 190, y, 96, height, MEMORY, f"Threshold memory of row {row}")
        for column in range(spec.columns):
            tip = f"Sum of column {column}"
            canvas.box(left + column * cell + gap / 2, self.bottom + 5, cell - gap, 18, ARRAY, tip, gap / 2)
        lines = (
            f"{spec.rows} × {spec.columns} PEs: AND, popcount of {spec.lanes} lanes, {spec.accumulator_width}-bit sum"
            + (f", × {spec.coefficient_bits}-bit coefficient" if spec.coefficient_bits else ""),
            f"{_number(spec.columns, 'column sum')} below; sums drain to the left, column by column",
        )
        for number, line in enumerate(lines):
            canvas.text(left + 2, self.bottom + 41 + 15 * number, line, anchor="start", size=10.5, fill=MUTED)
        for x, name, depth in (
            (right + 74, f"weights of {spec.lanes} lanes", spec.weight_depth),
            (left - 142, "thresholds", spec.threshold_depth),
        ):
            canvas.text(x, self.GRID - 24, name, bold=True)
            canvas.text(x, self.GRID - 9, f"{spec.rows} × {depth:,}", size=10.5, fill=MUTED)
        if spec.coefficient_bits:
            text = f"{spec.rows} × {spec.coefficient_depth:,} coefficients"
            canvas.text(right + 82, self.bottom + 12, text, size=10.5, anchor="start", fill=MUTED)
        comparators = f"{_number(spec.drain_planes, 'comparator')} a row"
        canvas.text(left - 70, self.bottom + 12, comparators, size=10.5, fill=MUTED)

    def _outputs(self) -> None:
        """Pooling, and the ways back to the activation memory and to the results."""
        canvas, spec, left = self.canvas, self.spec, self.LEFT
        top = self.bottom + 74
        name = "pooling, code table" if spec.coefficient_bits else "pooling"
        planes = f"writes {_number(spec.drain_planes, 'plane')} a cycle"
        canvas.block(left - 190, top, 168, 44, LOGIC, [name, planes])
        canvas.line((left - 66, self.bottom + 22), (left - 66, top), arrow=True)
        memory = self.COPIES - 16
        canvas.line(
            (left - 190, top + 22),
            (22, top + 22),
            (22, memory),
            (left + 12, memory),
            (left + 12, self.COPIES),
            arrow=True,
        )
        text = "codes" if spec.derived.copies == 1 else "codes, to all copies alike"
        canvas.text(30, memory - 9, text, size=10.5, anchor="start", fill=MUTED)
        canvas.block(left + 22, top, 176, 44, MEMORY, ["result memory", f"{spec.result_depth:,} raw sums"])
        canvas.line((left - 10, self.bottom - 2), (left - 10, top + 22), (left + 22, top + 22), arrow=True)

    def _control(self) -> None:
        """Control, and what it leads to."""
        canvas, spec, x, width, right = self.canvas, self.spec, self.CONTROL, 188.0, self.right
        skips = ", drops empty ones" if spec.zero_skip == "skip" else ""
        blocks = (
            (CONTROL, "host port", f"registers, counters; {BUS_WIDTH}-bit bus"),
            (MEMORY, "descriptor memory", f"{spec.descriptor_depth:,} words of {BUS_WIDTH} bits"),
            (CONTROL, "layer sequencer", "prefetches the next header" if spec.prefetch else "checks each header"),
            (CONTROL, "pass scheduler", f"lists passes{skips}"),
            (CONTROL, "tile issuer", "one operation a cycle"),
        )
        for number, (fill, *lines) in enumerate(blocks):
            y = 8.0 + 62 * number
            canvas.block(x, y, width, 40, fill, lines)
            if number:
                canvas.line((x + width / 2, y - 22), (x + width / 2, y), arrow=True)
        lists = "walks windows and reads" + (", lists their words" if spec.zero_skip != "off" else "")
        canvas.block(self.LEFT - 190, 8, right - self.LEFT + 190, 40, CONTROL, ["window loader", lists])
        middle = (self.LEFT + right) / 2
        canvas.line((middle, 48), (middle, self.COPIES), arrow=True)
        canvas.line((x, 152), (right + 40, 152), (right + 40, 28), (right, 28), arrow=True)
        # Operations: addresses of window words and weights.
        canvas.line(
            (x, 264), (right + 11, 264), (right + 11, self.WINDOWS + 18), (right, self.WINDOWS + 18), arrow=True
        )
        canvas.line((right + 74, 264), (right + 74, self.GRID - 31), arrow=True)
        canvas.text(x - 10, 255, "operations", size=10.5, anchor="end", fill=MUTED)
        if spec.weight_stream:
            y = self.bottom + 27
            way = "decodes codebook indices" if spec.codebook_bits else "while the array computes"
            canvas.block(x, y - 5, width, 40, STREAM, ["weight stream", way])
            canvas.line((x, y), (right + 74, y), (right + 74, self.bottom), arrow=True)


# ---------------------------------------------------------------------------------------------------------------------
# Signals over time


def waves_svg(
    signals: Mapping[str, Sequence[str] | Sequence[bool]], title: str, first: int = 0, cycle: float | None = None
) -> str:
    """Signals, one a line, over the cycles.

    Parameters
    ----------
    signals
        Values in each cycle, by name: a line that is high or low for ``bool``, boxes for all others, where equal values
        side by side share one and an empty text leaves it out.
    title
        What it is.
    first
        Number of the first cycle.
    cycle
        Width of a cycle, in pixels; None for 880 of them in all.
    """
    length = len(next(iter(signals.values())))
    width = cycle or 880 / length
    left, height, top = 118.0, 24.0, 26.0
    canvas = Canvas(left + width * length + 6, top + height * len(signals) + 6, title)
    bottom = top + height * len(signals)
    every = next(step for step in _STEPS if step * width >= 34)
    for number in range(-first % every, length, every):
        x = left + number * width
        canvas.line((x, top - 4), (x, bottom), stroke=LINE, width=0.5)
        canvas.text(x, top - 13, str(first + number), size=10, fill=MUTED)
    fills = itertools.cycle((ARRAY, MEMORY, LOGIC, CONTROL, STREAM))
    for row, (name, values) in enumerate(signals.items()):
        y = top + row * height
        canvas.text(left - 10, y + height / 2, name, anchor="end", size=11)
        if isinstance(values[0], bool):
            levels = [y + (5 if value else height - 5) for value in values]
            points = [(left + (n + end) * width, level) for n, level in enumerate(levels) for end in (0, 1)]
            canvas.line(*points, stroke=TEXT, width=1.4)
            continue
        fill, start = next(fills), 0
        for value, run in itertools.groupby(values):
            count = len(list(run))
            if value != "":
                x, span = left + start * width, count * width
                canvas.box(x + 0.4, y + 3, span - 0.8, height - 6, fill, f"{name} {value}, cycle {first + start}")
                _fit(canvas, x, y + height / 2, span, str(value))
            start += count
    return canvas.svg()


def _fit(canvas: Canvas, x: float, y: float, width: float, text: str, size: float = 10) -> None:
    """Write a text into a width: as much of its begin as fits."""
    fits = int((width - 2) / (0.62 * size))
    if fits < len(text):
        text = text[: fits - 1] + "…" if fits >= 9 else ""
    if text:
        canvas.text(x + width / 2, y, text, size=size, fill=ON_FILL)


# ---------------------------------------------------------------------------------------------------------------------
# Timelines


FILLS = {
    "layers": CONTROL,
    "descriptors": CONTROL,
    "weight stream": STREAM,
    "load": MEMORY,
    "schedule": CONTROL,
    "compute": ARRAY,
    "drain": LOGIC,
    "writes": MEMORY,
}
"""Color of each track."""

IDLE = "none"
"""Fill of slices in which a track waits."""


def trace_svg(trace: Trace, first: int = 0, end: int | None = None, title: str = "Timeline of a run") -> str:
    """Picture of a timeline, or of its cycles from ``first`` to before ``end``."""
    end = trace.cycles if end is None else end
    left, height, right = 118.0, 19.0, 1000.0
    scale = (right - left - 6) / (end - first)
    rows: list[tuple[str, list[Slice]]] = []
    for track in TRACKS:
        for depth, slices in enumerate(_levels([each for each in trace.slices if each.track == track])):
            shown = [each for each in slices if each.start < end and each.end > first]
            if shown:
                rows.append((track if depth == 0 else "", shown))
    top = 26.0
    tops: list[float] = []
    y = top
    for name, _ in rows:
        y += 7 if name else 0
        tops.append(y)
        y += height
    canvas = Canvas(right, y + 52, title)
    every = next(step for step in _STEPS if step * scale >= 44)
    for number in range(first + -first % every, end + 1, every):
        x = left + (number - first) * scale
        canvas.line((x, top - 4), (x, y + 44), stroke=LINE, width=0.5)
        canvas.text(x, top - 13, f"{number:,}", size=10, fill=MUTED)
    canvas.text(left - 10, top - 13, "cycle", size=10, anchor="end", fill=MUTED)
    for (name, slices), place in zip(rows, tops, strict=True):
        if name:
            canvas.text(left - 10, place + height / 2, name, anchor="end", size=11.5)
        for each in slices:
            start, stop = max(each.start, first), min(each.end, end)
            x, width = left + (start - first) * scale, (stop - start) * scale
            fill = FILLS[each.track]
            if any(word in each.name for word in ("wait", "start", "end", "stall")):
                fill = STREAM if "stall" in each.name else IDLE
            elif "doubl" in each.name or "walk" in each.name:
                fill = LOGIC
            canvas.box(x, place, max(width, 0.6), height - 1.5, fill, f"{each.name}: {each.start} to {each.end - 1}")
            if fill == IDLE:
                if width > 6 * len(each.name):
                    canvas.text(x + width / 2, place + height / 2 - 1, each.name, size=10, fill=MUTED)
            else:
                _fit(canvas, x, place + height / 2 - 1, width, each.name)
    _counter(canvas, trace, first, end, left, y + 8, scale)
    return canvas.svg()


def _levels(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices of a track by how many others they lie in."""
    levels: list[list[Slice]] = []
    outer: list[int] = []
    for each in slices:
        while outer and outer[-1] <= each.start:
            outer.pop()
        if len(levels) <= len(outer):
            levels.append([])
        levels[len(outer)].append(each)
        outer.append(each.end)
    return levels


def _counter(canvas: Canvas, trace: Trace, first: int, end: int, left: float, top: float, scale: float) -> None:
    """Words skipped so far, as a stair."""
    most = max(1, max((words for cycle, words in trace.skipped if cycle < end), default=0))
    least = max((words for cycle, words in trace.skipped if cycle <= first), default=0)
    canvas.text(left - 10, top + 18, SKIPPED, anchor="end", size=11.5)
    canvas.text(left - 10, top + 32, f"{least:,} to {most:,}", anchor="end", size=9.5, fill=MUTED)

    def height(words: int) -> float:
        return top + 36 - 34 * (words - least) / max(1, most - least)

    points = [(left, height(least))]
    for cycle, words in trace.skipped:
        if first < cycle < end:
            x = left + (cycle - first) * scale
            points += [(x, points[-1][1]), (x, height(words))]
    points.append((left + (end - first) * scale, points[-1][1]))
    canvas.line(*points, stroke=TEXT, width=1.4)


def probe_waves(probe: Mapping[str, Ints], first: int, end: int) -> dict[str, list[str] | list[bool]]:
    """What the probe showed in some cycles, for :func:`waves_svg`.

    Parameters
    ----------
    probe
        From :func:`bitwright.sim.backends.probes.watch`.
    first, end
        First cycle, and the one after the last.
    """
    waves: dict[str, list[str] | list[bool]] = {}
    for name in ("read", "issue", "empty", "stall", "compare", "write"):
        flags = [bool(value) for value in probe[f"probe__{name}"][first:end]]
        if any(flags):
            waves[name] = flags
    waves["skipped"] = [str(value) for value in probe["probe__skipped"][first:end].tolist()]
    return waves
