"""From the numbers that a network puts out to a distribution over actions, and from what it drew to an action."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trimtab.core import Spec
from trimtab.policies.distributions import AbstractDistribution, Categorical, Normal


class AbstractHead(eqx.Module):
    """What the outputs of a policy's network mean."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Outputs that it needs."""

    @abc.abstractmethod
    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> AbstractDistribution:
        """The distribution; `mask` is the observation's."""

    @abc.abstractmethod
    def applied(self, drawn: Array) -> Array:
        """The action in [-1, 1], or the index, for what the distribution gave."""


class NormalHead(AbstractHead):
    """The outputs are the mean; one log std a dimension, not a state, learnt beside the network."""

    log_std: Float[Array, " act"]

    @classmethod
    def create(cls, spec: Spec, log_std: float = 0.0) -> "NormalHead":
        """All dimensions begin with `log_std`."""
        return cls(jnp.full((spec.action_size,), log_std, jnp.float32))

    @property
    def size(self) -> int:
        """One output a dimension."""
        return self.log_std.shape[0]

    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> Normal:
        return Normal(out, jnp.broadcast_to(self.log_std, out.shape))

    def applied(self, drawn: Array) -> Array:
        """Clipped."""
        return jnp.clip(drawn, -1.0, 1.0)


class CategoricalHead(AbstractHead):
    """The outputs are logits."""

    choices: tuple[int, ...] = eqx.field(static=True)
    several: bool = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec) -> "CategoricalHead":
        """For the discrete actions of `spec`."""
        return cls(spec.choices, bool(spec.factors))

    @property
    def size(self) -> int:
        """One output a choice."""
        return sum(self.choices)

    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> Categorical:
        return Categorical.create(out, self.choices, self.several, mask)

    def applied(self, drawn: Array) -> Array:
        """As drawn."""
        return drawn


def default_head(spec: Spec, log_std: float = 0.0) -> AbstractHead:
    """Categorical for discrete actions, else normal."""
    return CategoricalHead.create(spec) if spec.discrete else NormalHead.create(spec, log_std)
