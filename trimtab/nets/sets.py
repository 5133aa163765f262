"""Networks over sets of goals (DeepSets): a goal is rows (b, x), b = 1 where the row is there and 0 where it is not."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import ACHIEVED, DESIRED, OBSERVATION, Spec, UsageError
from trimtab.nets.mlp import MLP, concat

Obs = dict[str, Float[Array, "..."]]


def item_size(spec: Spec) -> int:
    """Numbers of one x: those of an achieved goal. Raises `UsageError` if the goal is no set of rows of such."""
    achieved, desired = spec.obs[ACHIEVED].size, spec.obs[DESIRED].size
    if desired % (achieved + 1):
        raise UsageError(
            f"desired_goal has {desired} numbers, which are no rows of a gate and the {achieved} of an achieved goal: "
            "choose an environment with sets of goals, such as trimtab/DriveSeek-v0"
        )
    return achieved


def split(obs: Obs) -> tuple[Float[Array, "*b n"], Float[Array, "*b n x"], Float[Array, "*b c"]]:
    """Gates b, items x, and what is left of the observation: the achieved goal and `observation`."""
    size = obs[ACHIEVED].shape[-1] + 1
    rows = obs[DESIRED].reshape(*obs[DESIRED].shape[:-1], -1, size)
    return rows[..., 0], rows[..., 1:], concat(obs[ACHIEVED], obs[OBSERVATION])


class SetEncoder(eqx.Module):
    """z = (1/n) sum_i b_i^2 e([x_i, c]). The square makes the gradient by b_i vanish for rows that are not there."""

    mlp: MLP

    @classmethod
    def create(cls, spec: Spec, hidden: tuple[int, ...], size: int, key: PRNGKeyArray) -> "SetEncoder":
        """`size` numbers from e, a network of widths `hidden`."""
        context = spec.obs[ACHIEVED].size + spec.obs[OBSERVATION].size
        return cls(MLP.create(item_size(spec) + context, hidden, size, key))

    def __call__(
        self, gates: Float[Array, "*b n"], items: Float[Array, "*b n x"], context: Float[Array, "*b c"]
    ) -> Float[Array, "*b z"]:
        wide = jnp.broadcast_to(context[..., None, :], (*items.shape[:-1], context.shape[-1]))
        each = self.mlp(concat(items, wide))
        return (jnp.broadcast_to(jnp.square(gates)[..., None], each.shape) * each).mean(-2)


class SetCritic(eqx.Module):
    """Q = head([z, c, a]): obs (b, ...), action (b, act) -> (1, b)."""

    encoder: SetEncoder
    head: MLP

    @classmethod
    def create(
        cls, spec: Spec, encoder: tuple[int, ...], size: int, hidden: tuple[int, ...], key: PRNGKeyArray
    ) -> "SetCritic":
        """An encoder of widths `encoder` and with `size` outputs, and a head of widths `hidden`."""
        k_encoder, k_head = jr.split(key)
        context = spec.obs[ACHIEVED].size + spec.obs[OBSERVATION].size
        head = MLP.create(size + context + spec.action_size, hidden, 1, k_head)
        return cls(SetEncoder.create(spec, encoder, size, k_encoder), head)

    def __call__(self, obs: Any, action: Float[Array, "b act"]) -> Float[Array, "1 b"]:
        return self.at(split(obs)[0], obs, action)

    def at(self, gates: Float[Array, "b n"], obs: Any, action: Float[Array, "b act"]) -> Float[Array, "1 b"]:
        """Q with other gates than the observation's."""
        _, items, context = split(obs)
        return self.head(concat(self.encoder(gates, items, context), context, action))[None, :, 0]
