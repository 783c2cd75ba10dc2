"""What a command has started ends with it, whether it is interrupted or killed, and prints no traceback of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from pipeline.system.processes import children_ignore_sigint

PATIENCE_S = 60
# a shell has commands in the background ignore Ctrl-C, and so would all that these tests start
HEAR = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
SLEEP = [sys.executable, "-c", HEAR + "import time; print('up', flush=True); time.sleep(60)"]


def started() -> subprocess.Popen:
    child = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "up\n"
    return child


def test_a_child_that_begins_within_the_block_does_not_hear_it():
    with children_ignore_sigint():
        deaf = started()
    hears = started()
    for child in (deaf, hears):
        child.send_signal(signal.SIGINT)
    assert hears.wait(PATIENCE_S) == -signal.SIGINT  # so a signal needs no longer than this to arrive
    assert deaf.poll() is None
    deaf.terminate()
    assert deaf.wait(PATIENCE_S) == -signal.SIGTERM


LOADING = """
import numpy as np
from pipeline.dataset.loading import loader
print("up", flush=True)
list(loader(range(10**6), range(10**6), batch=1, workers=1, pin=False, collate=np.stack))
"""


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_loading_process_that_begins_at_ctrl_c_prints_no_traceback(delay):
    child = subprocess.Popen(
        [sys.executable, "-c", HEAR + LOADING],
        **dict.fromkeys(("stdout", "stderr"), subprocess.PIPE),
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert child.stdout.readline() == "up\n"
    time.sleep(delay)
    os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=PATIENCE_S)[1]
    assert "SemLock" not in said and said.count("Traceback") == 1 and said.endswith("KeyboardInterrupt\n")


WAITING = """
import numpy as np
from pipeline.dataset import pictures
from pipeline.dataset.loading import loader
class Items:
    @pictures._patient
    def read(self, number):
        raise OSError(5, "Input/output error")
    def __getitem__(self, number):
        return self.read(number)
    class spec: stream = "spatial"
    class store: close = print
    path = "index.h5"
list(loader(Items(), range(8), batch=1, workers=0, pin=False, collate=np.stack))
"""


def test_ctrl_c_ends_the_wait_for_a_disk():
    child = subprocess.Popen([sys.executable, "-c", HEAR + WAITING], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while "in 15 s" not in (line := child.stderr.readline()):
        assert line
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=13)[1].endswith("KeyboardInterrupt\n")


FORKED = """
import os, signal, cv2, numpy as np
import pipeline
cv2.setNumThreads(2)
cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (0, 0), 5)
child = os.fork()
if not child:
    signal.alarm(20)
    cv2.setNumThreads(1)
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (0, 0), 5)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), cv2.getNumThreads())
"""


def test_a_forked_child_may_set_the_threads_of_opencv():
    """Where its parent has used several, OpenCV in the child would wait for threads that are not there."""
    found = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("7 2\n", "")


def test_the_caller_hears_it_at_the_end_of_the_block(hears_ctrl_c):
    before, reached = signal.pthread_sigmask(signal.SIG_BLOCK, []), []
    with pytest.raises(KeyboardInterrupt):
        with children_ignore_sigint():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end of the block")
        time.sleep(PATIENCE_S)
    assert reached and signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_another_thread_that_takes_it_does_not_interrupt_the_block(hears_ctrl_c):
    reached, over = [], threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()  # it does not block the signal
    with pytest.raises(KeyboardInterrupt):
        with children_ignore_sigint():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            reached.append("the end of the block")
        time.sleep(PATIENCE_S)
    over.set()
    other.join()
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


WORKERS = """
import time
from pipeline.cluster import Workers
from pipeline.specs import ClusterSpec

with Workers(ClusterSpec(kind="local", workers=2), most=2) as workers:
    print("up", flush=True)
    list(workers.run(time.sleep, [60, 60]))
"""
LOADERS = """
import time
import numpy as np
from pipeline.dataset.loading import loader

for batch in loader(range(400), range(400), batch=1, workers=2, pin=False, collate=np.stack):
    print("up", flush=True)
    time.sleep(60)
"""
SVMS = """
import numpy as np
from pipeline.fusion import svm
from pipeline.scores import Scores

class Shown(svm.Progress):
    def advance(self):
        print("up", flush=True)

svm.Progress = Shown
random, labels = np.random.default_rng(0), np.arange(800) % 40
rows, ids = random.dirichlet(np.ones(40), (2, 800)), [f"v{i}" for i in range(800)]
pair = [Scores(ids, row, labels, [f"c{k}" for k in range(40)], groups=[f"g{i // 40 % 10}" for i in range(800)]) for row in rows]
svm.choose_c(*pair, [10.0] + [10.0 + k for k in range(20)], folds=5)
"""
SCRIPTS = pytest.mark.parametrize("script", [WORKERS, LOADERS, SVMS], ids=["workers", "loading", "svm"])


def group_of(script: str) -> subprocess.Popen:
    """The script in a process group of its own, as a shell starts it."""
    command = [sys.executable, "-c", HEAR + script]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, **output, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, process_group=0)
    assert child.stdout.readline() == "up\n", child.stderr.read()
    return child


def is_member(process: Path, group: int) -> bool:
    try:
        state, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:  # it has ended meanwhile
        return False
    return int(of) == group and state != "Z"  # one that nobody waits for, as in a container, has ended too


def ends(group: int) -> bool:
    patience = time.monotonic() + PATIENCE_S
    while any(is_member(process, group) for process in Path("/proc").glob("[0-9]*")):
        if time.monotonic() > patience:
            return False
        time.sleep(0.05)
    return True


@SCRIPTS
def test_all_processes_of_the_terminal_are_sent_it_and_one_tells_of_it(script):
    command = group_of(script)
    os.killpg(command.pid, signal.SIGINT)
    _, said = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == -signal.SIGINT and ends(command.pid)
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")  # that of the script itself


@SCRIPTS
def test_nothing_is_left_of_a_command_that_was_killed(script):
    command = group_of(script)
    command.kill()
    command.wait(PATIENCE_S)
    assert ends(command.pid)


DECODING = """
from pipeline.video import try_decoding as work
given = ["a.avi"], {"timeout_seconds": 60}
"""
FLOW = """
from types import SimpleNamespace
from pipeline.preprocess.jobs.flow import _crash_of as work
from pipeline.specs import FlowSpec
given = [SimpleNamespace(frames="shard.h5", spec=FlowSpec()), "a"], {}
"""


@pytest.mark.parametrize("script", [DECODING, FLOW], ids=["decoding", "flow"])
def test_a_clip_that_hangs_is_not_tried_on_after_its_worker_was_killed(tmp_path, script):
    (tmp_path / "cv2.py").write_text("import time; time.sleep(600)")  # stands for a decoder that hangs
    hang = f"import os, threading; os.environ['PYTHONPATH'] = '{tmp_path}' + os.pathsep + os.environ['PYTHONPATH']\n"
    say_up = "threading.Timer(1, print, ['up'], {'flush': True}).start()\n"
    command = group_of(f"{script}{hang}{say_up}work(*given[0], **given[1])")
    command.kill()
    command.wait(PATIENCE_S)
    assert ends(command.pid)
