"""A conditional variational auto-encoder of actions (Kingma and Welling 2014; Sohn et al. 2015): a density by samples.

    h ~ N(0, I),  a | s, h ~ N(m(s, h), std^2),  q(h | s, a) = N(e(s, a), d(s, a)^2)
    ELBO         = E_q[ log p(a | s, h) ] - KL( q(h | s, a) || N(0, I) )                                       (1)
    log p(a | s) ~ log 1/n sum_i p(a | s, h_i) p(h_i) / q(h_i | s, a),  h_i ~ q(h | s, a)                      (2)

(2) is from below in the mean and exact where q is the posterior (Burda et al. 2016). FAC's ablation puts such a density
in the place of its flow's.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import Spec
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.standardise import Standardise, flatten
from trimtab.ops.logprob import gaussian_log_prob


class VAE(eqx.Module):
    """See the module's docstring; log stds are clipped, the data's to [-5, 2] and the code's to [-4, 4]."""

    encoder: MLP
    decoder: MLP
    log_std: Float[Array, " act"]
    """of an action about the decoder's mean, for all states."""
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(cls, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray, *, standardise: bool = False) -> "VAE":
        """Two networks of widths `hidden`, gelu; h has twice as many numbers as an action (BCQ's choice)."""
        act, latent = spec.action_size, 2 * spec.action_size
        k_encoder, k_decoder = jr.split(key)
        return cls(
            MLP.create(spec.obs_size + act, hidden, 2 * latent, k_encoder, activation="gelu", init="glorot"),
            MLP.create(spec.obs_size + latent, hidden, act, k_decoder, activation="gelu", init="glorot"),
            jnp.zeros((act,)),
            Standardise.create(spec) if standardise else None,
        )

    def elbo(
        self, obs: PyTree[Float[Array, "..."]], action: Float[Array, "*b act"], key: PRNGKeyArray
    ) -> Float[Array, "*b"]:
        """(1), its expectation by one sample of h."""
        flat = flatten(obs, self.inputs)
        mean, log_std = self._code(flat, action)
        code = mean + jnp.exp(log_std) * jr.normal(key, mean.shape)
        divergence = 0.5 * (jnp.exp(2.0 * log_std) + jnp.square(mean) - 1.0) - log_std
        return self._likelihood(flat, code, action) - divergence.sum(-1)

    def log_density(
        self, obs: PyTree[Float[Array, "..."]], action: Float[Array, "*b act"], key: PRNGKeyArray, samples: int
    ) -> Float[Array, "*b"]:
        """(2) with n = `samples`."""
        flat = flatten(obs, self.inputs)
        mean, log_std = self._code(flat, action)

        def one(key: PRNGKeyArray) -> Float[Array, "*b"]:
            code = mean + jnp.exp(log_std) * jr.normal(key, mean.shape)
            prior = gaussian_log_prob(code, jnp.zeros_like(code), jnp.zeros_like(code))
            return self._likelihood(flat, code, action) + prior - gaussian_log_prob(code, mean, log_std)

        weights = jax.lax.map(one, jr.split(key, samples))
        return jax.nn.logsumexp(weights, axis=0) - jnp.log(jnp.float32(samples))

    def _code(self, flat: Array, action: Array) -> tuple[Array, Array]:
        """Mean and log std of q(h | s, a)."""
        mean, log_std = jnp.split(self.encoder(concat(flat, action)), 2, axis=-1)
        return mean, jnp.clip(log_std, -4.0, 4.0)

    def _likelihood(self, flat: Array, code: Array, action: Array) -> Array:
        """log p(a | s, h)."""
        mean = self.decoder(concat(flat, code))
        return gaussian_log_prob(action, mean, jnp.broadcast_to(jnp.clip(self.log_std, -5.0, 2.0), mean.shape))
