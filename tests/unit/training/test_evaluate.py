"""Evaluation on Gymnasium environments."""

import gymnasium
import jax.numpy as jnp

from trimtab.core import AbstractPolicy
from trimtab.envs.gym import spec_of
from trimtab.training.evaluate import GymEvaluator


class Swing(AbstractPolicy):
    """Pushes the pendulum the way it turns."""

    def __call__(self, obs, key):
        return jnp.sign(obs[..., 2:])


def told(episodes):
    return [[e["return"], e["length"], e["discounted"], e["cut"]] for e in episodes]  # success is NaN here


def test_evaluators_that_share_environments_find_what_each_finds_alone():
    made = []

    def make():
        made.append(gymnasium.make("Pendulum-v1"))
        return made[-1]

    spec, envs = spec_of(gymnasium.make("Pendulum-v1")), []
    shared = [GymEvaluator(make, spec, seed, envs=envs) for seed in (0, 100)]
    found = [[told(evaluator(Swing(), 2)) for evaluator in shared] for _ in range(2)]
    assert len(made) == len(envs) == 2
    alone = [told(GymEvaluator(make, spec, seed)(Swing(), 2)) for seed in (0, 100)]
    assert len(made) == 6 and alone[0] != alone[1]
    assert found == [alone, alone]
    for evaluator in shared:
        evaluator.close()
    assert envs == []
