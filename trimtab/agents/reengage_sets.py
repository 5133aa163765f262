"""Multi-ReenGAGE: many goals at once, each behind a gate (Levine and Feizi 2023, arXiv:2208.13298).

A goal g is n rows (b_i, x_i), b_i = 1 where the row is there, 0 where it is not; r = 1 where the achieved goal is one
of the x_i that are there, else 0. In place of the gradient by the goals, that by the gates is matched:

    z    = (1/n) sum_i b_i^2 e([x_i, c]),  c = [achieved goal, observation]                        (1)
    Q    = head([z, c, a]),  pi = tanh(head_pi([z, c]))                                            (2)
    y    = r + gamma d Qbar(s', pibar(s', g), g),  d = discount                                    (3)
    G_y  = 2 b_i 1[g' = x_i] + d/db_i [ gamma d Qbar(s', pibar(s', g), g) ],  g' achieved by s'    (4)
    L_Q  = E[ (Q(s, a, g) - y)^2 ] + alpha E[ mean_i (d/db_i Q(s, a, g) - G_y,i)^2 ]               (5)
    L_pi = -E[ Q(s, pi(s, g), g) ]                                                                 (6)

The first part of (4) is the reward's own gradient, since r = sum_i b_i^2 1[g' = x_i]: no row is left out of (5). The
encoder e is the critic's and is moved by (5) alone; policy and target policy look through it. With `through_policy` the
gradient in (4) also passes through the target policy's gates; without, these are held. alpha weighs a mean over the n
rows: the paper's is alpha / n.

Order in one update: the critic with the old targets, the actor's head with the new critic, both targets last.
Metrics: critic_loss (5), critic_td and critic_match its two means; critic_mean E[Q]; critic_slope and
critic_target_slope the mean lengths of both gradients, critic_cosine the mean cosine between them; actor_loss (6),
actor_saturation share of |pi| > 0.99; *_grad_norm the global norm of that gradient.
Differences from the paper: without `through_policy` the target is the official code's. From that code: the policy's
gates are squared, too, which changes nothing while they are 0 or 1.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import (
    ACHIEVED,
    OBSERVATION,
    AbstractAgent,
    AbstractPolicy,
    Metrics,
    Spec,
    require_continuous,
    require_goals,
)
from trimtab.nets.mlp import MLP
from trimtab.nets.sets import SetCritic, item_size, split
from trimtab.ops import copy, descend, goal_gradient, match, polyak, td_target
from trimtab.policies.compose import Noisy
from trimtab.policies.sets import SetPolicy


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of Multi-ReenGAGE."""

    goal_match: float = 10.0
    """alpha in (5); 0 is DDPG on sets."""
    through_policy: bool = False
    """whether (4) also passes through the target policy."""
    learning_rate: float = 1e-3
    """Adam's step size for critic and actor."""
    gamma: float = 0.95
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    exploration_noise: float = 0.05
    """standard deviation of the noise on collected actions."""
    encoder: tuple[int, ...] = (400, 400)
    """widths of the hidden layers of e."""
    embedding: int = 20
    """numbers in z."""
    hidden: tuple[int, ...] = (400,)
    """widths of the hidden layers of both heads."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 160_000
    """transitions kept for replay; one with 200 goals takes 5 kB."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update."""


class ReenGAGESets(AbstractAgent):
    """See the module's docstring."""

    actor: MLP
    """the policy's head."""
    critic: SetCritic
    target_actor: MLP
    target_critic: SetCritic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "ReenGAGESets":
        """A fresh agent. Raises `UsageError` for discrete actions or observations without sets of goals."""
        require_continuous(spec, "reengage-sets")
        require_goals(spec, "reengage-sets")
        k_actor, k_critic = jr.split(key)
        context = item_size(spec) + spec.obs[OBSERVATION].size
        actor = MLP.create(config.embedding + context, config.hidden, spec.action_size, k_actor)
        critic = SetCritic.create(spec, config.encoder, config.embedding, config.hidden, k_critic)
        tx = optax.adam(config.learning_rate)
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            opt={name: tx.init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return SetPolicy(self.critic.encoder, self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return Noisy.create(self.policy, self.config.exploration_noise)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["ReenGAGESets", Metrics]:
        del key  # nothing in this update is sampled
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y, slope = self._target(batch)
        critic, opt_q, m_q = descend(
            tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, slope, batch), "critic"
        )
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda head: self._actor_loss(head, critic, batch), "actor"
        )
        targets = polyak((actor, critic), (self.target_actor, self.target_critic), self.config.tau)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=targets[0],
            target_critic=targets[1],
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _target(self, batch: Transition) -> tuple[Float[Array, " b"], Float[Array, "b n"]]:  # (3), (4)
        policy, present = SetPolicy(self.target_critic.encoder, self.target_actor), split(batch.next_obs)[0]

        def value(gates: Float[Array, "b n"]) -> Float[Array, "1 b"]:
            action = policy.at(gates if self.config.through_policy else present, batch.next_obs)
            return self.target_critic.at(gates, batch.next_obs, action)

        value_next, slope = goal_gradient(value, present)
        y = td_target(batch.reward, batch.discount, value_next[0], self.config.gamma)
        share = jnp.broadcast_to((self.config.gamma * batch.discount)[:, None], present.shape)
        return y, 2.0 * present * self._hit(batch) + share * slope[0]

    def _hit(self, batch: Transition) -> Float[Array, "b n"]:
        """Which items the step reached, there or not."""
        items, reached = split(batch.next_obs)[1], batch.next_obs[ACHIEVED]
        return (items == jnp.broadcast_to(reached[:, None, :], items.shape)).all(-1).astype(items.dtype)

    def _critic_loss(self, critic: SetCritic, y: Float[Array, " b"], slope: Float[Array, "b n"], batch: Transition):
        q, q_slope = goal_gradient(lambda gates: critic.at(gates, batch.obs, batch.action), split(batch.obs)[0])
        apart, metrics = match(q_slope, slope, jnp.ones_like(y), jnp.ones_like(slope[0]))
        td = jnp.square(q[0] - y).mean()
        return td + self.config.goal_match * apart, {"td": td, "match": apart, "mean": q[0].mean()} | metrics  # (5)

    def _actor_loss(self, head: MLP, critic: SetCritic, batch: Transition):  # (6)
        action = SetPolicy(critic.encoder, head)(batch.obs)
        saturation = (jnp.abs(action) > 0.99).mean(dtype=jnp.float32)
        return -critic(batch.obs, action)[0].mean(), {"saturation": saturation}
