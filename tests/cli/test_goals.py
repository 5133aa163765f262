"""`trimtab train --her`: own worlds with several seeds, a Gymnasium environment with goals, and what is refused."""

import csv

import pytest

from trimtab.cli.flags import parse
from trimtab.cli.main import main
from trimtab.cli.train import flags_for
from trimtab.envs.make import find
from trimtab.papers.reengage import plan

SMALL = "--agent.hidden 8 --agent.batch-size 16 --agent.learning-starts 30 --agent.buffer-size 500 --log csv"


def logged(run) -> dict[str, list[float]]:
    """Every metric of a run in the order of its lines."""
    found: dict[str, list[float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["name"], []).append(float(row["value"]))
    return found


def train(args: str, out) -> int:
    return main(["train", *args.split(), *SMALL.split(), "--out", str(out), "--name", "run"])


@pytest.mark.thorough
def test_seeds_of_an_own_world_train_together_and_report_success(tmp_path, capsys):
    env = "trimtab/ContinuousSeek5-v0"
    args = f"ddpg --env {env} --her episode --num-envs 2 --steps 120 --log-freq 60 --eval-freq 120 --seeds 0 1"
    assert train(args, tmp_path) == 0
    assert "2 seeds run together" in capsys.readouterr().out
    for seed in (0, 1):
        found = logged(tmp_path / env / "ddpg" / f"run_s{seed}")
        assert 0.0 <= found["rollout/success_rate"][-1] <= 1.0 and 0.0 <= found["eval/success_rate"][-1] <= 1.0


@pytest.mark.thorough
def test_the_same_world_on_the_host_is_resumed(tmp_path):
    env = "trimtab.envs.hosted:trimtab/ContinuousSeek5-v0"
    assert train(f"sac --env {env} --her future --steps 60 --eval-freq 0 --checkpoint-freq 40", tmp_path) == 0
    run = tmp_path / "trimtab/ContinuousSeek5-v0/sac/run"
    assert {"rollout/success_rate", "train/critic_loss"} <= set(logged(run))
    assert main(["resume", str(run), "--steps", "90"]) == 0
    assert (run / "DONE").exists()


@pytest.mark.parametrize("name", ["FetchReach-v4", pytest.param("FetchPush-v4", marks=pytest.mark.thorough)])
def test_a_gymnasium_environment_with_goals(tmp_path, name):
    pytest.importorskip("gymnasium_robotics")
    args = f"ddpg --env gymnasium_robotics:{name} --her future --steps 120 --log-freq 60 --eval-freq 0"
    assert train(f"{args} --agent.random-actions 0.3", tmp_path) == 0
    found = logged(tmp_path / name / "ddpg" / "run")
    assert "rollout/success_rate" in found and len(found["train/critic_loss"]) == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("sac --env Pendulum-v1 --her future", "Pendulum-v1 has no goals to relabel: leave --her out"),
        ("sac --env trimtab/TwoRoute-v0 --her future", "trimtab/TwoRoute-v0 has no goals to relabel"),
        ("sac --env trimtab/ContinuousSeek5-v0 --her past", "choose one of future, final, episode"),
        ("ddpg --env trimtab/NoisySeek-v0 --her future", "2 numbers are achieved and 600 are desired"),
        ("td3-bc --env trimtab/ContinuousSeek5-v0 --her future --her-k 0", "her-k must be at least 1, got 0"),
        ("ddpg --env trimtab/ContinuousSeek5-v0 --agent.random-actions 1.5", "random_actions must be between 0 and 1"),
        (
            "reengage --env trimtab/ContinuousSeek5-v0 --agent.random-actions -1",
            "random_actions must be between 0 and 1",
        ),
        ("sac --env trimtab/ContinuousSeek5-v0 --her future --num-envs 60", "buffer_size must be at least 600"),
    ],
)
def test_bad_requests_leave_nothing_behind(tmp_path, capsys, args, words):
    assert train(f"{args} --steps 100", tmp_path) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.thorough
def test_a_recipes_commands_are_understood(scale, tmp_path):
    jobs = plan(scale)
    for job in jobs:
        agent, *rest = job.command(tmp_path)[2:]
        found = parse(flags_for(agent), rest, "train")
        assert found.steps > found.agent.learning_starts and found.eval_freq < found.steps
        if not found.env.startswith("gymnasium_robotics:"):
            find(found.env)
    assert len({job.folder(tmp_path) for job in jobs}) == len(jobs)
    settings = {job.setting for job in jobs}
    assert settings >= {"ContinuousSeek5", "DriveSeek" if scale == "paper" else "DriveSeekSmall"}
    assert ("HandReach" in settings) == (scale == "paper")
