"""Losses of critics that learn the distribution of the return (C51, quantile regression)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def project(
    probability: Float[Array, "b n"],
    v_min: float,
    v_max: float,
    shift: Float[Array, " b"],
    scale: Float[Array, " b"],
) -> Float[Array, "b n"]:
    """The distribution of `shift + scale z`, z on `n` atoms from `v_min` to `v_max` by `probability`, on those atoms.

    Each moved atom is cut to the span and shared out among its two neighbours: m_i = sum_j p_j max(0, 1 - |b_j - i|),
    b_j its place in units of the spacing (Bellemare et al. 2017, arXiv:1707.06887, in a form without special cases).
    """
    n = probability.shape[-1]
    atoms = jnp.linspace(v_min, v_max, n)
    wide = lambda x: jnp.broadcast_to(x[:, None], probability.shape)
    moved = jnp.clip(wide(shift) + wide(scale) * jnp.broadcast_to(atoms, probability.shape), v_min, v_max)
    place = (moved - v_min) * ((n - 1) / (v_max - v_min))
    distance = jnp.abs(place[:, :, None] - jnp.arange(n, dtype=jnp.float32)[None, None, :])
    return (probability[:, :, None] * jnp.maximum(0.0, 1.0 - distance)).sum(1)


def quantile_huber(
    quantiles: Float[Array, "b n"], samples: Float[Array, "b m"], threshold: float = 1.0
) -> Float[Array, " b"]:
    """sum_i mean_j |tau_i - 1(u_ij < 0)| huber(u_ij) / threshold, u_ij = samples_j - quantiles_i, tau_i = (i + 1/2)/n
    (Dabney et al. 2018, arXiv:1710.10044). As the threshold goes to 0 it becomes the pinball loss.
    """
    n = quantiles.shape[-1]
    error = samples[:, None, :] - quantiles[:, :, None]
    size = jnp.abs(error)
    huber = jnp.where(size <= threshold, 0.5 * jnp.square(error) / threshold, size - 0.5 * threshold)
    levels = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n)[None, :, None]
    weight = jnp.abs(levels - (error < 0.0).astype(jnp.float32))
    return (weight * huber).mean(-1).sum(-1)
