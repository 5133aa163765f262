"""A deterministic policy over sets of goals."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.sets import SetEncoder, split


class SetPolicy(AbstractPolicy):
    """a = tanh(head([z, c])), z the encoding of the set: obs (..., obs) -> (..., act)."""

    encoder: SetEncoder
    head: MLP

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray | None = None) -> Array:
        return self.at(split(obs)[0], obs)

    def at(self, gates: Float[Array, "*b n"], obs: PyTree[Float[Array, "..."]]) -> Float[Array, "*b act"]:
        """The action with other gates than the observation's."""
        _, items, context = split(obs)
        return jnp.tanh(self.head(concat(self.encoder(gates, items, context), context)))
