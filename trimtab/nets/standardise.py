"""Observations with mean 0 and standard deviation 1 over a data set (TD3+BC, Fujimoto and Gu 2021)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trimtab.core import Spec
from trimtab.nets.mlp import concat

FLOOR = 1e-3
"""Added to the standard deviation, as TD3+BC does: an entry that never changes is not divided by zero."""


class Standardise(eqx.Module):
    """`(x - mean) / (std + 1e-3)` of flattened observations: (..., obs) -> (..., obs).

    The moments are leaves, so that checkpoints and exports hold them. They are never trained: no loss has a gradient on
    them, so that an optimiser without weight decay leaves them as they are.
    """

    mean: Float[Array, " obs"]
    scale: Float[Array, " obs"]
    """std + 1e-3; 1 without a data set."""

    @classmethod
    def create(cls, spec: Spec) -> "Standardise":
        """With the moments that `spec` carries; the identity if it carries none."""
        if spec.obs_mean is None or spec.obs_std is None:
            return cls(jnp.zeros((spec.obs_size,)), jnp.ones((spec.obs_size,)))
        flat = lambda tree: jnp.asarray(concat(jax.tree.map(jnp.asarray, tree)), jnp.float32)
        return cls(flat(spec.obs_mean), flat(spec.obs_std) + FLOOR)

    def __call__(self, x: Float[Array, "*b obs"]) -> Float[Array, "*b obs"]:
        mean, scale = jax.lax.stop_gradient((self.mean, self.scale))
        return (x - jnp.broadcast_to(mean, x.shape)) / jnp.broadcast_to(scale, x.shape)


def flatten(obs: object, inputs: Standardise | None) -> Float[Array, "..."]:
    """An observation as one vector, standardised if there is a `Standardise` for it."""
    flat = concat(obs)
    return flat if inputs is None else inputs(flat)
