"""Which fields of a clip make up an input: windows, and what takes the place of fields that a short clip lacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.specs import StackSpec


@dataclass(frozen=True)
class Window:
    """The fields of one input. Read the ranges [i, j) `forward` and `backward`, and pass both to `make_stack`.

    `ahead` and `behind` are the fields in stacking order, as indices into the clip. `backward` is None where that
    direction is not needed.
    """

    forward: tuple[int, int]
    backward: tuple[int, int] | None
    ahead: tuple[int, ...]
    behind: tuple[int, ...]


def num_windows(num_fields: int, spec: StackSpec) -> int:
    """Number of windows in a clip: F - L + 1, or 1 for a clip shorter than the window.

    Example: 99 fields and L = 10 give 90, starts 0 ... 89; 10 fields give 1; 4 fields give 1, filled by `spec.short`.

    Raises:
        ValueError: a clip without fields.
    """
    if num_fields < 1:
        raise ValueError(f"num_fields is {num_fields}; a stack needs a clip of at least 1 flow field (2 frames)")
    return max(1, num_fields - spec.length + 1)


def spaced(count: int, n: int) -> np.ndarray:
    """n equally spaced positions among 0 ... count - 1, first and last included, rounded, halves up.

    Examples: spaced(9, 3) is 0 4 8; spaced(90, 4) is 0 30 59 89; spaced(2, 4) is 0 0 1 1 (positions repeat if there
    are fewer than n); spaced(9, 1) is 4, the middle.

    Raises:
        ValueError: count or n below 1.
    """
    if count < 1 or n < 1:
        raise ValueError(f"count is {count} and n is {n}; both must be at least 1")
    if n == 1:
        return np.array([(count - 1) // 2])
    return (2 * np.arange(n) * (count - 1) + n - 1) // (2 * (n - 1))


def window(num_fields: int, spec: StackSpec, start: int) -> Window:
    """The fields that make up the input starting at field `start`.

    The middle frame of a bidirectional stack is start + L/2. Example: 99 fields, L = 4, start 3: fields 3, 4 backward
    and 5, 6 forward; ahead (5, 6), behind (4, 3), forward [5, 7), backward [3, 5). A clip shorter than the window is
    taken from its start (bidirectional: from its middle frame) and extended by `fill`.

    Args:
        num_fields: F, the clip's flow fields in one direction.
        spec: length, direction and the policy for short clips.
        start: 0 <= start < num_windows(num_fields, spec).

    Raises:
        ValueError: a start outside that range, or a clip without fields.
    """
    count = num_windows(num_fields, spec)
    if not 0 <= start < count:
        raise ValueError(f"start is {start}; {num_fields} fields and length {spec.length} allow 0 to {count - 1}")
    if spec.direction == "forward":
        ahead, behind = fill(start, start + spec.length, num_fields, short=spec.short), ()
    else:
        half = spec.length // 2
        frame = start + half if num_fields >= spec.length else num_fields // 2
        ahead = fill(frame, frame + half, num_fields, short=spec.short)
        behind = fill(frame - half, frame, num_fields, short=spec.short)[::-1]
    return Window(_span_of(ahead), _span_of(behind) if behind else None, ahead, behind)


def fill(first: int, stop: int, num_fields: int, *, short: str) -> tuple[int, ...]:
    """Indices of fields first ... stop - 1; those outside the clip are replaced by fields of the clip, never by zeros.

    Examples with 3 fields: fill(0, 5, 3) is 0 1 2 2 2 with `repeat_last` and 0 1 2 0 1 with `wrap`; fill(-2, 1, 3) is
    0 0 0 and 1 2 0.

    Raises:
        ValueError: an unknown policy.
    """
    if short not in ("repeat_last", "wrap"):
        raise ValueError(f"short is {short!r}; allowed: repeat_last, wrap")
    fields = range(first, stop)
    if short == "wrap":
        return tuple(k % num_fields for k in fields)
    return tuple(min(max(k, 0), num_fields - 1) for k in fields)


def check_count(name: str, fields: int | None, span: tuple[int, int] | None) -> None:
    """Reject a number of fields other than that of the range [i, j) = span; None means no fields."""
    needed = None if span is None else span[1] - span[0]
    if fields != needed:
        raise ValueError(f"{name} holds {fields} fields; the window asks for {needed}, those of [i, j) = {span}")


def _span_of(fields: tuple[int, ...]) -> tuple[int, int]:
    """The smallest range [i, j) that holds these fields."""
    return min(fields), max(fields) + 1
