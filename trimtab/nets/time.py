"""Embeddings of a flow's times t in [0, 1] and of a diffusion's steps, all those of a rollout at once."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.nets.mlp import MLP


def waves(times: Float[Array, " k"], n: int) -> Float[Array, "k m"]:
    """t, and the sine and cosine of it at n frequencies, 1/2, 1, 2 .. 2^(n-2) turns from 0 to 1: m = 1 + 2n."""
    angles = jnp.outer(times, jnp.pi * 2.0 ** jnp.arange(n, dtype=jnp.float32))
    return jnp.concatenate([times[:, None], jnp.sin(angles), jnp.cos(angles)], axis=-1)


class SinusoidalTime(eqx.Module):
    """sin and cos of t at 16 frequencies from 1 to 1e-4, then Linear(64), silu, Linear(32): (k,) -> (k, 32)."""

    mlp: MLP

    @classmethod
    def create(cls, key: PRNGKeyArray) -> "SinusoidalTime":
        """The sizes of SAC Flow's gated velocity."""
        return cls(MLP.create(32, (64,), 32, key, activation="silu"))

    def __call__(self, times: Float[Array, " k"]) -> Float[Array, "k 32"]:
        angles = jnp.outer(times, jnp.exp(-jnp.arange(16, dtype=jnp.float32) * (jnp.log(1e4) / 15.0)))
        return self.mlp(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))


class MLPTime(eqx.Module):
    """Linear(D/4), silu, Linear(D/2), silu, Linear(D) of the bare scalar: (k,) -> (k, D)."""

    mlp: MLP

    @classmethod
    def create(cls, size: int, key: PRNGKeyArray) -> "MLPTime":
        """For tokens of width `size` >= 4."""
        return cls(MLP.create(1, (size // 4, size // 2), size, key, activation="silu"))

    def __call__(self, times: Float[Array, " k"]) -> Float[Array, "k d"]:
        return self.mlp(times[:, None])


class StepTime(eqx.Module):
    """sin and cos of a diffusion's step at 8 frequencies from 1 to 1e-4, then Linear(32), mish, Linear(16)."""

    mlp: MLP

    @classmethod
    def create(cls, key: PRNGKeyArray) -> "StepTime":
        """The sizes of Diffusion-QL (arXiv:2208.06193)."""
        return cls(MLP.create(16, (32,), 16, key, activation="mish"))

    def __call__(self, times: Float[Array, " k"]) -> Float[Array, "k 16"]:
        angles = jnp.outer(times, jnp.exp(-jnp.arange(8, dtype=jnp.float32) * (jnp.log(1e4) / 7.0)))
        return self.mlp(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
