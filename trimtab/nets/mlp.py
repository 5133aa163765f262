"""Multi-layer perceptrons, single or as an ensemble."""

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
}
"""Names a config may use. A function would be a leaf that is no array; a name is static and hashable."""


def concat(*parts: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
    """All leaves of all parts side by side along the last axis, in PyTree order."""
    leaves = jax.tree.leaves(parts)
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)


class MLP(eqx.Module):
    """Linear, (LayerNorm,) activation for each hidden layer, then a last Linear.

    Without `members`: (..., in) -> (..., out). With `members`: (b, in) -> (members, b, out).
    """

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]
    activation: str = eqx.field(static=True)

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
        members: int | None = None,
        out_scale: float = 1.0,
        init: str = "torch",
    ) -> "MLP":
        """`norm` is None or "layer" (before each activation); `out_scale` shrinks the last layer's initial weights;
        `init` is that of `Linear.create`.

        Raises `UsageError` for an unknown activation or norm, or a width below 1.
        """
        if min(hidden, default=1) < 1:
            raise UsageError(f"hidden widths must be at least 1, got {' '.join(map(str, hidden))}")
        if activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if norm not in (None, "layer"):
            raise UsageError(f"unknown norm {norm!r}: choose 'layer' or None")
        sizes = (in_size, *hidden, out_size)
        keys = jr.split(key, len(sizes) - 1)
        scales = [1.0] * len(hidden) + [out_scale]
        layers = tuple(
            Linear.create(i, o, k, members=members, scale=s, init=init)
            for i, o, k, s in zip(sizes[:-1], sizes[1:], keys, scales, strict=True)
        )
        norms = tuple(LayerNorm.create(size, members=members) for size in hidden) if norm == "layer" else ()
        return cls(layers, norms, activation)

    def hidden(self, x: Float[Array, "..."]) -> list[Float[Array, "..."]]:
        """The activations of each hidden layer, first to last: what diagnostics look at."""
        return self._hidden(self.layers[0](x)) if len(self.layers) > 1 else []

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.after_first(self.layers[0](x))

    def after_first(self, first: Float[Array, "..."]) -> Float[Array, "..."]:
        """The rest of the network after its first Linear, for callers that compute that one themselves."""
        return self.layers[-1](self._hidden(first)[-1]) if len(self.layers) > 1 else first

    def _hidden(self, first: Float[Array, "..."]) -> list[Float[Array, "..."]]:
        outputs, act, x = [], ACTIVATIONS[self.activation], first
        for i, layer in enumerate(self.layers[1:]):
            outputs.append(act(self.norms[i](x) if self.norms else x))
            x = layer(outputs[-1]) if i < len(self.layers) - 2 else x
        return outputs
