"""Gaussian policies."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Spec
from trimtab.nets.mlp import MLP
from trimtab.nets.standardise import Standardise, flatten
from trimtab.ops.logprob import gaussian_log_prob, standard_log_prob, tanh_log_det


class TanhGaussian(AbstractPolicy):
    """a = tanh(u), u ~ N(mean(s), std(s)^2), log std clipped to [-20, 2] (Haarnoja et al. 2018, App. C)."""

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
    ) -> "TanhGaussian":
        """One trunk of widths `hidden` with a linear head for the mean and the log std; `init` as in `MLP.create`.
        `standardise` puts the data set's `Standardise` before it."""
        net = MLP.create(spec.obs_size, hidden, 2 * spec.action_size, key, activation=activation, init=init)
        return cls(net, Standardise.create(spec) if standardise else None)

    def moments(self, obs: PyTree[Float[Array, "..."]]) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"]]:
        """Mean and log std before the tanh, each (..., act)."""
        mean, log_std = jnp.split(self.net(flatten(obs, self.inputs)), 2, axis=-1)
        return mean, jnp.clip(log_std, -20.0, 2.0)

    def sample_and_log_prob(
        self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*b act"], Float[Array, "*b"]]:
        """A reparametrised action (..., act) and its log density (...)."""
        mean, log_std = self.moments(obs)
        # Without the barrier XLA computes the inverse error function anew in every use of the noise.
        noise = jax.lax.optimization_barrier(jr.normal(key, mean.shape))
        u = mean + jnp.exp(log_std) * noise
        return jnp.tanh(u), standard_log_prob(noise, log_std) - tanh_log_det(u)

    def samples_and_log_prob(
        self, obs: PyTree[Float[Array, "b ..."]], n: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n b act"], Float[Array, "n b"]]:
        """`n` actions for each state and their log densities; the network is asked once a state."""
        mean, log_std = self.moments(obs)
        noise = jax.lax.optimization_barrier(jr.normal(key, (n, *mean.shape)))
        mean, log_std = jnp.broadcast_to(mean, noise.shape), jnp.broadcast_to(log_std, noise.shape)
        u = mean + jnp.exp(log_std) * noise
        return jnp.tanh(u), standard_log_prob(noise, log_std) - tanh_log_det(u)

    def log_prob(self, obs: PyTree[Float[Array, "..."]], action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """Log density of `action`; actions at the bounds are moved inside by 1e-6, where atanh is finite in float32."""
        u = jnp.arctanh(jnp.clip(action, -1.0 + 1e-6, 1.0 - 1e-6))
        mean, log_std = self.moments(obs)
        return gaussian_log_prob(u, mean, log_std) - tanh_log_det(u)

    def mode(self, obs: PyTree[Float[Array, "..."]]) -> Float[Array, "*b act"]:
        """tanh of the mean."""
        return jnp.tanh(self.moments(obs)[0])

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        mean, log_std = self.moments(obs)
        return jnp.tanh(mean + jnp.exp(log_std) * jr.normal(key, mean.shape))


class Gaussian(AbstractPolicy):
    """a ~ N(tanh(mean(s)), std^2) with one log std a dimension, not a state; clipped to [-5, 2] (IQL's actor)."""

    net: MLP
    log_std: Float[Array, " act"]
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
        standardise: bool = False,
    ) -> "Gaussian":
        """A network of widths `hidden` for the mean; std starts at 1. `standardise` puts the data set's `Standardise`
        before it.
        """
        net = MLP.create(spec.obs_size, hidden, spec.action_size, key, activation=activation)
        return cls(net, jnp.zeros((spec.action_size,)), Standardise.create(spec) if standardise else None)

    def moments(self, obs: PyTree[Float[Array, "..."]]) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"]]:
        """Mean in (-1, 1) and log std, each (..., act)."""
        mean = jnp.tanh(self.net(flatten(obs, self.inputs)))
        return mean, jnp.broadcast_to(jnp.clip(self.log_std, -5.0, 2.0), mean.shape)

    def log_prob(self, obs: PyTree[Float[Array, "..."]], action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """Log density of `action` (of the unclipped normal)."""
        return gaussian_log_prob(action, *self.moments(obs))

    def mode(self, obs: PyTree[Float[Array, "..."]]) -> Float[Array, "*b act"]:
        """The mean."""
        return self.moments(obs)[0]

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        mean, log_std = self.moments(obs)
        return jnp.clip(mean + jnp.exp(log_std) * jr.normal(key, mean.shape), -1.0, 1.0)


class Mean(AbstractPolicy):
    """The mode of a Gaussian policy: what is evaluated."""

    inner: TanhGaussian | Gaussian

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.inner.mode(obs)
