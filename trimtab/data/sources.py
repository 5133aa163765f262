"""Sources: where batches come from. Everything here is traced; host environments hand their rows to `receive`."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.batches import Chunk, Recorded, Sarsa, Scored, ToGo, Transition, Weighted
from trimtab.core import AbstractEnv, AbstractPolicy, Spec
from trimtab.data import windows
from trimtab.data.buffer import Buffer
from trimtab.data.episodes import Episodes
from trimtab.data.her import Hindsight
from trimtab.envs.plans import Plan
from trimtab.envs.wrappers import AutoReset


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


def _template(spec: Spec, recorded: bool) -> Transition | Recorded:
    """One row of a replay buffer: with the end of its episode where batches look at successive rows."""
    row = _transition(spec)
    if not recorded:
        return row
    rows = jax.tree.map(lambda x: x[None], row)
    return jax.tree.map(lambda x: x[0], Recorded(rows, jnp.zeros((1,), bool)))


def _filled(buffer: Buffer, dataset: Transition | Recorded | None, num_envs: int) -> Buffer:
    """An empty buffer, or one that starts with the data set's newest rows."""
    if dataset is None:
        return buffer
    if isinstance(dataset, Recorded):
        dataset = windows.interleaved(dataset, num_envs)
    return buffer.extend(jax.tree.map(lambda x: x[-buffer.capacity :], dataset))


class Returns(eqx.Module):
    """How the returns that follow rows are counted."""

    after_cut: Float[Array, ""]
    """what an episode is worth after it was cut."""
    gamma: float = eqx.field(static=True)


def _draw(
    rows: Recorded,
    key: PRNGKeyArray,
    n: int,
    chunk: int | None,
    returns: Returns | None,
    oldest: Int[Array, ""],
    size: Int[Array, ""],
    num_envs: int = 1,
) -> Chunk | Sarsa | ToGo:
    """`n` windows of `chunk` steps, or transitions with the next action, or with their `returns`."""
    if returns is not None:
        return windows.draw_with_return(rows, key, n, returns.gamma, returns.after_cut, oldest, size, num_envs)
    if chunk is None:
        return windows.draw_with_next(rows, key, n, oldest, size, num_envs)
    return windows.draw(rows, key, n, chunk, oldest, size, num_envs)


@dataclass(frozen=True)
class Replay:
    """What is made of single rows of a buffer."""

    n_step: int = 1
    """rewards that are added up, discounted by `gamma`, before the next observation."""
    gamma: float = 1.0
    prioritised: bool = False
    """whether rows are drawn by their priorities (`Weighted`)."""


def _sample(
    buffer: Buffer,
    key: PRNGKeyArray,
    n: int,
    chunk: int | None,
    returns: Returns | None,
    hindsight: Hindsight | None,
    num_envs: int,
    replay: Replay,
) -> Transition | Chunk | Sarsa | ToGo | Weighted:
    """`n` rows, windows, transitions with the next action, with returns or with other goals, drawn uniformly with
    replacement, or by their priorities."""
    oldest = (buffer.head - buffer.size) % buffer.capacity
    if replay != Replay():
        slots, density = buffer.slots(key, n)
        if replay.n_step > 1:
            steps = (replay.n_step, replay.gamma, oldest, buffer.size, num_envs)
            rows = windows.n_step(buffer.rows, slots, *steps)
        else:
            rows = jax.tree.map(lambda x: x[slots], buffer.rows)
        return Weighted(rows, slots, density) if replay.prioritised else rows
    if not isinstance(buffer.rows, Recorded):
        return buffer.sample(key, n)
    if hindsight is not None:
        return hindsight.draw(buffer.rows, key, n, oldest, buffer.size, num_envs)
    return _draw(buffer.rows, key, n, chunk, returns, oldest, buffer.size, num_envs)


def _fixed(
    data: Transition | Recorded, key: PRNGKeyArray, n: int, chunk: int | None, returns: Returns | None
) -> Transition | Chunk | Sarsa | ToGo:
    """The same of a data set."""
    if isinstance(data, Recorded):
        return _draw(data, key, n, chunk, returns, jnp.int32(0), jnp.int32(data.last.shape[0]))
    rows = jr.randint(key, (n,), 0, data.reward.shape[0])
    return jax.tree.map(lambda x: x[rows], data)


def _in_turn(one: Any, other: Any) -> Any:
    """The rows of two batches in turn, so that a slice of the whole has as many of both. `one` may have a row more."""
    first, second = (jax.tree.leaves(batch)[0].shape[0] for batch in (one, other))
    place = np.arange(first + second)
    order = place // 2 + (place % 2) * first
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y])[order], one, other)


def _mixed(
    dataset: Transition | Recorded | None,
    draw: Callable[[PRNGKeyArray, int], Any],
    key: PRNGKeyArray,
    n: int,
    chunk: int | None,
    returns: Returns | None,
) -> Any:
    """`n` rows that `draw` takes from a buffer; with a data set only half of them, in turn with rows of that."""
    if dataset is None:
        return draw(key, n)
    k_data, k_online = jr.split(key)
    return _in_turn(_fixed(dataset, k_data, n - n // 2, chunk, returns), draw(k_online, n // 2))


class OfflineSource(AbstractSource):
    """A fixed data set, held on the device. Its state is empty.

    Where `data` says where episodes ended (`Recorded`), batches are windows of `chunk` steps (`Chunk`), transitions
    with the `returns` that followed them (`ToGo`), or without either transitions with the next action (`Sarsa`).
    """

    data: Transition | Recorded
    batch_size: int = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True, default=None)
    returns: Returns | None = None

    def init(self, key: PRNGKeyArray) -> Any:
        """Nothing: a data set does not change."""
        return ()

    def receive(self, state: Any, items: Any) -> Any:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: Any, key: PRNGKeyArray) -> Any:
        """Nothing to act in."""
        return state

    def batch(self, state: Any, key: PRNGKeyArray) -> Transition | Chunk | Sarsa | ToGo | Weighted:
        """`batch_size` transitions or windows drawn uniformly with replacement."""
        return _fixed(self.data, key, self.batch_size, self.chunk, self.returns)

    def stored(self, state: Any) -> Any:
        """Nothing: the data set is read again."""
        return state

    def restored(self, stored: Any) -> Any:
        """Nothing: the data set is read again."""
        return stored


class Scores(eqx.Module):
    """What an agent had to say of each row of a data set."""

    each: Float[Array, " n"]
    least: Float[Array, ""]
    """the least of them, or what the agent takes for it."""


class ScoredSource(AbstractSource):
    """A fixed data set, held on the device, with the agent's score of each row as its state (`Scored`)."""

    data: Transition
    batch_size: int = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> Scores:
        """No scores yet: NaN."""
        return Scores(*(jnp.full(shape, jnp.nan, jnp.float32) for shape in (self.data.reward.shape, ())))

    def receive(self, state: Scores, items: Any) -> Scores:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: Scores, key: PRNGKeyArray) -> Scores:
        """Nothing to act in."""
        return state

    def batch(self, state: Scores, key: PRNGKeyArray) -> Scored:
        """`batch_size` transitions drawn uniformly with replacement, and their scores."""
        rows = jr.randint(key, (self.batch_size,), 0, self.data.reward.shape[0])
        return Scored(jax.tree.map(lambda x: x[rows], self.data), state.each[rows], state.least)

    def stored(self, state: Scores) -> Scores:
        """All scores: the networks that gave them may have moved since."""
        return jax.tree.map(np.asarray, state)

    def restored(self, stored: Scores) -> Scores:
        """All scores."""
        return jax.tree.map(jnp.asarray, stored)


class ReplaySource(AbstractSource):
    """A replay buffer fed by environments on the host, optionally with a data set (offline-to-online): the buffer
    starts with it, or with `symmetric` every second row of a batch is the data set's and the buffer starts empty.

    With `chunk`, batches are windows of that many steps of one environment (`Chunk`), with `next_action` they are
    transitions with the next action (`Sarsa`), with `returns` with what followed them (`ToGo`), with `hindsight`
    transitions of which some have another goal; in all these cases rows are `Recorded`. `replay` adds up rewards of
    several steps, and draws rows by their priorities (`Weighted`).
    """

    template: Transition | Recorded
    dataset: Transition | Recorded | None
    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    hindsight: Hindsight | None
    chunk: int | None = eqx.field(static=True)
    num_envs: int = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)
    replay: Replay = eqx.field(static=True, default=Replay())
    returns: Returns | None = None

    @classmethod
    def create(
        cls,
        spec: Spec,
        capacity: int,
        batch_size: int,
        dataset: Transition | Recorded | None = None,
        *,
        chunk: int | None = None,
        next_action: bool = False,
        hindsight: Hindsight | None = None,
        num_envs: int = 1,
        symmetric: bool = False,
        replay: Replay = Replay(),
        returns: Returns | None = None,
    ) -> "ReplaySource":
        """Room for `capacity` transitions of `spec`; `dataset` rows are there from the start unless `symmetric`.

        With `chunk`, `next_action` or `returns` the data set is `Recorded`; `num_envs` rows come at once, one an
        environment.
        """
        several = chunk is not None or next_action or replay.n_step > 1
        template = _template(spec, several or hindsight is not None or returns is not None)
        return cls(template, dataset, capacity, batch_size, hindsight, chunk, num_envs, symmetric, replay, returns)

    def init(self, key: PRNGKeyArray) -> Buffer:
        """An empty buffer, or one that starts with the data set's newest rows."""
        dataset = None if self.symmetric else self.dataset
        buffer = Buffer.create(self.template, self.capacity, prioritised=self.replay.prioritised)
        return _filled(buffer, dataset, self.num_envs)

    def receive(self, state: Buffer, items: Transition | Recorded) -> Buffer:
        """The buffer with one row an environment more."""
        return state.extend(items)

    def advance(self, explorer: AbstractPolicy, state: Buffer, key: PRNGKeyArray) -> Buffer:
        """Nothing: the environments are on the host."""
        return state

    def batch(self, state: Buffer, key: PRNGKeyArray) -> Transition | Chunk | Sarsa | ToGo | Weighted:
        """`batch_size` transitions or windows drawn uniformly with replacement; with `symmetric` from both in turn."""
        how = (self.chunk, self.returns, self.hindsight, self.num_envs, self.replay)
        draw = lambda key, n: _sample(state, key, n, *how)
        return _mixed(self.dataset if self.symmetric else None, draw, key, self.batch_size, self.chunk, self.returns)

    def reweighed(self, state: Buffer, slots: Array, priority: Array) -> Buffer:
        """With new priorities of some rows."""
        return state.reweighed(slots, priority)

    def cut(self, state: Buffer) -> Buffer:
        """The state whose newest rows end their episodes: what comes next does not go on from them."""
        if not isinstance(self.template, Recorded):
            return state
        newest = (state.head - 1 - jnp.arange(self.num_envs, dtype=jnp.int32)) % state.capacity
        return eqx.tree_at(lambda buffer: buffer.rows.last, state, state.rows.last.at[newest].set(True))

    def stored(self, state: Buffer) -> Buffer:
        """The rows in use."""
        return state.trimmed()

    def restored(self, stored: Buffer) -> Buffer:
        """The rows in use, with room for the others."""
        return stored.padded(self.capacity)


class WorldState(eqx.Module):
    """The state of a `WorldSource`: `n` copies of an own world, their episodes, and the replay buffer."""

    buffer: Buffer
    worlds: Any
    obs: PyTree[Float[Array, "..."]]
    episodes: Episodes
    plan: Plan | None = None
    """what the explorer has planned, where it plans."""


class WorldSource(AbstractSource):
    """`num_envs` copies of an own JAX world, stepped inside the compiled loop, with a replay buffer, optionally with a
    data set (offline-to-online), which is used as in `ReplaySource`.

    With `chunk`, batches are windows of that many steps of one copy (`Chunk`), and the explorer may plan up to that
    many actions at once; with `next_action` they are transitions with the next action (`Sarsa`), with `returns` with
    what followed them (`ToGo`), with `hindsight` transitions of which some have another goal. In all these cases rows
    are `Recorded`. `replay` adds up rewards of several steps, and draws rows by their priorities (`Weighted`).
    """

    env: AutoReset
    hindsight: Hindsight | None
    dataset: Transition | Recorded | None
    num_envs: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    next_action: bool = eqx.field(static=True)
    symmetric: bool = eqx.field(static=True)
    replay: Replay = eqx.field(static=True, default=Replay())
    returns: Returns | None = None

    @classmethod
    def create(
        cls,
        env: AbstractEnv,
        num_envs: int,
        capacity: int,
        batch_size: int,
        dataset: Transition | Recorded | None = None,
        *,
        chunk: int | None = None,
        next_action: bool = False,
        hindsight: Hindsight | None = None,
        symmetric: bool = False,
        replay: Replay = Replay(),
        returns: Returns | None = None,
    ) -> "WorldSource":
        """Wraps `env` so that its time limit truncates and ended episodes restart. With `chunk`, `next_action` or
        `returns` the data set is `Recorded`.
        """
        wrapped = AutoReset.create(env)
        sizes = (num_envs, capacity, batch_size)
        return cls(wrapped, hindsight, dataset, *sizes, chunk, next_action, symmetric, replay, returns)

    @property
    def steps_per_update(self) -> int:
        """Environment steps before each update."""
        return self.num_envs

    @property
    def recorded(self) -> bool:
        """Whether rows say where their episodes ended."""
        several = self.chunk is not None or self.next_action or self.replay.n_step > 1
        return several or self.hindsight is not None or self.returns is not None

    def init(self, key: PRNGKeyArray) -> WorldState:
        """Fresh episodes, and a buffer that is empty or starts with the data set's newest rows."""
        worlds, obs = jax.vmap(self.env.reset)(jr.split(key, self.num_envs))
        template = _template(self.env.spec, self.recorded)
        buffer = Buffer.create(template, self.capacity, prioritised=self.replay.prioritised)
        return WorldState(
            buffer=_filled(buffer, None if self.symmetric else self.dataset, self.num_envs),
            worlds=worlds,
            obs=obs,
            episodes=Episodes.create(obs, self.env.spec),
            plan=self._plan(),
        )

    def _plan(self) -> Plan | None:
        planned = self.chunk is not None and not self.env.spec.discrete
        return Plan.create(self.num_envs, self.chunk or 1, self.env.spec) if planned else None

    def receive(self, state: WorldState, items: Any) -> WorldState:
        """Nothing comes from a host."""
        return state

    def advance(self, explorer: AbstractPolicy, state: WorldState, key: PRNGKeyArray) -> WorldState:
        """One step in each copy; ended episodes restart and are counted."""
        k_act, k_env = jr.split(key)
        ask, plan = lambda: explorer(state.obs, k_act), state.plan
        action, plan = (ask(), None) if plan is None else plan.next(ask)
        worlds, out, next_obs = jax.vmap(self.env.step)(state.worlds, action, jr.split(k_env, self.num_envs))
        discount = 1.0 - out.terminated.astype(jnp.float32)
        rows = Transition(state.obs, action, out.reward, discount, out.obs)
        episodes, done = state.episodes.after(out, next_obs, self.env.spec)
        return WorldState(
            buffer=state.buffer.extend(Recorded(rows, done) if self.recorded else rows),
            worlds=worlds,
            obs=next_obs,
            episodes=episodes,
            plan=None if plan is None else plan.cleared(done),
        )

    def batch(self, state: WorldState, key: PRNGKeyArray) -> Transition | Chunk | Sarsa | ToGo | Weighted:
        """`batch_size` transitions or windows drawn uniformly with replacement; with `symmetric` from both in turn."""
        how = (self.chunk, self.returns, self.hindsight, self.num_envs, self.replay)
        draw = lambda key, n: _sample(state.buffer, key, n, *how)
        return _mixed(self.dataset if self.symmetric else None, draw, key, self.batch_size, self.chunk, self.returns)

    def reweighed(self, state: WorldState, slots: Array, priority: Array) -> WorldState:
        """With new priorities of some rows."""
        return eqx.tree_at(lambda s: s.buffer, state, state.buffer.reweighed(slots, priority))

    def stored(self, state: WorldState) -> WorldState:
        """The state with the rows in use."""
        return eqx.tree_at(lambda s: s.buffer, state, state.buffer.trimmed())

    def restored(self, stored: WorldState) -> WorldState:
        """The state with room for all rows."""
        return eqx.tree_at(lambda s: s.buffer, stored, stored.buffer.padded(self.capacity))
