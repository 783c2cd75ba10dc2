"""Draw the training, validation and test parts that the layout does not define. Whole groups are drawn.

The clips of a group stay together, so no source video is in two of the drawn parts. HMDB-51's official lists do not
keep to that: some 140 films are in both of them, and a fifth of the validation clips come from films that are tested.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.catalog.rows import ListedClip
from pipeline.specs import DatasetSpec
from pipeline.system.errors import UserError


def draw_parts(spec: DatasetSpec, rows: list[ListedClip], split: str) -> list[ListedClip]:
    """Draw the test part if the layout leaves it open, then the validation part unless the layout defines one."""
    if any(not row.part for row in rows):
        drawn = draw_groups(rows, spec.test_fraction, key=f"{spec.split_seed}/test/{split}")
        rows = [replace(row, part="test" if row.group in drawn else "train") for row in rows]
    if any(row.part == "val" for row in rows):
        return rows
    training = [row for row in rows if row.part == "train"]
    drawn = draw_groups(training, spec.val_fraction, key=f"{spec.split_seed}/val/{split}")
    return [replace(row, part="val") if row.part == "train" and row.group in drawn else row for row in rows]


def draw_groups(rows: Iterable[ListedClip], fraction: float, *, key: str) -> set[str]:
    """Draw whole groups at random, evenly over the classes, and never all groups of a class.

    From a class with n groups, n * fraction groups are wanted, rounded, and at least one if n >= 2 and fraction > 0.
    The order of the groups depends only on `key` and their names, but groups with more than twice the wanted share of a
    class's clips come last: one long source video may hold half of a class. The first pass takes a group if none of its
    classes gets more groups than wanted. The second pass is for groups that span several classes: it takes a group if
    one of its classes still has none, unless that would take the last group of a class.
    Examples: one class, groups a b c d, fraction 0.25: one group is drawn. Eight people who each show all ten classes,
    fraction 0.15: one person is drawn, and is in every class.

    Args:
        rows: any order; only class and group are read.
        fraction: share of the groups, 0 to 1.
        key: seed of the order. The class name is removed from a group's name before hashing, so g03 of one class is
            drawn together with g03 of another: a background that both share is in one part only.

    Returns:
        Names of the drawn groups. Empty if each class has a single group.
    """
    rows, classes_of = list(rows), defaultdict(set)
    for row in rows:
        classes_of[row.group].add(row.class_name)
    heavy = _heavy_groups(rows, 2 * fraction)
    groups = Counter(name for names in classes_of.values() for name in names)
    wanted = {name: _share(fraction, n) for name, n in groups.items()}
    order = sorted(classes_of, key=lambda group: (group in heavy, _order_key(key, group, classes_of[group]), group))
    drawn: set[str] = set()
    taken: Counter[str] = Counter()
    for group in order:
        if all(taken[name] < wanted[name] for name in classes_of[group]):
            drawn.add(group)
            taken.update(classes_of[group])
    for group in (group for group in order if group not in drawn):
        lacking = any(wanted[name] and not taken[name] for name in classes_of[group])
        if lacking and all(taken[name] < groups[name] - 1 for name in classes_of[group]):
            drawn.add(group)
            taken.update(classes_of[group])
    return drawn


def _heavy_groups(rows: list[ListedClip], share: float) -> set[str]:
    """Groups with more than this share of the clips of one of their classes."""
    clips = Counter(row.class_name for row in rows)
    counted = Counter((row.group, row.class_name) for row in rows)
    return {group for (group, name), n in counted.items() if n > share * clips[name]}


def _share(fraction: float, groups: int) -> int:
    """Number of groups wanted from a class of `groups` groups: the rounded share, at least one but not all."""
    return min(max(int(fraction * groups + 0.5), 1), groups - 1) if fraction > 0 else 0


def _order_key(key: str, group: str, classes: set[str]) -> bytes:
    if len(classes) == 1:
        group = group.removeprefix(next(iter(classes)))
    return hashlib.blake2b(f"{key}/{group}".encode(), digest_size=8).digest()


def check_parts(found: Mapping[str, Mapping[str, int]], needed: Iterable[str], spec: DatasetSpec, split: str) -> None:
    """Reject a split in which a needed part has no clips; with `val_fraction = 0`, "val" may be empty.

    Args:
        found: part -> its counts, as from `Catalog.counts`; at least the number of groups.
        needed: parts that must have clips: "val", "test" or both.
        spec: the dataset.
        split: name of the split, for the message.

    Raises:
        UserError: a needed part has no clips; the message says why and what to do.
    """
    use = {
        "val": "validation clips, on which fusions are chosen (TrainStream and ScoreStream need none)",
        "test": "test clips, on which all is reported",
    }
    for part in needed:
        if part not in found and (part != "val" or spec.val_fraction):
            groups = found.get("train", {}).get("groups", 0)
            raise UserError(f"split {split} has no {use[part]}: {_why_empty(part, groups, spec)}")


def check_classes(classes: Sequence[str], dataset: str) -> None:
    """Refuse to train on a single class, or none.

    Raises:
        UserError: there are fewer than two classes; the message names the only one.
    """
    if not classes:
        raise UserError(
            f"the videos of {dataset} are unlabeled, so that nothing can be learned from them; any other [dataset] "
            "layout has labels, and ScoreVideos scores videos without"
        )
    if len(classes) < 2:
        raise UserError(
            f"{dataset} has one class, {classes[0]!r}, and a network learns to tell at least two apart; in layout "
            "folder the class of a clip is the first folder below [dataset] videos"
        )


def _why_empty(part: str, groups: int, spec: DatasetSpec) -> str:
    """Say why a part is empty and what to do; `groups` is the number of groups in the training part."""
    if part == "test" and spec.has_official_lists:
        return "its lists name none that exists"
    if part == "test" and spec.layout == "csv":
        raised = "" if spec.test_fraction else " (raise it)"
        return (
            "name some in the split column of the CSV file, or leave the column out: then [dataset] test_fraction, "
            f"which is {spec.test_fraction:g}{raised}, of the {groups} groups is drawn, but never all groups of a class"
        )
    named = ", or name some in the split column of the CSV file" if spec.layout == "csv" else ""
    if part == "test" and not spec.test_fraction:
        return "[dataset] test_fraction is 0; raise it"
    # without a pattern, each clip is its own group, so there cannot be more groups
    pattern = ", or change [dataset] group_pattern so that there are more" if spec.group_pattern else ""
    return (
        f"too few groups: {groups}; whole groups are drawn from the training part, and never all groups of a class; "
        f"add clips of other groups{pattern}{named}"
    )
