"""Control groups as Linux, docker, Kubernetes and SLURM lay them out, against the cores and bytes that they leave."""

import os

import pytest
import torch

from pipeline.system import limits, tensors

GiB = 2**30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that lays out a machine of 64 cores and 100 GiB of free memory: own groups, files below the mount."""

    def lay_out(own: str, files: dict[str, str]):
        for name, text in {"own": own, "meminfo": f"MemTotal: 1 kB\nMemAvailable: {100 * 2**20} kB\n"}.items():
            (tmp_path / name).write_text(text)
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text + "\n")
        for name, path in {"_OWN": "own", "_GROUPS": "groups", "_MEMORY": "meminfo"}.items():
            monkeypatch.setattr(limits, name, tmp_path / path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))

    return lay_out


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus 2
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/\n", {"cpu.max": "6500000 100000"}, 64),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),  # of what it lies in
        ("0::/job/step\n", {"other/cpu.max": "100000 100000"}, 64),
        ("0::/kubepods/not-seen-from-inside\n", {"cpu.max": "800000 100000"}, 8),
        ("4:cpu,cpuacct:/docker/1f\n0::/\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("1:name=systemd:/\n3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_are_those_that_time_is_given_for(machine, own, files, cores):
    machine(own, files)
    assert limits.usable_cores() == cores


def test_where_the_system_tells_little_all_of_it_counts(machine, monkeypatch, tmp_path):
    """As on macOS: no affinity, no /proc, no number of free pages."""
    machine("", {})
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert limits.processors() == set(range(6)) and limits.usable_cores() == 6
    monkeypatch.setattr(limits, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 10, "SC_PHYS_PAGES": 30, "SC_PAGE_SIZE": 4096}.get)
    assert limits.free_memory_bytes() == 10 * 4096
    names = {name: number for name, number in os.sysconf_names.items() if name != "SC_AVPHYS_PAGES"}
    monkeypatch.setattr(os, "sysconf_names", names)
    assert limits.free_memory_bytes() == 30 * 4096


@pytest.mark.parametrize(
    ("siblings", "processes", "speed"),
    [
        (["0,4", "1,5", "2,6", "3,7"] * 2, 3, 3),  # 4 cores of two threads each
        (["0,4", "1,5", "2,6", "3,7"] * 2, 8, 4 + 4 * 0.3),
        (["0,4", "1,5", "2,6", "3,7"] * 2, 20, 4 + 4 * 0.3),
        (["0-1", "0-1", "2-3"], 3, 2.3),
        ([str(number) for number in range(8)], 20, 8),
        ([""] * 8, 7, 7),  # not told
    ],
)
def test_hardware_threads_of_a_core_are_not_two_cores(machine, monkeypatch, tmp_path, siblings, processes, speed):
    machine("", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(len(siblings))))
    monkeypatch.setattr(limits, "_PROCESSORS", tmp_path / "cpu")
    for number, text in enumerate(siblings):
        folder = tmp_path / "cpu" / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        if text:
            (folder / "thread_siblings_list").write_text(text + "\n")
    assert limits.speed_of(processes) == pytest.approx(speed)


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, 100 * GiB),
        ("0::/\n", {"memory.max": str(8 * GiB), "memory.current": str(3 * GiB)}, 5 * GiB),
        (
            "0::/a\n",
            {
                "a/memory.max": str(8 * GiB),
                "a/memory.current": str(7 * GiB),
                "a/memory.stat": f"anon 1\ninactive_file {2 * GiB}\nactive_file 3",
            },
            3 * GiB,
        ),
        ("0::/\n", {"memory.max": str(GiB), "memory.current": str(2 * GiB)}, 0),
        (
            "7:memory:/\n",
            {"memory/memory.limit_in_bytes": str(4 * GiB), "memory/memory.usage_in_bytes": str(GiB)},
            3 * GiB,
        ),
        ("7:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "9"}, 100 * GiB),
    ],
)  # fmt: skip
def test_memory_is_what_the_tightest_limit_leaves(machine, own, files, free):
    machine(own, files)
    assert limits.free_memory_bytes() == free


def test_without_linux_there_is_memory_too(machine, tmp_path):
    machine("", {})
    (tmp_path / "meminfo").unlink()
    assert limits.free_memory_bytes() > 2**20


def test_torch_keeps_to_the_cores_unless_told_otherwise(machine, monkeypatch):
    machine("0::/\n", {"cpu.max": "200000 100000"})
    threads, counts = 64, []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    tensors.limit_threads()
    assert counts == [2]
    threads = 1
    tensors.limit_threads()
    threads = 64
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    tensors.limit_threads()
    assert counts == [2]
