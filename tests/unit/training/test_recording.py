"""Episodes are recorded as they were: control, joints, and the rate of steps."""

import gymnasium
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.ppo import PPO, Config
from trimtab.core import RunError, UsageError
from trimtab.envs.arm_track import ArmTrack
from trimtab.envs.hosted import Hosted
from trimtab.envs.make import find
from trimtab.training.predict import Policy
from trimtab.training.recording import record, seconds_of


def untrained(env: str) -> Policy:
    spec = find(env).spec
    return Policy(PPO.create(jr.key(0), spec, Config(hidden=(8,), normalise_obs=False)), spec, {})


def test_an_own_world_and_mujoco_are_recorded_with_their_joints():
    (arm, again), seconds = record(untrained("trimtab/ArmTrack-v0"), find("trimtab/ArmTrack-v0"), 2)
    assert seconds == 1 / 60 and arm.position is not None and arm.control.shape == arm.position.shape == (120, 2)
    assert 0.0 < np.abs(arm.control - arm.position).mean() < 0.5  # targets in radians, not actions
    assert np.abs(arm.control - again.control).max() > 0.01  # another episode
    (trot,), seconds = record(untrained("trimtab/QuadrupedTrot-v0"), find("trimtab/QuadrupedTrot-v0"), 1)
    assert seconds == pytest.approx(1 / 60) and trot.position is not None
    assert trot.control.shape == trot.position.shape and trot.control.shape[1] == 12


def test_where_nothing_is_said_of_joints_it_is_actions():
    world = find("Pendulum-v1")
    (one,), seconds = record(untrained("Pendulum-v1"), world, 1)
    assert seconds == 0.05 and one.position is None and one.control.shape == (200, 1)
    again, _ = world.make(None).reset(seed=10_000)
    assert one.control[0] == pytest.approx(untrained("Pendulum-v1").predict(again, deterministic=True)[0])
    with pytest.raises(UsageError, match="CartPole-v1 has discrete actions"):
        record(untrained("CartPole-v1"), find("CartPole-v1"), 1)


class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        raise ValueError("no more")


def test_an_environment_that_raises_is_told_of_in_one_line():
    with pytest.raises(RunError, match="the environment raised while it was recorded: ValueError: no more"):
        record(untrained("Pendulum-v1"), find(Broken), 1)


def test_the_seconds_of_a_step():
    assert seconds_of(gymnasium.make("HalfCheetah-v5")) == pytest.approx(0.05)
    assert seconds_of(gymnasium.make("CartPole-v1")) == 0.02  # it is filmed at 50 frames a second
    assert seconds_of(Hosted(ArmTrack.create())) == 1 / 60
    assert seconds_of(Hosted(find("trimtab/TwoRoute-v0").own)) is None and seconds_of(Broken()) is None
