"""The behaviour of a data set: a mixture of Gaussians fitted by maximum likelihood.

    L = -E[ log sum_k softmax(l(s))_k P(a | mean_k(s), std_k(s)) ],  P of ope/density.py

With one component it is Gaussian behaviour cloning. It trains in the loop that trains agents and has their form; it is
no agent to train by name.
Metrics: behaviour_loss, behaviour_std the mean standard deviation of the components, behaviour_grad_norm.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec
from trimtab.nets.mlp import MLP
from trimtab.nets.standardise import Standardise, flatten
from trimtab.ope.density import edged_log_prob
from trimtab.ops import descend


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of the behaviour model."""

    components: int = 5
    """Gaussians in the mixture."""
    squashed: bool = False
    """whether an action is the tanh of a normal number instead of a clipped one."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers."""
    batch_size: int = 256
    """transitions in one update."""


class Mixture(AbstractPolicy):
    """P(a | s): see the module's docstring. Log stds are clipped to [-5, 2]."""

    net: MLP
    inputs: Standardise
    components: int = eqx.field(static=True)
    squashed: bool = eqx.field(static=True)

    def parts(
        self, obs: PyTree[Float[Array, "b ..."]]
    ) -> tuple[Float[Array, "k b"], Float[Array, "k b act"], Float[Array, "k b act"]]:
        """Log shares, means and log stds of the components."""
        x = flatten(obs, self.inputs)
        raw = jnp.moveaxis(self.net(x).reshape(x.shape[0], self.components, -1), 1, 0)
        mean, log_std = jnp.split(raw[..., 1:], 2, axis=-1)
        return jax.nn.log_softmax(raw[..., 0], axis=0), mean, jnp.clip(log_std, -5.0, 2.0)

    def log_prob(self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]) -> Float[Array, " b"]:
        """Log probability of the actions."""
        share, mean, log_std = self.parts(obs)
        each = edged_log_prob(jnp.broadcast_to(action, mean.shape), mean, log_std, squashed=self.squashed)
        return jax.nn.logsumexp(share + each, axis=0)

    def __call__(self, obs: PyTree[Float[Array, "b ..."]], key: PRNGKeyArray) -> Array:
        k_part, k_noise = jr.split(key)
        share, mean, log_std = self.parts(obs)
        part = jr.categorical(k_part, share, axis=0)
        mean, log_std = (x[part, jnp.arange(x.shape[1], dtype=jnp.int32)] for x in (mean, log_std))
        u = mean + jnp.exp(log_std) * jr.normal(k_noise, mean.shape)
        return jnp.tanh(u) if self.squashed else jnp.clip(u, -1.0, 1.0)


class Behaviour(AbstractAgent):
    """See the module's docstring."""

    mixture: Mixture
    opt: optax.OptState
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "Behaviour":
        """A fresh model, with the moments that `spec` carries."""
        net = MLP.create(spec.obs_size, config.hidden, config.components * (1 + 2 * spec.action_size), key)
        mixture: Any = Mixture(net, Standardise.create(spec), config.components, config.squashed)
        opt = optax.adam(config.learning_rate).init(mixture)
        return cls(mixture=mixture, opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return self.mixture

    @property
    def explorer(self) -> AbstractPolicy:
        return self.mixture

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["Behaviour", Metrics]:
        del key  # nothing is sampled
        tx = optax.adam(self.config.learning_rate)
        mixture, opt, metrics = descend(tx, self.mixture, self.opt, lambda m: self._loss(m, batch), "behaviour")
        return replace(self, mixture=mixture, opt=opt, step=self.step + 1), metrics

    def _loss(self, mixture: Mixture, batch: Transition):
        std = jnp.exp(mixture.parts(batch.obs)[2])
        return -mixture.log_prob(batch.obs, batch.action).mean(), {"std": std.mean()}
