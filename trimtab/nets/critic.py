"""Value functions: an ensemble Q(s, a) and a single V(s)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import Spec
from trimtab.nets.batch_norm import BatchRenorm
from trimtab.nets.linear import Linear
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.standardise import Standardise, flatten


class Critic(eqx.Module):
    """An ensemble of Q(s, a): obs (b, ...), action (b, act) -> (e, b)."""

    mlp: MLP
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        hidden: tuple[int, ...],
        members: int,
        key: PRNGKeyArray,
        *,
        activation: str = "relu",
        norm: str | None = None,
        norm_layers: tuple[int, ...] | None = None,
        init: str = "torch",
        standardise: bool = False,
    ) -> "Critic":
        """`members` independent networks of widths `hidden`, held as one batched network; `standardise` puts the data
        set's `Standardise` before them; the rest as `MLP.create`.
        """
        shape: dict[str, Any] = dict(activation=activation, norm=norm, norm_layers=norm_layers, init=init)
        mlp = MLP.create(spec.obs_size + spec.action_size, hidden, 1, key, members=members, **shape)
        return cls(mlp, Standardise.create(spec) if standardise else None)

    def __call__(self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]) -> Float[Array, "e b"]:
        return self.mlp(concat(flatten(obs, self.inputs), action))[..., 0]

    def many(self, obs: PyTree[Float[Array, "b ..."]], actions: Float[Array, "n b act"]) -> Float[Array, "e n b"]:
        """Q of `n` actions for each state; the state's share of the first layer is computed once."""
        flat, first = flatten(obs, self.inputs), self.mlp.layers[0]
        split = flat.shape[-1]
        states = Linear(first.weight[:, :split], first.bias)(flat)
        rest = Linear(first.weight[:, split:], jnp.zeros_like(first.bias))
        # One action for all states at a time, and its activations once more on the way back: those of all n at once
        # would leave the processor's caches, which costs more than twice as much.
        values = jax.checkpoint(lambda action: self.mlp.after_first(states + rest(action))[..., 0])
        return jnp.swapaxes(jax.lax.map(values, actions), 0, 1)


class CrossQCritic(eqx.Module):
    """CrossQ's ensemble (Bhatt et al. 2024): BatchRenorm on the input and after each relu, and no target network.

    `train` is called once on the rows of (s, a) and of (s', a') together, so that one set of batch statistics serves
    both; outside of training the running statistics do.
    """

    layers: tuple[Linear, ...]
    norms: tuple[BatchRenorm, ...]

    @classmethod
    def create(
        cls, spec: Spec, hidden: tuple[int, ...], members: int, key: PRNGKeyArray, *, init: str = "lecun"
    ) -> "CrossQCritic":
        """`members` independent networks of widths `hidden`."""
        sizes = (spec.obs_size + spec.action_size, *hidden, 1)
        keys = jr.split(key, len(sizes) - 1)
        return cls(
            tuple(
                Linear.create(i, o, k, members=members, init=init)
                for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
            ),
            tuple(BatchRenorm.create(size, members=members) for size in sizes[:-1]),
        )

    def __call__(self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]) -> Float[Array, "e b"]:
        x = self._tile(concat(obs, action))
        for norm, layer in zip(self.norms[:-1], self.layers[:-1], strict=True):
            x = jax.nn.relu(layer(norm(x)))
        return self.layers[-1](self.norms[-1](x))[..., 0]

    def train(
        self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]
    ) -> "tuple[Float[Array, 'e b'], CrossQCritic]":
        """Q by the batch's statistics, and the critic with new running ones."""
        x, norms = self._tile(concat(obs, action)), []
        for i, norm in enumerate(self.norms):
            x, norm = norm.train(x)
            norms.append(norm)
            x = self.layers[i](x)
            x = jax.nn.relu(x) if i < len(self.layers) - 1 else x
        return x[..., 0], CrossQCritic(self.layers, tuple(norms))

    def _tile(self, x: Float[Array, "b i"]) -> Float[Array, "e b i"]:
        return jnp.broadcast_to(x, (self.layers[0].weight.shape[0], *x.shape))


class Value(eqx.Module):
    """V(s): obs (..., obs) -> (...)."""

    mlp: MLP
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
        norm: str | None = None,
        norm_layers: tuple[int, ...] | None = None,
        init: str = "torch",
        standardise: bool = False,
    ) -> "Value":
        """One network of widths `hidden`; `standardise` puts the data set's `Standardise` before it, the rest as in
        `MLP.create`."""
        shape: dict[str, Any] = dict(activation=activation, norm=norm, norm_layers=norm_layers, init=init)
        mlp = MLP.create(spec.obs_size, hidden, 1, key, **shape)
        return cls(mlp, Standardise.create(spec) if standardise else None)

    def __call__(self, obs: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
        return self.mlp(flatten(obs, self.inputs))[..., 0]
