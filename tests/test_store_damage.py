"""Stores that are damaged, foreign or cut off: each error says what it is and what to do."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT, moving_texture
from stores import ATTRS, smooth_flow, write_flow, write_frames

from pipeline import store
from pipeline.artifacts import damage
from pipeline.store import container, heap
from pipeline.system.errors import DamagedFile, MachineFault, UserError
from pipeline.video import jpeg


def test_damage_to_the_attributes_is_damage(tmp_path):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    shard = tmp_path / "shards/shard-all.h5"
    assert store.shard_is_current(shard, "frames", digest=ATTRS["digest"], inputs=ATTRS["inputs"])
    for file in (path, shard):
        file.write_bytes(file.read_bytes().replace(b"GCOL", b"\0\0\0\0"))  # where HDF5 keeps texts
    assert not store.shard_is_current(shard, "frames", digest=ATTRS["digest"], inputs=ATTRS["inputs"])
    with pytest.raises(DamagedFile, match=r"shard-all.h5 is damaged \(.*\); `python -m pipeline repair"):
        store.read_records(shard, "frames")
    with pytest.raises(DamagedFile, match=r"index.h5 is damaged \(.*\); delete it and run its stage again"):
        store.open_frames(path)


@pytest.mark.parametrize("name", ["index.h5", "shards/shard-all.h5", "made/catalog.h5"])
def test_zeros_among_the_texts_of_a_file_are_damage_and_hang_nothing(tmp_path, name):
    """HDF5 would go on forever, so this is done in a process that can be killed."""
    write_frames(tmp_path, {"a": moving_texture(3)})
    store.write_arrays(tmp_path / "made/catalog.h5", "catalog", {"name": ["a", "b", "c"]}, {"key": "k" * 100})
    subprocess.run([sys.executable, "-c", ZEROS, tmp_path, name], cwd=ROOT, check=True, timeout=60)


ZEROS = """
import sys
from pathlib import Path
from pipeline.artifacts.damage import repair, verify
folder, name = Path(sys.argv[1]), sys.argv[2]
file, read = folder / name, folder / name if name == "made/catalog.h5" else folder
whole, index = file.read_bytes(), (folder / "index.h5").read_bytes()
found = set()
for start in range(whole.index(b"GCOL") + 16, len(whole), 16):
    if whole[start:start + 16].strip(bytes(1)) and b"GCOL" not in whole[start:start + 16]:
        file.write_bytes(whole[:start] + bytes(16) + whole[start + 16:])
        try:
            found.update("zeros among its texts, after byte" in fault for fault in verify(read))
        except ValueError as error:  # the index cannot be opened
            found.add("zeros among its texts, after byte" in str(error))
    if len(found) == 2 or start > whole.index(b"GCOL") + 1000:
        break
assert True in found, found
start = whole.index(b"GCOL") + 16
if name.startswith("shards"):
    for unfinished in (False, True):
        for given in (folder, file):
            file.write_bytes(whole[:start] + bytes(16) + whole[start + 16:])
            (folder / "index.h5").write_bytes(index)
            if unfinished:
                (folder / "index.h5").unlink()
            if given == file:
                assert any("zeros among its texts, after byte" in fault for fault in verify(given))
            assert repair(given).removed == ["shard-all"] and not file.exists(), (unfinished, given)
"""


def test_the_walk_through_texts_is_that_of_the_format(tmp_path):
    def collection(*objects, size=80):
        body = b"".join(
            index.to_bytes(2, "little") + bytes(6) + length.to_bytes(8, "little") + data
            for index, length, data in objects
        )
        return (b"GCOL\x01\0\0\0" + size.to_bytes(8, "little") + body).ljust(size, b"\0")

    whole = {
        "full": collection((1, 3, b"abc".ljust(8)), (2, 24, b"x" * 24)),
        "free": collection((1, 3, b"abc".ljust(8)), (0, 40, b"")),
        "little": collection((1, 42, b"y" * 48)),  # less is left than an object's head
        "cut": collection((1, 3, b"abc".ljust(8)))[:40],
        "no mark": b"GCOL\x02" + bytes(90),
        "empty": b"",
    }
    far = bytes(heap._BLOCK - 2)  # the mark lies across two blocks that are read
    for name, data in {**whole, "far": far + whole["full"]}.items():
        (tmp_path / name).write_bytes(data)
        heap.refuse_endless_heap(tmp_path / name, "cure")
    for name, data in (("after", collection((1, 3, b"abc".ljust(8)))), ("at once", far + collection())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DamagedFile, match=rf"{name} is damaged \(zeros among its texts, after byte \d+\); cure"):
            heap.refuse_endless_heap(tmp_path / name, "cure")


def flip(path, old: bytes, new: bytes):
    """Replace bytes of a file, of which there must be one."""
    whole = path.read_bytes()
    assert whole.count(old) == 1 and len(old) == len(new)
    path.write_bytes(whole.replace(old, new))


@pytest.mark.parametrize(("name", "value"), [("bound_px", 5.0), ("height", 32), ("label", 3), ("made_from", "9 ff")])
def test_attributes_of_a_clip_are_compared_with_their_checksum(tmp_path, name, value):
    """HDF5 does not notice a flipped bit, and flow would be read at another scale."""
    path = write_flow(tmp_path, smooth_flow(2))
    with h5py.File(tmp_path / "shards/shard-all.h5", "r+") as file:
        file["clips/a"].attrs[name] = value
    why = f"clip 'a' of {tmp_path}: its attributes are not those that were written; `python -m pipeline repair"
    with pytest.raises(DamagedFile, match=why):
        store.open_flow(path)["a"]
    (fault,) = damage.verify(tmp_path)
    assert fault.startswith("a: ") and "its attributes are not those" in fault


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"down", b"dowm"),  # a cell: the class of a clip
        (b"failed", b"failee"),
        (b"status\0", b"statur\0"),  # the name of a column
        (b"id\0", b"ie\0"),
        (b"table_crc32", b"table_crc33"),  # the name of the checksum
    ],
)
def test_tables_are_compared_with_their_checksum(tmp_path, old, new):
    path = write_frames(tmp_path, {"a": moving_texture(2)}, failed={"b": "empty"})
    for file, advice in ((path, "delete it"), (tmp_path / "shards/shard-all.h5", "`python -m pipeline repair")):
        whole = file.read_bytes()
        flip(file, old, new)
        told = rf"{file.name} is damaged \(its table is not the one that was written\); {advice}"
        with pytest.raises(DamagedFile, match=told):
            store.open_frames(path) if file == path else store.read_records(file, "frames")
        file.write_bytes(whole)


def test_a_key_that_is_not_that_of_the_table_is_damage(tmp_path):
    """Later stages would take the images for others, and be done again."""
    path = write_frames(tmp_path, {"a": moving_texture(2)})
    with h5py.File(path, "r+") as file:
        file.attrs["key"] = "0" * 12
    with pytest.raises(DamagedFile, match=r"index.h5 is damaged \(its key is not that of its table\); delete it and"):
        store.open_frames(path)


def test_text_that_is_no_text_is_damage(tmp_path):
    path = write_frames(tmp_path, {"a": moving_texture(2)}, failed={"b": "empty"})
    shard = tmp_path / "shards/shard-all.h5"
    for file in (path, shard):
        flip(file, b"failed", b"faile\xe4")
    with pytest.raises(DamagedFile, match="index.h5 is damaged .*codec can't decode.*; delete it and run its stage"):
        store.open_frames(path)
    with pytest.raises(DamagedFile, match="shard-all.h5 is damaged .*codec can't decode.*; `python -m pipeline rep"):
        store.read_records(shard, "frames")


def test_foreign_and_damaged_files_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; `python -m pipeline status` shows"):
        store.open_frames(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="is no HDF5 file, or a damaged one .*; delete it and run its stage again"):
        store.open_frames(tmp_path / "text.h5")
    (tmp_path / "text.avi").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"is no HDF5 file, .*; our HDF5 files end in .h5"):
        store.open_frames(tmp_path / "text.avi")
    with h5py.File(tmp_path / "foreign.h5", "w"):
        pass
    with pytest.raises(ValueError, match="holds 'no format attribute', not 'two-stream-frames'; give the path"):
        store.open_frames(tmp_path / "foreign.h5")
    with h5py.File(tmp_path / "foreign.h5", "r+") as file:
        file.attrs["format"], file.attrs["format_version"] = "cells", "1.0"
    with pytest.raises(ValueError, match="holds 'cells', not 'two-stream-frames'; give the path"):
        store.open_frames(tmp_path / "foreign.h5")
    path = write_flow(tmp_path / "flow", smooth_flow(2))
    with pytest.raises(ValueError, match="holds 'two-stream-flow', not 'two-stream-frames'"):
        store.open_frames(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(ValueError, match="has format version 99; this code reads 1: update the code"):
        store.open_flow(path)


def test_what_other_tools_note_in_a_file_is_no_damage(tmp_path):
    path = write_flow(tmp_path / "flow", smooth_flow(2))
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = [1, 2]
    assert store.open_flow(path).attrs["note"] == [1, 2]
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = [1, 2]
    with pytest.raises(UserError, match=r"has format version \[1, 2\]; this code reads 1: update the code"):
        store.open_flow(path)


def test_a_shard_is_not_to_be_deleted_but_repaired(tmp_path):
    """The stage goes by the index, which would still be there."""
    path = write_frames(tmp_path / "my store", {"a": moving_texture(3)})
    shard = tmp_path / "my store/shards/shard-all.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    command = rf"`python -m pipeline repair '{tmp_path}/my store'` removes its shard; run the stage again"
    with pytest.raises(ValueError, match=rf"is no HDF5 file, or a damaged one \(.*truncated.*\); {command}"):
        store.open_frames(path)["a"]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"shard-all.h5 does not exist; {command}"):
        store.read_records(shard, "frames")
    shard.parent.rmdir()  # a worker on another machine does not see the folder
    with pytest.raises(MachineFault, match="shard-all.h5 does not exist on .*, nor does its folder; every worker"):
        store.read_records(shard, "frames")


def test_fused_scores_are_made_again_with_their_folder(tmp_path):
    (tmp_path / "1-d/average").mkdir(parents=True)
    (tmp_path / "1-d/fusion.json").write_text("{}")
    (tmp_path / "1-d/average/scores.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\); delete the folder .*/1-d and run Fuse again"):
        store.read_arrays(tmp_path / "1-d/average/scores.h5", "scores")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = write_frames(tmp_path, {"a": moving_texture(3)})

    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        store.open_frames(path)


def test_an_error_while_reading_says_where(tmp_path):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    opened = store.open_frames(path)
    with h5py.File(tmp_path / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][:40] = 0
    where = f"images 0 to 0 of clip 'a' of {tmp_path}: .* bytes do not decode as JPEG"
    with pytest.raises(ValueError, match=f"{where}; `python -m pipeline repair {tmp_path}`"):
        opened["a"].frames(0, 1)
    (tmp_path / "shards/shard-all.h5").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        store.open_frames(path)["a"]
    assert "while reading clip 'a'" in caught.value.__notes__[0]


@pytest.mark.parametrize("part", ["jpeg", "offsets"])
def test_a_clip_that_lacks_a_part_is_damaged(tmp_path, part):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    with h5py.File(tmp_path / "shards/shard-all.h5", "r+") as file:
        del file[f"clips/a/{part}"]
    with pytest.raises(DamagedFile, match=f"clip 'a' of {tmp_path}: .*; `python -m pipeline repair {tmp_path}`"):
        store.open_frames(path)["a"].frames(0, 1)


@pytest.mark.parametrize(
    "change", [lambda offsets: offsets[::-1], lambda offsets: offsets * 2, lambda offsets: offsets + 1]
)
def test_offsets_that_cannot_be_are_damage(tmp_path, change):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    with h5py.File(tmp_path / "shards/shard-all.h5", "r+") as file:
        file["clips/a/offsets"][...] = change(file["clips/a/offsets"][()])
    with pytest.raises(
        DamagedFile, match=f"clip 'a' of {tmp_path}: where its images begin and end makes no sense; `py"
    ):
        store.open_frames(path)["a"]


def test_images_of_several_sizes_are_damage(tmp_path):
    path = write_frames(tmp_path, {"a": [*moving_texture(2), moving_texture(1, height=32)[0]]})
    with pytest.raises(DamagedFile, match=f"images 0 to 2 of clip 'a' of {tmp_path}: they differ in size; `python"):
        store.open_frames(path)["a"].frames(0, 3)


def test_an_error_of_hdf5_is_damage_and_one_of_the_disk_is_not(tmp_path):
    opened = store.open_frames(write_frames(tmp_path, {"a": moving_texture(3)}))
    with (
        pytest.raises(DamagedFile, match=f"clip 'a' of {tmp_path}: bad heap; `python -m pipeline repair"),
        opened.located("a"),
    ):
        raise OSError("bad heap")
    with pytest.raises(OSError, match="Input/output error"), opened.located("a"):
        raise OSError(5, "Input/output error")


IN_WORDS = "open object (file read failed: filename = 's.h5', file descriptor = 5, errno = {}, error message = '...')"


def test_the_disk_is_told_from_damage_where_h5py_has_the_number_only_in_words(tmp_path):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    opened = store.open_frames(path)
    for block in (opened.located("a"), container.opened(path, "frames")):
        with pytest.raises(OSError, match="Input/output error: .*h5") as raised, block:
            raise KeyError(IN_WORDS.format(5))
        assert raised.value.errno == 5
    for block in (opened.located("a"), container.opened(path, "frames")):
        with pytest.raises(DamagedFile, match="errno = 0"), block:
            raise KeyError(IN_WORDS.format(0))


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), store.create_shard(tmp_path / "s.h5", "frames", ATTRS) as shard:
        shard.clip("a").append(jpeg.encode(moving_texture(1)[0], quality=95))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline import store
from pipeline.store import container
path, limit, size, clips = sys.argv[1], *map(int, sys.argv[2:])
give_up, (_, most) = container._give_up, resource.getrlimit(resource.RLIMIT_FSIZE)
def elsewhere_is_room(file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    give_up(file)
container._give_up = elsewhere_is_room
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
with store.create_shard(Path(path), "frames", {"digest": "d"}) as shard:
    for number in range(clips):
        clip = shard.clip(f"c{number}")
        for _ in range(5):
            clip.append(np.random.default_rng(0).bytes(size))
        crc32 = clip.finish({"label": 0, "class": "x", "group": "g"}, [0.0] * 5)
        shard.record(store.Record(f"c{number}", "x", 0, "g", 5, "ok", "", crc32))
"""


VIEWS = """
with store.create_scores(Path(path), {"digest": "d"}, clips=clips, views=5) as views:
    for number in range(clips * 5):
        views.put(*divmod(number, 5), np.ones((1, 101), np.float32), np.ones((1, size), np.float32))
"""


@pytest.mark.parametrize(
    ("code", "limit", "size", "clips"),
    [
        *[(FULL, 100_000, 9000, 8), (FULL, 100_000, 900, 60), (FULL, 3000, 10, 1)],
        *[(FULL.partition("with")[0] + VIEWS, limit, 512, 10) for limit in (7000, 30_000, 100_000)],
    ],
)
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, code, limit, size, clips):
    """A limit on the size of files stands for the full disk."""
    command = [sys.executable, "-c", code, str(tmp_path / "shard.h5"), *map(str, (limit, size, clips))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1  # no crash at the end
    assert done.stderr.count("Traceback") == 1 and "Exception ignored" not in done.stderr
    assert "\nOSError: [Errno 27] File too large: " in done.stderr and not list(tmp_path.iterdir())


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    """Whoever believed it would delete the file."""
    path = tmp_path / "scores.h5"
    store.write_arrays(path, "scores", {"numbers": np.arange(4.0)}, {})

    def fails(*arguments, **options):
        raise OSError("Can't synchronously read data (memory allocation failed for chunk)")

    for owner, name in ((container, "plain_attrs"), (h5py, "File")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            with pytest.raises(MachineFault, match=r"there is too little memory to read .*scores.h5 \(Can't .*chunk\)"):
                store.read_arrays(path, "scores")


def test_arrays_that_are_not_those_that_were_written_are_damage(tmp_path):
    """HDF5 itself does not notice: a flipped bit is another probability."""
    path = tmp_path / "scores.h5"
    store.write_arrays(path, "scores", {"numbers": np.arange(4.0), "names": ["a", "b"]}, {})
    with h5py.File(path, "r+") as file:
        file["numbers"][2] = 7
    damaged = r"scores.h5 is damaged \(its arrays are not those that were written\); delete"
    with pytest.raises(DamagedFile, match=damaged):
        store.read_arrays(path, "scores")
    with h5py.File(path, "r+") as file:
        file["numbers"][2] = 2
    assert store.read_arrays(path, "scores")[0]["numbers"].tolist() == [0, 1, 2, 3]
    with h5py.File(path, "r+") as file:
        del file.attrs["content"]
    with pytest.raises(DamagedFile, match=damaged):
        store.read_arrays(path, "scores")
