"""Distributions over actions: one object for a whole batch of states."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trimtab.core import Metrics
from trimtab.nets.masks import masked
from trimtab.ops.logprob import gaussian_log_prob


class AbstractDistribution(eqx.Module):
    """A distribution over actions for each of the states `*b`."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Array:
        """One action a state."""

    @abc.abstractmethod
    def log_prob(self, action: Array) -> Float[Array, "*b"]:
        """Log density, or log probability, of one action a state."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, "*b"]:
        """Of each state's distribution."""

    @abc.abstractmethod
    def mode(self) -> Array:
        """What is done when nothing is to be drawn."""

    @abc.abstractmethod
    def health(self) -> Metrics:
        """What else is to be watched of this kind, means over the states; nothing where nothing can go wrong."""


class Normal(AbstractDistribution):
    """Independent normals, not confined to the box of actions."""

    mean: Float[Array, "*b act"]
    log_std: Float[Array, "*b act"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*b act"]:
        """mean + std n."""
        return self.mean + jnp.exp(self.log_std) * jr.normal(key, self.mean.shape)

    def log_prob(self, action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """Sum over the dimensions."""
        return gaussian_log_prob(action, self.mean, self.log_std)

    def entropy(self) -> Float[Array, "*b"]:
        """Sum of log std + log(2 pi e) / 2."""
        return (self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(-1)

    def mode(self) -> Float[Array, "*b act"]:
        """The mean."""
        return self.mean

    def health(self) -> Metrics:
        """Nothing."""
        return {}


class Categorical(AbstractDistribution):
    """One choice, or several independent ones side by side (MultiDiscrete).

    What the mask forbids has probability 0, is never drawn, and gets no gradient. A row that allows nothing is as if it
    allowed all, in each factor by itself.
    """

    logits: tuple[Float[Array, "*b _"], ...]
    """log probabilities, one array a factor."""
    several: bool = eqx.field(static=True)
    """whether an action has an axis of factors."""

    @classmethod
    def create(
        cls, logits: Float[Array, "*b a"], choices: tuple[int, ...], several: bool, mask: Bool[Array, "*b a"] | None
    ) -> "Categorical":
        """From the logits of all factors side by side, `choices` numbers each, and the mask of what is allowed."""
        ends = [sum(choices[: i + 1]) for i in range(len(choices) - 1)]
        split = lambda x: jnp.split(x, ends, axis=-1)
        masks = [None] * len(choices) if mask is None else split(mask)
        each = (jax.nn.log_softmax(masked(x, m)) for x, m in zip(split(logits), masks, strict=True))
        return cls(tuple(each), several)

    def sample(self, key: PRNGKeyArray) -> Array:
        """Indices, int32."""
        keys = jr.split(key, len(self.logits))
        return self._joined([jr.categorical(k, x) for k, x in zip(keys, self.logits, strict=True)])

    def log_prob(self, action: Array) -> Float[Array, "*b"]:
        """Sum over the factors."""
        index = action if self.several else action[..., None]
        each = (jnp.take_along_axis(x, index[..., i : i + 1], axis=-1)[..., 0] for i, x in enumerate(self.logits))
        return sum(each, jnp.zeros(()))

    def entropy(self) -> Float[Array, "*b"]:
        """-sum p log p, summed over the factors."""
        each = (-(jnp.exp(x) * jnp.maximum(x, -1e4)).sum(-1) for x in self.logits)  # 0 (-1e38) is 0, its gradient too
        return sum(each, jnp.zeros(()))

    def mode(self) -> Array:
        """The most probable choice of each factor."""
        return self._joined([x.argmax(-1) for x in self.logits])

    def health(self) -> Metrics:
        """Nothing."""
        return {}

    def _joined(self, choices: list[Array]) -> Array:
        choices = [choice.astype(jnp.int32) for choice in choices]
        return jnp.stack(choices, axis=-1) if self.several else choices[0]


class NormalMixture(AbstractDistribution):
    """A few normals with diagonal covariances, not confined to the box of actions."""

    logits: Float[Array, "*b k"]
    mean: Float[Array, "*b k act"]
    log_std: Float[Array, "*b k act"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*b act"]:
        """A component by its weight, then a draw from it."""
        k_which, k_noise = jr.split(key)
        which = jr.categorical(k_which, self.logits)[..., None, None]
        mean, log_std = (jnp.take_along_axis(x, which, axis=-2)[..., 0, :] for x in (self.mean, self.log_std))
        return mean + jnp.exp(log_std) * jr.normal(k_noise, mean.shape)

    def log_prob(self, action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """log sum_k w_k N_k(a)."""
        wide = jnp.broadcast_to(action[..., None, :], self.mean.shape)
        return jax.nn.logsumexp(
            jax.nn.log_softmax(self.logits) + gaussian_log_prob(wide, self.mean, self.log_std), axis=-1
        )

    def entropy(self) -> Float[Array, "*b"]:
        """An upper bound: the entropy of component and action together. It has no gradient by the means."""
        log_weight = jax.nn.log_softmax(self.logits)
        each = (self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e)).sum(-1)
        return (jnp.exp(log_weight) * (each - log_weight)).sum(-1)

    def mode(self) -> Float[Array, "*b act"]:
        """The mean of the heaviest component."""
        which = self.logits.argmax(-1)[..., None, None]
        return jnp.take_along_axis(self.mean, which, axis=-2)[..., 0, :]

    def health(self) -> Metrics:
        """Nothing."""
        return {}
