"""A flow as an on-policy actor: what it draws is not clipped, and it is learnt from by flow matching.

x_0 ~ N(0, I),  x_{k+1} = x_k + v(s, x_k, k / K) / K,  the draw is x_K
l(a; e, t) = mean_d ( v(s, (1 - t) e + t a, t) - (a - e) )_d^2                         flow matching, one e and t
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractActor
from trimtab.nets.mlp import MLP
from trimtab.nets.running import Normaliser
from trimtab.policies.actor import lead, normalised


class Velocity(eqx.Module):
    """v(s, x, t) = MLP([s, x, t]), s the normalised features of an observation."""

    mlp: MLP

    @classmethod
    def create(
        cls, features: int, actions: int, hidden: tuple[int, ...], key: PRNGKeyArray, *, activation: str = "relu"
    ) -> "Velocity":
        """A network of widths `hidden`."""
        return cls(MLP.create(features + actions + 1, hidden, actions, key, activation=activation))

    def __call__(self, s: Float[Array, "*b i"], x: Float[Array, "*b d"], t: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        return self.mlp(jnp.concatenate([s, x, t[..., None]], axis=-1))

    def draw(self, s: Float[Array, "*b i"], start: Float[Array, "*b d"], steps: int) -> Float[Array, "*b d"]:
        """Where `start` flows to in so many Euler steps."""
        x = start
        for k in range(steps):
            x = x + self(s, x, jnp.full(x.shape[:-1], k / steps)) / steps
        return x

    def losses(
        self,
        s: Float[Array, "b i"],
        action: Float[Array, "b d"],
        start: Float[Array, "b n d"],
        times: Float[Array, "b n"],
    ) -> Float[Array, "b n"]:
        """l of each action for n pairs of e (`start`) and t (`times`)."""
        wide = lambda x: jnp.broadcast_to(x[:, None, :], (*times.shape, x.shape[-1]))
        t, a = jnp.broadcast_to(times[..., None], start.shape), wide(action)
        return jnp.square(self(wide(s), (1.0 - t) * start + t * a, times) - (a - start)).mean(-1)


class FlowActor(AbstractActor):
    """Acts with a draw of the flow. A flow does not know where its density is greatest, so this is evaluated, too."""

    velocity: Velocity
    inputs: Normaliser | None
    action_size: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def memory(self, lead: tuple[int, ...]) -> tuple[()]:
        """None."""
        return ()

    def draw(self, obs: PyTree[Float[Array, "..."]], memory: tuple[()], key: PRNGKeyArray) -> tuple[Array, tuple[()]]:
        """The end of a flow from a normal number."""
        start = jr.normal(key, (*lead(obs), self.action_size))
        return self.velocity.draw(normalised(obs, self.inputs), start, self.steps), ()

    def applied(self, drawn: Array) -> Array:
        """Clipped."""
        return jnp.clip(drawn, -1.0, 1.0)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.applied(self.draw(obs, (), key)[0])
