"""The toy maze of the SEEM recipe: who diverges, and what SEEM tells of it beforehand."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.papers.recipe import Results
from trimtab.papers.seem import FATES, SEEDS, SLOW, remaining_error, sgd_fit, toy, walk

PLAIN, _, LOW, NORMED = FATES


@pytest.mark.thorough
def test_a_maze_without_rewards_diverges_and_layernorm_holds_it():
    """Three seeds of each; the recipe and the slow test have ten."""
    seeds = (0, 1, 2)
    runs = walk(replace(PLAIN, iterations=600), seeds)
    assert all(run.diverged for run in runs)
    alarms = [run.alarm for run in runs if run.alarm is not None]
    assert len(alarms) == 3 and all(found.normalised > 0.02 for _, found in alarms)
    # A wrong factor (2/N, p, gamma, a transposed A) gives errors above 0.5.
    assert np.median([remaining_error(PLAIN, run) for run in runs]) < 0.3
    assert np.median([sgd_fit(PLAIN, run) for run in runs]) > 0.95
    for kind in (LOW, NORMED):
        for run in walk(replace(kind, iterations=601, marks=(500,)), seeds):
            assert not run.diverged and run.crash is None and np.abs(run.q).max() < 100
            assert run.marks[500].normalised < 0.02


@pytest.mark.slow
def test_what_the_recipe_asserts_of_the_maze(tmp_path):
    results = Results("seem", "smoke")
    toy(results, tmp_path)
    assert not results.failed(), results.failed()
    assert (tmp_path / "toy.png").stat().st_size > 20_000
    crashed = results.values("toy maze", SLOW[0].method, "iteration of the crash")
    assert len(crashed) == len(SEEDS)
