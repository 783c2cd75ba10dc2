"""What the benchmarks share: a description of the machine, printed tables, JSON in data/benchmarks/."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path

from pipeline.system.limits import processors

ROOT = Path(__file__).parents[1]


def machine() -> str:
    """The machine in words: usable cores, processor, and the GPU if there is one."""
    about = Path("/proc/cpuinfo")  # of Linux
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    text = f"{len(processors())} cores of {names[0] if names else platform.machine()}"
    try:
        import torch

        return f"{text}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else f"{text}, no GPU"
    except ImportError:
        return text


def spread(values: list[float], digits: int = 2) -> str:
    """`median (lowest to highest)`."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    head, *body = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([head, "|---" * len(header) + "|", *body])


def write(title: str, record: dict) -> None:
    """Write `record` to data/benchmarks/<title>.json and print the path."""
    path = ROOT / "data/benchmarks" / f"{title.replace(' ', '-')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **record}, indent=1))
    print(f"\n{path}")


def show(title: str, rows: list[tuple[str, str]], record: dict) -> None:
    """Print a Markdown table and write `record` to data/benchmarks/<title>.json."""
    print(f"\n{title}, on {machine()}\n\n{table(['what', 'measured'], [list(row) for row in rows])}")
    write(title, record)
