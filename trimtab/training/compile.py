"""The only place where training is compiled: `jit`, the scan over updates, `vmap` over seeds, and donation."""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.batches import AnyArray, Weighted
from trimtab.core import (
    AbstractActor,
    AbstractAgent,
    AbstractPolicy,
    AbstractScorer,
    AbstractSurprised,
    Metrics,
    UsageError,
)
from trimtab.data.sources import AbstractSource, ReplaySource, ScoredSource, Scores, WorldSource
from trimtab.envs.gym import Stepped
from trimtab.training.threefry import unroll


class Totals(eqx.Module):
    """Sums and counts of metrics over the updates since the last log line; one in which a metric was NaN does not count
    for it. All in one array: a number by itself costs an update about as much as a small layer's bias."""

    both: Float[AnyArray, "*seeds 2 n"]
    """sums, and how many numbers are in them."""
    names: tuple[str, ...] = eqx.field(static=True)

    def added(self, metrics: Metrics) -> "Totals":
        """With the metrics of one more update."""
        values = jnp.stack([metrics[name] for name in self.names])
        missing = jnp.isnan(values)
        return Totals(
            self.both + jnp.stack([jnp.where(missing, 0.0, values), (~missing).astype(jnp.float32)]), self.names
        )

    def named(self) -> dict[str, np.ndarray]:
        """Metric name -> sum and count, (2,) or (2, seeds), on the host."""
        both = np.moveaxis(np.asarray(self.both), -2, 0)
        return {name: both[..., j] for j, name in enumerate(self.names)}

    @classmethod
    def of(cls, named: dict[str, np.ndarray]) -> "Totals":
        """The inverse of `named`."""
        both = np.moveaxis(np.stack(list(named.values()), axis=-1), 0, -2)
        return cls(jnp.asarray(both), tuple(named))


def no_totals(source: AbstractSource, agent: AbstractAgent, state: Any, seeds: int | None) -> Totals:
    """Empty sums for the metrics that `agent.update` returns. Traces the update without running it."""

    def metrics(agent: AbstractAgent, state: Any) -> Any:
        key = jr.key(0)
        return agent.update(source.batch(state, key), key)[1]

    if seeds is not None:
        agent, state = jax.eval_shape(lambda tree: jax.tree.map(lambda x: x[0] if x.ndim else x, tree), (agent, state))
    names = tuple(jax.eval_shape(metrics, agent, state))
    return Totals(jnp.zeros((*(() if seeds is None else (seeds,)), 2, len(names))), names)


def cleared(totals: Totals) -> Totals:
    """Empty sums in their place."""
    return Totals(jnp.zeros_like(totals.both), totals.names)


def _chunk(
    source: AbstractSource,
    agent: AbstractAgent,
    state: Any,
    totals: Totals,
    run_key: PRNGKeyArray,
    items: Any,
    updates: Array,
) -> tuple[AbstractAgent, Any, Totals]:
    """Receive host rows, then `updates` times: act (own worlds), sample, update.

    Each update's randomness is a function of (run_key, agent.step) alone, so results do not depend on how updates are
    grouped into chunks. `updates` is a traced number: one compilation serves every length.
    """
    if items is not None:
        state = source.receive(state, items)

    def body(_: Array, carry: tuple[AbstractAgent, Any, Totals]) -> tuple[AbstractAgent, Any, Totals]:
        agent, state, totals = carry
        k_advance, k_batch, k_update = jr.split(jr.fold_in(run_key, agent.step), 3)
        state = source.advance(agent.explorer, state, k_advance)
        batch = source.batch(state, k_batch)
        agent, metrics = agent.update(batch, k_update)
        if isinstance(batch, Weighted):
            assert isinstance(agent, AbstractSurprised) and isinstance(source, ReplaySource | WorldSource)
            state = source.reweighed(state, batch.slot, agent.surprise(batch))
        return agent, state, totals.added(metrics)

    return jax.lax.fori_loop(0, updates, body, (agent, state, totals))


chunk = partial(jax.jit, donate_argnames=("agent", "state", "totals"))(_chunk)
"""`_chunk` compiled; agent, source state and totals are donated."""


@partial(jax.jit, donate_argnames=("agent", "state", "totals"))
def _chunk_seeds(
    source: AbstractSource, agent: AbstractAgent, state: Any, totals: Totals, run_key: Any, items: Any, updates: Array
) -> Any:
    axes = seed_axes(agent)
    mapped = jax.vmap(_chunk, in_axes=(None, axes, 0, 0, 0, None, None), out_axes=(axes, 0, 0))
    return mapped(source, agent, state, totals, run_key, items, updates)


def chunk_seeds(
    source: AbstractSource, agent: AbstractAgent, state: Any, totals: Any, run_key: Any, items: Any, updates: Any
) -> Any:
    """`_chunk` over a leading seed axis of agent, state, totals and key; agent, state and totals are donated.

    On a CPU the seeds are shared out among the cores, a thread each: XLA runs one program's small operations on one
    core, one after the other. `agent.step` is one number for all seeds, so that delayed updates stay a branch rather
    than becoming a select.
    """
    shares = min(_cores(), run_key.shape[0])
    if shares == 1:
        return _chunk_seeds(source, agent, state, totals, run_key, items, updates)

    def work(part: Any) -> Any:
        # Each thread waits for its own results: JAX runs programs that one thread starts one after the other.
        return jax.block_until_ready(_chunk_seeds(source, *part, items, updates))

    parts = _split((agent, state, totals, run_key), shares)
    _free((agent, state, totals))
    with ThreadPoolExecutor(shares) as pool:
        parts = list(pool.map(work, parts))
    whole = _join(parts)
    _free(parts)
    return whole


def _cores() -> int:
    """Cores this process may use; 1 where JAX does not compute on the CPU."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@partial(jax.jit, static_argnames="shares")
def _split(carry: Any, shares: int) -> list[Any]:
    """Cuts along the seed axis into `shares` parts, whose lengths differ by 1 at most; `step` has no such axis."""
    seeds = carry[-1].shape[0]
    bounds = [seeds * i // shares for i in range(shares + 1)]
    cut = lambda a, b: jax.tree.map(lambda x: x[a:b] if x.ndim else x, carry)
    return [cut(a, b) for a, b in pairwise(bounds)]


@jax.jit
def _join(parts: list[Any]) -> Any:
    """The inverse of `_split`."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs) if xs[0].ndim else xs[0], *parts)


def _free(tree: Any) -> None:
    """Gives back the memory of a tree that has been copied: what donation does inside one program."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()


def seed_axes(agent: AbstractAgent) -> Any:
    """The `vmap` axes of an agent with seeds: 0 for every leaf, none for `step`."""
    return eqx.tree_at(lambda axes: axes.step, jax.tree.map(lambda _: 0, agent), None)


def _prefill(source: AbstractSource, policy: AbstractPolicy, state: Any, run_key: PRNGKeyArray, steps: Array) -> Any:
    """`steps` rounds of acting with `policy` in an own world, without updates."""

    def body(i: Array, state: Any) -> Any:
        return source.advance(policy, state, jr.fold_in(run_key, i))

    return jax.lax.fori_loop(0, steps, body, state)


prefill = partial(jax.jit, donate_argnames=("state",))(_prefill)
"""`_prefill` compiled; the source state is donated."""


@partial(jax.jit, donate_argnames=("state",))
def prefill_seeds(source: AbstractSource, policy: AbstractPolicy, state: Any, run_key: Any, steps: Array) -> Any:
    """`prefill` over a leading seed axis of policy, state and key; a number in the policy belongs to all seeds."""
    axes = jax.tree.map(lambda x: 0 if x.ndim else None, policy)
    body = lambda policy, state, key: _prefill(source, policy, state, key, steps)
    return jax.vmap(body, in_axes=(axes, 0, 0))(policy, state, run_key)


SCORE_STREAM = 4
"""Random stream of `scores`, folded into the run key."""

_BLOCK = 1024
"""Rows scored at once."""


def _scores(source: ScoredSource, agent: AbstractScorer, run_key: PRNGKeyArray) -> Scores:
    n = source.data.reward.shape[0]
    blocks = -(-n // _BLOCK)
    key = jr.fold_in(run_key, SCORE_STREAM)

    def block(i: Array) -> Array:
        rows = jnp.minimum(i * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32), n - 1)
        return agent.score(jax.tree.map(lambda x: x[rows], source.data), jr.fold_in(key, i))

    each = jax.lax.map(block, jnp.arange(blocks, dtype=jnp.int32)).reshape(-1)[:n]
    return Scores(each, agent.least(each))


@partial(jax.jit, static_argnames="seeds")
def scores(source: ScoredSource, agent: AbstractScorer, run_key: Any, seeds: int | None) -> Scores:
    """The state of a `ScoredSource`: the agent's score of each row, with a leading axis where there are `seeds`."""
    if seeds is None:
        return _scores(source, agent, run_key)
    return jax.vmap(_scores, in_axes=(None, seed_axes(agent), 0))(source, agent, run_key)


@partial(jax.jit, static_argnames=("updates", "batch_size"))
def batch_rows(run_key: PRNGKeyArray, step: Array, updates: int, batch_size: int, rows: Array) -> Array:
    """Which of `rows` rows the batches of `updates` updates from `step` on consist of, one batch after the other.

    The keys are those of `_chunk`, so a data set on disk gives the batches that it would give in memory.
    """
    keys = jax.vmap(lambda i: jr.split(jr.fold_in(run_key, step + i), 3)[1])(jnp.arange(updates, dtype=jnp.int32))
    return jax.vmap(lambda key: jr.randint(key, (batch_size,), 0, rows))(keys).reshape(-1)


@jax.jit
def act(policy: AbstractPolicy, obs: Any, run_key: PRNGKeyArray, timestep: Any) -> Array:
    """The action at a time step; its randomness is a function of (run_key, timestep) alone."""
    return policy(obs, jr.fold_in(run_key, timestep))


@jax.jit
def act_on(actor: AbstractActor, obs: Any, memory: Any, run_key: PRNGKeyArray, timestep: Any) -> tuple[Any, Any, Any]:
    """What is drawn, the action that is carried out, and the memory after it; the randomness is that of `act`."""
    drawn, memory = actor.draw(obs, memory, jr.fold_in(run_key, timestep))
    return drawn, actor.applied(drawn), memory


_SMALL = 1024
"""Leaves of at most so many numbers are kept together between calls: each array that goes into a program and comes out
of it costs about a microsecond, as much as adding a thousand numbers."""


class Frame:
    """How a source, and an agent with its state and totals, are taken apart: the trees, and the leaves' shapes.

    The leaves of the latter are kept as `parts`: under its place each leaf that is large, and under its type's name one
    vector of all others of a type. The hash is worked out once: that of what is static in an agent takes longer at each
    call than a small network's update.
    """

    def __init__(self, source: Any, carry: Any, shapes: tuple[tuple[tuple[int, ...], Any], ...]) -> None:
        self.source, self.carry, self.shapes = source, carry, shapes
        self._all = (source, carry, shapes)
        self._hash = hash(self._all)
        self._together: dict[str, list[int]] = {}
        for i, (shape, dtype) in enumerate(shapes):
            if math.prod(shape) <= _SMALL and not jnp.issubdtype(dtype, jax.dtypes.extended):
                self._together.setdefault(str(dtype), []).append(i)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frame) and self._all == other._all)

    def parts(self, leaves: list[Any]) -> "Parts":
        """The leaves of the carry, the small ones of a type in one vector."""
        alone = set(range(len(leaves))).difference(*self._together.values())
        together = {name: jnp.concatenate([leaves[i].ravel() for i in of]) for name, of in self._together.items()}
        return Parts({i: leaves[i] for i in sorted(alone)}, together)

    def leaves(self, parts: "Parts") -> list[Any]:
        """The inverse of `parts`; None for a leaf that is not in them."""
        found: list[Any] = [parts.alone.get(i) for i in range(len(self.shapes))]
        for name, vector in parts.together.items():
            at = 0
            for i in self._together[name]:
                shape, _ = self.shapes[i]
                size = math.prod(shape)
                found[i] = jax.lax.slice(vector, (at,), (at + size,)).reshape(shape)
                at += size
        return found

    def explorer(self, parts: "Parts") -> Any:
        """The agent's explorer, from the parts that it needs."""
        agent, _, _ = jax.tree.unflatten(self.carry, self.leaves(parts))
        return agent.explorer

    def explorers(self) -> tuple[set[int], set[str]]:
        """The parts that the agent's explorer is made of."""
        shapes = [jax.ShapeDtypeStruct(*shape) for shape in self.shapes]
        trace = lambda leaves: jax.tree.leaves(jax.tree.unflatten(self.carry, leaves)[0].explorer)
        found = jax.make_jaxpr(trace)(shapes).jaxpr
        used = {id(var) for eqn in found.eqns for var in eqn.invars} | {id(var) for var in found.outvars}
        needed = {i for i, var in enumerate(found.invars) if id(var) in used}
        together = {name for name, of in self._together.items() if needed & set(of)}
        return needed.difference(*self._together.values()), together


class Parts(NamedTuple):
    """Leaves of a `Frame`'s carry."""

    alone: dict[int, Any]
    together: dict[str, Any]


class Held:
    """Agent, source state and totals between the calls of a loop that calls for each step of an environment.

    They are kept in parts, since taking the trees apart and putting them together again at each call costs more than
    the call; `tree` puts them together. The agent's explorer is made inside the call for the same reason, of no more
    parts than it is made of. What was handed in belongs to this object from then on: `update` donates it.
    """

    def __init__(self, source: AbstractSource, agent: AbstractAgent, state: Any, totals: Totals) -> None:
        self._source, source_def = jax.tree.flatten(source)
        leaves, carry_def = jax.tree.flatten((agent, state, totals))
        self._frame = Frame(source_def, carry_def, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        self._parts = _parts(self._frame, leaves)
        self._explorers = _explorers(self._frame)

    def tree(self) -> tuple[Any, Any, Totals]:
        """Agent, source state and totals."""
        return jax.tree.unflatten(self._frame.carry, _leaves(self._frame, self._parts))

    def act(self, obs: Any, run_key: PRNGKeyArray, timestep: Any) -> Array:
        """`act` with the agent's explorer."""
        return _held_act(self._frame, self._explorer(), obs, run_key, timestep)

    def act_on(self, obs: Any, memory: Any, run_key: PRNGKeyArray, timestep: Any) -> tuple[Any, Any, Any]:
        """`act_on` with the agent's explorer, on the host."""
        found = _held_act_on(self._frame, self._explorer(), obs, memory, run_key, timestep)
        drawn, action, after = jax.tree.map(np.asarray, found)
        return drawn, drawn if action is None else action, after

    def update(self, run_key: PRNGKeyArray, items: Any, updates: Any) -> None:
        """`chunk`; `items` may be what a `Collector`'s step gave."""
        self._parts = _held_chunk(self._frame, self._source, self._parts, run_key, items, updates)

    def _explorer(self) -> Parts:
        (alone, together), parts = self._explorers, self._parts
        return Parts({i: parts.alone[i] for i in alone}, {name: parts.together[name] for name in together})


_explorers = cache(Frame.explorers)


@partial(jax.jit, static_argnames="frame")
def _parts(frame: Frame, leaves: list[Any]) -> Parts:
    return frame.parts(leaves)


@partial(jax.jit, static_argnames="frame")
def _leaves(frame: Frame, parts: Parts) -> list[Any]:
    return frame.leaves(parts)


_SHORT: dict[str, Any] = dict(compiler_options={"xla_cpu_enable_concurrency_optimized_scheduler": False})
"""For programs of some hundred microseconds: on a CPU handing their parts from thread to thread takes longer than the
parts."""


@partial(jax.jit, static_argnames="frame", **_SHORT)
def _held_act(frame: Frame, parts: Parts, obs: Any, run_key: PRNGKeyArray, timestep: Any) -> Array:
    return act(frame.explorer(parts), obs, run_key, timestep)


@partial(jax.jit, static_argnames="frame", **_SHORT)
def _held_act_on(
    frame: Frame, parts: Parts, obs: Any, memory: Any, run_key: PRNGKeyArray, timestep: Any
) -> tuple[Any, Any, Any]:
    """`act_on`; no action where it is what was drawn, since each array costs its way to the host."""
    actor = frame.explorer(parts)
    drawn, after = actor.draw(obs, memory, jr.fold_in(run_key, timestep))
    action = actor.applied(drawn)
    return drawn, None if action is drawn else action, after


@partial(jax.jit, static_argnames="frame", donate_argnames="parts", **_SHORT)
def _held_chunk(
    frame: Frame, source: list[Any], parts: Parts, run_key: PRNGKeyArray, items: Any, updates: Array
) -> Parts:
    agent, state, totals = jax.tree.unflatten(frame.carry, frame.leaves(parts))
    rows = items.rows() if isinstance(items, Stepped) else items
    found = jax.tree.unflatten(frame.source, source)
    return frame.parts(jax.tree.leaves(_chunk(found, agent, state, totals, run_key, rows, updates)))


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether no number of a PyTree is NaN or infinite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def configure(device: str = "auto") -> None:
    """Chooses the device, turns on the persistent compile cache, so that a second start compiles nothing, and has
    random numbers drawn without a loop on CPUs.

    `device` is auto, cpu or gpu. The cache is in `$TRIMTAB_CACHE`, else `$XDG_CACHE_HOME/trimtab`, else
    `~/.cache/trimtab`, unless JAX has been given one already. Raises `UsageError` if there is no such device.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise UsageError(f"unknown device {device!r}: choose auto, cpu or gpu")
    unroll()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = os.environ.get("TRIMTAB_CACHE") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "trimtab"
        )
        jax.config.update("jax_compilation_cache_dir", root)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if device == "gpu":
        try:
            jax.devices("gpu")
        except RuntimeError as error:
            raise UsageError("no GPU is visible to JAX: pip install 'trimtab[cuda]', or use --device cpu") from error
