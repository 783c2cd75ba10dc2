"""Versions of packages, from metadata, since importing torch takes seconds; and of this code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

# import name -> what pip calls it
PACKAGES = {
    "numpy": "numpy",
    "cv2": "opencv-contrib-python",
    "torch": "torch",
    "torchvision": "torchvision",
    "h5py": "h5py",
    "dask": "dask",
    "distributed": "distributed",
    "luigi": "luigi",
    "numba": "numba",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "joblib": "joblib",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "tqdm": "tqdm",
}
# OpenCV has four package names, of which only one should be installed
OPENCVS = ("opencv-contrib-python", "opencv-contrib-python-headless", "opencv-python", "opencv-python-headless")
_BESIDES = ("two-stream-pipeline", "triton")  # triton comes with torch's CUDA build and computes TV-L1 on a GPU


def version(pip: str) -> str:
    """Version of a package, by its pip name; "" if it is not installed."""
    try:
        return importlib.metadata.version(pip)
    except importlib.metadata.PackageNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Versions of Python, the system and those of these packages that are installed; the commit of this code."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    names = dict.fromkeys([*_BESIDES, *PACKAGES.values(), *OPENCVS])
    found |= {name: installed for name in names if (installed := version(name))}
    return found | ({"commit": commit} if (commit := checked_out()) else {})


def checked_out() -> str:
    """The git commit of this code, with "-dirty" if a file differs from it; "" where the code is no git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # git would look in the folders above, which may be another project's
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # git is absent, or the checkout belongs to someone else
