"""SAC Flow learns what a broken or a naive one does not: the acceptance experiments of its page, with their seeds."""

import numpy as np
import pytest

import trimtab
from trimtab.agents.sac_flow import Config
from trimtab.papers.recipe import Results
from trimtab.papers.sac_flow import stress

pytestmark = pytest.mark.slow

LEARNING = dict(eval_freq=0, checkpoint_freq=0, log=("csv",), quiet=True)


def test_a_the_stress_table(tmp_path):
    """Random networks, ten seeds: the gated flow contracts where the naive one grows."""
    results = Results("sac-flow", "smoke")
    stress(results, tmp_path)
    print(results.table())
    assert not results.failed()


def test_b_pendulum_from_scratch(tmp_path):
    """20,000 steps, seeds 0 1 2: the gated flow learns, the naive one does not."""
    returns = {}
    for velocity in ("gated", "decoder", "mlp"):
        options = dict(env="Pendulum-v1", steps=20_000, seeds=(0, 1, 2), config=Config(velocity=velocity), **LEARNING)
        runs = trimtab.train("sac-flow", out=tmp_path / velocity, **options)
        returns[velocity] = [trimtab.evaluate(run.policy, "Pendulum-v1", episodes=20)[0] for run in runs]
    print(f"SAC Flow on Pendulum-v1, 20,000 steps, seeds 0 1 2: {returns}")
    median = {velocity: float(np.median(values)) for velocity, values in returns.items()}
    assert median["gated"] >= -450 and median["gated"] >= median["mlp"] + 500
    assert median["decoder"] >= -450 and median["decoder"] >= median["mlp"] + 500
