"""Sources of on-policy agents: each update learns from the steps that its own policy has just taken, and from no other.

The state keeps the newest rollout, since `advance` (own worlds) or `receive` (the host) makes it and `batch` gives it
to the agent; a checkpoint leaves it out, for it has been learnt from by then.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.batches import AnyArray, Rollout
from trimtab.core import AbstractActor, AbstractEnv, AbstractPolicy, Spec, forget
from trimtab.data.episodes import Episodes
from trimtab.data.sources import AbstractSource
from trimtab.envs.wrappers import AutoReset


class Acting(eqx.Module):
    """Where `n` environments stand between two rollouts, and the newest of these."""

    rollout: Rollout
    memory: Any
    """of the explorer, before its next step."""
    discounted: Float[AnyArray, " n"]
    """the discounted rewards of each episode so far."""


def _empty(obs: Any, action: Array, memory: Any, steps: int, n: int) -> Acting:
    """Nothing done yet by `n` environments; observation, action and memory have the shapes of one of them."""
    numbers, wide = lambda: jnp.zeros((steps, n)), lambda x: jnp.zeros((steps, n, *x.shape), x.dtype)
    rollout = Rollout(
        obs=jax.tree.map(wide, obs),
        action=wide(action),
        reward=numbers(),
        discount=numbers(),
        next_obs=jax.tree.map(wide, obs),
        last=jnp.zeros((steps, n), bool),
        discounted=numbers(),
        memory=jax.tree.map(wide, memory),
    )
    return Acting(rollout, jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), memory), jnp.zeros((n,)))


def _without_rollout(acting: Acting) -> Acting:
    """On the host, for a checkpoint."""
    cut = lambda x: np.zeros((0, *x.shape[1:]), x.dtype)
    kept = jax.tree.map(np.asarray, (acting.memory, acting.discounted))
    return eqx.tree_at(
        lambda a: (a.memory, a.discounted, a.rollout), acting, (*kept, jax.tree.map(cut, acting.rollout))
    )


def _with_rollout(acting: Acting, steps: int) -> Acting:
    room = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape[1:]), x.dtype), acting.rollout)
    kept = jax.tree.map(jnp.asarray, (acting.memory, acting.discounted))
    return eqx.tree_at(lambda a: (a.memory, a.discounted, a.rollout), acting, (*kept, room))


class RolloutSource(AbstractSource):
    """`n_steps` steps of each of `num_envs` environments on the host for each update; `fit` makes them."""

    obs: PyTree[Float[Array, "..."]]
    action: Array
    memory: Any
    """zeros like one environment's observation, action and memory of the explorer."""
    gamma: float = eqx.field(static=True)
    num_envs: int = eqx.field(static=True)
    n_steps: int = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec, memory: Any, gamma: float, num_envs: int, n_steps: int) -> "RolloutSource":
        """`memory` is like the explorer's for one environment."""
        return cls(spec.zero_obs(), spec.zero_action(), memory, gamma, num_envs, n_steps)

    def init(self, key: PRNGKeyArray) -> Acting:
        """At the start of episodes, with a rollout of zeros."""
        return _empty(self.obs, self.action, self.memory, self.n_steps, self.num_envs)

    def receive(self, state: Acting, items: Acting) -> Acting:
        """The newest rollout, and where it left the environments."""
        return items

    def advance(self, explorer: AbstractPolicy, state: Acting, key: PRNGKeyArray) -> Acting:
        """Nothing: the environments are on the host."""
        return state

    def batch(self, state: Acting, key: PRNGKeyArray) -> Rollout:
        """The newest rollout."""
        return state.rollout

    def cut(self, state: Acting) -> Acting:
        """The state where all environments begin new episodes."""
        return eqx.tree_at(
            lambda a: (a.memory, a.discounted), state, jax.tree.map(jnp.zeros_like, (state.memory, state.discounted))
        )

    def stored(self, state: Acting) -> Acting:
        """Without the rollout."""
        return _without_rollout(state)

    def restored(self, stored: Acting) -> Acting:
        """With room for a rollout."""
        return _with_rollout(stored, self.n_steps)


class WorldActing(eqx.Module):
    """The state of a `WorldRollouts`: `n` copies of an own world, what is seen in them, and their episodes."""

    acting: Acting
    worlds: Any
    obs: PyTree[Float[Array, "..."]]
    episodes: Episodes


class WorldRollouts(AbstractSource):
    """`n_steps` steps of each of `num_envs` copies of an own JAX world for each update, inside the compiled loop."""

    env: AutoReset
    memory: Any
    """zeros like the explorer's memory for one environment."""
    gamma: float = eqx.field(static=True)
    num_envs: int = eqx.field(static=True)
    n_steps: int = eqx.field(static=True)

    @classmethod
    def create(cls, env: AbstractEnv, memory: Any, gamma: float, num_envs: int, n_steps: int) -> "WorldRollouts":
        """Wraps `env` so that its time limit truncates and ended episodes restart."""
        return cls(AutoReset.create(env), memory, gamma, num_envs, n_steps)

    @property
    def steps_per_update(self) -> int:
        """Environment steps before each update."""
        return self.num_envs * self.n_steps

    def init(self, key: PRNGKeyArray) -> WorldActing:
        """Fresh episodes, with a rollout of zeros."""
        worlds, obs = jax.vmap(self.env.reset)(jr.split(key, self.num_envs))
        spec = self.env.spec
        acting = _empty(spec.zero_obs(), spec.zero_action(), self.memory, self.n_steps, self.num_envs)
        return WorldActing(acting, worlds, obs, Episodes.create(obs, self.env.spec))

    def receive(self, state: WorldActing, items: Any) -> WorldActing:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: WorldActing, key: PRNGKeyArray) -> WorldActing:
        """A rollout by `explorer`, which must be an `AbstractActor`; ended episodes restart and are counted."""
        assert isinstance(explorer, AbstractActor)

        def step(carry: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
            worlds, obs, memory, discounted, episodes = carry
            k_act, k_env = jr.split(key)
            drawn, after = explorer.draw(obs, memory, k_act)
            stepped = jax.vmap(self.env.step)(worlds, explorer.applied(drawn), jr.split(k_env, self.num_envs))
            worlds, out, next_obs = stepped
            episodes, last = episodes.after(out, next_obs, self.env.spec)
            discounted = self.gamma * discounted + out.reward
            discount = 1.0 - out.terminated.astype(jnp.float32)
            row = (obs, drawn, out.reward, discount, out.obs, last, discounted, memory)
            after = forget(explorer, after, last)
            return (worlds, next_obs, after, jnp.where(last, 0.0, discounted), episodes), row

        start = (state.worlds, state.obs, state.acting.memory, state.acting.discounted, state.episodes)
        end, rows = jax.lax.scan(step, start, jr.split(key, self.n_steps))
        worlds, obs, memory, discounted, episodes = end
        return WorldActing(Acting(Rollout(*rows), memory, discounted), worlds, obs, episodes)

    def batch(self, state: WorldActing, key: PRNGKeyArray) -> Rollout:
        """The newest rollout."""
        return state.acting.rollout

    def stored(self, state: WorldActing) -> WorldActing:
        """Without the rollout."""
        return eqx.tree_at(lambda s: s.acting, state, _without_rollout(state.acting))

    def restored(self, stored: WorldActing) -> WorldActing:
        """With room for a rollout."""
        return eqx.tree_at(lambda s: s.acting, stored, _with_rollout(stored.acting, self.n_steps))
