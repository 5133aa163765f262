"""A run whose numbers are no longer finite: nothing of it is written, and runs trained with it come to their end."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import trimtab
from tests.cli.conftest import ONLINE, assert_same_run, contents, metrics_of
from trimtab.training import checkpoint
from trimtab.training.fit import _Loop

STEPS = 600
BLOWS_UP = "--agent.learning-rate 1e30"


def arguments(out: Path, name: str, seeds: str = "--seeds 0 1 2", more: str = "") -> list[str]:
    args = f"train sac --env probe/Both {ONLINE} {seeds} --steps {STEPS} --log-freq 100 --eval-freq 150 {more}"
    return [*args.split(), "--checkpoint-freq", "70", "--out", str(out), "--name", name]


def folder(out: Path, name: str) -> Path:
    return out / "probe/Both/sac" / name


@pytest.fixture
def poison(monkeypatch) -> Callable[[int, int], None]:
    """`poison(seed, step)`: from that step on the parameters of one of several seeds are NaN."""
    device_steps = _Loop._device_steps

    def arrange(seed: int, step: int) -> None:
        def wrapped(self: _Loop) -> None:
            device_steps(self)
            if self.t.step >= step:
                spoil = lambda x: x.at[seed].set(np.nan) if x.ndim and x.dtype == np.float32 else x
                self.t.agent = jax.tree.map(spoil, self.t.agent)

        monkeypatch.setattr(_Loop, "_device_steps", wrapped)

    return arrange


def assert_nothing_broken(run: Path) -> None:
    """No agent on disk holds a NaN, and no file is half-written or damaged."""
    for file in run.rglob("agent.eqx"):
        assert checkpoint.damage(file.parent) is None
        with file.open("rb") as stream:
            while stream.tell() < file.stat().st_size:
                assert np.isfinite(np.load(stream)).all(), file


@pytest.mark.thorough
def test_one_of_several_seeds_ends_and_the_others_go_on(cli, poison, tmp_path):
    assert cli(*arguments(tmp_path, "whole")).status == 0
    poison(1, 300)
    found = cli(*arguments(tmp_path, "x"))
    assert found.status == 1
    broken = folder(tmp_path, "x_s1")
    last = found.errors[-1]
    assert last.startswith("trimtab: training diverged: seed 1 (a parameter is not finite before step 300; ")
    assert f"its last good checkpoint is {broken / 'checkpoints' / 'step_280'});" in last
    assert "lower the learning rate" in last and last.endswith("finished: seed 0, seed 2")
    assert [line for line in found.errors if "x_s1 diverged" in line] == [
        "x_s1 diverged: a parameter is not finite before step 300"
    ]
    for seed in (0, 2):
        assert_same_run(folder(tmp_path, f"x_s{seed}"), folder(tmp_path, f"whole_s{seed}"))
        assert not (folder(tmp_path, f"x_s{seed}") / "FAILED").exists()
    assert_nothing_broken(broken)
    assert (broken / "best" / "agent.eqx").exists()
    assert not (broken / "DONE").exists() and not (broken / "final").exists()
    assert "not finite" in (broken / "FAILED").read_text()
    assert [path.name for path in checkpoint.checkpoints(broken)] == ["step_210", "step_280"]
    assert {int(line.split(",")[0]) for line in metrics_of(broken)[1:]} == {100, 150, 200, 300}
    # It can still be used, and the others are complete.
    assert trimtab.load(broken).info["checkpoint"] == "step_280"
    before = contents(tmp_path)
    again = cli("resume", broken)
    assert again.status == 1 and len(again.errors) == 1, again.err
    assert "diverged" in again.errors[0] and "train anew" in again.errors[0]
    assert "the other seeds are finished" in again.errors[0]
    assert cli("resume", folder(tmp_path, "x_s0")).status == 0
    assert contents(tmp_path) == before


@pytest.mark.thorough
def test_the_others_of_a_killed_group_end_with_the_same_bits(cli, poison, tmp_path, monkeypatch):
    assert cli(*arguments(tmp_path, "whole")).status == 0
    poison(0, 300)
    events = _Loop._events

    def dies(self: _Loop, before: int) -> None:
        events(self, before)
        if self.t.step >= 450:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "_events", dies)
        assert cli(*arguments(tmp_path, "x")).status == 130
    assert (folder(tmp_path, "x_s0") / "FAILED").exists()
    monkeypatch.undo()
    broken = contents(folder(tmp_path, "x_s0"))
    found = cli("resume", folder(tmp_path, "x_s1"))
    assert found.status == 1
    assert "resumed at step 420" in found.err
    assert "x_s0 diverged" in found.out and "the other seeds go on" in found.out
    assert "training diverged: seed 0" in found.errors[-1] and found.errors[-1].endswith("finished: seed 1, seed 2")
    for seed in (1, 2):
        assert_same_run(folder(tmp_path, f"x_s{seed}"), folder(tmp_path, f"whole_s{seed}"))
    assert contents(folder(tmp_path, "x_s0")) == broken


@pytest.mark.thorough
def test_the_others_can_be_prolonged(cli, poison, tmp_path, monkeypatch):
    poison(1, 300)
    assert cli(*arguments(tmp_path, "x")).status == 1
    monkeypatch.undo()
    found = cli("resume", folder(tmp_path, "x_s2"), "--steps", 2 * STEPS)
    assert found.status == 1 and found.errors[-1].endswith("finished: seed 0, seed 2")
    for seed in (0, 2):
        run = folder(tmp_path, f"x_s{seed}")
        assert (run / "DONE").exists() and checkpoint.meta(run / "final")["step"] == 2 * STEPS
        assert json.loads((run / "config.json").read_text())["steps"] == 2 * STEPS
    assert not (folder(tmp_path, "x_s1") / "DONE").exists()


@pytest.mark.thorough
def test_when_every_seed_diverges_the_command_ends_at_once(cli, tmp_path):
    found = cli(*arguments(tmp_path, "x", more=BLOWS_UP))
    assert found.status == 1
    assert found.errors[-1].count("not finite") == 3 and found.errors[-1].endswith("finished: none")
    for seed in range(3):
        run = folder(tmp_path, f"x_s{seed}")
        assert_nothing_broken(run)
        assert (run / "FAILED").exists() and not (run / "DONE").exists() and not (run / "final").exists()
    again = cli("resume", folder(tmp_path, "x_s0"))
    assert again.status == 1 and len(again.errors) == 1 and "it would diverge again" in again.errors[0]


@pytest.mark.parametrize(
    ("env", "more"),
    [
        ("probe/Both", "--checkpoint-freq 0"),  # found at an evaluation
        ("probe/Both", "--checkpoint-freq 0 --log-freq 100000 --eval-freq 0"),  # found at the end
        ("InvertedPendulum-v5", "--log-freq 100000 --eval-freq 0"),  # found at a checkpoint, or by the environment
        ("InvertedPendulum-v5", "--checkpoint-freq 0 --log-freq 100000 --eval-freq 0"),
    ],
)
@pytest.mark.thorough
def test_a_run_alone_leaves_no_broken_agent(cli, tmp_path, monkeypatch, env, more):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log of what it could not compute
    args = f"train sac --env {env} {ONLINE} --steps 250 --log-freq 100 --eval-freq 50 --checkpoint-freq 40 {BLOWS_UP}"
    found = cli(*args.split(), *more.split(), "--out", tmp_path, "--name", "x")
    assert found.status == 1
    run = tmp_path / env / "sac" / "x"
    assert "training diverged: " in found.errors[-1] and "lower the learning rate" in found.errors[-1]
    assert_nothing_broken(run)
    assert not (run / "DONE").exists() and not (run / "final").exists()
