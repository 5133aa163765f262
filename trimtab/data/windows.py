"""Windows of successive steps, drawn from rows that lie in the order in which they were recorded."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from trimtab.batches import Chunk, Recorded, Sarsa, ToGo, Transition

_BLOCK = 64
"""Steps of an episode that are summed at once."""


def draw(
    rows: Recorded, key: PRNGKeyArray, n: int, h: int, oldest: Int[Array, ""], size: Int[Array, ""], stride: int = 1
) -> Chunk:
    """`n` windows of `h` steps, whose first rows are uniform over all that have `h - 1` successors.

    `rows` is a ring of which `size` rows from slot `oldest` on are in use; no window reaches from the newest row to the
    oldest. The successor of a row lies `stride` rows after it: the number of environments that were recorded in turn.
    Where fewer rows are in use than one window spans, the steps that are missing have `valid` 0.
    """
    start = jr.randint(key, (n,), 0, jnp.maximum(size - (h - 1) * stride, 1))
    age = start[:, None] + stride * jnp.arange(h, dtype=jnp.int32)[None, :]  # counted from the oldest row
    slots = (oldest + age) % rows.last.shape[0]
    data = rows.transition
    goes_on = ~rows.last[slots[:, :-1]] & (age[:, 1:] < size)
    valid = jnp.cumprod(jnp.concatenate([jnp.ones((n, 1), bool), goes_on], axis=1).astype(jnp.float32), axis=1)
    return Chunk(
        obs=jax.tree.map(lambda x: x[slots[:, 0]], data.obs),
        action=data.action[slots],
        reward=data.reward[slots],
        discount=data.discount[slots],
        next_obs=jax.tree.map(lambda x: x[slots[:, -1]], data.next_obs),
        valid=valid,
    )


def draw_with_next(
    rows: Recorded, key: PRNGKeyArray, n: int, oldest: Int[Array, ""], size: Int[Array, ""], stride: int = 1
) -> Sarsa:
    """`n` rows, uniform over all in use, each with the action of its successor in the same episode, if there is one.

    `rows`, `oldest`, `size` and `stride` as in `draw`; unlike there, the newest rows are drawn too, without successor.
    """
    age = jr.randint(key, (n,), 0, jnp.maximum(size, 1))
    length = rows.last.shape[0]
    here, after = (oldest + age) % length, (oldest + age + stride) % length
    data = jax.tree.map(lambda x: x[here], rows.transition)
    return Sarsa(
        obs=data.obs,
        action=data.action,
        reward=data.reward,
        discount=data.discount,
        next_obs=data.next_obs,
        next_action=rows.transition.action[after],
        next_valid=(~_ended(rows, here) & (age + stride < size)).astype(jnp.float32),
    )


def n_step(
    rows: Recorded,
    slots: Int[Array, " b"],
    n: int,
    gamma: float,
    oldest: Int[Array, ""],
    size: Int[Array, ""],
    stride: int = 1,
) -> Transition:
    """The rows in `slots` with the discounted rewards of up to `n` steps, and the observation after them.

    The sum ends early where the episode does, or at the newest row. `discount` is that of its last step times
    gamma^(steps - 1). The rest as in `draw`.
    """
    length = rows.last.shape[0]
    age = ((slots - oldest) % length)[:, None] + stride * jnp.arange(n, dtype=jnp.int32)[None, :]
    places, data = (oldest + age) % length, rows.transition
    goes_on = ~_ended(rows, places[:, :-1]) & (age[:, 1:] < size)
    valid = jnp.cumprod(jnp.concatenate([jnp.ones((len(slots), 1), bool), goes_on], axis=1).astype(jnp.int32), axis=1)
    steps = valid.sum(1)
    final = jnp.take_along_axis(places, steps[:, None] - 1, axis=1)[:, 0]
    powers = jnp.float32(gamma) ** jnp.arange(n, dtype=jnp.float32)
    return Transition(
        obs=jax.tree.map(lambda x: x[slots], data.obs),
        action=data.action[slots],
        reward=(data.reward[places] * valid.astype(jnp.float32)) @ powers,
        discount=data.discount[final] * powers[steps - 1],
        next_obs=jax.tree.map(lambda x: x[final], data.next_obs),
    )


def draw_with_return(
    rows: Recorded,
    key: PRNGKeyArray,
    n: int,
    gamma: float,
    after_cut: Float[Array, ""],
    oldest: Int[Array, ""],
    size: Int[Array, ""],
    stride: int = 1,
) -> ToGo:
    """`n` rows, uniform over all in use, each with the return that followed it, discounted by `gamma`.

    `rows`, `oldest`, `size` and `stride` as in `draw_with_next`. `after_cut` is what an episode is worth after it was
    cut; the return of an episode that has not ended is -inf.
    """
    age = jr.randint(key, (n,), 0, jnp.maximum(size, 1))
    data = jax.tree.map(lambda x: x[(oldest + age) % rows.last.shape[0]], rows.transition)
    to_go = returns_to_go(rows, age, gamma, after_cut, oldest, size, stride)
    return ToGo(data.obs, data.action, data.reward, data.discount, data.next_obs, to_go)


def returns_to_go(
    rows: Recorded,
    age: Int[Array, " b"],
    gamma: float,
    after_cut: Float[Array, ""],
    oldest: Int[Array, ""],
    size: Int[Array, ""],
    stride: int = 1,
) -> Float[Array, " b"]:
    """The returns from the rows of these ages on (counted from the oldest): see `draw_with_return`.

    Nothing is stored with the rows: an episode is walked to its end, a block of steps of all rows at once.
    """
    steps = jnp.arange(_BLOCK, dtype=jnp.int32)
    powers = gamma ** steps.astype(jnp.float32)

    def block(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        start, total, weight, going = carry
        ages = start[:, None] + stride * steps[None, :]
        slots, inside = (oldest + ages) % rows.last.shape[0], ages < size
        last = _ended(rows, slots) & inside
        ends = last.astype(jnp.int32)
        counts = (jnp.cumsum(ends, axis=1) - ends == 0) & inside  # up to the end of the episode, and with it
        reward = jnp.where(counts, rows.transition.reward[slots], 0.0)
        total = total + jnp.where(going, weight * (reward * powers[None, :]).sum(1), 0.0)
        ended = last.any(1)
        end = jnp.take_along_axis(slots, last.argmax(1)[:, None], axis=1)[:, 0]
        # A weight may vanish, and 0 times -inf is no number.
        rest = jnp.where(jnp.isinf(after_cut), after_cut, weight * gamma * powers[last.argmax(1)] * after_cut)
        total = total + jnp.where(going & ended & (rows.transition.discount[end] > 0), rest, 0.0)
        total = jnp.where(going & ~ended & ~inside.all(1), -jnp.inf, total)  # its episode goes on beyond all rows
        return start + stride * _BLOCK, total, weight * gamma**_BLOCK, going & ~ended & inside.all(1)

    start = (age, jnp.zeros(age.shape), jnp.ones(age.shape), jnp.ones(age.shape, bool))
    return jax.lax.while_loop(lambda carry: carry[3].any(), block, start)[1]


def _ended(rows: Recorded, slots: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """`rows.ended` in these slots."""
    return rows.last[slots] | (rows.transition.discount[slots] == 0.0)


def interleaved(rows: Recorded, n: int) -> Recorded:
    """The same rows as if `n` environments had recorded them in turn: `n` pieces, one row of each after the other.

    The rows that do not fill all pieces are dropped from the front. The end of a piece counts as the end of an
    episode, also for `n` = 1: what is recorded after it has nothing to do with it.
    """
    length = rows.last.shape[0] // n
    pieces = jax.tree.map(lambda x: x[x.shape[0] - n * length :].reshape(n, length, *x.shape[1:]), rows)
    turned = jax.tree.map(lambda x: jnp.swapaxes(jnp.asarray(x), 0, 1).reshape(n * length, *x.shape[2:]), pieces)
    return Recorded(turned.transition, turned.last.at[-n:].set(True))


def longest(last: np.ndarray) -> int:
    """The number of steps of the longest trajectory."""
    ends = np.flatnonzero(np.asarray(last))
    return int(np.diff(np.concatenate([[-1], ends, [len(last) - 1]])).max(initial=0))
