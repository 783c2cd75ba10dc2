"""The last stage: `metrics.json` for programs, one self-contained `report.html` for people, figures for papers.

`metrics` turns score tables into numbers, `figures` turns numbers into drawings, `page` puts both on the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.report import metrics
from pipeline.scores import Scores


def write(
    folder: str | Path,
    *,
    dataset: str,
    split: str,
    streams: Mapping[str, Scores],
    fused: Mapping[str, Scores],
    fusion: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Any]],
    failed: Sequence[Mapping[str, str]],
    odd: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Mapping[str, int]] | None = None,
    inputs: str = "",
) -> dict[str, Any]:
    """Write `figures/`, `report.html` and, last, `metrics.json` into folder; each file is whole or absent.

    Args:
        folder: created if it does not exist.
        dataset, split: names, for the heading.
        streams: "spatial" and "temporal" -> table of the test part.
        fused: "average", "weighted", "svm" -> fused table of the test part; "average" must be there.
        fusion: parameters of each fusion, as `fusion.fuse` gives them. Lists of lists (the SVM's coefficients) are left
            out of the page and of the metrics.
        curves: stream -> training curve: `steps`, `loss`, `learning_rate`, equally long; `validation`, a list of
            `step`, `top1` and perhaps `loss`; `best_step`. A curve may be absent, and so may any of its keys.
        failed: `id`, `stage` and `reason` of every failed clip, whatever its part.
        odd: clip id -> what is odd about a clip that is used all the same (fewer frames than its header promises).
        settings: stage -> its settings, as `Spec.as_dict` gives them.
        stages: one row per stage, with `stage`, `digest` and any further columns.
        counts: part -> `clips`, `groups` or the like.
        inputs: content key of what the report was made from, recorded in `metrics.json`.

    Returns:
        What is in `metrics.json`; accuracies are shares, 0..1.

    Raises:
        ValueError: if a stream or the average is absent, the tables do not join, or there is no test clip.
    """
    from pipeline.report import figures, page  # import matplotlib and jinja2, which reading metrics does not need

    folder = Path(folder)
    tables = metrics.join(streams, fused)
    context = {
        "fusion": fusion,
        "curves": curves,
        "failed": failed,
        "odd": odd,
        "settings": settings,
        "stages": stages,
        "counts": counts or {},
    }
    numbers = {**metrics.collect(tables, dataset=dataset, split=split, **context), "inputs": inputs}
    drawn = figures.draw(tables, curves)
    for name, figure in drawn.items():
        for suffix in ("svg", "png"):
            with files.commit(folder / "figures" / f"{name}.{suffix}") as temporary:
                figures.save(figure, temporary)
    files.write_text(folder / "report.html", page.render(tables, numbers, drawn, context))
    files.write_json(folder / "metrics.json", numbers)
    return numbers
