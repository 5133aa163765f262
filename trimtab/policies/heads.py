"""From the numbers that a network puts out to a distribution over actions, and from what it drew to an action."""

import abc
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trimtab.core import Spec, UsageError
from trimtab.policies.distributions import AbstractDistribution, Categorical, Normal, NormalMixture
from trimtab.policies.polynomial import Blocks, Family, Polynomial

DISTRIBUTIONS = ("normal", "mixture", "polynomial")
"""Of continuous actions."""


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
    """The outputs are the mean; one log std a dimension, not a state, learnt beside the network unless it is fixed."""

    log_std: Float[Array, " act"]
    fixed: bool = eqx.field(static=True, default=False)

    @classmethod
    def create(cls, spec: Spec, log_std: float = 0.0, *, fixed: bool = False) -> "NormalHead":
        """All dimensions begin with `log_std`."""
        return cls(jnp.full((spec.action_size,), log_std, jnp.float32), fixed)

    @property
    def size(self) -> int:
        """One output a dimension."""
        return self.log_std.shape[0]

    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> Normal:
        log_std = jax.lax.stop_gradient(self.log_std) if self.fixed else self.log_std
        return Normal(out, jnp.broadcast_to(log_std, out.shape))

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


class MixtureHead(AbstractHead):
    """The outputs are logits, means and log stds (clipped to [-20, 2]) of normals."""

    components: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """A logit, and two numbers a dimension, for each component."""
        return self.components * (1 + 2 * self.action_size)

    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> NormalMixture:
        k, d = self.components, self.action_size
        numbers = out[..., k:].reshape(*out.shape[:-1], k, 2 * d)
        return NormalMixture(out[..., :k], numbers[..., :d], jnp.clip(numbers[..., d:], -20.0, 2.0))

    def applied(self, drawn: Array) -> Array:
        """Clipped."""
        return jnp.clip(drawn, -1.0, 1.0)


@dataclass(frozen=True)
class FamilyChoice:
    """Which polynomial densities."""

    order: int = 5
    """degree."""
    points: int = 0
    """of the quadrature, a dimension; 0: 3 order + 6."""
    quadrature: str = "gauss"
    """or "trapezoid"."""
    block: int = 0
    """successive action dimensions in one family; 0: all."""
    bound: float = 100.0
    """parameters are bound tanh(output / bound)."""
    basis: str = "legendre"
    """or "standard": monomials."""


class PolynomialHead(AbstractHead):
    """The outputs are the natural parameters of polynomial densities, one family a block of action dimensions."""

    families: tuple[Family, ...]
    bound: float = eqx.field(static=True)

    @classmethod
    def create(cls, spec: Spec, choice: FamilyChoice) -> "PolynomialHead":
        """Raises `UsageError` for a grid beyond reach, or a block below 0."""
        if choice.block < 0:
            raise UsageError(f"block must be at least 1, or 0 for all dimensions in one, got {choice.block}")
        block, size = choice.block or spec.action_size, spec.action_size
        sizes = [min(block, size - first) for first in range(0, size, block)]
        kind = dict(quadrature=choice.quadrature, basis=choice.basis)
        return cls(tuple(Family.create(choice.order, dims, choice.points, **kind) for dims in sizes), choice.bound)

    @property
    def size(self) -> int:
        """One output a parameter, but for the constants': they do not change a density, and an optimiser that scales
        its steps would chase the rounding of their gradients."""
        return sum(family.size - 1 for family in self.families)

    def __call__(self, out: Float[Array, "*b o"], mask: Bool[Array, "*b a"] | None) -> Polynomial | Blocks:
        natural = self.bound * jnp.tanh(out / self.bound)
        ends = [sum(f.size - 1 for f in self.families[: i + 1]) for i in range(len(self.families) - 1)]
        each = zip(self.families, jnp.split(natural, ends, axis=-1), strict=True)
        constant = jnp.zeros_like(natural[..., :1])
        parts = tuple(Polynomial.create(f, jnp.concatenate([constant, part], axis=-1)) for f, part in each)
        return parts[0] if len(parts) == 1 else Blocks(parts)

    def applied(self, drawn: Array) -> Array:
        """As drawn: all of it lies in the box."""
        return drawn


def choose_head(
    spec: Spec, distribution: str, log_std: float, fixed: bool, components: int, family: FamilyChoice
) -> AbstractHead:
    """Categorical for discrete actions, else by name: "normal" (which begins with `log_std`, and keeps it if `fixed`),
    "mixture" (of so many `components`) or "polynomial". Raises `UsageError` for another name or sizes that do not fit.
    """
    if distribution not in DISTRIBUTIONS:
        raise UsageError(f"unknown distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}")
    if spec.discrete:
        if distribution != "normal":
            raise UsageError(f"distribution {distribution} is for continuous actions, and these are discrete: leave it")
        return CategoricalHead.create(spec)
    if distribution == "polynomial":
        return PolynomialHead.create(spec, family)
    if distribution == "mixture":
        if components < 1:
            raise UsageError(f"components must be at least 1, got {components}")
        return MixtureHead(components, spec.action_size)
    return NormalHead.create(spec, log_std, fixed=fixed)
