"""Offline agents on data that goes round a wall on either side, slowly: the acceptance experiments of their pages."""

import json

import numpy as np
import pytest

import trimtab
from trimtab.agents import AGENTS, config_class
from trimtab.envs import two_route
from trimtab.training.evaluate import WorldEvaluator

pytestmark = pytest.mark.slow

STEPS, SEEDS, EPISODES = 15_000, (0, 1, 2), 200
NETS = dict(hidden=(128, 128), learning_rate=9e-4)
VALUES = dict(gamma=0.98, tau=0.005)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The 400 episodes of `trimtab data make two-route`."""
    path = tmp_path_factory.mktemp("data") / "two-route.npz"
    np.savez(path, **two_route.demonstrations(two_route.VARIANTS["two-route"], 0))
    return path


def learn(name, dataset, folder, **fields):
    """Success rate and mean number of steps of 200 episodes after 15,000 updates, a pair for each seed."""
    config = config_class(AGENTS[name])(**NETS, **fields)
    options = dict(offline_steps=STEPS, eval_freq=0, checkpoint_freq=0, log_freq=STEPS, log=("csv",), quiet=True)
    runs = trimtab.train(
        name, env="trimtab/TwoRoute-v0", dataset=str(dataset), seeds=SEEDS, config=config, out=folder, **options
    )
    found = []
    for run in runs:
        episodes = WorldEvaluator(two_route.TwoRoute.create(), 7)(run.policy.agent.policy, EPISODES)
        success = float(np.mean([episode["success"] for episode in episodes]))
        found.append((success, float(np.mean([episode["length"] for episode in episodes]))))
    print(json.dumps({"agent": name, **fields, "seeds": SEEDS, "success and steps": found}))
    return found


def test_fql_finds_the_fast_way_round(dataset, tmp_path):
    for success, steps in learn("fql", dataset, tmp_path, alpha=3.0, normalize_q=True, **VALUES):
        assert success >= 0.95 and steps <= 36


def test_ifql_is_faster_than_what_it_learnt_from(dataset, tmp_path):
    for success, steps in learn("ifql", dataset, tmp_path, **VALUES):
        assert success >= 0.9 and steps <= 25


def test_a_clone_is_as_slow_as_the_data(dataset, tmp_path):
    # The world's own noise takes a Gaussian's mean to one side before it meets the wall: it arrives, but no faster.
    for success, steps in learn("bc", dataset, tmp_path):
        assert success >= 0.9 and steps >= 33
