"""The deterministic policy of DDPG and TD3."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Spec
from trimtab.nets.mlp import MLP, concat


class Deterministic(AbstractPolicy):
    """a = tanh(net(s)): obs (..., obs) -> (..., act)."""

    net: MLP

    @classmethod
    def create(
        cls, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray, *, activation: str = "relu"
    ) -> "Deterministic":
        """A network of widths `hidden`."""
        return cls(MLP.create(spec.obs_size, hidden, spec.action_size, key, activation=activation))

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray | None = None) -> Array:
        return jnp.tanh(self.net(concat(obs)))
