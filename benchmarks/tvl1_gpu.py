"""TV-L1 on a CUDA device: pairs per second by batch size, share of memory bandwidth used, time by kernel.

    PYTHONPATH=. python benchmarks/tvl1_gpu.py rates | tiles | profile

The bytes are those that the algorithm must move according to its formula: each field is read and written once per
pass. Data fetched again because of a cache miss counts as lost bandwidth.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from itertools import pairwise

import torch
from common import show

from pipeline.flow import device, estimate, tvl1_torch, tvl1_triton
from pipeline.flow.filters import pyramid_sizes
from pipeline.flow.tvl1_model import MIN_SIDE_PX, box_of, is_coarse, medians
from pipeline.specs import FlowSpec

SIZES = (240, 320), (256, 340)
BATCHES = 1, 4, 16, 64, 128, 256, 384
SPEC = FlowSpec()
# rows and columns; each thread computes one pixel
TILES = {
    "TILE": ((1, 128), (2, 128), (4, 64), (4, 128), (8, 32), (8, 64), (16, 32), (8, 128), (16, 64)),
    "MEDIAN_TILE": ((1, 128), (2, 64), (4, 64), (4, 32)),
}


def pair_bytes(height: int, width: int, spec: FlowSpec) -> float:
    """Bytes that must be moved for one pair of images, counted in fields over the pixels of a level.

    Fields of coarse levels and of the pyramids are float64, others float32. Changes of precision are counted roughly.
    """
    channels = len(box_of(spec))
    sizes = pyramid_sizes(height, width, step=spec.tvl1_scale_step, min_side=MIN_SIDE_PX)
    pixels = [rows * columns for rows, columns in sizes]
    iteration = (2 + 2 + 4 + channels + 3 * channels) + (2 + 4 + channels)
    warping = (3 + 2 * channels) + (3 + 5 * channels) + spec.tvl1_iterations * iteration
    trust = (2 + 2 + 3 * channels + 1) + 2  # computed, then read with the image by the weighted median
    total = 4 * 12.5 * pixels[0]
    for size, count in zip(sizes, pixels, strict=True):
        coarse = is_coarse(size, sizes[0])
        turns = medians(spec, coarse=coarse)
        fields = 2 * 3 + 2 * (1 + channels) + len(turns) * (warping + 6) + sum(turns) * trust
        total += (8 if coarse else 4) * fields * count
    for large, small in pairwise(pixels):
        total += 4 * (16 * large + 4 * (large + small) + (6 + channels) * (large + small))
    return total


def seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median seconds of `work` on the device, after two calls that compile and warm up."""
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times[2:])


def copy_bandwidth() -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def images(pairs: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth noise that moves by 1 and 2 pixels per frame: two tensors (pairs, H, W) uint8 on the device."""
    noise = torch.rand(1, 1, (height + 40) // 4, (width + 40) // 4, device="cuda") * 255
    large = torch.nn.functional.interpolate(noise, (height + 40, width + 40), mode="bicubic").clamp(0, 255)[0, 0]
    turning = [20 - abs(t % 40 - 20) for t in range(pairs + 1)]  # back and forth: no pair jumps
    moved = [large[at : at + height, 2 * at : 2 * at + width] for at in turning]
    frames = torch.stack(moved).byte()
    return frames[:-1].contiguous(), frames[1:].contiguous()


def note(rows: list[tuple[str, str]], what: str, found: str) -> None:
    """Add a row and print it at once: a run that is cut short has shown what it found."""
    rows.append((what, found))
    print(what, found, sep=": ", flush=True)


def rates() -> None:
    bandwidth, rows, record = copy_bandwidth(), [], {}
    note(rows, "copy within the device's memory", f"{bandwidth / 1e9:.0f} GB/s")
    for height, width in SIZES:
        must = pair_bytes(height, width, SPEC)
        note(rows, f"{width} x {height}, by formula", f"{must / 1e6:.0f} MB a pair")
        for pairs in BATCHES:
            both = images(pairs, height, width)
            rate = pairs / seconds(lambda both=both: tvl1_triton.flow_between(*both, SPEC))
            share = rate * must / bandwidth
            note(rows, f"{width} x {height}, {pairs} pairs at once", f"{rate:.0f} pairs/s, {share:.0%} of the copy")
            record[f"{width}x{height}, {pairs}"] = rate
    both = images(16, *SIZES[1])
    rate = 16 / seconds(lambda: tvl1_torch.flow_between(*both, SPEC), repeats=3)
    note(rows, "340 x 256, 16 pairs at once, plain torch", f"{rate:.0f} pairs/s")
    frames = images(256, *SIZES[1])[0].cpu().numpy()
    rate = 255 / seconds(lambda: torch.as_tensor(estimate(frames, SPEC, device="cuda")).cpu(), repeats=3)
    note(rows, "340 x 256, from numpy frames to flow on the host", f"{rate:.0f} pairs/s")
    memory = torch.cuda.max_memory_allocated()
    note(rows, "most memory held", f"{memory / 2**30:.2f} GiB")
    used = f"{peak_bytes_per_pixel():.0f} of {device.CUDA_BYTES_PER_PIXEL} allowed"
    note(rows, "bytes a pixel of a pair", used)
    show("tvl1 on CUDA", rows, {"copy_bandwidth": bandwidth, "pairs_per_second": record})


def peak_bytes_per_pixel() -> float:
    both = images(64, *SIZES[1])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tvl1_triton.flow_between(*both, SPEC)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / both[0].numel()


def tiles() -> None:
    """The rate with other sizes of the two tiles of `tvl1_triton`, each printed as soon as it is known.

    The weighted median takes some ten seconds to compile in each of two precisions, so few of its tiles are tried, and
    last.
    """
    both, rows, record = images(64, *SIZES[1]), [], {}
    for name, shapes in TILES.items():
        tile = getattr(tvl1_triton, name)
        chosen = dict(tile)
        for height, width in shapes:
            tile.update(ROWS=height, COLUMNS=width, num_warps=height * width // 32)
            rate = 64 / seconds(lambda: tvl1_triton.flow_between(*both, SPEC), repeats=3)
            note(rows, f"{name} {height} x {width}", f"{rate:.0f} pairs/s")
            record[rows[-1][0]] = rate
        tile.update(chosen)
    show("tvl1 tiles on CUDA", rows, {"pairs_per_second": record})


def profile() -> None:
    """Print the time by kernel, from torch's profiler."""
    both = images(64, *SIZES[1])
    tvl1_triton.flow_between(*both, SPEC)
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(3):
            tvl1_triton.flow_between(*both, SPEC)
        torch.cuda.synchronize()
    print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=20, max_name_column_width=40))


if __name__ == "__main__":
    {"rates": rates, "tiles": tiles, "profile": profile}[sys.argv[1] if len(sys.argv) > 1 else "rates"]()
