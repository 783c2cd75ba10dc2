"""The commit of the code that made a result, on checkouts with and without changes."""

import os
import subprocess

import pytest

from pipeline.system import packages


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of one file, committed, which the module takes for its own."""
    (tmp_path / "code.py").write_text("one = 1\n")
    monkeypatch.setattr(packages, "__file__", str(tmp_path / "pipeline" / "system" / "packages.py"))
    return tmp_path


def git(folder, *words) -> str:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, env=os.environ | who, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(checkout):
    git(checkout, "init", "-q")
    git(checkout, "add", "code.py")
    git(checkout, "commit", "-q", "-m", "one")
    git(checkout, "tag", "v1", "-m", "a name that does not tell the commit")
    commit = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert packages.checked_out() == packages.versions()["commit"] == commit
    (checkout / "code.py").write_text("one = 2\n")
    assert packages.checked_out() == f"{commit}-dirty"


def test_code_without_a_checkout_has_no_commit(checkout, monkeypatch):
    assert packages.checked_out() == "" and "commit" not in packages.versions()
    git(checkout, "init", "-q")  # without a commit, git fails
    assert packages.checked_out() == ""
    monkeypatch.setenv("PATH", "")  # no git
    assert packages.checked_out() == ""


def test_a_checkout_around_the_code_is_not_its_own(checkout, monkeypatch):
    git(checkout, "init", "-q")
    git(checkout, "add", "code.py")
    git(checkout, "commit", "-q", "-m", "another project")
    monkeypatch.setattr(packages, "__file__", str(checkout / "site-packages" / "pipeline" / "system" / "packages.py"))
    assert packages.checked_out() == ""
