"""Batch renormalisation (Ioffe 2017, arXiv:1702.03275), as CrossQ's critic uses it (Bhatt et al. 2024).

    r = clip(sigma_B / sigma, 1/3, 3),  d = clip((mu_B - mu) / sigma, -5, 5)             no gradient through r and d
    y = ((x - mu_B) / sigma_B * r + d) * scale + shift

mu_B, sigma_B are this batch's; mu, sigma are running means over the training calls. In the first `WARM_UP` calls r = 1
and d = 0: plain batch normalisation. A layer outside of training uses mu and sigma alone.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOMENTUM, EPSILON, WARM_UP = 0.99, 1e-3, 100_000
R_MAX, D_MAX = 3.0, 5.0


class BatchRenorm(eqx.Module):
    """Normalises the last axis over all others; with `members`, each member over the batch axis alone.

    The running statistics are leaves like the weights, so that checkpoints and `vmap` know nothing special: no loss has
    a gradient on them in training, and `train` returns the layer with the new ones.
    """

    scale: Float[Array, "*e i"]
    shift: Float[Array, "*e i"]
    mean: Float[Array, "*e i"]
    variance: Float[Array, "*e i"]
    calls: Float[Array, ""]
    """training calls so far, up to `WARM_UP`; a float, as all leaves of a network are differentiated together."""

    @classmethod
    def create(cls, size: int, *, members: int | None = None) -> "BatchRenorm":
        """Identity affine map; running mean 0 and variance 1."""
        shape = (size,) if members is None else (members, size)
        ones, zeros = jnp.ones(shape), jnp.zeros(shape)
        return cls(ones, zeros, jnp.copy(zeros), jnp.copy(ones), jnp.zeros(()))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Normalised by the running statistics."""
        slope = self.scale * jax.lax.rsqrt(self.variance + EPSILON)
        return self._affine(x, slope, self.shift - self.mean * slope)

    def train(self, x: Float[Array, "..."]) -> tuple[Float[Array, "..."], "BatchRenorm"]:
        """Normalised by the batch's statistics, and the layer with new running ones."""
        axes = (-2,) if self.scale.ndim == 2 else tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        # The two-pass form: E[x^2] - E[x]^2 loses all digits where the mean is far from zero.
        centred = x - self._broadcast(mean, x)
        variance = jnp.square(centred).mean(axes)
        seen = jax.lax.stop_gradient((mean, variance))
        sigma, running = jnp.sqrt(seen[1] + EPSILON), jax.lax.stop_gradient((self.mean, self.variance))
        sigma_running = jnp.sqrt(running[1] + EPSILON)
        warm = self.calls >= WARM_UP
        r = jnp.where(warm, jnp.clip(sigma / sigma_running, 1.0 / R_MAX, R_MAX), 1.0)
        d = jnp.where(warm, jnp.clip((seen[0] - running[0]) / sigma_running, -D_MAX, D_MAX), 0.0)
        slope = self.scale * r * jax.lax.rsqrt(variance + EPSILON)
        y = self._affine(centred, slope, self.shift + self.scale * d)
        blend = lambda old, new: MOMENTUM * old + (1.0 - MOMENTUM) * new
        calls = jnp.minimum(jax.lax.stop_gradient(self.calls) + 1.0, WARM_UP)
        return y, replace(self, mean=blend(running[0], seen[0]), variance=blend(running[1], seen[1]), calls=calls)

    def _affine(self, x: Float[Array, "..."], slope: Array, offset: Array) -> Float[Array, "..."]:
        return x * self._broadcast(slope, x) + self._broadcast(offset, x)

    def _broadcast(self, value: Float[Array, "*e i"], x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.broadcast_to(value[:, None, :] if value.ndim == 2 else value, x.shape)
