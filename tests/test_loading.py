"""How many processes load, and where shared memory does not hold what they would put there."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from pipeline.dataset import loading, stack_items
from pipeline.dataset.inputs import stack_views, to_inputs
from pipeline.dataset.loading import fitting_workers, loader, loader_workers, sent_ahead
from pipeline.system.errors import DamagedFile, MachineFault
from pipeline.transforms import View


class Squares:
    """Items of 1,000 bytes and a little more."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return np.full(1000, number * number % 251, np.uint8)


@pytest.fixture
def shared_memory(monkeypatch):
    """A function that says how many bytes of it are free."""
    loading.say_once.cache_clear()

    def free(size):
        monkeypatch.setattr(
            loading.os, "statvfs", lambda path: SimpleNamespace(f_blocks=1 << 40, f_bavail=size, f_frsize=1)
        )

    return free


def firsts(workers):
    given = {"dataset": Squares(), "numbers": range(3, 23), "batch": 4}
    batches = loader(**given, workers=fitting_workers(**given, workers=workers), pin=False, collate=np.stack)
    return [item[0] for batch in batches for item in batch]


def test_loading_processes_by_device():
    assert loader_workers(-1, torch.device("cpu")) == 0
    assert 1 <= loader_workers(-1, torch.device("cuda")) <= 16
    assert loader_workers(3, torch.device("cpu")) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_all_items_come_in_order_whoever_makes_them(workers, capsys):
    assert firsts(workers) == [n * n % 251 for n in range(3, 23)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("batches", "sharing", "expected"), [(60, 1, 8), (17, 1, 7), (6, 1, 2), (4, 1, 1), (3, 1, 0), (0, 1, 0), (20, 2, 4)]
)
def test_no_more_processes_than_shared_memory_has_room_for(shared_memory, batches, sharing, expected, capsys):
    """Each has two batches ahead; one more is on its way, and one in use."""
    shared_memory(int(batches * 4500))  # 4 items and what pickle adds to each
    assert loading._that_fit(8, 4500 * sharing) == expected
    said = capsys.readouterr().err
    assert (said == "") == (expected == 8)
    if expected < 8:
        assert f"{expected} loading processes instead of 8: /dev/shm has " in said and "--shm-size" in said


def test_without_shared_memory_a_thread_loads(shared_memory, capsys):
    shared_memory(10_000)
    assert firsts(2) == [n * n % 251 for n in range(3, 23)]
    assert "0 loading processes instead of 2: /dev/shm has 0 MiB free, they need 1; enlarge" in capsys.readouterr().err


@pytest.mark.parametrize("empty", [3, 13, 22])
def test_room_is_for_items_of_clips_that_did_not_fail(shared_memory, empty, monkeypatch, capsys):
    whole = Squares.__getitem__
    monkeypatch.setattr(Squares, "__getitem__", lambda self, k: None if k == empty else whole(self, k))
    shared_memory(10_000)
    assert fitting_workers(Squares(), range(3, 23), batch=4, workers=2) == 0
    assert "0 loading processes instead of 2" in capsys.readouterr().err


def labeled(count, pinned=False):
    views = [
        (stack_views([View(np.full((2, 3, 3), k, np.uint8), *np.ones((2, 2), np.float32))] * 4)) for k in range(count)
    ]
    return [
        (v.pin_memory(), torch.full((4,), k).pin_memory()) if pinned else (v, torch.full((4,), k))
        for k, v in enumerate(views)
    ]


def test_for_the_cpu_nothing_is_sent():
    batches = labeled(3)
    assert all(a is b for a, b in zip(sent_ahead(batches, torch.device("cpu")), batches, strict=True))


class Part:
    """Stands where a tensor would, and notes what is done with it."""

    def __init__(self, number, done):
        self.number, self.done, self.is_sent = number, done, threading.Event()

    def to(self, device, *, non_blocking):
        assert non_blocking and threading.current_thread() is not threading.main_thread()
        self.done.append(f"send {self.number}")
        self.is_sent.set()
        return self

    def record_stream(self, stream):
        self.done.append(f"keep {self.number}")


def test_the_next_batch_is_on_its_way_while_one_is_in_use(monkeypatch):
    done = []
    current = SimpleNamespace(wait_event=lambda event: done.append(f"wait for {event}"))
    own = SimpleNamespace(record_event=lambda: f"event {done[-1]}")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: own)
    monkeypatch.setattr(
        torch.cuda, "set_stream", lambda stream: done.append("send on its own stream" * (stream is own))
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    parts = [Part(k, done) for k in range(3)]
    for (part,) in sent_ahead([(part,) for part in parts], SimpleNamespace(type="cuda")):
        assert all(coming.is_sent.wait(10) for coming in parts[: part.number + 2])  # before this one is done with
        done.append(f"use {part.number}")
    assert [what for what in done if what.startswith("send")] == [
        *("send on its own stream", "send 0", "send 1", "send 2"),
    ]
    assert [what for what in done if not what.startswith("send")] == [
        *("wait for event send 0", "keep 0", "use 0"),
        *("wait for event send 1", "keep 1", "use 1"),
        *("wait for event send 2", "keep 2", "use 2"),
    ]


class OfTheirNumber:
    """Training items whose bytes are all their number, and whose label is that too."""

    def __getitem__(self, number):
        return View(np.full((2, 64, 64), number, np.uint8), *np.ones((2, 2), np.float32)), number


def test_memory_is_used_again_as_soon_as_what_lies_there_may_be_gone():
    make = loading._InReusedMemory(stack_items)
    made = [make([OfTheirNumber()[number] for number in (k, k + 1)]) for k in range(5)]
    places = [views.values.data_ptr() for views, _ in made]
    assert len(set(places)) == loading._BATCHES_AHEAD == 2 and places[0] == places[2] != places[1]
    assert all(views.values.is_shared() and views.values.dtype == torch.uint8 for views, _ in made)
    assert [int(views.values[0, 0, 0, 0]) for views, _ in made[-2:]] == [3, 4]
    floats = make([(View(np.full((2, 64, 64), 0.5, np.float32), *np.ones((2, 2), np.float32)), 7)] * 3)[0]
    assert floats.values.shape == (3, 2, 64, 64) and torch.all(floats.values == 0.5) and floats.values.is_shared()


@pytest.mark.parametrize(("workers", "slow"), [(1, False), (2, False), (2, True)])
def test_batches_that_are_pinned_arrive_whole_though_memory_is_used_again(monkeypatch, workers, slow):
    """Where there is no GPU, a copy stands for the pinned batch; torch makes it where it would pin, in a thread."""
    for name, value in {"is_available": True, "current_device_index": 0, "set_device_index": None}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    copied = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: copied.append(tensor.shape) or tensor.clone())
    found = []
    for views, labels in loader(OfTheirNumber(), range(250), batch=4, workers=workers, pin=True, collate=stack_items):
        time.sleep(0.01 * slow * (len(found) % 3))
        assert views.values.flatten(1).eq(labels[:, None]).all()
        found += labels.tolist()
    assert found == list(range(250)) and copied.count((4, 2, 64, 64)) == 62 and (2, 2, 64, 64) in copied


@pytest.mark.needs_cuda
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_batches_arrive_whole_and_in_order_on_cuda(count):
    device, found = torch.device("cuda"), []
    for views, labels in sent_ahead(labeled(count, pinned=True), device):
        assert views.values.device.type == labels.device.type == "cuda"
        found.append((to_inputs(views, device).sum(), labels[0]))  # still under way
    assert [(int(total), int(label)) for total, label in found] == [(72 * (k + 1), k) for k in range(count)]


def test_elsewhere_than_on_linux_nothing_is_asked(monkeypatch, capsys):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(loading.os, "statvfs", missing)
    assert loading._that_fit(8, 1 << 40) == 8 and capsys.readouterr().err == ""


def test_shared_memory_may_have_no_limit(monkeypatch, capsys):
    monkeypatch.setattr(loading.os, "statvfs", lambda path: SimpleNamespace(f_blocks=0, f_bavail=0, f_frsize=4096))
    assert loading._that_fit(8, 1 << 40) == 8 and capsys.readouterr().err == ""


class Whence:
    """Items that tell which process made them, and whether the one that it was forked from has torch."""

    def __getitem__(self, number):
        with contextlib.suppress(OSError):  # not Linux, or the parent is not ours, as in a container
            return os.getpid(), "libtorch" in Path(f"/proc/{os.getppid()}/maps").read_text()
        return os.getpid(), True


def test_no_loading_process_is_idle():
    assert fitting_workers(Squares(), range(4), batch=2, workers=8) == 2
    assert fitting_workers(Squares(), range(5), batch=2, workers=8) == 3
    assert fitting_workers(Squares(), range(0), batch=2, workers=8) == 0


def test_processes_are_forked_from_one_that_has_torch():
    made = loader(Whence(), range(4), batch=2, workers=2, pin=False, collate=list)
    items = [item for batch in made for item in batch]
    assert os.getpid() not in {process for process, _ in items}
    assert all(has_torch for _, has_torch in items)


class Slow:
    def __getitem__(self, number):
        time.sleep(2.0 * (number > 0))
        return np.zeros(1)


def test_ctrl_c_ends_loading_processes_while_what_they_need_to_begin_is_there(hears_ctrl_c):
    before = multiprocessing.active_children()
    batches = iter(loader(Slow(), range(4), batch=1, workers=1, pin=False, collate=np.stack))
    next(batches)
    assert len(multiprocessing.active_children()) == len(before) + 1
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        next(batches)
    assert caught.value and multiprocessing.active_children() == before


class Killed:
    """Its third item ends the process that makes it, as a lack of memory would."""

    def __getitem__(self, number):
        if number == 2 and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(1)


@pytest.fixture
def looks_soon(monkeypatch):
    """torch's loader looks every 0.3 seconds, not every 5, whether its processes are still there."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    of = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(of._try_get_data, "__defaults__", (0.3,))


def test_a_loading_process_that_is_killed_is_a_fault_of_the_machine(looks_soon):
    batches = loader(Killed(), range(4), batch=1, workers=1, pin=False, collate=np.stack)
    with pytest.raises(
        MachineFault, match="a loading process has died, perhaps for lack of memory .*DataLoader worker"
    ):
        list(batches)


class Refuses:
    def __init__(self, error):
        self.error = error

    def __getitem__(self, number):
        if multiprocessing.parent_process():
            raise self.error
        return np.zeros(1)


def test_what_a_dataset_raises_is_no_fault_of_the_machine(looks_soon):
    mistake = RuntimeError("a mistake of ours")
    batches = loader(Refuses(mistake), range(4), batch=1, workers=1, pin=False, collate=np.stack)
    with pytest.raises(RuntimeError, match="(?s)^Caught .*a mistake of ours") as raised:
        list(batches)
    assert not isinstance(raised.value, MachineFault)
    del batches, raised  # which ends the loading process, as long as nobody waits 5 seconds for that


@pytest.mark.parametrize(
    "fault", [OSError(5, "Input/output error", "s.h5"), ConnectionError("lost"), DamagedFile("bad"), MachineFault("no")]
)
def test_a_fault_in_a_loading_process_is_reported_as_the_dataset_raised_it(fault):
    fault.add_note("while reading clip 'a'")
    batches = loader(Refuses(fault), range(4), batch=1, workers=1, pin=False, collate=np.stack)
    with pytest.raises(type(fault)) as raised:
        list(batches)
    found = raised.value
    assert (str(found), found.args, found.__notes__) == (str(fault), fault.args, ["while reading clip 'a'"])
    assert getattr(found, "errno", None) == getattr(fault, "errno", None)


def test_without_loading_processes_no_process_is_started():
    code = (
        "import numpy as np; from multiprocessing import resource_tracker; from pipeline.dataset.loading import loader; "
        "list(loader(range(4), range(4), batch=2, workers=0, pin=False, collate=np.stack)); "
        "print(resource_tracker._resource_tracker._pid)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "None\n"


def test_a_fork_server_that_is_gone_is_a_fault_of_the_machine(monkeypatch):
    def gone(*_):
        raise ConnectionRefusedError(111, "Connection refused")
        yield

    batches = loader(range(4), range(4), batch=1, workers=1, pin=False, collate=np.stack)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", gone)
    with pytest.raises(MachineFault, match="a loading process has died, .*Connection refused"):
        list(batches)


class _NoRoom:
    """A batch for which shared memory has no room; torch says so in the thread that sends it."""

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def _no_room(items):
    return _NoRoom()


def test_a_batch_that_cannot_be_sent_ends_its_loading_process(looks_soon):
    with pytest.raises(MachineFault, match="a loading process has died, perhaps for lack of memory"):
        list(loader(range(4), range(4), batch=1, workers=1, pin=False, collate=_no_room))
