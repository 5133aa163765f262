"""Hindsight: a stored step is also a step towards a goal that was reached later (Andrychowicz et al. 2017,
arXiv:1707.01495).

An episode of T steps passes the states s_0 ... s_T; g_i is what s_i achieves. With probability k / (k + 1) the goal of
step t, which leads from s_t to s_(t+1), is replaced by

    future:   g_i, i uniform on t + 1 ... T - 1; the last step (t = T - 1) keeps its goal
    final:    g_T
    episode:  g_i, i uniform on 1 ... T

and the reward is computed anew for it. `discount` stays what was recorded: a time limit never ends the bootstrap, and
whether the world would have ended at the new goal is not known.

Steps are drawn from episodes that have ended, uniformly. Before the first one has, they are drawn from what there is
and keep their goals. Where the ring has overwritten the beginning of an episode, what is left of it counts.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from trimtab.batches import Recorded, Transition
from trimtab.core import ACHIEVED, DESIRED, Spec, UsageError
from trimtab.envs.goals import AbstractGoalEnv

STRATEGIES = ("future", "final", "episode")


class AbstractGoalReward(eqx.Module):
    """What steps pay: achieved goals (b, goal) and wanted goals (b, goal) -> (b,)."""

    @abc.abstractmethod
    def __call__(self, achieved: Float[Array, "b goal"], goal: Float[Array, "b goal"]) -> Float[Array, " b"]:
        """The reward of each row."""


class WorldReward(AbstractGoalReward):
    """The reward of an own world, computed on the device."""

    env: AbstractGoalEnv

    def __call__(self, achieved: Float[Array, "b goal"], goal: Float[Array, "b goal"]) -> Float[Array, " b"]:
        return jax.vmap(self.env.reward)(achieved, goal)


class HostReward(AbstractGoalReward):
    """The reward of a Gymnasium `GoalEnv`, asked on the host from within the compiled update.

    `function(achieved, goal, info)` takes rows, as `compute_reward` does; it must depend on its arguments alone.
    """

    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, achieved: Float[Array, "b goal"], goal: Float[Array, "b goal"]) -> Float[Array, " b"]:
        shape = jax.ShapeDtypeStruct(achieved.shape[:1], jnp.float32)
        return jax.pure_callback(self._ask, shape, achieved, goal)

    def _ask(self, achieved: Any, goal: Any) -> np.ndarray:
        return np.asarray(self.function(np.asarray(achieved), np.asarray(goal), {}), np.float32)


class Hindsight(eqx.Module):
    """How goals are relabelled: `strategy` and `k` as in the module's docstring."""

    reward: AbstractGoalReward
    strategy: str = eqx.field(static=True)
    k: int = eqx.field(static=True)
    """relabelled steps for each one that keeps its goal."""
    horizon: int = eqx.field(static=True)
    """the longest episode in steps."""

    @classmethod
    def create(cls, spec: Spec, reward: AbstractGoalReward, strategy: str, k: int, horizon: int) -> "Hindsight":
        """For observations like `spec`, which has goals. Raises `UsageError` if they cannot be exchanged, or for a
        strategy or k that does not exist.
        """
        if strategy not in STRATEGIES:
            raise UsageError(f"unknown way of relabelling {strategy!r}: choose one of {', '.join(STRATEGIES)}")
        if k < 1:
            raise UsageError(f"her-k must be at least 1, got {k}")
        achieved, desired = spec.obs[ACHIEVED].size, spec.obs[DESIRED].size
        if achieved != desired:
            raise UsageError(
                f"--her wants goals that can be achieved, but here {achieved} numbers are achieved "
                f"and {desired} are desired: leave it out"
            )
        return cls(reward, strategy, k, horizon)

    def draw(
        self, rows: Recorded, key: PRNGKeyArray, n: int, oldest: Int[Array, ""], size: Int[Array, ""], stride: int = 1
    ) -> Transition:
        """`n` steps, relabelled. `rows` is a ring of which `size` rows from slot `oldest` on are in use; the successor
        of a row lies `stride` rows after it: the number of environments that were recorded in turn.
        """
        k_row, k_whether, k_which = jr.split(key, 3)
        age = _draw_ages(rows.last, k_row, n, oldest, size, stride, self.horizon)
        before, after, ended = self._reach(rows.last, age, oldest, size, stride)
        offset = self._offset(k_which, before, after)
        relabel = jr.bernoulli(k_whether, self.k / (self.k + 1), (n,)) & ended
        if self.strategy == "future":
            relabel = relabel & (after > 0)
        slots = lambda ages: (oldest + ages) % rows.last.shape[0]
        step = jax.tree.map(lambda x: x[slots(age)], rows.transition)
        reached = rows.transition.next_obs[ACHIEVED][slots(age + stride * jnp.where(relabel, offset, 0))]
        goal = jnp.where(relabel[:, None], reached, step.obs[DESIRED])
        reward = jnp.where(relabel, self.reward(step.next_obs[ACHIEVED], goal), step.reward)
        obs, next_obs = step.obs | {DESIRED: goal}, step.next_obs | {DESIRED: goal}
        return Transition(obs, step.action, reward, step.discount, next_obs)

    def _offset(self, key: PRNGKeyArray, before: Int[Array, " n"], after: Int[Array, " n"]) -> Int[Array, " n"]:
        """How many steps after the drawn one lies the step whose next state has the new goal."""
        if self.strategy == "final":
            return after
        if self.strategy == "episode":
            return _below(key, before + after + 1) - before
        return _below(key, jnp.maximum(after, 1))

    def _reach(
        self, last: Bool[Array, " c"], age: Int[Array, " n"], oldest: Int[Array, ""], size: Int[Array, ""], stride: int
    ) -> tuple[Int[Array, " n"], Int[Array, " n"], Bool[Array, " n"]]:
        """How many steps of its episode lie before each row and after it, and whether the episode has ended."""
        ahead = jnp.arange(self.horizon, dtype=jnp.int32)
        ages = age[:, None] + stride * ahead[None, :]
        end = last[(oldest + ages) % last.shape[0]] & (ages < size)
        after, ended = jnp.argmax(end, axis=1).astype(jnp.int32), end.any(1)
        if self.strategy != "episode":
            return jnp.zeros_like(after), after, ended
        ages = age[:, None] - stride * (1 + ahead)[None, :]
        edge = last[(oldest + ages) % last.shape[0]] | (ages < 0)
        return jnp.argmax(edge, axis=1).astype(jnp.int32), after, ended


def _draw_ages(
    last: Bool[Array, " c"],
    key: PRNGKeyArray,
    n: int,
    oldest: Int[Array, ""],
    size: Int[Array, ""],
    stride: int,
    horizon: int,
) -> Int[Array, " n"]:
    """The ages, counted from the oldest row, of `n` rows uniform over those of ended episodes; over all rows where
    there are none.
    """
    envs = jnp.arange(stride, dtype=jnp.int32)
    back = jnp.arange(horizon, dtype=jnp.int32)
    # The newest `stride` rows are one of each environment; whatever follows an environment's last end is unfinished.
    ages = size - stride + envs[:, None] - stride * back[None, :]
    ends = last[(oldest + ages) % last.shape[0]] & (ages >= 0)
    unfinished = jnp.where(ends.any(1), jnp.argmax(ends, axis=1).astype(jnp.int32), horizon)
    first = (envs + size) % stride  # the age of each environment's oldest row
    held = (size - first + stride - 1) // stride
    count = jnp.maximum(held - unfinished, 0)
    total = count.sum(dtype=jnp.int32)
    draw = _below(key, jnp.broadcast_to(jnp.maximum(jnp.where(total > 0, total, size), 1), (n,)))
    until = jnp.cumsum(count, dtype=jnp.int32)
    env = jnp.minimum(jnp.searchsorted(until, draw, side="right"), stride - 1)
    among = first[env] + stride * (draw - (until - count)[env])
    return jnp.where(total > 0, among, draw)


def _below(key: PRNGKeyArray, limit: Int[Array, " n"]) -> Int[Array, " n"]:
    """Integers uniform on 0 ... limit - 1, each with a limit of its own."""
    return jr.randint(key, limit.shape, 0, limit)
