"""Start the processes of a training, and make sure that they end together.

On one machine they meet through a file and communicate over loopback. On several machines they meet by torchrun at the
address in `rendezvous`. When one process dies, the others are terminated, and its message becomes the error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline import store
from pipeline.catalog import Catalog
from pipeline.networks.checkpoint import spec_of
from pipeline.specs import StreamSpec
from pipeline.system.errors import StageFailed
from pipeline.system.files import read_json, write_json
from pipeline.system.limits import usable_cores
from pipeline.system.processes import children_ignore_sigint
from pipeline.system.progress import say
from pipeline.training.together import OtherDataset

_ROOT = Path(__file__).parents[2]
_POLL_SECONDS, _GRACE_SECONDS = 0.1, 10
_INTERFACES = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_JOIN_SECONDS = 24 * 3600  # machines may come from a queue; torchrun would wait for ten minutes
_SHOWN_CHARACTERS = 2000  # shown of the end of a dead process's output
_TRACEBACK_CHARACTERS = 10_000  # the same if it holds the traceback of a bug


class TrainingFailed(StageFailed):
    """One of the processes of a training failed."""


class TrainingJob(NamedTuple):
    """What is trained: the arguments of `training.train`."""

    spec: StreamSpec
    store_path: Path
    catalog: Catalog
    folder: Path
    inputs_key: str
    device: str
    other: OtherDataset | None = None
    start: Path | None = None

    @property
    def job_folder(self) -> Path:
        """Folder of the files that the processes exchange; it exists while they run."""
        return self.folder / "job"

    def write(self) -> None:
        """Write the job into `job_folder`, where its processes read it."""
        store.write_catalog(self.job_folder / "catalog.h5", self.catalog)
        plain = {"spec": self.spec.as_dict(), "store_path": str(self.store_path.absolute())}
        plain |= {"folder": str(self.folder.absolute()), "inputs": self.inputs_key, "device": self.device}
        if self.start:
            plain["start"] = str(self.start.absolute())
        if self.other:
            store.write_catalog(self.job_folder / "other.h5", self.other.catalog)
            plain["other"] = {"name": self.other.name, "store_path": str(self.other.store_path.absolute())}
        write_json(self.job_folder / "job.json", plain)

    @classmethod
    def read(cls, job_folder: Path) -> TrainingJob:
        """The job that `write` put into a folder.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (job_folder / "job.json").is_file():
            raise FileNotFoundError(
                f"{job_folder} holds no job.json; a training on several processes writes one as it begins"
            )
        plain = read_json(job_folder / "job.json")
        spec, catalog = spec_of(job_folder, plain["spec"]), store.read_catalog(job_folder / "catalog.h5")
        other, start = plain.get("other"), plain.get("start")
        if other:
            catalog_of_other = store.read_catalog(job_folder / "other.h5")
            other = OtherDataset(other["name"], Path(other["store_path"]), catalog_of_other)
        return cls(
            spec=spec,
            store_path=Path(plain["store_path"]),
            catalog=catalog,
            folder=Path(plain["folder"]),
            inputs_key=plain["inputs"],
            device=plain["device"],
            other=other,
            start=Path(start) if start else None,
        )


def launch_processes(job: TrainingJob, count: int) -> None:
    """Train with `count` processes on this machine and as many on each of the others; returns when it is done.

    Raises:
        TrainingFailed: one of them failed; the message says which, and why.
    """
    shutil.rmtree(job.job_folder, ignore_errors=True)
    try:
        job.write()
        with ExitStack() as stack:
            children = [stack.enter_context(_child(job, *command)) for command in _commands(job, count)]
            _wait_for_all(job, children)
    finally:
        shutil.rmtree(job.job_folder, ignore_errors=True)


def _commands(job: TrainingJob, count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command line and environment of each process to start on this machine."""
    work = ["-m", "pipeline.training", str(job.job_folder)]
    # a process takes its share of the cores; torchrun would give it one thread
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))}
    if job.spec.machines > 1:
        meet = [f"--nnodes={job.spec.machines}", f"--nproc-per-node={count}", "--rdzv-backend=c10d"]
        meet += [f"--rdzv-endpoint={job.spec.rendezvous}", f"--rdzv-id={job.inputs_key}"]
        meet += [f"--rdzv-conf=join_timeout={_JOIN_SECONDS}"]
        command = f"OMP_NUM_THREADS={threads['OMP_NUM_THREADS']} torchrun {shlex.join([*meet, *work])}"
        say(f"on each other machine, in the same folder, run: {command}")
        yield ["torch.distributed.run", *meet, *work, "--watched"], threads
        return
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")  # lo0 on macOS
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        network = {name: os.environ.get(name, loopback) for name in _INTERFACES}
        yield [*work[1:], "--watched"], network | threads | {name: str(value) for name, value in place.items()}


@contextmanager
def _child(job: TrainingJob, arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A running process, terminated at the end of the block; it also ends if this process dies: its stdin is a pipe."""
    own = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))}
    shown = environment.get("RANK", "0") == "0"
    with ExitStack() as stack:
        output = None if shown else stack.enter_context((job.job_folder / f"output-{environment['RANK']}").open("wb"))
        with children_ignore_sigint():
            child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env={**own, **path, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
            stack.callback(_end, child)  # before a Ctrl-C is heard
        yield child


def _end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdin.close()


def _wait_for_all(job: TrainingJob, children: list[subprocess.Popen]) -> None:
    while True:
        ended = [child.poll() for child in children]
        if any(ended):
            raise TrainingFailed(_what_failed(job, ended))
        if None not in ended:
            return
        time.sleep(_POLL_SECONDS)


def _what_failed(job: TrainingJob, ended: list[int | None]) -> str:
    """The error of the process that failed first; the others failed only because they lost it."""
    whose = f"process {{}} of the {job.spec.stream} training"
    errors = sorted(job.job_folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
    said = [path for path in errors if path.stat().st_size]
    killed = [rank for rank, status in enumerate(ended) if status and status < 0]
    if said:  # a process that loses another one may abort; any other signal came from outside, or from a crash
        killed = [rank for rank in killed if ended[rank] != -signal.SIGABRT]
    if killed:
        name = signal.Signals(-ended[killed[0]]).name
        cause = "unless someone did that, memory may have run out; the same command goes on"
        return f"{whose.format(killed[0])} was killed by {name}; {cause}"
    if said:
        rank = said[0].name.removeprefix("error-")
        if "Traceback (most recent" in (output := _output_of(job, rank)):
            say(output[-_TRACEBACK_CHARACTERS:])  # of a bug, which the message alone does not explain
        return f"{whose.format(rank)} failed: {said[0].read_text(encoding='utf-8')}"
    rank = next(rank for rank, status in enumerate(ended) if status)
    last = _output_of(job, rank)[-_SHOWN_CHARACTERS:]
    unsaid = f"it could not say why; is the disk of {job.folder} full?" if errors else "it said why above"
    return f"{whose.format(rank)} ended with status {ended[rank]}: {last or unsaid}"


def _output_of(job: TrainingJob, rank: int | str) -> str:
    """What a process printed; "" for process 0, which prints to the terminal."""
    output = job.job_folder / f"output-{rank}"
    return output.read_text(errors="replace").strip() if output.is_file() else ""
