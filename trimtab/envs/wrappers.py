"""Wrappers of own worlds: the time limit, and restarting ended episodes inside compiled loops."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.core import AbstractEnv, Spec, Step


class Timed(eqx.Module):
    """A world's state and the steps taken in this episode."""

    inner: Any
    elapsed: Int[Array, ""]


class TimeLimit(eqx.Module):
    """Sets `truncated` on the step that reaches `env.max_steps` without terminating."""

    env: AbstractEnv

    @property
    def spec(self) -> Spec:
        """The world's."""
        return self.env.spec

    def reset(self, key: PRNGKeyArray) -> tuple[Timed, PyTree[Float[Array, "..."]]]:
        """A fresh episode at step 0."""
        state, obs = self.env.reset(key)
        return Timed(state, jnp.int32(0)), obs

    def step(self, state: Timed, action: Array, key: PRNGKeyArray) -> tuple[Timed, Step]:
        """The world's step, truncated at the limit. Termination wins over truncation."""
        inner, out = self.env.step(state.inner, action, key)
        elapsed = state.elapsed + 1
        truncated = (elapsed >= self.env.max_steps) & ~out.terminated
        return Timed(inner, elapsed), Step(out.obs, out.reward, out.terminated, truncated, out.info)


class AutoReset(eqx.Module):
    """Restarts an ended episode at once. Only the ended world moves to a new episode; under `vmap` the others go on."""

    env: TimeLimit

    @classmethod
    def create(cls, env: AbstractEnv) -> "AutoReset":
        """`env` with its time limit and automatic restarts."""
        return cls(TimeLimit(env))

    @property
    def spec(self) -> Spec:
        """The world's."""
        return self.env.spec

    def reset(self, key: PRNGKeyArray) -> tuple[Timed, PyTree[Float[Array, "..."]]]:
        """A fresh episode."""
        return self.env.reset(key)

    def step(self, state: Timed, action: Array, key: PRNGKeyArray) -> tuple[Timed, Step, PyTree[Float[Array, "..."]]]:
        """The next state, the step (whose `obs` is the true final one), and the observation to act on next."""
        k_step, k_reset = jr.split(key)
        state, out = self.env.step(state, action, k_step)
        fresh, first = self.env.reset(k_reset)
        done = out.terminated | out.truncated
        choose = lambda new, old: jnp.where(done, new, old)
        return jax.tree.map(choose, fresh, state), out, jax.tree.map(choose, first, out.obs)
