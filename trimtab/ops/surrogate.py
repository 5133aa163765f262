"""What PPO and its kin share: the clipped surrogate, and epochs over the minibatches of one rollout."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.core import Metrics


def clipped_surrogate(
    log_ratio: Float[Array, "*b"], advantage: Float[Array, "*b"], eps: float, normalise: bool = True
) -> tuple[Float[Array, ""], Metrics]:
    """-E[ min(rho A, clip(rho, 1 - eps, 1 + eps) A) ] with rho = exp(log_ratio) (Schulman et al. 2017, eq. 7).

    With `normalise`, A has mean 0 and standard deviation 1 over more rows than one. Metrics: approx_kl
    E[rho - 1 - log rho], clip_fraction the share of |rho - 1| > eps.
    """
    ratio = jnp.exp(log_ratio)
    if normalise and advantage.size > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - eps, 1.0 + eps)
    return -jnp.minimum(ratio * advantage, clipped * advantage).mean(), {
        "approx_kl": (ratio - 1.0 - log_ratio).mean(),
        "clip_fraction": (jnp.abs(ratio - 1.0) > eps).mean(dtype=jnp.float32),
    }


def epochs(
    learn: Callable[[Any, Int[Array, " m"], PRNGKeyArray], tuple[Any, Metrics]],
    state: Any,
    sizes: tuple[int, int, int],
    key: PRNGKeyArray,
    kl: str,
    target_kl: float | None = None,
) -> tuple[Any, Metrics]:
    """`learn(state, rows, key)` on all minibatches of a rollout, in a new order in each epoch.

    `sizes` are how many rows there are, how many a minibatch has (at most all; rows that fill none are left out of
    that epoch) and how many epochs. From the first minibatch on whose metric `kl` is above `target_kl`, the state stays
    what it was before it. Metrics: means over the minibatches that were learnt from (NaN if none was), and skipped,
    the share of the others.
    """
    count, size, times = sizes
    size = min(size, count)

    def epoch(carry: Any, key: PRNGKeyArray) -> tuple[Any, tuple[Metrics, Array]]:
        order = shuffled(key, count)[: count // size * size].reshape(-1, size)
        return jax.lax.scan(minibatch, carry, (order, jr.split(jr.fold_in(key, 1), len(order))))

    def minibatch(carry: Any, drawn: tuple[Array, PRNGKeyArray]) -> tuple[Any, tuple[Metrics, Array]]:
        state, stop = carry
        stepped, metrics = learn(state, *drawn)
        if target_kl is None:
            return (stepped, stop), (metrics, stop)
        stop = stop | (metrics[kl] > target_kl)
        kept = jax.tree.map(lambda new, old: jnp.where(stop, old, new), stepped, state)
        return (kept, stop), (metrics, stop)

    start = (state, jnp.asarray(False))
    (state, _), (metrics, stopped) = jax.lax.scan(epoch, start, jr.split(key, times))
    means = {name: jnp.mean(value, where=~stopped) for name, value in metrics.items()}
    return state, means | {"skipped": stopped.mean(dtype=jnp.float32)}


def shuffled(key: PRNGKeyArray, count: int) -> Int[Array, " n"]:
    """0, ..., count - 1 in a random order, as `jax.random.permutation` and several times as fast on a CPU.

    That sorts pairs of a random number and an index, in as many rounds as leave equal random numbers without effect.
    Here both share the bits of one number, whose sort is fast; beyond 2^16 the random part would be short of bits.
    """
    places = max(count - 1, 1).bit_length()
    if places > 16:
        return jr.permutation(key, count)
    rounds = math.ceil(3.0 * places / (32 - places))
    order = indices = jnp.arange(count, dtype=jnp.uint32)
    for k in jr.split(key, rounds):
        drawn = jr.bits(k, (count,)) >> places << places
        found = jnp.sort(drawn | indices) & jnp.uint32(2**places - 1)
        order = order[found]
    return order.astype(jnp.int32)
