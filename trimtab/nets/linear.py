"""Affine layers and layer normalisation, for one network or for an ensemble of them.

Our own rather than Equinox's: these take any number of leading batch axes without `vmap`, and an ensemble is one
batched matrix product instead of one product a member.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class Linear(eqx.Module):
    """`x W + b` over the last axis. With `members` set, W is (members, in, out) and x has a leading member axis."""

    weight: Float[Array, "*e i o"]
    bias: Float[Array, "*e o"]

    @classmethod
    def create(
        cls,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        *,
        members: int | None = None,
        scale: float = 1.0,
        init: str = "torch",
    ) -> "Linear":
        """Random weights; `scale` multiplies them (and the biases, where those are random).

        `init` is "torch": weights and biases uniform in +-1/sqrt(in), PyTorch's default, which SB3 and CleanRL train
        with; "lecun": normal of variance 1/in, cut at two standard deviations, Flax's default; "glorot": uniform of
        variance 2/(in + out), as FQL's family has it; or "orthogonal", as PPO has it. The last three start biases at 0.
        """
        lead = () if members is None else (members,)
        k_weight, k_bias = jr.split(key)
        shape = (*lead, in_size, out_size)
        if init == "torch":
            bound = scale / in_size**0.5
            weight = jr.uniform(k_weight, shape, minval=-bound, maxval=bound)
            return cls(weight, jr.uniform(k_bias, (*lead, out_size), minval=-bound, maxval=bound))
        if init == "orthogonal":
            weight = jax.nn.initializers.orthogonal()(k_weight, shape, jnp.float32)
            return cls(scale * weight, jnp.zeros((*lead, out_size)))
        make = jax.nn.initializers.glorot_uniform if init == "glorot" else jax.nn.initializers.lecun_normal
        weight = make(batch_axis=0 if lead else ())(k_weight, shape, jnp.float32)
        return cls(scale * weight, jnp.zeros((*lead, out_size)))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.weight.ndim == 2:
            y = self._single(x)
            return y + jnp.broadcast_to(self.bias, y.shape)
        y = self._ensemble(x)
        return y + jnp.broadcast_to(self.bias[:, None, :], y.shape)

    def _single(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """`x W`, in the form whose gradient XLA's CPU backend runs fastest."""
        in_size, out_size = self.weight.shape
        if out_size >= in_size:
            return jnp.dot(x, self.weight)
        # The gradient of W is x' g, which runs at a tenth of its speed where g is narrow. Through the transposed
        # weight it is g' x; without the barrier XLA would turn it back.
        turned = jax.lax.optimization_barrier(self.weight.T)
        return jax.lax.dot_general(x, turned, (((x.ndim - 1,), (1,)), ((), ())))

    def _ensemble(self, x: Float[Array, "..."]) -> Float[Array, "e b o"]:
        """The members' products, each in the form that XLA's CPU backend runs fastest."""
        members, in_size, out_size = self.weight.shape
        if x.ndim == 2:  # all members see the same input: one wide product
            wide = x @ self.weight.transpose(1, 0, 2).reshape(in_size, members * out_size)
            return wide.reshape(-1, members, out_size).transpose(1, 0, 2)
        if out_size == 1:  # a sum of products: as a matrix product it would run unvectorised
            return jnp.einsum("ebi,ei->eb", x, self.weight[..., 0])[..., None]
        return x @ self.weight


class LayerNorm(eqx.Module):
    """Normalises the last axis to mean 0 and variance 1, then applies an affine map (Ba et al. 2016)."""

    scale: Float[Array, "*e i"]
    shift: Float[Array, "*e i"]

    @classmethod
    def create(cls, size: int, *, members: int | None = None) -> "LayerNorm":
        """Identity affine map; one a member when `members` is set."""
        shape = (size,) if members is None else (members, size)
        return cls(jnp.ones(shape), jnp.zeros(shape))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        mean = x.mean(-1, keepdims=True)
        centred = x - jnp.broadcast_to(mean, x.shape)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        scale, shift = self.scale, self.shift
        if self.scale.ndim == 2:
            scale, shift = scale[:, None, :], shift[:, None, :]
        x = centred * jnp.broadcast_to(inverse, x.shape)
        return x * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape)
