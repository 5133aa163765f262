"""Goals by gradient: ReenGAGE against DDPG and SAC with hindsight, on sets of goals, and on robots (slow)."""

import csv
import json
from typing import Any

import numpy as np
import pytest

import trimtab
from trimtab.agents import ddpg, reengage
from trimtab.cli.main import main
from trimtab.papers.recipe import Results
from trimtab.papers.reengage import hand, judge, plan, train
from trimtab.run.statistics import aggregate

pytestmark = pytest.mark.slow

SHARED: dict[str, Any] = dict(gamma=0.95, learning_starts=1_000, buffer_size=20_000)
NOISY: dict[str, Any] = SHARED | dict(exploration_noise=0.03)
ROBOT: dict[str, Any] = dict(exploration_noise=0.2, random_actions=0.3, action_l2=1.0)
SEEDS = (0, 1, 2, 3, 4)
CONFIGS = {"ddpg": ddpg.Config, "reengage": reengage.Config}


def learn(agent, env, steps, folder, *, every=2_000, seeds=SEEDS, **fields):
    """The success rate of a run for each seed at each evaluation: seeds by evaluations."""
    runs = trimtab.train(
        agent,
        env=env,
        her="future",
        steps=steps,
        seeds=seeds,
        eval_freq=every,
        eval_episodes=50,
        checkpoint_freq=0,
        log=("csv",),
        out=folder,
        name=f"{agent}-{len(list(folder.glob('*')))}",
        config=CONFIGS[agent](**fields),
        quiet=True,
    )
    found = [values(run.path / "metrics.csv", "eval/success_rate") for run in runs]
    print(json.dumps({"agent": agent, "env": env, **fields, "seeds": seeds, "success": found}))
    return np.array(found)


def values(path, name):
    """The values of one metric of a run."""
    with path.open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


@pytest.mark.parametrize("world", ["ContinuousSeek5", "ContinuousSeek10", "ContinuousSeek20", "DriveSeekSmall"])
def test_worlds_of_the_recipe(world, tmp_path):
    """Scale small, world by world, five seeds: the recipe's own runs and claims. A broken sign, no mask, or a gradient
    through the wrong network fails in ten dimensions."""
    jobs, results = [job for job in plan("small") if job.setting == world], Results("reengage", "test")
    train(results, jobs, tmp_path)
    judge(results, world)
    assert len(jobs) % len(SEEDS) == 0 and results.checks
    assert not results.failed(), results.table()


def test_the_host_learns_what_the_device_learns(tmp_path):
    """The same world in the compiled loop and through Gymnasium, five seeds each: the 95 % intervals of the mean
    success rate meet at every evaluation."""
    sizes: dict[str, Any] = dict(learning_rate=1.5e-3, batch_size=256)
    device = learn("ddpg", "trimtab/ContinuousSeek5-v0", 10_000, tmp_path, **NOISY, **sizes)
    host = learn("ddpg", "trimtab.envs.hosted:trimtab/ContinuousSeek5-v0", 10_000, tmp_path, **NOISY, **sizes)
    assert device.shape == host.shape == (5, 5)
    for a, b in zip(device.T, host.T, strict=True):
        one, other = aggregate(a).mean, aggregate(b).mean
        assert one.low <= other.high and other.low <= one.high


@pytest.mark.parametrize("agent", ["ddpg", "reengage"])
def test_a_robot_reaches(agent, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    match: dict[str, Any] = dict(goal_scale="std", goal_match=0.1) if agent == "reengage" else {}
    sizes: dict[str, Any] = dict(learning_rate=1e-3, batch_size=256, **SHARED, **ROBOT)
    env, options = "gymnasium_robotics:FetchReach-v4", dict(seeds=(0, 1, 2), every=4_000)
    found = learn(agent, env, 20_000, tmp_path, **options, **sizes, **match)
    assert (found[:, -1] >= 0.95).all()
    # A step away from the goal pays -1: most of the fifty are spent at it, not only one on the way.
    returns = [values(run, "eval/mean_reward")[-1] for run in sorted(tmp_path.glob("**/metrics.csv"))]
    assert len(returns) == 3 and min(returns) >= -10.0


@pytest.mark.parametrize("job", hand(range(1), 3_800), ids=lambda job: job.method)
def test_a_hand_runs_end_to_end(job, tmp_path):
    """HandReach as the recipe's scale `paper` has it, 3,800 steps of it: forty updates on 19 x 256 transitions."""
    pytest.importorskip("gymnasium_robotics")
    assert main(job.command(tmp_path)[1:]) == 0
    (path,) = tmp_path.glob("**/metrics.csv")
    assert len(values(path, "eval/success_rate")) == 2
    losses = values(path, "train/critic_loss")
    assert len(losses) > 0 and np.isfinite(losses).all() and (path.parent / "DONE").exists()
