"""Q(s, .) for all of a few actions at once: a number, probabilities on atoms, or quantiles for each."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import Spec
from trimtab.nets.masks import feature_size
from trimtab.nets.mlp import MLP


class DiscreteQ(eqx.Module):
    """Features (..., i) -> (..., actions, outputs). With `dueling` the last layer gives V and A, and their sum less the
    mean of A is put out."""

    mlp: MLP
    actions: int = eqx.field(static=True)
    dueling: bool = eqx.field(static=True)
    span: tuple[float, float] | None = eqx.field(static=True)
    """ends of the atoms whose logits are put out; None: values are, or quantiles of them."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        hidden: tuple[int, ...],
        outputs: int,
        key: PRNGKeyArray,
        *,
        dueling: bool = False,
        span: tuple[float, float] | None = None,
    ) -> "DiscreteQ":
        """`outputs` numbers for each action of `spec`."""
        rows = spec.action_size + int(dueling)
        mlp = MLP.create(feature_size(spec), hidden, rows * outputs, key)
        return cls(mlp, spec.action_size, dueling, span)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b a n"]:
        out = self.mlp(x)
        out = out.reshape(*out.shape[:-1], self.actions + int(self.dueling), -1)
        if not self.dueling:
            return out
        value, advantage = out[..., :1, :], out[..., 1:, :]
        value = value - advantage.mean(-2, keepdims=True)
        return jnp.broadcast_to(value, advantage.shape) + advantage

    def values(self, out: Float[Array, "*b a n"]) -> Float[Array, "*b a"]:
        """The mean return of each action, from what was put out."""
        if self.span is None:
            return out.mean(-1)
        atoms = jnp.linspace(*self.span, out.shape[-1])
        return jax.nn.softmax(out) @ atoms
