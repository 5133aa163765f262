"""Running commands, in this process where that is enough, in one of their own where it is not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.cli.main import main

ROOT = Path(__file__).parents[2]
USERLAND = Path(__file__).parent / "userland"

# Nets of 8 x 8 and no TensorBoard: what is tested here is the plumbing.
TINY = "--agent.hidden 8 8 --agent.batch-size 16 --log csv"
ONLINE = f"{TINY} --agent.learning-starts 20 --agent.buffer-size 2000 --eval-episodes 2"


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The non-empty lines on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("train", "sac", ...)`: a command in this process, with the users' modules on the path."""
    monkeypatch.syspath_prepend(str(USERLAND))

    def run(*args: Any) -> Answer:
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Answer(status, out, err)

    return run


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command in a process of its own: the compile cache and the users' modules."""
    return {**os.environ, "PYTHONPATH": f"{USERLAND}", "JAX_PLATFORMS": "cpu", **extra}


def spawn(args: Sequence[Any], cwd: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    options.setdefault("env", environment())
    command = [sys.executable, "-m", "trimtab.cli.main", *map(str, args)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def answer(process: subprocess.Popen[str], timeout: float = 120) -> Answer:
    """What the process said once it has ended."""
    out, err = process.communicate(timeout=timeout)
    return Answer(process.returncode, out, err)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 90) -> None:
    """Waits until `condition()`; fails if the process ends before."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"the process ended with {process.returncode}:\n{out}\n{err}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def metrics_of(run: Path) -> list[str]:
    """The lines of metrics.csv, without those that tell the time."""
    return [line for line in (run / "metrics.csv").read_text().splitlines() if ",time/" not in line]


def assert_same_run(one: Path, two: Path) -> None:
    """Both runs ended with the same bits, and logged the same."""
    for run in (one, two):
        assert (run / "DONE").exists()
    assert (one / "final" / "agent.eqx").read_bytes() == (two / "final" / "agent.eqx").read_bytes()
    assert metrics_of(one) == metrics_of(two)
    assert (one / "eval.csv").read_text() == (two / "eval.csv").read_text()
    if (one / "best").exists():
        assert (one / "best" / "agent.eqx").read_bytes() == (two / "best" / "agent.eqx").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_config(run: Path, **changes: Any) -> None:
    """Changes fields of config.json."""
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | changes))


@pytest.fixture(scope="module", autouse=True)
def no_agents_are_left() -> Iterator[None]:
    """Agents that a user's module brought into this process leave it with the tests that imported the module."""
    yield
    if sys.modules.pop("chunky", None) is not None:
        from trimtab.agents import AGENTS

        del AGENTS["chunky"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 random rows with InvertedPendulum's shapes: 4 observations, 1 action."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "random.npz"
    np.savez(
        path,
        observations=rng.normal(size=(300, 4)),
        actions=rng.uniform(-1, 1, (300, 1)),
        rewards=rng.normal(size=300),
        terminals=rng.random(300) < 0.1,
        timeouts=rng.random(300) < 0.05,
    )
    return path
