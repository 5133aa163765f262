"""How far the values of actions that might be taken lie above those of the data."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conservative_gap(
    q: Float[Array, "e b"], others: Float[Array, "e n b"], log_density: Float[Array, "n b"]
) -> Float[Array, "e b"]:
    """`logsumexp_i(others_i - log_density_i) - q` for each member and row: CQL's penalty (Kumar et al. 2020, eq. 4).

    `others` are the values of actions drawn with the density `log_density`.
    """
    return jax.nn.logsumexp(others - jnp.broadcast_to(log_density, others.shape), axis=1) - q


LARGEST_LOG_WEIGHT = math.log(1e6)
"""Where a tuned weight of the penalty stops. The code of CQL and Cal-QL clips it there, and it cannot come back."""


def bounded_weight(log_lambda: Float[Array, ""]) -> Float[Array, ""]:
    """`log_lambda`, at most `LARGEST_LOG_WEIGHT`. Where no values can bring the penalty down to the gap that is asked
    for, the weight would rise until something is not finite."""
    # Apart from Adam's step, which would be rounded in another way in a program where the two are fused.
    return jnp.minimum(jax.lax.optimization_barrier(log_lambda), LARGEST_LOG_WEIGHT)
