"""Settings of where preprocessing runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from pipeline.specs.base import Spec, setting
from pipeline.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClusterSpec(Spec):
    """Where preprocessing runs. Nothing here changes a result."""

    SECTION: ClassVar[str] = "cluster"
    kind: str = setting(
        "local",
        "this process, local processes, a running scheduler, or a job queue",
        choices=("inline", "local", "address", "jobqueue"),
        neutral=True,
    )
    workers: int = setting(
        0,
        "processes or jobs; 0: one per core, or one per GPU; an address uses all that it has",
        low=0,
        neutral=True,
    )
    threads: int = setting(
        0, "threads of a worker in Flow for JPEG; 0 means its GPU's share of the cores, or 1", low=0, neutral=True
    )
    address: str = setting("", "kind = address: tcp://host:port of the dask scheduler", neutral=True)
    queue_system: str = setting(
        "slurm", "kind = jobqueue: which", choices=("slurm", "pbs", "sge", "lsf", "htcondor"), neutral=True
    )
    queue: str = setting("", "kind = jobqueue: queue or partition", neutral=True)
    memory: str = setting("4GiB", "kind = jobqueue: memory of a job", neutral=True)
    walltime: str = setting("04:00:00", "kind = jobqueue: time limit of a job", neutral=True)
    in_flight: int = setting(2, "shards handed out at once per worker", low=1, neutral=True)

    @property
    def is_here(self) -> bool:
        """Whether the work is done on this machine."""
        return self.kind in ("inline", "local")

    def check(self):
        """Check that `kind = address` has an address, and that nothing is given which the kind would not read."""
        if self.kind == "address" and self.workers:
            raise UserError(
                f"[cluster] workers is {self.workers}; kind = address uses all workers of the scheduler: leave it at 0"
            )
        if self.kind == "address" and not self.address:
            raise UserError(
                "[cluster] address is empty; kind = address needs the scheduler's, such as tcp://127.0.0.1:8786"
            )
        if self.address and not re.fullmatch(r"(tcp|tls|wss?|ucx)://\S+:\d{1,5}", self.address):
            raise UserError(f"[cluster] address is {self.address!r}; it must be like tcp://127.0.0.1:8786")
        if self.address and self.kind != "address":
            raise UserError(
                f"[cluster] address is {self.address!r}, which kind = {self.kind} does not read; set kind = "
                "address, or leave it empty"
            )
        if self.queue and (self.kind != "jobqueue" or self.queue_system == "htcondor"):
            of = "htcondor" if self.kind == "jobqueue" else f"kind = {self.kind}"
            raise UserError(f"[cluster] queue is {self.queue!r}, which {of} does not read; leave it empty")
