"""Worlds with goals: an observation of three named parts, as Gymnasium-Robotics' `GoalEnv` has it."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.core import ACHIEVED, DESIRED, OBSERVATION, AbstractEnv, Spec


class AbstractGoalEnv(AbstractEnv):
    """An own world whose reward is a function of two goals, so that it can be asked what it would have paid for others.

    Observations are dicts of `achieved_goal`, `desired_goal` and `observation`.
    """

    @abc.abstractmethod
    def reward(self, achieved: Float[Array, " achieved"], goal: Float[Array, " goal"]) -> Float[Array, ""]:
        """What a step pays that leads to `achieved` while `goal` is wanted: `step` pays exactly this."""


def goal_spec(achieved: int, desired: int, observation: int, action: int) -> Spec:
    """The `Spec` of a world with goals: lengths of the observation's parts and of the action, in [-1, 1]."""
    vector = lambda size: jax.ShapeDtypeStruct((size,), jnp.float32)
    obs = {ACHIEVED: vector(achieved), DESIRED: vector(desired), OBSERVATION: vector(observation)}
    return Spec(obs, action, False, (-1.0,) * action, (1.0,) * action)


def goal_obs(achieved: Array, desired: Array, observation: Array) -> dict[str, Array]:
    """The observation with these parts."""
    return {ACHIEVED: achieved, DESIRED: desired, OBSERVATION: observation}
