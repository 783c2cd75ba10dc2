"""The cache of compiled functions: what cannot be read or written is compiled again, and never stops a computation."""

import importlib.util

import pytest
from numba.core import caching

from pipeline.flow.compiled import compiled


@pytest.fixture
def double(tmp_path, monkeypatch):
    """A function that makes the function compiled anew, as in another process, and calls it."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "doubling.py").write_text("def double(number):\n    return 2 * number\n")
    spec = importlib.util.spec_from_file_location("doubling", tmp_path / "doubling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call():
        function = compiled(module.double)
        assert function(21) == 42
        return sum(function.stats.cache_hits.values())

    return call


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\x80"])
def test_a_damaged_file_of_the_cache_is_made_again(double, tmp_path, capsys, ending, content):
    assert (double(), double()) == (0, 1)
    (file,) = tmp_path.glob(f"cache/**/*.{ending}")
    file.write_bytes(content)
    assert (double(), double()) == (0, 1)
    said = capsys.readouterr().err
    assert said.count("numba's cache in ") == 1 and str(tmp_path / "cache") in said
    assert "; compiling again" in said


def test_a_full_disk_of_the_cache_is_mentioned(double, monkeypatch, capsys):
    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.os, "replace", full)
    assert (double(), double()) == (0, 0)
    said = capsys.readouterr().err
    assert said.count("No space left on device')); each process compiles anew") == 1
