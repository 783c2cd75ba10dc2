"""Flow methods compared: accuracy, speed, and whether fast TV-L1 and Brox agree with their definitions.

    python benchmarks/flow.py                                            # every method on every device here
    python benchmarks/flow.py --methods tvl1 dis_medium --devices cpu    # some
    python benchmarks/flow.py --methods tvl1 --enlarge 1 2               # frames as they are, and enlarged twice
    python benchmarks/flow.py --sintel /data/MPI-Sintel --pairs 40       # beside Middlebury and what is drawn here
    python benchmarks/flow.py --stereo FOLDER                            # two photographed scenes; see stereo.py

*Error* is the mean end-point error over all pixels with known motion, on pairs from Middlebury, MPI-Sintel and
stereo, and on those that `streets.py` and `scenes.py` draw, whose motion is exact; in brackets, over the points that
stay visible. *Speed* is measured in one process, all methods taking turns in every round, so a machine that slows
down slows them all. The baseline is OpenCV's own TV-L1 with its defaults, the obvious alternative. *Agreement* is
the distance of our methods from their definitions, `tvl1_torch.py` and `brox_torch.py` in float64 on the CPU. Only
`pipeline.flow` is needed, not luigi, dask, OpenCV's contrib modules or an installation of the project (PYTHONPATH=.).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import flow_speed
import numpy as np
import scenes
import stereo
import streets
from common import ROOT, machine, table, write
from flow_speed import Lane
from scenes import Pair

from pipeline import flow
from pipeline.specs import FLOW_METHODS, FlowSpec
from pipeline.system.progress import Progress

SIZES = ((240, 320), (256, 340))  # height, width of the timed frames; the first is also that of the synthetic pairs
QUICK_SIZE = (60, 80)
STREETS, STREETS_REACH_PX = 4, 12.0  # pairs of each kind; bound of their motion
DARKER = 0.7  # brightness of the second frame when the Middlebury pairs are compared once more
FLASH = 150.0  # gray values that a flash adds in the center of the second frame, when they are compared again
FAR_PX = 0.02  # a difference worth counting: an eighth of a quantization step at [flow] bound_px = 20
DEFINED = ("tvl1", "brox")  # methods of ours, which have a definition in float64


def main() -> None:
    arguments = parse()
    cv2.setNumThreads(arguments.threads)
    found = flow.methods()
    lanes = choose(found, arguments)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(arguments.threads)
    print(f"flow, on {machine()}, {arguments.threads} threads")
    for method in arguments.methods or FLOW_METHODS:
        if found[method] != "available":
            print(f"{method} is {found[method]}")
    if not flow_speed.has_opencv_tvl1():
        print(f"{flow_speed.BASELINE} is left out: this OpenCV has no contrib modules (cv2.optflow)")
    record = {"threads": arguments.threads, "unavailable": {k: v for k, v in found.items() if v != "available"}}
    sizes = (QUICK_SIZE,) if arguments.quick else SIZES
    record["speed"] = flow_speed.measure(lanes, sizes, arguments.threads, arguments.seconds, arguments.rounds)
    pairs = read(arguments)
    record["error"] = accuracy(lanes, pairs)
    record["agreement"] = agreement([lane for lane in lanes if lane.method in DEFINED and lane.enlarge == 1], pairs)
    write("flow quick" if arguments.quick else "flow", record)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=FLOW_METHODS, metavar="METHOD", help=", ".join(FLOW_METHODS))
    parser.add_argument(
        "--devices", nargs="+", metavar="DEVICE", help="cpu, cuda (all of them), cuda:0, ...; all that are here"
    )
    parser.add_argument(
        "--enlarge",
        nargs="+",
        type=int,
        choices=range(1, 5),
        default=[1],
        metavar="FACTOR",
        help="as [flow] enlarge; 1",
    )
    parser.add_argument("--middlebury", type=Path, default=ROOT.parent / "shared/data/middlebury")
    parser.add_argument("--sintel", type=Path, help="the folder that holds training/clean, final and flow")
    parser.add_argument("--stereo", type=Path, help="the folder that holds the scenes of stereo.py")
    parser.add_argument("--pairs", type=int, default=20, help="of Sintel, in each pass")
    parser.add_argument("--threads", type=int, default=1, help="for every method")
    parser.add_argument("--seconds", type=float, default=3.0, help="for which a method is timed at one size, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke test: small synthetic pairs only, one round")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if arguments.quick:
        arguments.seconds, arguments.rounds = 0.0, 1
    return arguments


def choose(found: dict[str, str], arguments: argparse.Namespace) -> list[Lane]:
    """Of the methods and devices asked for, every available method on every device that it can use."""
    lanes = []
    for method in arguments.methods or FLOW_METHODS:
        if found[method] == "available":
            here = ("cpu",) * ("cpu" in flow.devices(method)) + flow.cuda_devices(method, "auto")
            wanted = arguments.devices or here
            on = [device for device in here if {device, device.partition(":")[0]} & set(wanted)]
            lanes += [Lane(method, device, factor) for factor in arguments.enlarge for device in on]
    if not lanes:
        raise SystemExit(
            f"nothing to measure: no method of {', '.join(arguments.methods or FLOW_METHODS)} is available on "
            f"{', '.join(arguments.devices or ['any device'])}; `python -m pipeline doctor` says what is"
        )
    return lanes


def read(arguments: argparse.Namespace) -> list[Pair]:
    if arguments.quick:
        return scenes.synthetic(size=QUICK_SIZE, each=1)
    real = scenes.middlebury(arguments.middlebury)
    if not real:
        print(f"Middlebury is left out: {arguments.middlebury} holds no <name>/flow10.flo")
    if arguments.sintel:
        real += scenes.sintel(arguments.sintel, arguments.pairs)
    if arguments.stereo:
        real += stereo.stereo(arguments.stereo)
    known = [pair for pair in real if pair.group == "Middlebury"]
    real += [scenes.darkened(pair, DARKER) for pair in known] + [scenes.flashed(pair, FLASH) for pair in known]
    drawn = [
        streets.street(kind, seed, reach_px=STREETS_REACH_PX, size=SIZES[0])
        for kind in streets.KINDS
        for seed in range(STREETS)
    ]
    return real + drawn + scenes.synthetic(size=SIZES[0], each=3)


# --- error


def accuracy(lanes: list[Lane], pairs: list[Pair]) -> dict:
    """Mean end-point error of every lane on every pair: {lane: [{"group", "name", "all", "visible"}, ...]}."""
    estimators = {str(lane): lane.flow for lane in lanes}
    if flow_speed.has_opencv_tvl1():
        estimators[flow_speed.BASELINE] = lambda frames: flow_speed.opencv_tvl1(flow.to_gray(frames))
    errors: dict[str, list[dict]] = {name: [] for name in estimators}
    with Progress("flow, errors", len(estimators) * len(pairs), "pairs") as progress:
        for (name, of_pair), pair in itertools.product(estimators.items(), pairs):
            errors[name].append(end_point_error(of_pair, pair))
            progress.advance()
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    rows = []
    for name, found in errors.items():
        means = [[row for row in found if row["group"] == group] for group in groups]
        rows.append([name, *(_mean_of(rows_of_group) for rows_of_group in means)])
    counts = [f"{group} ({sum(pair.group == group for pair in pairs)})" for group in groups]
    print(f"\nmean end-point error, px (of points in sight)\n\n{table(['method, device', *counts], rows)}")
    for group in groups:
        names = [pair.name for pair in pairs if pair.group == group]
        if not names[0].startswith("seed"):
            rows = [
                [k, *(f"{row['all']:.3f}" for row in found if row["group"] == group)] for k, found in errors.items()
            ]
            print(f"\n{group}, px\n\n{table(['method, device', *names], rows)}")
    return errors


def end_point_error(of_pair: Callable[[np.ndarray], np.ndarray], pair: Pair) -> dict:
    """Mean error in pixels over all known pixels, and over those that stay visible (None if not known)."""
    error = np.linalg.norm(of_pair(pair.frames) - pair.truth, axis=0)
    about = {"group": pair.group, "name": pair.name, "all": float(error[pair.known].mean())}
    return {**about, "visible": float(error[pair.visible].mean()) if pair.visible is not pair.known else None}


def _mean_of(found: list[dict]) -> str:
    text = f"{np.mean([row['all'] for row in found]):.3f}"
    return text if found[0]["visible"] is None else f"{text} ({np.mean([row['visible'] for row in found]):.3f})"


# --- agreement


def agreement(lanes: list[Lane], pairs: list[Pair]) -> list[dict]:
    """How far our methods on each device are from their definitions in float64, on all pairs."""
    if not lanes:
        return []
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for pair in pairs:
        exact = {method: in_float64(method, pair.frames) for method in {lane.method for lane in lanes}}
        for lane in lanes:
            apart = np.abs(lane.flow(pair.frames) - exact[lane.method]).max(0)
            found.setdefault((str(lane), pair.group), []).append(apart.ravel())
    rows = []
    for (lane, group), parts in found.items():
        apart = np.concatenate(parts)
        values = {"mean_px": apart.mean(), "max_px": apart.max(), "share": (apart > FAR_PX).mean()}
        rows.append({"lane": lane, "group": group, **{name: float(value) for name, value in values.items()}})
    header = ["against float64", "pairs of", "mean, px", "largest, px", f"pixels above {FAR_PX} px, %"]
    cells = [
        [r["lane"], r["group"], f"{r['mean_px']:.1e}", f"{r['max_px']:.3f}", f"{100 * r['share']:.4f}"] for r in rows
    ]
    print(f"\ndifference of the larger component\n\n{table(header, cells)}")
    return rows


def in_float64(method: str, frames: np.ndarray) -> np.ndarray:
    """(2, H, W) float64 flow of two RGB frames by a method's definition."""
    import torch

    first, second = (torch.from_numpy(gray)[None].double() for gray in flow.to_gray(frames))
    if method == "brox":
        from pipeline.flow import brox_torch as definition
    else:
        from pipeline.flow import tvl1_torch as definition
    return definition.flow_between(first, second, FlowSpec(method=method))[0].numpy()


if __name__ == "__main__":
    main()
