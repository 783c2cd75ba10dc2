"""Cores and memory that this process may use, which may be less than the machine has; work on one thread.

In a container limited to the time of 2 out of 64 cores, the operating system counts 64; only control groups do not.
Source: the Linux kernel's documentation of cgroup v2 (cpu.max, memory.max) and v1 (cpu.cfs_quota_us,
memory.limit_in_bytes).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")  # where control groups are mounted
_OWN = Path("/proc/self/cgroup")  # those of this process
_MEMORY = Path("/proc/meminfo")
_PROCESSORS = Path("/sys/devices/system/cpu")
_SECOND_THREAD = 0.3  # assumed gain of a core's second hardware thread, as a share of the core's speed


def usable_cores() -> int:
    """Number of cores: those this process may run on, or fewer if its CPU time is limited (rounded up)."""
    shares = [quota / period for quota, period in map(_cpu_quota, _groups("cpu")) if quota > 0 and period > 0]
    return max(1, min([len(processors()), *map(math.ceil, shares)]))


def processors() -> set[int]:
    """Numbers of the processors that this process may run on; all, where the system does not say (macOS)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in OpenCV and torch within the block, as worker processes do; then restore the old numbers."""
    import cv2

    with contextlib.ExitStack() as stack:
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        with contextlib.suppress(Exception):  # code that needs torch reports a broken torch itself
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def speed_of(processes: int) -> float:
    """How many times as fast this many busy processes are as one alone.

    No more than the usable cores work at a time, and two hardware threads of a core do less than two cores.
    """
    working = min(processes, usable_cores())
    files = (_PROCESSORS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in processors())
    cores = len({tuple(_lines(file)) or file for file in files})
    return min(working, cores) + _SECOND_THREAD * max(0, working - cores)


def free_memory_bytes() -> int:
    """Memory for new processes: what Linux reports as available, or less if a control group has less left."""
    return max(0, min([_available(), *(room for folder in _groups("memory") for room in _room(folder))]))


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups (version 2 or 1) that limit this process, with all their parents.

    A container may see its own group as the root, whatever path /proc gives.
    """
    for line in _lines(_OWN):
        _, names, path = line.split(":", 2)  # version 2 lines name no controllers
        if not names or controller in names.split(","):
            root = _GROUPS / controller if names else _GROUPS
            inside = PurePosixPath(path.lstrip("/"))
            yield from (root / part for part in (inside, *inside.parents))


def _cpu_quota(folder: Path) -> tuple[float, float]:
    """(quota, period): microseconds of CPU time per period in microseconds; (0, 0) if there is no limit."""
    if limit := _lines(folder / "cpu.max"):
        quota, period = limit[0].split()
        return (0, 0) if quota == "max" else (int(quota), int(period))
    quota, period = (_lines(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return (int(quota[0]), int(period[0])) if quota and period else (0, 0)


def _room(folder: Path) -> Iterator[int]:
    """Bytes that the group may still use, including reclaimable file cache; yields nothing if there is no limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, now = _lines(folder / limit), _lines(folder / used)
        if most and now and most != ["max"]:
            about = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
            yield int(most[0]) - int(now[0]) + int(about.get(cached, 0))


def _available() -> int:
    sizes = dict(line.split(":") for line in _lines(_MEMORY))
    if "MemAvailable" in sizes:
        return int(sizes["MemAvailable"].split()[0]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # all of macOS's
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _lines(path: Path) -> list[str]:
    """Lines of a kernel file; none if it does not exist or cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
