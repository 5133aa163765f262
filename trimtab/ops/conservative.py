"""How far the values of actions that might be taken lie above those of the data."""

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
