"""Losses that do not depend on the scale of rewards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_scale(q: Float[Array, " b"]) -> Float[Array, " b"]:
    """`q / E|q|`, the mean held constant: a loss on it weighs the same whatever the scale of q (TD3+BC, eq. 5)."""
    size = jax.lax.stop_gradient(jnp.abs(q).mean())
    return q / jnp.broadcast_to(size, q.shape)
