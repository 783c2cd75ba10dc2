"""Numbers -> figures, legible for 2 to 101 classes, on paper, in a light and in a dark theme.

All colors are defined here. On the page each becomes a CSS variable, so that a figure follows the reader's theme.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.report import metrics
from pipeline.scores import Scores

COLORS = {
    "ink": "#22262b",
    "soft": "#6d757d",
    "line": "#d9dde1",
    "paper": "#fefefd",
    "spatial": "#2f7fb8",
    "temporal": "#d9822b",
    "average": "#3d4a5c",
}
PAGE_INCHES = 10.6  # the width of the page's column; text then has its nominal size
_MOST_LETTERS = 28  # of a class, beside an axis
CELL_COUNTS = 24  # up to so many classes the confusion matrix shows its counts
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(tables: Mapping[str, Scores], curves: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Every figure of the report by name: per_class, confusion, and training_<stream> for each curve."""
    drawn = {"per_class": class_bars(tables), "confusion": confusion(tables["average"])}
    drawn |= {f"training_{name}": training(curve, name) for name, curve in curves.items()}
    for figure in drawn.values():  # lay out once: it is most of the work, and each drawing is saved three times
        with _plain_text():
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return drawn


def class_bars(tables: Mapping[str, Scores]) -> Figure:
    """Accuracy by class, three bars each, sorted by the fused average, best on top; two columns from 31 classes on."""
    names = ("average", "spatial", "temporal")
    right = {name: tables[name].per_class()[0] for name in names}
    clips = tables["average"].per_class()[1]
    share = {name: right[name] / np.maximum(clips, 1) for name in names}
    means = sum(share.values())
    order = [k for k in np.lexsort((-means, -share["average"])) if clips[k]]
    columns = np.array_split(order, 2 if len(order) > 30 else 1)
    figure = _figure(PAGE_INCHES, 0.55 + (0.36 if len(order) <= 30 else 0.27) * len(columns[0]))
    for axes, rows in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns, strict=True):
        axes.set_ylim(len(columns[0]) - 0.5, -0.5)
        for place, name in enumerate(names):
            axes.barh(np.arange(len(rows)) + 0.27 * (place - 1), share[name][rows], 0.25, color=COLORS[name])
        labels = [_label(tables["average"].classes[k]) for k in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.tick_params(axis="x", top=True, labeltop=True, labelsize=7.5)
        _calm(axes, grid="x")
    return figure


def confusion(table: Scores) -> Figure:
    """Confusion matrix: true class by row, predicted class by column; a darker cell has a larger share of its row."""
    matrix, clips, k = table.confusion(), table.per_class()[1], len(table.classes)
    side = float(np.clip(1.6 + 0.5 * k, 4.2, PAGE_INCHES))
    figure = _figure(side, side)
    axes = figure.add_subplot(aspect="equal", xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5))
    share = matrix / np.maximum(clips, 1)[:, None]
    cells = [(i, j) for i, j in zip(*np.nonzero(matrix), strict=True)]
    squares = [Rectangle((j - 0.5, i - 0.5), 1, 1) for i, j in cells]
    # a single wrong clip among hundreds must remain visible, hence an opacity of at least 0.14
    alpha = [0.14 + 0.86 * share[i, j] for i, j in cells]
    axes.add_collection(PatchCollection(squares, facecolor=COLORS["average"], alpha=alpha, linewidth=0))
    if k <= CELL_COUNTS:
        for i, j in cells:
            color = COLORS["paper" if share[i, j] > 0.45 else "ink"]
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=8 if k > 12 else 9, color=color)
    _name_cells(axes, [_label(name) for name in table.classes])
    return figure


def training(curve: Mapping[str, Any], stream: str) -> Figure:
    """Loss, validation accuracy if there is any, and learning rate by step; a line marks the kept weights."""
    color, steps, validation = COLORS.get(stream, COLORS["average"]), curve["steps"], curve["validation"]
    figure, titles = _figure(PAGE_INCHES, 2.5), ["loss", *(["validation accuracy"] * bool(validation)), "learning rate"]
    loss, *accuracy, rate = panels = figure.subplots(1, len(titles), sharex=True)
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=9, color=COLORS["ink"])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _calm(axes, grid="y")
        axes.axvline(curve["best_step"], color=COLORS["soft"], linewidth=0.8, linestyle=(0, (2, 2)))
    _line(loss, steps, curve["loss"], color, label="training")
    at = [row["step"] for row in validation]
    if validation:
        _line(loss, at, [row["loss"] for row in validation], COLORS["soft"], label="validation", marker=".")
        loss.legend(frameon=False, fontsize=7.5, labelcolor=COLORS["soft"])
    for axes in accuracy:
        _line(axes, at, [row["top1"] for row in validation], color, marker=".")
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    _line(rate, steps, curve["learning_rate"], color)
    if min(curve["learning_rate"]) > 0:
        rate.set_yscale("log")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG, by the path's suffix, in the light theme."""
    with _plain_text():
        if path.suffix == ".png":
            FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
        else:
            figure.savefig(path, format="svg", metadata=_NO_METADATA)


def inline(figure: Figure, name: str) -> str:
    """A figure as an <svg> element whose text stays text and whose colors are CSS variables.

    It refers to nothing outside itself: the prolog and the metadata, which contain URLs, are cut off. Ids get the
    prefix `name`, so that figures on one page do not use each other's clip paths.
    """
    buffer = io.StringIO()
    with _plain_text():
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)
    for role, color in COLORS.items():
        svg = svg.replace(color, f"var(--{role})")
    width = figure.get_figwidth() / PAGE_INCHES
    return svg.replace("<svg ", f'<svg role="img" style="width: {100 * width:.1f}%" ', 1)


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """While saving: SVG text stays text, ids are the same in every run, no warning about missing glyphs."""
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(width_inches: float, height_inches: float) -> Figure:
    figure = Figure((width_inches, height_inches), dpi=150, layout="constrained", facecolor=COLORS["paper"])
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04)
    return figure


def _calm(axes, *, grid: str) -> None:
    """Style the axes: no frame, pale grid under the data, soft ticks."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=COLORS["line"], linewidth=0.7)
    axes.tick_params(which="both", length=0, labelcolor=COLORS["soft"], labelsize=8)
    axes.tick_params(axis="y" if grid == "x" else "x", labelcolor=COLORS["ink"])
    axes.set_facecolor("none")


def _line(axes, x: Sequence[float], y: Sequence[float], color: str, **style) -> None:
    axes.plot(x, y, color=color, linewidth=1.4, **style)


def _name_cells(axes, names: list[str]) -> None:
    """Write class names on the left and below, small enough for their number, and draw lines between the cells."""
    k = len(names)
    size = float(np.clip(600 / k, 5, 8.5))
    crowded = k > 4 or max(map(len, names)) > 8  # names side by side would overlap
    axes.set_xticks(range(k), names, rotation=90 if crowded else 0, fontsize=size, parse_math=False)
    axes.set_yticks(range(k), names, fontsize=size, parse_math=False)
    axes.tick_params(length=0, labelcolor=COLORS["ink"], pad=2)
    axes.set_xlabel("predicted", color=COLORS["soft"], fontsize=8.5)
    axes.set_ylabel("true", color=COLORS["soft"], fontsize=8.5)
    between = np.arange(k + 1) - 0.5
    width = 0.4 if k <= 40 else 0.2
    axes.hlines(between, -0.5, k - 0.5, color=COLORS["line"], linewidth=width)
    axes.vlines(between, -0.5, k - 0.5, color=COLORS["line"], linewidth=width)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label(name: str) -> str:
    name = re.sub(r"\s+", " ", metrics.xml_text(name))
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
