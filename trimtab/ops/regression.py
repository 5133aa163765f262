"""Regression losses beyond the mean square."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def expectile_loss(error: Float[Array, " b"], expectile: float) -> Float[Array, ""]:
    """Mean of `|tau - 1(u < 0)| u^2` for errors u: least at the tau-expectile (tau 0.5: half the mean square)."""
    weight = jnp.where(error < 0, 1.0 - expectile, expectile)
    return (weight * jnp.square(error)).mean()
