"""RAFT's weights: torchvision's, in torch hub's folder, or a file. Importing this does not import torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.specs import RAFT_WEIGHTS, FlowSpec
from pipeline.system import downloads
from pipeline.system.console import one_line

_SOURCE = "https://download.pytorch.org/models/"


def url(method: str, name: str) -> str:
    """Address of torchvision's file: ("raft_small", "C_T_V2") gives https://.../raft_small_C_T_V2-01064c6d.pth."""
    return f"{_SOURCE}{method}_{name}-{RAFT_WEIGHTS[method][name]}.pth"


def why_not(method: str) -> str:
    """What to do if the method's default weights are not on this machine, or "" if they are."""
    spec = FlowSpec(method=method)
    if not downloads.missing(url(method, spec.raft_weights)):
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
    try:
        return downloads.fetched(url(spec.method, spec.raft_weights))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{spec.method} needs weights that cannot be downloaded ({one_line(str(error))}). {_cure(spec)}"
        ) from None


def _cure(spec: FlowSpec) -> str:
    digits = RAFT_WEIGHTS[spec.method][spec.raft_weights]
    return (
        f"Without a network put {url(spec.method, spec.raft_weights)} (SHA-256 begins with {digits}) into "
        f"{downloads.folder()}, or name a file with [flow] raft_weights"
    )
