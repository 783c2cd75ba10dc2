"""The whole chain as a user runs it: time, accuracy and the rerun; each seed begins with no artifacts.

python benchmarks/chain.py demo --seeds 0 1 2
python benchmarks/chain.py weizmann --splits daria denis eli      # configs/weizmann.cfg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, show, spread

from pipeline.specs import FUSIONS, STREAMS


def run(dataset: str, artifacts: Path, *, split: str, seed: int) -> float:
    """Run FullPipeline; returns the seconds it took."""
    preset = ROOT / "configs" / f"{dataset}.cfg"
    environment = {**os.environ, "LUIGI_CONFIG_PATH": str(preset if preset.is_file() else ROOT / "luigi.cfg")}
    command = [str(Path(sys.executable).with_name("luigi")), "--module", "tasks", "FullPipeline", "--dataset", dataset]
    command += ["--seed", str(seed), "--artifacts", str(artifacts), *(["--split", split] if split else [])]
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("demo", "weizmann"))
    parser.add_argument("--splits", nargs="*", default=[""])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            artifacts = Path(scratch) / f"seed{seed}"  # splits of one seed share frames and flow, as they do for users
            for split in arguments.splits:
                seconds = run(arguments.dataset, artifacts, split=split, seed=seed)
                metrics = json.loads((artifacts / arguments.dataset / "report/latest/metrics.json").read_text())
                again = [run(arguments.dataset, artifacts, split=split, seed=seed) for _ in range(3)]
                results.append({"seed": seed, "split": split, "seconds": seconds, "again": again, "metrics": metrics})
    report(arguments.dataset, results)


def report(dataset: str, results: list[dict]) -> None:
    """Print and record what was measured."""

    def score(of) -> str:
        right = [round(of(r["metrics"])["top1"] * r["metrics"]["num_test"]) for r in results]
        clips = sum(r["metrics"]["num_test"] for r in results)
        return f"{spread([of(r['metrics'])['top1'] for r in results], 3)}; {sum(right)} of {clips} clips"

    rows = [
        ("runs", ", ".join(f"seed {r['seed']} split {r['metrics']['split']}: {r['seconds']:.0f} s" for r in results))
    ]
    rows += [("whole chain, s", spread([r["seconds"] for r in results], 1))]
    rows += [("all together, s", f"{sum(r['seconds'] for r in results):.0f}")]
    rows += [("rerun with nothing to do, s", spread([s for r in results for s in r["again"]]))]
    rows += [(f"top-1, {stream}", score(lambda m, s=stream: m[s])) for stream in STREAMS]
    rows += [(f"top-1, fused, {name}", score(lambda m, n=name: m["fused"][n])) for name in FUSIONS]
    show(f"chain {dataset}", rows, {"results": results})


if __name__ == "__main__":
    main()
