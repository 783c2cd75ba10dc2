"""RAFT's weights: torchvision's, in torch hub's folder, or a file. Importing this does not import torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.specs import RAFT_WEIGHTS, FlowSpec
from pipeline.system.console import one_line

SOURCE = "https://download.pytorch.org/models/"


def file_name(method: str, name: str) -> str:
    """Name of torchvision's file: ("raft_small", "C_T_V2") gives raft_small_C_T_V2-01064c6d.pth."""
    return f"{method}_{name}-{RAFT_WEIGHTS[method][name]}.pth"


def folder() -> Path:
    """The folder where torch hub keeps its downloads, by torch's own rule."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))).expanduser() / "hub" / "checkpoints"


def why_not(method: str) -> str:
    """What to do if the method's default weights are not on this machine, or "" if they are."""
    spec = FlowSpec(method=method)
    if (folder() / file_name(method, spec.raft_weights)).is_file():
        return ""
    return f"its weights are not here yet; the first use downloads them. {_cure(spec)}"


def find(spec: FlowSpec) -> Path:
    """The weights file that the settings ask for; torchvision's is downloaded if it is not here.

    Raises:
        FileNotFoundError: there is no such file, or it cannot be downloaded; the message names the file.
    """
    if spec.weights_file is not None:
        if not spec.weights_file.is_file():
            raise FileNotFoundError(f"[flow] raft_weights is {spec.raft_weights!r}, and there is no such file")
        return spec.weights_file
    path = folder() / file_name(spec.method, spec.raft_weights)
    if not path.is_file():
        _download(spec, path)
    return path


def check_content(spec: FlowSpec, path: Path) -> None:
    """Reject a torchvision file whose SHA-256 does not begin with the digits in its name.

    Raises:
        ValueError: the file is damaged; the message says what to do.
    """
    if spec.weights_file is not None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    wanted = RAFT_WEIGHTS[spec.method][spec.raft_weights]
    if not found.startswith(wanted):
        raise ValueError(f"{path} is damaged: its SHA-256 begins with {found[:8]}, not {wanted}; delete it")


def _download(spec: FlowSpec, path: Path) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            SOURCE + path.name, str(path), RAFT_WEIGHTS[spec.method][spec.raft_weights], progress=False
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{spec.method} needs weights that cannot be downloaded ({one_line(str(error))}). {_cure(spec)}"
        ) from None


def _cure(spec: FlowSpec) -> str:
    name = file_name(spec.method, spec.raft_weights)
    digits = RAFT_WEIGHTS[spec.method][spec.raft_weights]
    return (
        f"Without a network put {SOURCE}{name} (SHA-256 begins with {digits}) into {folder()}, "
        "or name a file with [flow] raft_weights"
    )
