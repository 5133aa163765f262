"""The recipe of smooth policies: what it runs, what it measures of a policy, and what it holds results to."""

import json

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.ppo import PPO, Config
from trimtab.envs.make import find
from trimtab.papers import action_jacobian as recipe
from trimtab.papers.recipe import Results
from trimtab.training.predict import Policy

FIGURES = {  # of each seed: reward, power, changes, early reward
    "plain": [(0.995, 0.17, 0.0044, 0.97), (0.994, 0.21, 0.0049, 0.97)],
    "penalty": [(0.995, 0.02, 0.0027, 0.97), (0.995, 0.03, 0.0027, 0.97)],
    recipe.OURS: [(0.996, 0.01, 0.0026, 0.97), (0.995, 0.012, 0.0026, 0.97)],
}
MORE = {f"{recipe.OURS} {w}": [(0.995, 0.04, 0.003, 0.97)] * 2 for w in recipe.WEIGHTS} | {
    f"change {w}": [(0.995, power, 0.003, 0.97)] * 2 for w, power in (("0.01", 0.15), ("0.1", 0.08), ("1", 0.02))
}


def checked(figures: dict, trot: dict | None = None) -> Results:
    results = Results("action-jacobian", "small")
    for method, seeds in figures.items():
        for seed, values in enumerate(seeds):
            for name, value in zip(("reward", recipe.POWER, recipe.CHANGES, recipe.EARLY), values, strict=True):
                results.add("ArmTrack", method, seed, name, value)
    for method, values in (trot or {}).items():
        for name, value in values.items():
            results.add(recipe.TROT, method, 0, name, value)
    recipe.check(results)
    return results


def test_results_as_measured_pass():
    few, all_ = checked({m: FIGURES[m] for m in ("plain", recipe.OURS)}), checked(FIGURES | MORE)
    assert not few.failed() and not all_.failed()
    assert len(few.checks) == 6 and len(all_.checks) == 17


@pytest.mark.parametrize(
    ("method", "seed", "values", "failed"),
    [
        (recipe.OURS, 1, (0.992, 0.01, 0.0026, 0.97), [f"{recipe.OURS}: reward, at least"]),
        (recipe.OURS, 0, (0.995, 0.031, 0.0026, 0.97), [f"{recipe.OURS}: {recipe.POWER}, at most"]),
        ("plain", 1, (0.995, 0.09, 0.0049, 0.97), [f"plain: {recipe.POWER}, at least"]),
        ("plain", 1, (0.98, 0.2, 0.0049, 0.97), ["plain: reward, at least"]),
        ("penalty", 0, (0.98, 0.02, 0.0027, 0.97), ["penalty: reward, at least"]),
        ("penalty", 0, (0.995, 0.06, 0.0027, 0.97), [f"plain over penalty, {recipe.POWER}, at least"]),
        ("penalty", 0, (0.995, 0.02, 0.0035, 0.97), [f"plain over penalty, {recipe.CHANGES}, at least"]),
        (
            f"{recipe.OURS} 0.06",
            1,
            (0.995, 0.07, 0.003, 0.97),
            [f"{recipe.OURS} 0.06 over plain, {recipe.POWER}, any weight, at most"],
        ),
        (f"{recipe.OURS} 2.0", 1, (0.98, 0.0, 0.003, 0.97), [f"{recipe.OURS} 2.0: reward, any weight, at least"]),
        ("change 0.01", 1, (0.995, 0.001, 0.003, 0.97), []),  # of the changes it is the mean that counts
    ],
)
def test_one_bad_seed_fails(method, seed, values, failed):
    figures = {m: list(seeds) for m, seeds in (FIGURES | MORE).items()}
    figures[method][seed] = values
    found = checked(figures).failed()
    assert set(failed) <= set(found) and bool(failed) == bool(found)


def test_tuning_is_what_the_change_of_actions_needs():
    same = FIGURES | MORE | {f"change {w}": [(0.995, 0.05, 0.003, 0.97)] * 2 for w in recipe.CHANGE_WEIGHTS}
    assert checked(same).failed() == [
        f"change: {recipe.POWER}, largest over smallest of the weights, at least",
    ]


def test_a_trot_that_nothing_is_known_of_is_compared_with_nothing():
    ours = {recipe.KEPT: 0.9, recipe.POWER: 1.0}
    share = f"trot, {recipe.OURS} over plain, {recipe.POWER}, at most"
    names = lambda plain: [c["name"] for c in checked(FIGURES, {recipe.OURS: ours, "plain": plain}).checks]
    assert share in names({recipe.KEPT: 0.0, recipe.POWER: 3.0}) and share not in names({recipe.KEPT: 0.0})
    assert checked(FIGURES, {recipe.OURS: ours | {recipe.KEPT: 0.7}}).failed() == [
        f"trot, {recipe.OURS}: {recipe.KEPT}, at least"
    ]


def test_the_runs_of_each_scale():
    methods = lambda scale: {job.method for job in recipe.plan(scale) if job.setting == "ArmTrack"}
    four = {"plain", "penalty", "linear", recipe.OURS}
    assert methods("smoke") == {"plain", recipe.OURS} and methods("small") == four | {
        f"change {w}" for w in recipe.CHANGE_WEIGHTS
    }
    assert methods("paper") == four | set(MORE) | {f"{recipe.OURS}, rank {r}" for r in (2, 4)}
    jobs = recipe.plan("paper")
    worlds = {job.method: job.flags[job.flags.index("--env") + 1] for job in jobs if job.setting == "ArmTrack"}
    assert worlds["change 0.01"] == "trimtab/ArmTrackChange0.01-v0" and worlds["plain"] == recipe.ENV
    assert all(find(env).own is not None for env in set(worlds.values()))


def untrained(env: str) -> PPO:
    config = Config(hidden=(8,), normalise_obs=False, normalise_reward=False)
    return PPO.create(jr.key(0), find(env).spec, config)


@pytest.mark.thorough
def test_an_untrained_arm_is_judged(monkeypatch):
    monkeypatch.setattr(recipe, "EPISODES", 2)
    found, control = recipe.judge(untrained(recipe.ENV).policy)
    assert set(found) == {"reward", recipe.POWER, recipe.CHANGES, "jerk"} and control.shape == (recipe.STEPS, 2)
    assert 0.3 < found["reward"] < 0.99 and 0.0 <= found[recipe.POWER] < 5.0 and found["jerk"] > 0.0
    # Next to nothing is added to the reference, whose own changes are known.
    t = np.arange(recipe.STEPS + 1) / 60.0
    target = np.stack([0.6 * np.sin(np.pi * t), -0.8 + 0.6 * np.cos(2.0 * np.pi * t)], axis=1)
    expected = np.square(np.diff(target, axis=0)).sum(1).mean()
    assert found[recipe.CHANGES] == pytest.approx(expected, rel=0.1)


def test_a_trot_that_falls_at_once_has_no_smoothness():
    agent, spec = untrained(recipe.TROT_ENV), find(recipe.TROT_ENV).spec
    thrown = eqx.tree_at(lambda a: a.actor.net.head.layers[-1].bias, agent, 9.0 * jnp.ones(12))
    found = recipe.judge_trot(Policy(thrown, spec, {}), episodes=1)
    assert set(found) == {"reward", recipe.KEPT, "lasts a second"}
    assert found[recipe.KEPT] == 0.0 == found["lasts a second"]
    json.dumps(found, allow_nan=False)
