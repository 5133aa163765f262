"""MePoly's recipe: how walkers and points are judged, what is run, and what a missing number does to a check."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.cli.flags import parse
from trimtab.cli.train import flags_for
from trimtab.papers import mepoly
from trimtab.papers.recipe import Results

UP, RIGHT, NOWHERE = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0]), jnp.zeros(2)


def up_or_down(place, key):
    """Away from the middle; there, up three times out of four."""
    y = place[1]
    first = jnp.where(jr.uniform(key) < 0.75, 1.0, -1.0)
    return jnp.stack([jnp.zeros(()), jnp.where(y == 0.0, first, jnp.sign(y))])


def test_walkers_are_told_by_the_goals_that_they_reach():
    found = mepoly.judge_plane(up_or_down, "two_walls", 400)
    # From 12.5 to 23 by quarters, or to just below 2.
    assert found["success"] == 1.0 and 42.0 <= found["length"] <= 43.0
    assert abs(found["second goal"] - 0.25) < 0.07 and found["first goal"] == pytest.approx(1 - found["second goal"])
    found = mepoly.judge_plane(lambda place, key: RIGHT, "four_walls", 5)
    assert (found["success"], found["first goal"], found["second goal"]) == (1.0, 1.0, 0.0)
    # Along a wall that pays nothing: nobody arrives, and no share is made up.
    found = mepoly.judge_plane(lambda place, key: NOWHERE, "two_walls", 5)
    assert (found["success"], found["length"]) == (0.0, 256.0)
    assert np.isnan(found["first goal"]) and np.isnan(found["second goal"])


@pytest.mark.parametrize("missing", ["degree 5", "normal"])
def test_walkers_who_never_arrive_fail_their_checks(missing):
    results = Results("mepoly", "small")
    for seed in (0, 1):
        for method, first in (("degree 5", 0.7), ("normal", 1.0)):
            lost = seed == 1 and method == missing
            shares = {"first goal": first, "second goal": 1.0 - first}
            for name, value in ({"success": 1.0} | shares).items():
                results.add("two_walls", method, seed, name, (0.0 if name == "success" else np.nan) if lost else value)
    mepoly._check(results)
    about = {name for name in ("success", "first goal", "second goal") for c in results.checks if name in c["name"]}
    assert about == {"success", "first goal", "second goal"} and len(results.checks) == 4
    assert len(results.failed()) == 2 and all(missing in name for name in results.failed())


def test_an_order_that_covers_too_much_fails_its_check():
    results = Results("mepoly", "small")
    for method, covered in (("degree 2", 0.4), ("degree 14", 0.95)):
        results.add("lemniscate", method, 0, "coverage", covered)
    mepoly._check(results)
    assert results.failed() == ["lemniscate: coverage of degree 2, at most"]


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_the_runs_are_whole_rollouts_of_even_minibatches(scale):
    jobs = mepoly.plan(scale)
    names = [(job.setting, job.method, job.seed) for job in jobs]
    assert len(set(names)) == len(names)
    for job in jobs:
        agent, *words = job.flags
        options = parse(flags_for(agent), words, "")
        config = options.agent
        rollout = options.num_envs * config.n_steps
        assert rollout % config.batch_size == 0 and options.steps % rollout == 0
        assert scale != "paper" or rollout // config.batch_size == 6
    if scale == "paper":
        assert {"degree 12, standard", "degree 12, legendre"} <= {method for _, method, _ in names}
        assert {"four_walls", "two_walls"} <= {setting for setting, _, _ in names}


@pytest.mark.thorough
def test_points_that_were_not_fitted_are_likeliest_under_polynomials():
    found = mepoly.imitation("lemniscate")
    assert found["normal"] == pytest.approx(0.726, abs=0.05)  # a normal of the curve's own moments
    assert found["degree 14"] < found["degree 6"] < found["mixture of 4"] < found["normal"] < np.log(4.0)
