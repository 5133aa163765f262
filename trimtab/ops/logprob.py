"""Log densities."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def gaussian_log_prob(
    x: Float[Array, "*b act"], mean: Float[Array, "*b act"], log_std: Float[Array, "*b act"]
) -> Float[Array, "*b"]:
    """Log density of independent normals, summed over the last axis."""
    return (-0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)).sum(-1)


def standard_log_prob(noise: Float[Array, "*b act"], log_std: Float[Array, "*b act"]) -> Float[Array, "*b"]:
    """Log density of `x = mean + exp(log_std) noise`: `gaussian_log_prob(x, mean, log_std)` without x and the mean.

    The gradient through a reparametrised sample is then exact: none flows through x and the mean, where it cancels.
    """
    return (-0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)).sum(-1)


def tanh_log_det(x: Float[Array, "*b act"]) -> Float[Array, "*b"]:
    """`sum log(1 - tanh(x)^2)`: the log determinant of a = tanh(x), in a form that neither under- nor overflows.

    `1 - tanh^2 x = 4 / (e^|x| + e^-|x|)^2`, so its logarithm is `2 (log 2 - |x| - log(1 + e^(-2 |x|)))`.
    """
    size = jnp.abs(x)
    return (2.0 * (jnp.log(2.0) - size - jnp.log(1.0 + jnp.exp(-2.0 * size)))).sum(-1)
