"""Policies of on-policy agents: a network that may remember, and a head that makes a distribution of its outputs."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractActor
from trimtab.nets.masks import allowed, features
from trimtab.nets.recurrent import Remembering
from trimtab.nets.running import Normaliser
from trimtab.ops.jacobian import squared_jacobian, squared_jacobian_estimate
from trimtab.policies.distributions import AbstractDistribution
from trimtab.policies.heads import AbstractHead
from trimtab.policies.linear import LinearPolicyNet


class Actor(eqx.Module):
    """From normalised features to a distribution over actions."""

    net: Remembering
    head: AbstractHead
    state: tuple[int, int] = eqx.field(static=True)
    """columns of the features by which its Jacobian is taken."""

    def step(
        self, x: Float[Array, "*b i"], mask: Bool[Array, "*b a"] | None, memory: Any
    ) -> tuple[AbstractDistribution, Any]:
        """The distribution for one input, and the memory after it."""
        out, memory = self.net.step(x, memory)
        return self.head(out, mask), memory

    def log_prob(
        self, x: Float[Array, "t n i"], mask: Bool[Array, "t n a"] | None, memory: Any, action: Array, size: int
    ) -> Float[Array, "t n"]:
        """Log density of what was drawn at each step, `size` of them at a time: a density on a grid is larger than all
        else that a rollout needs."""
        one = lambda row: self.step(*row[:-1])[0].log_prob(row[-1])
        t, n = x.shape[:2]
        rows = jax.tree.map(lambda leaf: leaf.reshape(t * n, *leaf.shape[2:]), (x, mask, memory, action))
        return jax.lax.map(one, rows, batch_size=min(size, t * n)).reshape(t, n)

    def unroll(
        self, x: Float[Array, "b l i"], mask: Bool[Array, "b l a"] | None, memory: Any, last: Bool[Array, "b l"]
    ) -> AbstractDistribution:
        """The distributions for sequences: see `Remembering.unroll`."""
        return self.head(self.net.unroll(x, memory, last), mask)

    def unroll_with_jacobian(
        self,
        x: Float[Array, "b l i"],
        mask: Bool[Array, "b l a"] | None,
        memory: Any,
        last: Bool[Array, "b l"],
        key: PRNGKeyArray | None,
    ) -> tuple[AbstractDistribution, Float[Array, " n"]]:
        """`unroll`, and |d mean / d state|^2 of all inputs: exact, or estimated where there is a key. A linear policy
        puts it out beside its mean."""
        if isinstance(self.net.head, LinearPolicyNet):
            mean, squares = self.net.head.with_squared_gains(x)
            return self.head(mean, mask), squares.reshape(-1)
        rows = x.reshape(-1, x.shape[-1])
        if key is None:
            squares = squared_jacobian(self.net.head, rows, *self.state)
        else:
            squares = squared_jacobian_estimate(self.net.head, rows, *self.state, key)
        return self.unroll(x, mask, memory, last), squares


class Mode(AbstractActor):
    """The mode of an actor's distribution: what is evaluated."""

    actor: Actor
    inputs: Normaliser | None

    def memory(self, lead: tuple[int, ...]) -> Any:
        """The network's."""
        return self.actor.net.memory(lead)

    def draw(self, obs: PyTree[Float[Array, "..."]], memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        """The mode; nothing is drawn."""
        found, memory = self.actor.step(normalised(obs, self.inputs), allowed(obs), memory)
        return found.mode(), memory

    def applied(self, drawn: Array) -> Array:
        """What the head makes of it."""
        return self.actor.head.applied(drawn)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.applied(self.draw(obs, self.memory(lead(obs)), key)[0])


class Sample(AbstractActor):
    """A draw from an actor's distribution: what collects data. It keeps the memory of a critic, too, where that has
    one."""

    actor: Actor
    inputs: Normaliser | None
    critic: Remembering | None

    def memory(self, lead: tuple[int, ...]) -> Any:
        """The actor's and the critic's."""
        return self.actor.net.memory(lead), () if self.critic is None else self.critic.memory(lead)

    def draw(self, obs: PyTree[Float[Array, "..."]], memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        """A sample of the distribution."""
        x = normalised(obs, self.inputs)
        found, after = self.actor.step(x, allowed(obs), memory[0])
        critic_after = memory[1] if self.critic is None else self.critic.step(x, memory[1])[1]
        return found.sample(key), (after, critic_after)

    def applied(self, drawn: Array) -> Array:
        """What the head makes of it."""
        return self.actor.head.applied(drawn)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.applied(self.draw(obs, self.memory(lead(obs)), key)[0])


def normalised(obs: PyTree[Float[Array, "..."]], inputs: Normaliser | None) -> Float[Array, "..."]:
    """The features of an observation, normalised if there is a `Normaliser` for them."""
    x = features(obs)
    return x if inputs is None else inputs(x)


def lead(obs: PyTree[Float[Array, "..."]]) -> tuple[int, ...]:
    """The leading axes of an observation whose leaves are vectors."""
    return jax.tree.leaves(obs)[0].shape[:-1]
