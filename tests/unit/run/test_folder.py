"""What `env.json` says about where a result comes from."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from trimtab.run import folder

HEXADECIMAL = set("0123456789abcdef")


def git(where: Path, *args: str) -> str:
    command = ["git", "-C", str(where), "-c", "user.name=t", "-c", "user.email=t@example.org", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    """No GIT_DIR and the like, as a hook that runs the tests would set."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


def repository(where: Path) -> str:
    """A repository with one commit; the commit."""
    where.mkdir(parents=True, exist_ok=True)
    git(where, "init", "-q")
    (where / "file").write_text("x")
    git(where, "add", "file")
    git(where, "commit", "-q", "-m", "first")
    return git(where, "rev-parse", "HEAD")


def checkout(monkeypatch, package: Path) -> Path:
    """Trimtab's sources at `package`, in place of those that run."""
    file = package / "run" / "folder.py"
    file.parent.mkdir(parents=True)
    shutil.copy(folder.__file__, file)
    monkeypatch.setattr(folder, "__file__", str(file))
    return file


def test_a_checkout_and_a_working_folder(monkeypatch, tmp_path):
    work, ours = tmp_path / "work", tmp_path / "trimtab-main"
    theirs = repository(work)
    (work / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(work / "deep" / "er")
    checkout(monkeypatch, ours / "trimtab")
    assert folder._commits() == {"trimtab_commit": None, "working_folder_commit": theirs}
    repository(ours)
    git(ours, "add", "-A")
    git(ours, "commit", "-q", "-m", "sources")
    found = folder._commits()
    assert found == {"trimtab_commit": git(ours, "rev-parse", "HEAD"), "working_folder_commit": theirs}
    assert len(set(found.values())) == 2 and all(set(str(commit)) <= HEXADECIMAL for commit in found.values())
    monkeypatch.chdir(tmp_path)
    assert folder._commits()["working_folder_commit"] is None


def test_installed_inside_of_a_project(monkeypatch, tmp_path):
    theirs = repository(tmp_path)
    monkeypatch.chdir(tmp_path)
    checkout(monkeypatch, tmp_path / ".venv" / "lib" / "trimtab")
    assert folder._commits() == {"trimtab_commit": None, "working_folder_commit": theirs}


def test_a_repository_without_a_commit_and_a_machine_without_git(monkeypatch, tmp_path):
    git(tmp_path, "init", "-q")
    monkeypatch.chdir(tmp_path)
    assert folder._commits()["working_folder_commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert folder._commits() == {"trimtab_commit": None, "working_folder_commit": None}


def test_no_process_is_started_outside_of_repositories(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    checkout(monkeypatch, tmp_path / "trimtab")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert folder._commits() == {"trimtab_commit": None, "working_folder_commit": None}


def test_environment_holds_them_beside_the_versions():
    found = folder.environment()
    assert found.items() >= folder._commits().items()
    assert {"python", "trimtab", "jax"} <= found["versions"].keys()
