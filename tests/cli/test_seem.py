"""The probe `seem` from the command line: as training goes on, when it stops, when it is resumed, and afterwards."""

import csv
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.cli.conftest import ONLINE, TINY, metrics_of
from tests.cli.test_bad_input import assert_one_line
from trimtab.training import checkpoint

EVERY = "--probes seem --probe-freq 20 --log-freq 20 --checkpoint-freq 20"

DIVERGES = (
    "--agent.hidden 32 32 --agent.tau 1 --agent.learning-rate 0.003 --agent.batch-size 32 --offline-steps 300 "
    "--probes seem --probe-freq 30 --log csv"
)
"""DDPG on one walk in the plane, with targets that are the networks themselves."""


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """64 steps in compass directions without any reward: the true values are 0."""
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 8, 64) * np.pi / 4
    actions = np.stack([np.cos(angle), np.sin(angle)], 1)
    states = rng.random(2) + np.cumsum(np.vstack([np.zeros((1, 2)), 0.1 * actions[:-1]]), 0)
    ends = np.arange(64) == 63
    path = tmp_path_factory.mktemp("data") / "walk.npz"
    np.savez(path, observations=states, actions=actions, rewards=np.zeros(64), terminals=~ends & ends, timeouts=ends)
    return path


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Step -> the values of the probe."""
    found: dict[int, dict[str, float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row["name"].startswith("diagnostics/seem_"):
                name = row["name"].removeprefix("diagnostics/seem_")
                found.setdefault(int(row["step"]), {})[name] = float(row["value"])
    return found


def offline(cli, dataset: Path, out: Path, *words: str, steps: int = 60):
    args = f"train td3 --dataset {dataset} --offline-steps {steps} {TINY} {EVERY} --out {out}"
    return cli(*args.split(), *" ".join(words).split())


def test_each_look_is_logged_without_an_environment(cli, dataset, tmp_path):
    assert offline(cli, dataset, tmp_path, "--name x").status == 0
    looks = logged(tmp_path / "random/td3/x")
    assert list(looks) == [20, 40, 60]
    assert {"value", "normalised", "q_mean", "q_max", "params_norm", "diverging"} == looks[20].keys()
    assert looks[60].keys() == looks[20].keys() | {"ntk_cosine", "params_cosine", "gradient_cosine", "growth"}
    assert 0.9 < looks[60]["params_cosine"] <= 1.0 and looks[60]["diverging"] == 0


def test_a_prolonged_run_looks_as_if_nothing_had_stopped_it(cli, dataset, tmp_path):
    assert offline(cli, dataset, tmp_path, "--name whole", steps=80).status == 0
    assert offline(cli, dataset, tmp_path, "--name parts", steps=40).status == 0
    whole, parts = tmp_path / "random/td3/whole", tmp_path / "random/td3/parts"
    assert cli("resume", parts, "--steps", 80).status == 0
    assert metrics_of(parts) == metrics_of(whole) and list(logged(parts)) == [20, 40, 60, 80]


def test_an_alarm_is_said_once_or_ends_the_run(cli, walk, tmp_path):
    command = f"train ddpg --dataset {walk} {DIVERGES} --out {tmp_path}"
    warned = cli(*command.split(), "--name", "warn")
    assert warned.status == 0, warned.err
    looks = logged(tmp_path / "walk/ddpg/warn")
    flagged = [step for step, look in looks.items() if look["diverging"]]
    assert len(flagged) > 1 and looks[flagged[0]]["normalised"] > 0.02 < looks[flagged[0] - 30]["normalised"]
    said = [line for line in warned.errors if "values feed on themselves" in line]
    assert len(said) == 1 and said[0].startswith(f"step {flagged[0]}: values feed on themselves: normalised SEEM")
    assert (tmp_path / "walk/ddpg/warn/DONE").exists()

    for seeds, runs in (("--seed 0", ("stop",)), ("--seeds 0 1", ("stop_s0", "stop_s1"))):
        stopped = cli(*command.split(), *seeds.split(), "--name", "stop", "--on-diverge", "stop")
        assert stopped.status == 1
        assert stopped.errors[-1].startswith("trimtab: training diverged: ")
        assert "values feed on themselves" in stopped.errors[-1] and "critic-norm layer" in stopped.errors[-1]
        run = tmp_path / "walk/ddpg" / runs[0]
        assert not (run / "DONE").exists() and max(logged(run)) == flagged[0]
        assert checkpoint.checkpoints(run)[-1].name == f"step_{flagged[0]}"
        assert trimtab.load(run).info["checkpoint"] == f"step_{flagged[0]}"
    # The other seed went on until its own alarm.
    other = logged(tmp_path / "walk/ddpg/stop_s1")
    assert other[max(other)]["diverging"] or max(other) == 300


def test_bad_input(cli, dataset, tmp_path):
    sac = f"train sac --env probe/Both {ONLINE} --steps 60 --name sac --out {tmp_path}"
    assert_one_line(cli(*sac.split(), "--on-diverge", "stop"), 2, "--probes seem")
    assert_one_line(cli(*sac.split(), "--on-diverge", "halt"), 2, "warn")
    assert_one_line(cli(*sac.split(), "--probes", "seem", "--eval-freq", "0"), 2, "--probe-freq")
    assert_one_line(cli(*sac.split(), "--probes", "seem", "--probe-freq", "-1"), 2, "probe-freq")
    flow = sac.replace("train sac", "train sac-flow")
    assert_one_line(cli(*flow.split(), "--probes", "seem", "--probe-freq", "20"), 2, "plain networks", "td3")
