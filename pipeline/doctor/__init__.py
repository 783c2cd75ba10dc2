"""What works on this machine, what does not and why, and how long UCF-101 would take: `python -m pipeline doctor`.

The command must run in broken installations: whatever may be missing or broken is imported only inside functions, and
what it raises becomes part of the report.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.doctor import machine
from pipeline.specs import FLOW_METHODS, FlowSpec
from pipeline.system.packages import PACKAGES

UCF101_PAIRS = 2_456_655  # pairs of consecutive frames in the 13,320 clips, forward
SIZE_PX = (256, 341)  # height and width of its cached frames
DAY_HOURS = 24.0
# by mean end-point error on Middlebury (docs/results.md), except Brox, which is as good as TV-L1 at a fifth of its
# speed; RAFT needs weights and was not measured
BY_ACCURACY = ("tvl1", "brox", "deepflow", "dis_medium", "pcaflow", "dis_fast", "dis_ultrafast", "farneback")


def examine(artifacts: Path, *, seconds: float = 1.5) -> dict[str, Any]:
    """Examine this machine; returns the content of the report as plain JSON values.

    Args:
        artifacts: folder whose disk is examined; it need not exist.
        seconds: how long each flow method is timed, after a warm-up call.

    Returns:
        {"packages", "machine", "devices", "decoders", "flow", "broken", "advice"}; "broken" lists what must be repaired
        first and is empty in a working installation.
    """
    found = {
        "packages": machine.packages(),
        "machine": machine.resources(artifacts),
        "devices": machine.devices(),
        "decoders": machine.decoders(),
    }
    lanes = {name: len(about["found"]) for name, about in found["devices"].items()} | {"cpu": found["machine"]["cores"]}
    found["flow"] = {name: flow_method(name, why, lanes, seconds) for name, why in _flow_methods().items()}
    found["broken"] = _broken(found)
    found["advice"] = _advice(found)
    return found


# --- flow


def _flow_methods() -> dict[str, str]:
    try:
        from pipeline.flow import methods

        return methods()
    except ImportError as error:
        return dict.fromkeys(FLOW_METHODS, f"not available: {machine.cure(error)}")


def flow_method(name: str, why: str, lanes: dict[str, int], seconds: float) -> dict[str, Any]:
    """One row of the table: {"state", "device", "pairs_per_second", "ucf101_hours"}, the last two None if unavailable.

    Args:
        name, why: a method and its state, as `pipeline.flow.methods` gives them.
        lanes: how many computations can run in parallel: cores ("cpu"), devices of "torch" and of "opencv".
        seconds: how long the method is timed.
    """
    nothing = {"state": why, "device": "", "pairs_per_second": None, "ucf101_hours": None}
    if why != "available":
        return nothing
    from pipeline import flow

    lane = "opencv" if "cpu" not in flow.devices(name) else "torch" if "cuda" in flow.devices(name) else "cpu"
    lane = lane if lanes[lane] else "cpu"
    device = "cpu" if lane == "cpu" else "cuda"
    try:
        rate = pairs_per_second(name, device=device, seconds=seconds)
    except Exception as error:
        return {**nothing, "state": f"not available: {machine.cure(error)}"}
    return {
        "state": why,
        "device": device,
        "pairs_per_second": rate,
        "ucf101_hours": ucf101_hours(rate, lanes[lane], code_seconds=code_seconds() if device == "cpu" else 0.0),
    }


def ucf101_hours(pairs_per_second: float, lanes: int, *, code_seconds: float = 0.0) -> float:
    """Hours for the Flow stage of UCF-101, forward, on `lanes` cores or devices.

    Args:
        pairs_per_second: of each core or device, flow alone.
        lanes: number of cores or devices.
        code_seconds: to decode and encode the images of a pair on the same core; 0 for a device: other cores do it.
    """
    return UCF101_PAIRS * (1 / pairs_per_second + code_seconds) / lanes / 3600


@functools.cache
def code_seconds() -> float:
    """Seconds that one core needs to decode the frame of a pair and encode the two planes of its flow."""
    import numpy as np

    from pipeline.video import jpeg

    frame = _moving_texture(1)[0]
    data = np.frombuffer(jpeg.encode(np.stack([frame] * 3, axis=-1), quality=95), np.uint8)
    rounds, begun = 20, time.process_time()
    for _ in range(rounds):
        jpeg.decode(data, gray=True)
        for _ in range(2):
            jpeg.encode(frame, quality=95)
    return (time.process_time() - begun) / rounds


def pairs_per_second(method: str, *, device: str, seconds: float) -> float:
    """Pairs per second of a method on a moving texture of the size of UCF-101's cached frames.

    On a CPU it runs on one thread, as in workers, and CPU time is measured, so other programs do not make a method look
    slow. A first call warms up, since a method may compile; then flow is computed for `seconds`, at least once. Flow
    comes back as floats, which the Flow stage never fetches from a GPU: there the stage is faster.
    """
    from pipeline.flow import estimate, pairs_to_time, tensor_device
    from pipeline.system.limits import one_thread

    spec, pairs = FlowSpec(method=method), 1
    if device == "cuda":
        pairs = pairs_to_time(SIZE_PX, spec, device=tensor_device(method, device))
    frames = _moving_texture(pairs + 1)
    with one_thread():
        estimate(frames if device == "cuda" else frames[:, :64, :64], spec, device=device)
        clock = time.perf_counter if device == "cuda" else time.process_time
        done, begun = 0, clock()
        while (passed := clock() - begun) < seconds or not done:
            estimate(frames, spec, device=device)
            done += pairs
    return done / passed


def _moving_texture(frames: int) -> Any:
    """(T, H, W) uint8: a smooth random texture that moves 2 pixels to the right per frame."""
    import cv2
    import numpy as np

    height, width = SIZE_PX
    noise = np.random.default_rng(0).random((height, width + 2 * frames)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([texture[:, 2 * (frames - t) :][:, :width] for t in range(frames)])


# --- conclusions


def _broken(found: dict[str, Any]) -> list[str]:
    """What must be repaired: installed packages that cannot be imported, no decoder, no flow method."""
    broken = [
        f"{name} {package['problem']}"
        for name, package in found["packages"].items()
        if package["problem"].startswith("cannot be imported")
    ]
    there = {name for name, package in found["packages"].items() if package["version"] and not package["problem"]}
    if "cv2" in there and found["decoders"]["ffmpeg"] != "works":
        broken.append(f"videos cannot be decoded: ffmpeg {found['decoders']['ffmpeg']}")
    if "cv2" in there and not any(row["state"] == "available" for row in found["flow"].values()):
        broken.append("no flow method works")
    return broken


def _advice(found: dict[str, Any]) -> str:
    """One line of advice: what to repair, what to install, or which flow method to use."""
    if found["broken"]:
        return f"repair the installation first: {found['broken'][0]}"
    missing = [
        PACKAGES[name] for name, package in found["packages"].items() if package["problem"].startswith("missing")
    ]
    hours = {name: row["ucf101_hours"] for name, row in found["flow"].items() if row["ucf101_hours"] is not None}
    before = f"pip install {' '.join(missing)}; then " if missing else ""
    if not hours:
        return f"{before}look again: no flow method works yet"
    quick = [name for name in BY_ACCURACY if hours.get(name, DAY_HOURS + 1) <= DAY_HOURS]
    best = quick[0] if quick else min(hours, key=hours.get)
    return (
        f"{before}use --flow-method {best}: the Flow stage of UCF-101 in about {hours[best]:.1f} hours on this machine"
    )


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The report as text, with the advice last."""
    for name, package in found["packages"].items():
        yield f"{name:20} {' '.join(filter(None, (package['version'], package['problem'])))}"
    about = found["machine"]
    yield (
        f"{'machine':20} {about['cores']} cores, {about['memory_free'] / 2**30:.1f} GiB of memory free, "
        f"{about['disk_free'] / 2**30:.1f} GiB of disk free for {about['artifacts']}"
    )
    for name, seen in found["devices"].items():
        each = [
            f"{device.get('name', '')} ({device['memory'] / 2**30:.0f} GiB)"
            for device in seen["found"]
            if "memory" in device
        ]
        yield f"{f'CUDA, {name}':20} {', '.join(each) or len(seen['found']) or 'none: ' + seen['why_not']}"
    for name, outcome in found["decoders"].items():
        yield f"{f'decoder, {name}':20} {outcome}"
    for name, row in found["flow"].items():
        yield f"{f'flow, {name}':20} {_speed(row) if row['pairs_per_second'] else row['state']}"
    yield ""
    yield from (f"BROKEN: {fault}" for fault in found["broken"])
    yield found["advice"]


def _speed(row: dict[str, Any]) -> str:
    each = "core" if row["device"] == "cpu" else "GPU"
    return f"{row['pairs_per_second']:.4g} pairs/s a {each}; UCF-101 in {row['ucf101_hours']:.1f} hours"
