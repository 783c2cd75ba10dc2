"""The official split lists of UCF-101 and HMDB-51, read without any video.

Both are read into rows: path, class, group, and the clip's part of the data in the requested split. A clip that only
other splits name is a row too, with part "unused". So the set of clips and classes never depends on the split.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.catalog.rows import ListedClip, folded, safe_path, text_of
from pipeline.specs.base import unknown_name
from pipeline.system.errors import UserError

HMDB51_PARTS = {"0": "unused", "1": "train", "2": "test"}
# HMDB-51 file names end in: visible part, camera motion, number of people, view, quality, number
HMDB51_TAIL = r"_[a-z]_[a-z]+_np\d+_[a-z]+_[a-z]+_\d+"


def split_numbers(folder: Path) -> list[str]:
    """Numbers of the splits in a folder of either dataset's official lists: "1", "2", "3"."""
    matches = (re.fullmatch(r"(?:trainlist|.+_test_split)(\d+)\.txt", file.name) for file in folder.iterdir())
    return [str(number) for number in sorted({int(match[1]) for match in matches if match})]


def read_ucf101_classes(folder: Path) -> list[str]:
    """Class names of `classInd.txt`, in order; the numbers in the file count from one and are used nowhere else.

    Raises:
        FileNotFoundError: there is no `classInd.txt`.
        UserError: the numbers are not 1, 2, 3 ..., or a class is named twice.
    """
    file = folder / "classInd.txt"
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no classInd.txt; layout ucf101 needs ucfTrainTestlist")
    pairs = [line.split(maxsplit=1) for line in _lines(file)]
    if [pair[0] for pair in pairs] != [str(number) for number in range(1, len(pairs) + 1)]:
        raise UserError(f"{file.name}: the class numbers are not 1, 2, 3 ... in order")
    names = [pair[-1] for pair in pairs]
    if len({folded(name) for name in names}) < len(names):
        raise UserError(f"{file.name}: a class is named twice")
    return names


def read_ucf101_lists(folder: Path, split: str) -> list[ListedClip]:
    """Read the official UCF-101 lists; no video is needed.

    Args:
        folder: holds `classInd.txt` and `trainlist01.txt`, `testlist01.txt`, `trainlist02.txt` ...
        split: number of the split, such as "1" or "01".

    Returns:
        One row for every clip that any list names, sorted by path; its part is "unused" outside the requested split.

    Raises:
        FileNotFoundError: `classInd.txt` is missing.
        UserError: no such split, a wrong class or label, a clip in both lists, or a path not `<Class>/<..._gNN_...>`.
    """
    labels = {folded(name): (label, name) for label, name in enumerate(read_ucf101_classes(folder))}
    found = [re.fullmatch(r"(train|test)list(\d+)\.txt", file.name) for file in sorted(folder.iterdir())]
    files = [(match[0], match[1], str(int(match[2]))) for match in found if match]
    wanted = _wanted_split(split, {number for _, _, number in files})
    rows: dict[str, ListedClip] = {}
    for name, part, number in files:
        for line in _lines(folder / name):
            row = _ucf101_row(line, labels, name)
            _add(rows, replace(row, part=part if number == wanted else "unused"), name)
    for part in ("train", "test"):
        if not any(row.part == part for row in rows.values()):
            raise UserError(f"split {wanted}: {part}list{int(wanted):02d}.txt is missing or empty")
    return [rows[path] for path in sorted(rows)]


def _ucf101_row(line: str, labels: dict[str, tuple[int, str]], where: str) -> ListedClip:
    path, label = re.fullmatch(r"(.*?\S)(?:\s+(\d{1,9}))?", line).groups()
    path = safe_path(path, where)
    folder, _, file = path.partition("/")
    if not file or "/" in file:
        raise UserError(f"{where}: {path!r} is not <Class>/<video>")
    if folded(folder) not in labels:
        names = [name for _, name in labels.values()]
        raise UserError(f"{where}: {path!r}: " + unknown_name(f"class {folder!r}", folder, names))
    zero_based, class_name = labels[folded(folder)]
    if label is not None and int(label) - 1 != zero_based:
        raise UserError(f"{where}: {path!r} has label {label}; classInd.txt numbers {class_name} {zero_based + 1}")
    number = re.search(r"_g(\d+)_", file)
    if number is None:
        raise UserError(f"{where}: {path!r} has no _gNN_, so its group is unknown; layout csv can name it")
    return ListedClip(PurePosixPath(file).stem, path, class_name, f"{class_name}_g{number[1]}", "unused")


def read_hmdb51_lists(folder: Path, split: str) -> list[ListedClip]:
    """Read the official HMDB-51 lists; no video is needed. The group of a clip is the video it was cut from.

    Args:
        folder: holds `<class>_test_split<N>.txt`, with lines `<video> <0 unused | 1 train | 2 test>`.
        split: number of the split.

    Returns:
        One row for every clip that any list names, sorted by path.

    Raises:
        UserError: no such split, a class without a list for it, a line or name of another form, or a clip used twice.
    """
    files: dict[tuple[str, str], Path] = {}
    for file in sorted(folder.iterdir()):
        if match := re.fullmatch(r"(.+)_test_split(\d+)\.txt", file.name):
            files[match[1], match[2]] = file
    wanted = _wanted_split(split, {number for _, number in files})
    rows: dict[str, ListedClip] = {}
    for class_name in sorted({name for name, _ in files}):
        if (class_name, wanted) not in files:
            raise UserError(f"split {wanted}: {class_name}_test_split{wanted}.txt is missing")
    for (class_name, number), file in files.items():
        for line in _lines(file):
            row = _hmdb51_row(line, class_name, file.name)
            _add(rows, row if number == wanted else replace(row, part="unused"), file.name)
    return [rows[path] for path in sorted(rows)]


def _hmdb51_row(line: str, class_name: str, where: str) -> ListedClip:
    match = re.fullmatch(r"(.*?\S)\s+([012])", line)
    if match is None:
        raise UserError(f"{where}: {line!r} does not end in 0 (unused), 1 (train) or 2 (test)")
    name, number = match.groups()
    path = safe_path(f"{class_name}/{name}", where)
    stem = PurePosixPath(path).stem
    source = re.fullmatch(rf"(.+)_{re.escape(class_name)}{HMDB51_TAIL}", stem)
    if source is None:
        raise UserError(
            f"{where}: {name!r} is not <source>_{class_name}_<visible>_<camera>_np<N>_<view>_<quality>_<n>, "
            "so its group is unknown; layout csv can name it"
        )
    return ListedClip(stem, path, class_name, source[1], HMDB51_PARTS[number])


def _lines(file: Path) -> list[str]:
    stripped = (line.rstrip() for line in text_of(file).split("\n"))
    return [line for line in stripped if line]


def _wanted_split(split: str, numbers: set[str]) -> str:
    wanted = str(int(split)) if re.fullmatch(r"\d{1,9}", split) else split
    if wanted not in numbers:
        raise UserError(unknown_name(f"split {split!r}", split, numbers))
    return wanted


def _add(rows: dict[str, ListedClip], row: ListedClip, where: str) -> None:
    """Add a list's row to those of the other lists; at most one list may use a clip in the requested split."""
    before = rows.get(row.path)
    if before and "unused" not in (before.part, row.part):
        raise UserError(f"{where}: {row.path!r} is listed twice in one split, as {before.part} and as {row.part}")
    if before is None or before.part == "unused":
        rows[row.path] = row
