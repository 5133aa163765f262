"""The two worlds of ReenGAGE's theory (Levine and Feizi 2023, arXiv:2208.13298): what a gradient by the goal is worth.

An orthogonal matrix U is all that is not known of them. d transitions tell it to who sees gradients by the goal, while
who sees values alone needs some d^2 / 2. Actions are scaled to a length of 1 at most; states and goals start standard
normal.

Rotation, states in R^d; the reward's gradient by the goal is s':

    s' = s + U a;  r = g . s'

DelayedRotation, states (s1, s2) in R^2d; the steps that tell of U pay nothing, whatever the goal:

    s1 != 0:  s1' = 0,  s2' = s1 + U a
    s1 == 0:  s1' = s2, s2' = 0
    r = g . s1'

In theory they go on for ever; here an episode is cut after 20 steps.
"""

from typing import ClassVar

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import Spec, Step, UsageError
from trimtab.envs.goals import AbstractGoalEnv, goal_obs, goal_spec


def _orthogonal(dimension: int, seed: int) -> Float[Array, "d d"]:
    if dimension < 1:
        raise UsageError(f"a rotation needs at least one dimension, got {dimension}")
    return jnp.linalg.qr(jr.normal(jr.key(seed), (dimension, dimension)))[0]


def _turned(u: Float[Array, "d d"], action: Float[Array, " d"]) -> Float[Array, " d"]:
    """U a, of a scaled to a length of 1 at most."""
    return u @ (action / jnp.maximum(1.0, jnp.linalg.norm(action)))


def _step(env: AbstractGoalEnv, achieved: Array, goal: Array, obs: Array) -> Step:
    nothing = jnp.zeros((), bool)
    return Step(goal_obs(achieved, goal, obs), env.reward(achieved, goal), nothing, nothing, {})


class Rotation(AbstractGoalEnv):
    """See the module's docstring. The observation and the achieved goal are s; the state is s and g."""

    u: Float[Array, "d d"]

    max_steps: ClassVar[int] = 20

    @classmethod
    def create(cls, dimension: int, seed: int = 0) -> "Rotation":
        """U is drawn by `seed`. Raises `UsageError` for no dimension."""
        return cls(u=_orthogonal(dimension, seed))  # pyright: ignore[reportCallIssue]

    @property
    def spec(self) -> Spec:
        """The lengths of the observation's parts and of the action."""
        return goal_spec(*(4 * (len(self.u),)))

    def reset(self, key: PRNGKeyArray) -> tuple[tuple[Array, Array], dict[str, Array]]:
        s, goal = jr.normal(key, (2, len(self.u)), self.u.dtype)
        return (s, goal), goal_obs(s, goal, s)

    def step(self, state: tuple[Array, Array], action: Array, key: PRNGKeyArray) -> tuple[tuple[Array, Array], Step]:
        s, goal = state
        s = s + _turned(self.u, action)
        return (s, goal), _step(self, s, goal, s)

    def reward(self, achieved: Float[Array, " d"], goal: Float[Array, " d"]) -> Float[Array, ""]:
        return achieved @ goal


class DelayedRotation(AbstractGoalEnv):
    """See the module's docstring. The achieved goal is s1, the observation (s1, s2); the state is s1, s2 and g."""

    u: Float[Array, "d d"]

    max_steps: ClassVar[int] = 20

    @classmethod
    def create(cls, dimension: int, seed: int = 0) -> "DelayedRotation":
        """U is drawn by `seed`. Raises `UsageError` for no dimension."""
        return cls(u=_orthogonal(dimension, seed))  # pyright: ignore[reportCallIssue]

    @property
    def spec(self) -> Spec:
        """The lengths of the observation's parts and of the action."""
        d = len(self.u)
        return goal_spec(d, d, 2 * d, d)

    def reset(self, key: PRNGKeyArray) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        first, goal = jr.normal(key, (2, len(self.u)), self.u.dtype)
        second = jnp.zeros_like(first)
        return (first, second, goal), goal_obs(first, goal, jnp.concatenate([first, second]))

    def step(
        self, state: tuple[Array, Array, Array], action: Array, key: PRNGKeyArray
    ) -> tuple[tuple[Array, Array, Array], Step]:
        first, second, goal = state
        moves = (first != 0.0).any()
        after = jnp.where(moves, first + _turned(self.u, action), 0.0)
        first = jnp.where(moves, 0.0, second)
        return (first, after, goal), _step(self, first, goal, jnp.concatenate([first, after]))

    def reward(self, achieved: Float[Array, " d"], goal: Float[Array, " d"]) -> Float[Array, ""]:
        return achieved @ goal
