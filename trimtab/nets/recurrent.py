"""Networks with a memory: a gated recurrent unit before a perceptron, or the perceptron alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trimtab.nets.linear import Linear
from trimtab.nets.mlp import MLP


class GRU(eqx.Module):
    """A gated recurrent unit (Cho et al. 2014), in the form of PyTorch and Flax.

    r = sigmoid(W_r x + U_r h),  z = sigmoid(W_z x + U_z h),  n = tanh(W_n x + r (U_n h)),  h' = (1 - z) n + z h
    """

    inputs: Linear
    """W, biases included."""
    states: Linear
    """U, biases included."""

    @classmethod
    def create(cls, in_size: int, width: int, key: PRNGKeyArray) -> "GRU":
        """Orthogonal weights: a memory neither grows nor fades at the start."""
        k_in, *k_states = jr.split(key, 4)
        # Each gate's U is orthogonal by itself.
        gates = [Linear.create(width, width, k, init="orthogonal") for k in k_states]
        states = Linear(jnp.concatenate([g.weight for g in gates], axis=1), jnp.zeros((3 * width,)))
        return cls(Linear.create(in_size, 3 * width, k_in, init="orthogonal"), states)

    @property
    def width(self) -> int:
        """Numbers of the memory."""
        return self.states.weight.shape[0]

    def __call__(self, x: Float[Array, "*b i"], h: Float[Array, "*b h"]) -> Float[Array, "*b h"]:
        x_r, x_z, x_n = jnp.split(self.inputs(x), 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.states(h), 3, axis=-1)
        reset, keep = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        return (1.0 - keep) * jnp.tanh(x_n + reset * h_n) + keep * h


class Remembering(eqx.Module):
    """A perceptron on what a GRU remembers of the inputs so far, or on the input alone where there is no GRU.

    Memories are arrays with the leading axes of the input, () without a GRU.
    """

    gru: GRU | None
    head: Callable[[Float[Array, "..."]], Float[Array, "..."]]

    @classmethod
    def create(
        cls,
        in_size: int,
        hidden: tuple[int, ...],
        out_size: int,
        key: PRNGKeyArray,
        *,
        memory: int = 0,
        activation: str = "tanh",
        out_scale: float = 1.0,
    ) -> "Remembering":
        """A GRU of width `memory`, or none where that is 0, and layers of widths `hidden`, all orthogonal."""
        k_gru, k_head = jr.split(key)
        gru = GRU.create(in_size, memory, k_gru) if memory else None
        shape: dict[str, Any] = dict(activation=activation, out_scale=out_scale, init="orthogonal")
        return cls(gru, MLP.create(memory or in_size, hidden, out_size, k_head, **shape))

    def memory(self, lead: tuple[int, ...]) -> Any:
        """The memory of nothing, with leading axes `lead`."""
        return () if self.gru is None else jnp.zeros((*lead, self.gru.width))

    def step(self, x: Float[Array, "*b i"], memory: Any) -> tuple[Float[Array, "*b o"], Any]:
        """The output for one input, and the memory after it."""
        if self.gru is None:
            return self.head(x), memory
        memory = self.gru(x, memory)
        return self.head(memory), memory

    def unroll(self, x: Float[Array, "b l i"], memory: Any, last: Bool[Array, "b l"]) -> Float[Array, "b l o"]:
        """The outputs for sequences of `l` inputs, from the memory before the first: (b, h). Where `last` is set, the
        memory begins anew after that input."""
        if self.gru is None:
            return self.head(x)
        gru, inputs = self.gru, jnp.swapaxes(x, 0, 1)

        def body(h: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
            x, ended = row
            h = gru(x, h)
            return jnp.where(jnp.broadcast_to(ended[:, None], h.shape), 0.0, h), h

        _, states = jax.lax.scan(body, memory, (inputs, last.T))
        return self.head(jnp.swapaxes(states, 0, 1))
