"""Multi-layer perceptrons, single or as an ensemble."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import UsageError
from trimtab.nets.linear import LayerNorm, Linear

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "mish": jax.nn.mish,
}
"""Names a config may use. A function would be a leaf that is no array; a name is static and hashable."""

NORMS = ("layer", "layer_after")
"""What stands beside the activations: LayerNorm before or after each of them."""


def concat(*parts: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
    """All leaves of all parts side by side along the last axis, in PyTree order."""
    leaves = jax.tree.leaves(parts)
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)


class MLP(eqx.Module):
    """Linear, (LayerNorm,) activation for each hidden layer, then a last Linear.

    LayerNorm stands before the activation (SEEM, RLPD), or after it (FQL's code).

    Without `members`: (..., in) -> (..., out). With `members`: (b, in) -> (members, b, out).
    """

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm | None, ...]
    """one a hidden layer, None where it has none; empty without any."""
    activation: str = eqx.field(static=True)
    norm_after: bool = eqx.field(static=True, default=False)
    """whether the norms stand after the activations instead of before."""

    @classmethod
    def create(
        cls,
        in_size: int,
        hidden: tuple[int, ...],
        out_size: int,
        key: PRNGKeyArray,
        *,
        activation: str = "relu",
        norm: str | None = None,
        norm_layers: tuple[int, ...] | None = None,
        members: int | None = None,
        out_scale: float = 1.0,
        init: str = "torch",
    ) -> "MLP":
        """`norm` is None, "layer" (before the activation) or "layer_after" (after it), on the hidden layers of the
        indices `norm_layers` (None: on all); `out_scale` multiplies the last layer's initial weights; `init` is that of
        `Linear.create`, with a gain of sqrt(2) on the hidden layers where it is "orthogonal".

        Raises `UsageError` for an unknown activation or norm, a width below 1, or a layer that is not there.
        """
        if min(hidden, default=1) < 1:
            raise UsageError(f"hidden widths must be at least 1, got {' '.join(map(str, hidden))}")
        if activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if norm not in (None, *NORMS):
            raise UsageError(f"unknown norm {norm!r}: choose {', '.join(map(repr, NORMS))} or None")
        where = range(len(hidden)) if norm_layers is None else norm_layers
        if not set(where) <= set(range(len(hidden))):
            raise UsageError(f"norm_layers {norm_layers} does not fit {len(hidden)} hidden layers: count from 0")
        sizes = (in_size, *hidden, out_size)
        keys = jr.split(key, len(sizes) - 1)
        scales = [2.0**0.5 if init == "orthogonal" else 1.0] * len(hidden) + [out_scale]
        layers = tuple(
            Linear.create(i, o, k, members=members, scale=s, init=init)
            for i, o, k, s in zip(sizes[:-1], sizes[1:], keys, scales, strict=True)
        )
        norms = [LayerNorm.create(size, members=members) if i in where else None for i, size in enumerate(hidden)]
        return cls(layers, tuple(norms) if norm else (), activation, norm == "layer_after")

    def hidden(self, x: Float[Array, "..."]) -> list[Float[Array, "..."]]:
        """The activations of each hidden layer, first to last: what diagnostics look at."""
        return self._hidden(self.layers[0](x))[0] if len(self.layers) > 1 else []

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.layers[0].weight.ndim > 2 or x.ndim < 3:
            return self.after_first(self.layers[0](x))
        # XLA's CPU backend reshapes around each product of more axes than two, and fuses less: half as slow again.
        rows = self.after_first(self.layers[0](x.reshape(math.prod(x.shape[:-1]), x.shape[-1])))
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

    def after_first(self, first: Float[Array, "..."]) -> Float[Array, "..."]:
        """The rest of the network after its first Linear, for callers that compute that one themselves."""
        return self.layers[-1](self._hidden(first)[1]) if len(self.layers) > 1 else first

    def _hidden(self, first: Float[Array, "..."]) -> tuple[list[Float[Array, "..."]], Float[Array, "..."]]:
        """The activations of each hidden layer, and what the last layer gets."""
        activations, act, x = [], ACTIVATIONS[self.activation], first
        for i, norm in enumerate(self.norms or (None,) * (len(self.layers) - 1)):
            x = self.layers[i](x) if i > 0 else x
            before = norm if norm is not None and not self.norm_after else lambda x: x
            activations.append(act(before(x)))
            x = norm(activations[-1]) if norm is not None and self.norm_after else activations[-1]
        return activations, x
