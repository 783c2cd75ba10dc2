"""The last stage: `metrics.json` for programs, one self-contained `report.html` for people, figures for papers.

`metrics` turns score tables into numbers, `figures` turns numbers into drawings, `page` puts both on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report import metrics
from pipeline.report.metrics import Background
from pipeline.scores import Scores
from pipeline.system import files


def write(
    folder: str | Path,
    background: Background,
    *,
    dataset: str,
    split: str,
    streams: Mapping[str, Scores],
    fused: Mapping[str, Scores],
    inputs: str = "",
) -> dict[str, Any]:
    """Write `figures/`, `report.html` and, last, `metrics.json` into folder; each file is whole or absent.

    Args:
        folder: created if it does not exist.
        background: what the stages before the report leave, apart from the scores.
        dataset, split: names, for the heading.
        streams: "spatial" and "temporal" -> table of the test part.
        fused: "average", "weighted", "svm" -> fused table of the test part; "average" is required.
        inputs: content key of what the report was made from, recorded in `metrics.json`.

    Returns:
        What is in `metrics.json`; accuracies are shares, 0..1.

    Raises:
        ValueError: if a stream or the average is absent, the tables do not join, or there is no test clip.
    """
    from pipeline.report import figures, page  # import matplotlib and jinja2, which reading metrics does not need

    folder = Path(folder)
    tables = metrics.join(streams, fused)
    numbers = {**metrics.collect(tables, background, dataset=dataset, split=split), "inputs": inputs}
    drawn = figures.draw(tables, background.curves)
    for name, figure in drawn.items():
        for suffix in ("svg", "png"):
            with files.commit(folder / "figures" / f"{name}.{suffix}") as temporary:
                figures.save(figure, temporary)
    files.write_text(folder / "report.html", page.render(tables, numbers, drawn, background))
    files.write_json(folder / "metrics.json", numbers)
    return numbers
