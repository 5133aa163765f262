"""Gradients of values by the goal, and how far two of them are apart (ReenGAGE, arXiv:2208.13298)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.core import Metrics


def goal_gradient(
    value: Callable[[Float[Array, "b g"]], Float[Array, "e b"]], goal: Float[Array, "b g"]
) -> tuple[Float[Array, "e b"], Float[Array, "e b g"]]:
    """The values of each member at `goal`, and their gradients by it: the total derivative along every path to the
    goal that `value` has. Row i of a value must depend on row i of the goal alone.
    """
    values, pull = jax.vjp(value, goal)
    one_member = lambda pick: pull(jnp.broadcast_to(pick[:, None], values.shape))[0]
    return values, jax.vmap(one_member)(jnp.eye(values.shape[0], dtype=values.dtype))


def match(
    slope: Float[Array, "e b g"], target: Float[Array, "b g"], mask: Float[Array, " b"], scale: Float[Array, " g"]
) -> tuple[Float[Array, ""], Metrics]:
    """`E[ m sum_i scale_i^2 (slope_i - target_i)^2 ] / g`: the mean over batch, members and the g numbers of the goal.

    As metrics the mean lengths of both gradients and the mean cosine between them, over the rows of the mask (NaN
    without one).
    """
    wide = lambda x: jnp.broadcast_to(x, slope.shape)
    apart = wide(scale) * (slope - wide(target))
    loss = (wide(mask[:, None]) * jnp.square(apart)).mean()
    length, wanted = jnp.linalg.norm(slope, axis=-1), jnp.linalg.norm(target, axis=-1)
    product = (slope * wide(target)).sum(-1)
    cosine = product / jnp.maximum(length * jnp.broadcast_to(wanted, length.shape), 1e-12)
    over = lambda x: (jnp.broadcast_to(mask, x.shape) * x).mean() / mask.mean()
    return loss, {"slope": over(length), "target_slope": over(wanted), "cosine": over(cosine)}
