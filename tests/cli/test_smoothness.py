"""`trimtab diagnose RUN --probes smoothness`, of agents that keep what they learn from and of those that do not."""

import json

import pytest

from tests.cli.conftest import ONLINE
from tests.cli.test_bad_input import assert_one_line

pytestmark = pytest.mark.thorough

PPO = "--agent.hidden 8 --agent.n-steps 16 --agent.batch-size 16 --num-envs 2 --agent.n-epochs 1"


def test_smoothness_of_a_run(cli, tmp_path):
    train = f"train ppo --env trimtab/ArmTrack-v0 --steps 32 --eval-freq 0 --log csv {PPO} --out {tmp_path} --name x"
    assert cli(*train.split()).status == 0
    run = tmp_path / "trimtab/ArmTrack-v0/ppo/x"
    said = cli("diagnose", run, "--probes", "smoothness", "--episodes", "2")
    assert said.status == 0, said.err
    assert "smoothness/high_frequency_ratio" in said.out and "above 10 Hz" in said.out and "after 32 steps" in said.out
    found = json.loads((run / "diagnose.json").read_text())
    assert set(found["values"]) == {
        f"smoothness/{name}" for name in ("high_frequency_ratio", "action_smoothness", "jerk", "cut", "rate")
    }
    assert found["values"]["smoothness/rate"] == pytest.approx(60.0) and found["step"] == 32
    assert_one_line(cli("diagnose", run), 2, "--probes smoothness")
    assert_one_line(cli("diagnose", run, "--probes", "smoothness", "--episodes", "0"), 2, "episodes must be positive")


def test_beside_other_probes(cli, tmp_path):
    train = f"train sac --env Pendulum-v1 --steps 60 --eval-freq 0 {ONLINE} --out {tmp_path} --name x"
    assert cli(*train.split()).status == 0
    run = tmp_path / "Pendulum-v1/sac/x"
    said = cli("diagnose", run, "--probes", "units", "smoothness", "--episodes", "1")
    assert said.status == 0, said.err
    names = json.loads((run / "diagnose.json").read_text())["values"]
    assert names["smoothness/cut"] == pytest.approx(20 / 6) and "params/largest" in names
    assert "smoothness/jerk" not in names  # it does not say where its joints are
