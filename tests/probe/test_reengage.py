"""Goals by gradient: ReenGAGE against DDPG and SAC with hindsight, on sets of goals, and on robots (slow)."""

import csv
import json
from typing import Any

import numpy as np
import pytest

import trimtab
from trimtab.agents import ddpg, reengage, reengage_sac, reengage_sets, sac
from trimtab.cli.main import main
from trimtab.papers.reengage import hand
from trimtab.run.statistics import aggregate

pytestmark = pytest.mark.slow

SHARED: dict[str, Any] = dict(gamma=0.95, learning_starts=1_000, buffer_size=20_000)
NOISY: dict[str, Any] = SHARED | dict(exploration_noise=0.03)
ROBOT: dict[str, Any] = dict(exploration_noise=0.2, random_actions=0.3, action_l2=1.0)
SEEDS = (0, 1, 2, 3, 4)
CONFIGS = {
    "ddpg": ddpg.Config,
    "reengage": reengage.Config,
    "sac": sac.Config,
    "reengage-sac": reengage_sac.Config,
    "reengage-sets": reengage_sets.Config,
}


def learn(agent, env, steps, folder, *, every=2_000, episodes=50, seeds=SEEDS, her="future", **fields):
    """What a run for each seed was worth at each evaluation: success rates (or returns of worlds without), seeds by
    evaluations."""
    runs = trimtab.train(
        agent,
        env=env,
        her=her,
        steps=steps,
        seeds=seeds,
        eval_freq=every,
        eval_episodes=episodes,
        checkpoint_freq=0,
        log=("csv",),
        out=folder,
        name=f"{agent}-{len(list(folder.glob('*')))}",
        config=CONFIGS[agent](**fields),
        quiet=True,
    )
    name = "eval/return_mean" if her is None else "eval/success_rate"
    found = [values(run.path / "metrics.csv", name) for run in runs]
    print(json.dumps({"agent": agent, "env": env, **fields, "seeds": seeds, name: found}))
    return np.array(found)


def values(path, name):
    """The values of one metric of a run."""
    with path.open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == name]


def apart(ours: np.ndarray, base: np.ndarray) -> bool:
    """Whether the 80 % intervals of the interquartile means over seeds do not touch, ours above."""
    return aggregate(ours, level=0.8).iqm.low > aggregate(base, level=0.8).iqm.high


def test_ten_dimensions(tmp_path):
    sizes: dict[str, Any] = dict(learning_rate=1e-3, batch_size=128)
    world = "trimtab/ContinuousSeek10-v0"
    ours = learn("reengage", world, 16_000, tmp_path, **NOISY, **sizes, goal_match=0.2)[:, -3:].mean(1)
    base = learn("ddpg", world, 16_000, tmp_path, **NOISY, **sizes)[:, -3:].mean(1)
    # A broken sign, no mask, or a gradient through the wrong network fails here.
    assert ours.mean() >= 0.42 and base.mean() <= 0.38 and ours.mean() - base.mean() >= 0.15
    assert apart(ours, base)


def test_five_dimensions(tmp_path):
    sizes: dict[str, Any] = dict(learning_rate=1.5e-3, batch_size=256)
    world = "trimtab/ContinuousSeek5-v0"
    ours = learn("reengage", world, 12_000, tmp_path, **NOISY, **sizes, goal_match=0.2)[:, -1].mean()
    base = learn("ddpg", world, 12_000, tmp_path, **NOISY, **sizes)[:, -1].mean()
    assert ours >= 0.9 and base < ours - 0.05


def test_soft_actor_critic_in_ten_dimensions(tmp_path):
    sizes: dict[str, Any] = dict(learning_rate=2.5e-3, batch_size=512)
    world = "trimtab/ContinuousSeek10-v0"
    ours = learn("reengage-sac", world, 12_000, tmp_path, **SHARED, **sizes, goal_match=0.2)[:, -1]
    base = learn("sac", world, 12_000, tmp_path, **SHARED, **sizes)[:, -1]
    assert apart(ours, base)


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


def test_sets_of_goals(tmp_path):
    """DriveSeek on a torus of 11 x 11 with up to 40 goals, three seeds, 30,000 steps: the returns of the first half of
    the steps after the start."""
    nets: dict[str, Any] = dict(encoder=(128, 128), hidden=(128,), batch_size=64, buffer_size=30_000)
    options: dict[str, Any] = dict(her=None, seeds=(0, 1, 2), every=2_500, episodes=100)
    world = "trimtab/DriveSeekSmall-v0"
    ours = learn("reengage-sets", world, 30_000, tmp_path, **options, **nets, goal_match=10.0)
    base = learn("reengage-sets", world, 30_000, tmp_path, **options, **nets, goal_match=0.0)
    early = lambda found: found[:, :6].mean()
    assert early(ours) >= 1.15 * early(base)


@pytest.mark.parametrize("agent", ["ddpg", "reengage"])
def test_a_robot_reaches(agent, tmp_path):
    pytest.importorskip("gymnasium_robotics")
    match: dict[str, Any] = dict(goal_scale="std", goal_match=0.1) if agent == "reengage" else {}
    sizes: dict[str, Any] = dict(learning_rate=1e-3, batch_size=256, **SHARED, **ROBOT)
    env, options = "gymnasium_robotics:FetchReach-v4", dict(seeds=(0, 1, 2), every=4_000)
    found = learn(agent, env, 20_000, tmp_path, **options, **sizes, **match)
    assert (found[:, -1] >= 0.95).all()
    # A step away from the goal pays -1: most of the fifty are spent at it, not only one on the way.
    returns = [values(run, "eval/return_mean")[-1] for run in sorted(tmp_path.glob("**/metrics.csv"))]
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
