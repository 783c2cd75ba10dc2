"""What tests of the tasks share: four tiny clips, and the ways to run tasks. The fixtures are in conftest."""

import os
import subprocess
import sys
from pathlib import Path

import luigi
from conftest import moving_texture, write_video

TINY = {
    "network": "small",
    "resize_px": "0",
    "crop_px": "32",
    "batch": "4",
    "steps": "4",
    "milestones": "3",
    "validate_every": "2",
    "dropout": "0.5",
}


def write_four_clips(folder: Path, *, seed: int = 0) -> dict[str, str]:
    """Two classes, four clips, and the CSV that lists them. Returns the dataset's section."""
    rows = [("right", "a", "train"), ("down", "b", "train"), ("right", "c", "val"), ("down", "d", "test")]
    lines = ["path,label,group,split"]
    for i, (label, name, part) in enumerate(rows):
        motion = {"dx": 2.0} if label == "right" else {"dx": 0.0, "dy": 2.0}
        write_video(folder / "videos" / f"{name}.avi", moving_texture(9, seed=seed + i, **motion))
        lines.append(f"{name}.avi,{label},{name},{part}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return {"layout": "csv", "videos": str(folder / "videos"), "lists": str(folder / "clips.csv"), "split": "1"}


def build(*tasks: luigi.Task) -> bool:
    """Run tasks as a new process would see them."""
    return luigi.build(list(tasks), local_scheduler=True, log_level="ERROR")


def fresh(task: type, **parameters) -> luigi.Task:
    """The task as a new process would see it."""
    luigi.task_register.Register.clear_instance_cache()
    return task(**parameters)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and inode, locks included."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_ino)
        for p in folder.rglob("*")
        if not p.is_dir()
    }


def luigi_command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("luigi")), "--module", "tasks", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env, timeout=300)


def shards_and_index(found: dict) -> dict:
    """A snapshot without locks, which are taken to find that there is nothing to do."""
    return {name: value for name, value in found.items() if not name.endswith(".lock")}
