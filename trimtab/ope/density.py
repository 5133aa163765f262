"""Probabilities of actions that may lie at the bounds, where data sets are full of exact ones.

The outermost actions of a dimension, |a| >= 1 - `EDGE`, count as one outcome each: its probability is the mass that a
normal has beyond. In between it is the density. So policies that clip a normal and policies that squash one are
measured alike, and their ratio is the true likelihood ratio of what is left of the action. Without this a single
clipped action decides a whole trajectory's weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from trimtab.core import AbstractPolicy
from trimtab.ops import tanh_log_det
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.gaussian import Gaussian, Mean, TanhGaussian

EDGE = 1e-3
"""Width of the outcome at each bound, in units of the [-1, 1] action."""


def edged_log_prob(
    action: Float[Array, "*b act"], mean: Float[Array, "*b act"], log_std: Float[Array, "*b act"], *, squashed: bool
) -> Float[Array, "*b"]:
    """Log probability of `action`, summed over its dimensions: a = clip(u) or, `squashed`, a = tanh(u), u normal."""
    bound = 1.0 - EDGE
    inside = jnp.clip(action, -bound, bound)
    u = jnp.arctanh(inside) if squashed else inside
    limit = jnp.arctanh(bound) if squashed else jnp.float32(bound)
    z = (u - mean) * jnp.exp(-log_std)
    density = -0.5 * jnp.square(z) - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    if squashed:
        density = density - tanh_log_det(u[..., None])
    above = jax.scipy.special.log_ndtr((mean - limit) * jnp.exp(-log_std))
    below = jax.scipy.special.log_ndtr((-limit - mean) * jnp.exp(-log_std))
    return jnp.where(action >= bound, above, jnp.where(action <= -bound, below, density)).sum(-1)


def has_density(policy: AbstractPolicy) -> bool:
    """Whether `log_prob` knows this policy: a Gaussian, squashed or clipped, or a deterministic one with noise."""
    return isinstance(policy, TanhGaussian | Gaussian) or (isinstance(policy, Noisy) and is_deterministic(policy.inner))


def is_deterministic(policy: AbstractPolicy) -> bool:
    """Whether the policy's action is a function of the observation alone, so that noise around it is a Gaussian."""
    return isinstance(policy, Deterministic | Mean)


def log_prob(
    policy: AbstractPolicy, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]
) -> Float[Array, " b"]:
    """Log probability of `action` under a policy for which `has_density` holds."""
    if isinstance(policy, Noisy):
        mean = policy.inner(obs, jax.random.key(0))
        return edged_log_prob(action, mean, jnp.broadcast_to(jnp.log(policy.sigma), mean.shape), squashed=False)
    assert isinstance(policy, TanhGaussian | Gaussian)
    return edged_log_prob(action, *policy.moments(obs), squashed=isinstance(policy, TanhGaussian))
