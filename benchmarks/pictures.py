"""What the benchmarks' pictures share: lines that are named at their ends, plain ticks on logarithmic axes."""

from collections.abc import Sequence
from pathlib import Path


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """
    Positions near the wanted ones, in the same order, at least `gap` apart.

    Neighbours that are too close share one block around the mean of what they want (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # [sum of (wanted - rank * gap), count]
    for rank, index in enumerate(order):
        blocks.append([wanted[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    placed = [0.0] * len(wanted)
    for rank, index in enumerate(order):
        placed[index] = starts[rank] + rank * gap
    return placed


def label_ends(axis, ends: dict[str, float], colours: dict[str, str], size: float = 8) -> None:
    """
    Names beside the right edge of an axis, at the heights of the lines' ends, without overlap.

    Args:
        ends: name -> height of the line's last point, in data units.
        colours: name -> colour of the line.
    """
    figure = axis.figure
    figure.canvas.draw()  # limits and layout are final from here on
    pixels = [axis.transData.transform((axis.get_xlim()[1], y))[1] for y in ends.values()]
    bottom, top = axis.bbox.y0, axis.bbox.y1
    gap = 1.25 * size * figure.dpi / 72
    placed = spread(pixels, gap)
    for name, pixel in zip(ends, placed, strict=True):
        height = (pixel - bottom) / (top - bottom)
        axis.text(1.02, height, name, color=colours[name], fontsize=size, va="center", transform=axis.transAxes)


def plain_ticks(axis, which: str, ticks: Sequence[float]) -> None:
    """Ticks of a logarithmic axis (`"x"` or `"y"`) at these values, written plainly, without minor ones."""
    of = axis.xaxis if which == "x" else axis.yaxis
    of.set_ticks(list(ticks), [f"{tick:g}" for tick in ticks])
    of.set_ticks([], minor=True)


def new_figure(width: float, height: float):
    """A matplotlib figure without pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
