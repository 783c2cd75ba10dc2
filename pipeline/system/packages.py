"""The packages that results depend on, and their versions (from metadata, since importing torch takes seconds)."""

from __future__ import annotations

import importlib.metadata
import platform

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
    """Versions of Python, the system and the installed packages among these, by pip name."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    names = dict.fromkeys([*_BESIDES, *PACKAGES.values(), *OPENCVS])
    return found | {name: installed for name in names if (installed := version(name))}
