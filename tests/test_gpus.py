"""Devices are counted without CUDA, and not those whose driver is too old; NVML and the driver are played."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from pipeline.flow.registry import method_device
from pipeline.networks import resolve_device
from pipeline.system import gpus
from pipeline.system.gpus import cuda_count, driver_too_old


@pytest.fixture
def driver(monkeypatch):
    """A function that installs a driver for a version of CUDA (12080 is 12.8), with one card, and a torch for 13.0."""

    def install(version, *, init=0, status=0):
        def tell(pointer):
            pointer._obj.value = version
            return status

        calls = {"nvmlInit_v2": lambda: init, "nvmlShutdown": lambda: 0, "nvmlSystemGetCudaDriverVersion_v2": tell}
        if version is None:  # of 2018 or before
            del calls["nvmlSystemGetCudaDriverVersion_v2"]
        monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**calls))

    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpus._supported_by_driver.cache_clear()
    yield install
    gpus._supported_by_driver.cache_clear()


@pytest.mark.parametrize(
    ("version", "how", "count"),
    [(12080, {}, 0), (13000, {}, 1), (14020, {}, 1), (12080, {"init": 9}, 1), (12080, {"status": 9}, 1), (None, {}, 1)],
)
def test_cards_whose_driver_is_too_old_do_not_count(driver, capsys, version, how, count):
    driver(version, **how)
    assert cuda_count() == count
    kind = "cuda" if count else "cpu"
    assert resolve_device("auto").type == kind and method_device("tvl1", "auto") == kind
    said = (
        "no GPU is used: the NVIDIA driver supports CUDA 12.8, but this torch was built for CUDA 13.0; update the "
        "driver, or install torch and torchvision built for CUDA 12\n"
    )
    assert capsys.readouterr().err == ("" if count else said)
    if not count:
        with pytest.raises(ValueError, match="device is 'cuda', but torch sees 0 CUDA devices here"):
            resolve_device("cuda")


def test_what_cuda_itself_has_said_is_not_doubted(driver, monkeypatch):
    driver(12080)
    with monkeypatch.context() as begun:
        begun.setattr(torch.cuda, "is_initialized", lambda: True)
        assert cuda_count() == 1
    assert cuda_count() == 0
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda_count() == 1


def test_without_a_driver_or_without_cuda_nothing_is_too_old(driver, monkeypatch):
    driver(12080)
    assert driver_too_old()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert driver_too_old() == ""
    monkeypatch.setattr(torch.version, "cuda", "12.9")  # the minor version does not matter
    assert driver_too_old() == ""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpus._supported_by_driver.cache_clear()

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver_too_old() == ""
