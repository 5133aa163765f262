"""The deterministic policy of DDPG and TD3."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Spec
from trimtab.nets.mlp import MLP
from trimtab.nets.standardise import Standardise, flatten


class Deterministic(AbstractPolicy):
    """a = tanh(net(s)): obs (..., obs) -> (..., act)."""

    net: MLP
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        hidden: tuple[int, ...],
        key: PRNGKeyArray,
        *,
        activation: str = "relu",
        init: str = "torch",
        standardise: bool = False,
    ) -> "Deterministic":
        """A network of widths `hidden`; `standardise` puts the data set's `Standardise` before it."""
        net = MLP.create(spec.obs_size, hidden, spec.action_size, key, activation=activation, init=init)
        return cls(net, Standardise.create(spec) if standardise else None)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray | None = None) -> Array:
        return jnp.tanh(self.net(flatten(obs, self.inputs)))
