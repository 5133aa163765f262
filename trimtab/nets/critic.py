"""Value functions: an ensemble Q(s, a) and a single V(s)."""

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import Spec
from trimtab.nets.mlp import MLP, concat


class Critic(eqx.Module):
    """An ensemble of Q(s, a): obs (b, ...), action (b, act) -> (e, b)."""

    mlp: MLP

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
    ) -> "Critic":
        """`members` independent networks of widths `hidden`, held as one batched network."""
        in_size = spec.obs_size + spec.action_size
        return cls(MLP.create(in_size, hidden, 1, key, activation=activation, norm=norm, members=members))

    def __call__(self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]) -> Float[Array, "e b"]:
        return self.mlp(concat(obs, action))[..., 0]


class Value(eqx.Module):
    """V(s): obs (..., obs) -> (...)."""

    mlp: MLP

    @classmethod
    def create(
        cls,
        spec: Spec,
        hidden: tuple[int, ...],
        key: PRNGKeyArray,
        *,
        activation: str = "relu",
        norm: str | None = None,
    ) -> "Value":
        """One network of widths `hidden`."""
        return cls(MLP.create(spec.obs_size, hidden, 1, key, activation=activation, norm=norm))

    def __call__(self, obs: PyTree[Float[Array, "..."]]) -> Float[Array, "..."]:
        return self.mlp(concat(obs))[..., 0]
