"""Sources: where batches come from. Everything here is traced; host environments hand their rows to `receive`."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.batches import Transition
from trimtab.core import AbstractEnv, AbstractPolicy, Spec
from trimtab.data.buffer import Buffer
from trimtab.envs.wrappers import AutoReset

RECENT = 100
"""Finished episodes that `rollout/ep_rew_mean` is taken over, as in Stable-Baselines3."""


class AbstractSource(eqx.Module):
    """Where batches come from. `state` is a PyTree of arrays which the loop carries, donates and checkpoints."""

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> Any:
        """The state before the first update."""

    @abc.abstractmethod
    def receive(self, state: Any, items: Any) -> Any:
        """The state with rows that came from the host (leading axis: environments)."""

    @abc.abstractmethod
    def advance(self, explorer: AbstractPolicy, state: Any, key: PRNGKeyArray) -> Any:
        """The state after acting once with `explorer` in every environment that lives on the device."""

    @abc.abstractmethod
    def batch(self, state: Any, key: PRNGKeyArray) -> Any:
        """A random batch for one update."""

    @abc.abstractmethod
    def stored(self, state: Any) -> Any:
        """The part of `state` that a checkpoint keeps, without unused rows. Host side only."""

    @abc.abstractmethod
    def restored(self, stored: Any) -> Any:
        """The inverse of `stored`."""


def _transition(spec: Spec) -> Transition:
    """One all-zero transition without a batch axis: the template of a replay buffer."""
    obs, action = spec.zero_obs(), spec.zero_action()
    scalar = jnp.zeros(())
    # Transition's shapes have a batch axis, which the template lacks: build it row-wise and strip the axis.
    row = jax.tree.map(lambda x: x[None], (obs, action, scalar))
    return jax.tree.map(lambda x: x[0], Transition(row[0], row[1], row[2], row[2], row[0]))


class OfflineSource(AbstractSource):
    """A fixed data set, held on the device. Its state is empty."""

    data: Transition
    batch_size: int = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Any:
        """Nothing: a data set does not change."""
        return ()

    def receive(self, state: Any, items: Any) -> Any:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: Any, key: PRNGKeyArray) -> Any:
        """Nothing to act in."""
        return state

    def batch(self, state: Any, key: PRNGKeyArray) -> Transition:
        """`batch_size` transitions drawn uniformly with replacement."""
        rows = jr.randint(key, (self.batch_size,), 0, self.data.reward.shape[0])
        return jax.tree.map(lambda x: x[rows], self.data)

    def stored(self, state: Any) -> Any:
        """Nothing: the data set is read again."""
        return state

    def restored(self, stored: Any) -> Any:
        """Nothing: the data set is read again."""
        return stored


class ReplaySource(AbstractSource):
    """A replay buffer fed by environments on the host, optionally started from a data set (offline-to-online)."""

    template: Transition
    dataset: Transition | None
    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec, capacity: int, batch_size: int, dataset: Transition | None = None) -> "ReplaySource":
        """Room for `capacity` transitions of `spec`; `dataset` rows are there from the start."""
        return cls(_transition(spec), dataset, capacity, batch_size)

    def init(self, key: PRNGKeyArray) -> Buffer:
        """An empty buffer, or one that starts with the data set's newest rows."""
        buffer = Buffer.create(self.template, self.capacity)
        if self.dataset is None:
            return buffer
        return buffer.extend(jax.tree.map(lambda x: x[-self.capacity :], self.dataset))

    def receive(self, state: Buffer, items: Transition) -> Buffer:
        """The buffer with one row an environment more."""
        return state.extend(items)

    def advance(self, explorer: AbstractPolicy, state: Buffer, key: PRNGKeyArray) -> Buffer:
        """Nothing: the environments are on the host."""
        return state

    def batch(self, state: Buffer, key: PRNGKeyArray) -> Transition:
        """`batch_size` transitions drawn uniformly with replacement."""
        return state.sample(key, self.batch_size)

    def stored(self, state: Buffer) -> Buffer:
        """The rows in use."""
        return state.trimmed()

    def restored(self, stored: Buffer) -> Buffer:
        """The rows in use, with room for the others."""
        return stored.padded(self.capacity)


class WorldState(eqx.Module):
    """The state of a `WorldSource`: `n` copies of an own world, their episodes so far, and the replay buffer."""

    buffer: Buffer
    worlds: Any
    obs: PyTree[Float[Array, "..."]]
    episode_return: Float[Array, " n"]
    episode_length: Int[Array, " n"]
    recent_returns: Float[Array, " recent"]
    recent_lengths: Float[Array, " recent"]
    finished: Int[Array, ""]


class WorldSource(AbstractSource):
    """`num_envs` copies of an own JAX world, stepped inside the compiled loop, with a replay buffer."""

    env: AutoReset
    num_envs: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    @classmethod
    def create(cls, env: AbstractEnv, num_envs: int, capacity: int, batch_size: int) -> "WorldSource":
        """Wraps `env` so that its time limit truncates and ended episodes restart."""
        return cls(AutoReset.create(env), num_envs, capacity, batch_size)

    def init(self, key: PRNGKeyArray) -> WorldState:
        """Fresh episodes and an empty buffer."""
        worlds, obs = jax.vmap(self.env.reset)(jr.split(key, self.num_envs))
        return WorldState(
            buffer=Buffer.create(_transition(self.env.spec), self.capacity),
            worlds=worlds,
            obs=obs,
            episode_return=jnp.zeros(self.num_envs),
            episode_length=jnp.zeros(self.num_envs, jnp.int32),
            recent_returns=jnp.full((RECENT,), jnp.nan),
            recent_lengths=jnp.full((RECENT,), jnp.nan),
            finished=jnp.int32(0),
        )

    def receive(self, state: WorldState, items: Any) -> WorldState:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: WorldState, key: PRNGKeyArray) -> WorldState:
        """One step in each copy; ended episodes restart and are counted."""
        k_act, k_env = jr.split(key)
        action = explorer(state.obs, k_act)
        worlds, out, next_obs = jax.vmap(self.env.step)(state.worlds, action, jr.split(k_env, self.num_envs))
        discount = 1.0 - out.terminated.astype(jnp.float32)
        rows = Transition(state.obs, action, out.reward, discount, out.obs)
        done = out.terminated | out.truncated
        total, length = state.episode_return + out.reward, state.episode_length + 1
        # The k-th episode to end takes the k-th slot of the ring; the others aim past its end and are dropped.
        slots = jnp.where(done, (state.finished + jnp.cumsum(done, dtype=jnp.int32) - 1) % RECENT, RECENT)
        return WorldState(
            buffer=state.buffer.extend(rows),
            worlds=worlds,
            obs=next_obs,
            episode_return=jnp.where(done, 0.0, total),
            episode_length=jnp.where(done, 0, length),
            recent_returns=state.recent_returns.at[slots].set(total, mode="drop"),
            recent_lengths=state.recent_lengths.at[slots].set(length.astype(jnp.float32), mode="drop"),
            finished=state.finished + done.sum(dtype=jnp.int32),
        )

    def batch(self, state: WorldState, key: PRNGKeyArray) -> Transition:
        """`batch_size` transitions drawn uniformly with replacement."""
        return state.buffer.sample(key, self.batch_size)

    def stored(self, state: WorldState) -> WorldState:
        """The state with the rows in use."""
        return eqx.tree_at(lambda s: s.buffer, state, state.buffer.trimmed())

    def restored(self, stored: WorldState) -> WorldState:
        """The state with room for all rows."""
        return eqx.tree_at(lambda s: s.buffer, stored, stored.buffer.padded(self.capacity))
