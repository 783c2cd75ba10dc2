"""Datasets whose videos are not even videos: lists, folders and CSV files."""

from pipeline.specs import DatasetSpec


def touch(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())


def ucf_paths(classes=("Jump", "Run"), groups=4, clips=2):
    numbers = [f"g{group:02d}_c{number:02d}" for group in range(1, groups + 1) for number in range(1, clips + 1)]
    return [f"{name}/v_{name}_{number}.avi" for name in classes for number in numbers]


def make_ucf(folder, *, absent=(), **settings):
    """Two classes, four groups: split 1 tests g01, split 2 tests g02."""
    touch(folder / "videos", *(path for path in ucf_paths() if path not in absent))
    lists = folder / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Run\n2 Jump\n")
    for split in (1, 2):
        tested = [path for path in ucf_paths() if f"_g0{split}_" in path]
        trained = [f"{path} {2 - path.startswith('Run')}" for path in ucf_paths() if path not in tested]
        (lists / f"testlist0{split}.txt").write_text("\n".join(tested))
        (lists / f"trainlist0{split}.txt").write_text("\n".join(trained))
    return DatasetSpec(layout="ucf101", videos=str(folder / "videos"), lists=str(lists), **settings)


def folder_spec(folder, *paths, **settings):
    touch(folder, *paths)
    return DatasetSpec(layout="folder", videos=str(folder), **settings)


def csv_spec(folder, text, *paths, **settings):
    touch(folder, *paths)
    (folder / "clips.csv").write_text(text)
    return DatasetSpec(layout="csv", videos=str(folder), lists=str(folder / "clips.csv"), **settings)
