"""What of an observation a network sees, and which actions its mask allows."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from trimtab.core import ACTION_MASK, Spec, mask_size
from trimtab.nets.mlp import concat


def feature_size(spec: Spec) -> int:
    """Numbers of `features`. Raises `UsageError` if the action mask does not fit the actions."""
    return spec.obs_size - mask_size(spec)


def features(obs: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
    """The observation as one vector, without its action mask."""
    return concat({k: v for k, v in obs.items() if k != ACTION_MASK} if isinstance(obs, dict) else obs)


def allowed(obs: PyTree[Float[Array, "..."]]) -> Bool[Array, "..."] | None:
    """The observation's action mask, None where it has none."""
    return obs[ACTION_MASK] > 0.5 if isinstance(obs, dict) and ACTION_MASK in obs else None


def masked(logits: Float[Array, "*b a"], mask: Bool[Array, "*b a"] | None) -> Float[Array, "*b a"]:
    """Logits (or values) of which those that are not allowed are half of the least float: their probabilities are 0 and
    no gradient reaches them. A row that allows nothing is as if it allowed all."""
    if mask is None:
        return logits
    mask = mask | ~mask.any(-1, keepdims=True)
    return jnp.where(mask, logits, jnp.finfo(jnp.float32).min / 2)
