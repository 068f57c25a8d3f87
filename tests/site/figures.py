"""Pictures of the catalogue as SVG, in the colours of docs/assets/site.css."""

import html
import math
from collections.abc import Callable, Sequence

import numpy as np

Curve = tuple[str, Sequence[float], Sequence[float]]
"""Class of the line, and its points."""


def figure(svg: str, caption: str) -> str:
    """A block of HTML in Markdown."""
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _svg(width: float, height: float, inside: str, label: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'role="img" aria-label="{html.escape(label)}">{inside}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn else ""
    where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"{turned}'
    return f"<text {where}>{html.escape(text)}</text>"


def _cell(x: float, y: float, side: float, share: float, marked: bool = False) -> str:
    kind = "marked" if marked else "cell"
    shade = f' fill-opacity="{share:.2g}"' if share else ' class="empty"'
    inside = f'<rect x="{x:g}" y="{y:g}" width="{side - 1:g}" height="{side - 1:g}"'
    filled = f'{inside}{shade} class="cell"/>' if share else f'{inside} class="empty"/>'
    return filled + (f'{inside} class="{kind}"/>' if marked else "")


def causes(
    columns: Sequence[tuple[str, str]],
    shape: tuple[int, int, int],
    chosen: tuple[int, int, int],
    small: bool = False,
) -> str:
    """Which entries of x one entry of y depends on; (title, "0110...") of each case."""
    examples, positions, channels = shape
    side, gap, top = 13, 10, 34
    width = channels * side + gap
    if small:
        return _svg(
            examples * width,
            positions * side,
            "".join(
                _cell(
                    e * width + c * side,
                    i * side,
                    side,
                    0.75 * (columns[0][1][(e * positions + i) * channels + c] == "1"),
                    (e, i, c) == chosen,
                )
                for e in range(examples)
                for i in range(positions)
                for c in range(channels)
            ),
            "what one entry of the output depends on",
        )
    parts, y = [], 0.0
    for title, flags in columns:
        parts.append(_text(52, y + 14, title, "start"))
        for e in range(examples):
            parts.append(
                _text(52 + e * width + channels * side / 2, y + 28, f"x{e + 1}")
            )
            for i in range(positions):
                for c in range(channels):
                    read = flags[(e * positions + i) * channels + c] == "1"
                    at = (52 + e * width + c * side, y + top + i * side)
                    parts.append(_cell(*at, side, 0.75 * read, (e, i, c) == chosen))
        middle = y + top + positions * side / 2
        parts.append(_text(40, middle, "positions", turn=-90))
        y += top + positions * side + 8
    parts.append(_text(52, y + 8, "channels →", "start"))
    label = "entries of the input that one entry of the output depends on"
    return _svg(52 + examples * width, y + 14, "".join(parts), label)


def reads(rows: Sequence[str], grid: bool, small: bool = False) -> str:
    """What one position of a map reads, or each token of a sequence."""
    side = 7 if small else 15
    left, top = (0, 0) if small else (22, 22)
    parts = []
    for i, row in enumerate(rows):
        for j, level in enumerate(row):
            marked = grid and (i, j) == (5, 4)
            at = (left + j * side, top + i * side)
            parts.append(_cell(*at, side, int(level) / 9, marked))
    height = len(rows) * side
    if not small:
        words = ("columns", "rows") if grid else ("token read →", "token written →")
        parts.append(_text(left + height / 2, 14, words[0]))
        parts.append(_text(12, top + height / 2, words[1], turn=-90))
    label = "positions that are read"
    return _svg(left + height, top + height, "".join(parts), label)


def lines(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    small: bool = False,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Curves over one pair of axes; classes `first`, `second`, `faint`, `point`."""
    width, height, left, bottom = (98, 98, 4, 4) if small else (420, 250, 52, 40)
    xs = np.concatenate([np.asarray(c[1], float) for c in curves])
    ys = np.concatenate([np.asarray(c[2], float) for c in curves])
    low, high = y_range or (float(ys.min()), float(ys.max()))
    pad = 0.06 * (high - low or 1.0)
    low, high = low - pad, high + pad
    start, end = float(xs.min()), float(xs.max())

    def to_x(x: float) -> float:
        return left + (x - start) / (end - start) * (width - left - 8)

    def to_y(y: float) -> float:
        return height - bottom - (y - low) / (high - low) * (height - bottom - 8)

    parts = []
    for value in [] if small else _ticks(low, high):
        y = to_y(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 8}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", "end"))
    for value in [] if small else _ticks(start, end):
        parts.append(_text(to_x(value), height - bottom + 16, f"{value:g}"))
    if small:
        if low < 0 < high:
            parts.append(f'<path class="grid" d="M{left} {to_y(0):.1f}H{width - 8}"/>')
        if start < 0 < end:
            parts.append(f'<path class="grid" d="M{to_x(0):.1f} 8V{height - bottom}"/>')
    else:
        parts.append(_text((left + width) / 2, height - 6, labels[0]))
        parts.append(_text(12, (height - bottom) / 2, labels[1], turn=-90))
    for kind, x, y in curves:
        points = [
            (to_x(a), to_y(min(max(b, low), high))) for a, b in zip(x, y, strict=True)
        ]
        if "point" in kind:
            parts += [
                f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>'
                for a, b in points
            ]
        else:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            parts.append(f'<polyline class="{kind}" points="{path}"/>')
    return _svg(width, height, "".join(parts), labels[1])


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between, five or so."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def function(y: Callable, slope: Callable, small: bool = False) -> str:
    """A function of one number and its derivative."""
    x = np.linspace(-4, 4, 161)
    curves = [("second", x, slope(x)), ("first", x, y(x))]
    return lines(curves, ("x", "y, dashed its gradient"), small, (-1.5, 4))


def dots(rows: Sequence[tuple[str, float, float, str]], unit: str) -> str:
    """(name, value, deviation, address), the largest first."""
    rows = sorted(rows, key=lambda row: -row[1])
    low = min(value - deviation for _, value, deviation, _ in rows)
    high = max(value + deviation for _, value, deviation, _ in rows)
    left, width, step = 250, 640, 19
    scale = (width - left - 70) / (high - low)
    parts = []
    for i, (name, value, deviation, address) in enumerate(rows):
        y, x = i * step + 10, left + 8 + (value - low) * scale
        reach = deviation * scale
        parts.append(f'<path class="grid" d="M{left} {y}H{width}"/>')
        parts.append(
            f'<a href="{address}">{_text(left - 8, y + 4, name, "end")}</a>'
            f'<path class="whisker" d="M{x - reach:.1f} {y}h{2 * reach:.1f}"/>'
            f'<circle class="first point" cx="{x:.1f}" cy="{y}" r="4"/>'
            + _text(x + reach + 8, y + 4, f"{value:g}", "start")
        )
    return _svg(width, len(rows) * step + 4, "".join(parts), unit)
