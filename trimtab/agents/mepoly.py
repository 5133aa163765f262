"""Soft actor-critic with polynomial densities (MePoly, Liu et al. 2026, arXiv:2602.17832), projected exactly.

    pi(a | s) = exp(lambda(s) T(a)) / Z(s),  sums over the nodes x_j of a quadrature with weights w_j
    y    = r + gamma d sum_j w_j p_j(s') ( min_e Qbar_e(s', x_j) - alpha log p_j(s') )             (1), d = discount
    L_Q  = E[ (Q_e(s, a) - y)^2 ]                                                                  (2)
    L_pi = E[ sum_j w_j p_j(s) ( log p_j(s) - min_e Q_e(s, x_j) / alpha ) ]                        (3)

(3) is KL(pi | exp(Q / alpha) / Z_Q) but for a constant: its minimum is the projection of the best soft policy on the
family. Nothing in an update is sampled.

Order in one update: the critic with the old target and the old actor, the actor with the new critic, the target last.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; actor_loss (3), actor_entropy E[H], actor_edge mean probability of
the outermost cells beyond an even density's, where a quadrature is not to be trusted; *_grad_norm the global norm of
that gradient.
Differences from the paper: it learns by PPO (here: agent ppo with distribution polynomial); this form, off-policy and
with exact expectations, is ours, and so are Gauss-Legendre nodes, a smooth bound on lambda, and draws spread over
cells.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous, require_counts
from trimtab.nets.critic import Critic
from trimtab.nets.mlp import concat
from trimtab.ops import copy, descend, polyak, td_target
from trimtab.policies.polynomial import Family, PolynomialMode, PolynomialPolicy, enough_points

LARGEST_PASS = 4_000_000
"""Rows that Q may be asked at in one pass: a few gigabytes with the default layers."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of soft MePoly."""

    learning_rate: float = 1e-3
    """Adam's step size for actor and critic."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.01
    """share of the new critic mixed into the target at each update."""
    alpha: float = 0.1
    """temperature in (1) and (3)."""
    order: int = 4
    """degree of the polynomials."""
    points: int = 0
    """nodes a dimension, 0: 3 order + 6; Q is asked at all of them, for each state of a batch."""
    natural_bound: float = 100.0
    """largest lambda; approached by tanh."""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of actor and critics."""
    batch_size: int = 128
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update."""


class MePoly(AbstractAgent):
    """See the module's docstring."""

    actor: PolynomialPolicy
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "MePoly":
        """A fresh agent. Raises `UsageError` for discrete actions, more nodes than Q can be asked at, or a size or
        temperature of 0."""
        require_continuous(spec, "mepoly")
        require_counts(config, "batch_size", "order")
        if config.alpha <= 0.0:
            raise UsageError(f"alpha must be positive, got {config.alpha}")
        points, dims = config.points or enough_points(config.order), spec.action_size
        if config.batch_size * points**dims > LARGEST_PASS:
            raise UsageError(
                f"mepoly would ask Q at {points}^{dims} nodes for each of {config.batch_size} states: choose fewer "
                "--agent.points, or ppo with --agent.distribution polynomial --agent.block 2"
            )
        k_actor, k_critic = jr.split(key)
        family = Family.create(config.order, dims, points)
        nets: dict[str, Any] = dict(
            actor=PolynomialPolicy.create(spec, family, config.hidden, k_actor, bound=config.natural_bound),
            critic=Critic.create(spec, config.hidden, 2, k_critic),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return PolynomialMode(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["MePoly", Metrics]:
        del key  # nothing is sampled
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y = self._target(batch)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
        q = self._on_grid(critic, batch.obs)
        actor, opt_pi, m_pi = descend(tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, q, batch), "actor")
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=polyak(critic, self.target, self.config.tau),
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _on_grid(self, critic: Critic, obs: PyTree[Float[Array, "b ..."]]) -> Float[Array, "b m"]:
        """min_e Q_e(s, x_j)."""
        points, x = jnp.asarray(self.actor.family.grid()[0], jnp.float32), concat(obs)
        wide = jnp.repeat(x, len(points), axis=0)
        return critic(wide, jnp.tile(points, (len(x), 1))).min(0).reshape(len(x), len(points))

    def _target(self, batch: Transition) -> Float[Array, " b"]:  # (1)
        density = self.actor.distribution(batch.next_obs)
        value = density.expected(self._on_grid(self.target, batch.next_obs)) + self.config.alpha * density.entropy()
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: PolynomialPolicy, q: Float[Array, "b m"], batch: Transition):  # (3)
        density = actor.distribution(batch.obs)
        entropy = density.entropy()
        loss = -entropy - density.expected(q) / self.config.alpha
        return loss.mean(), {"entropy": entropy.mean()} | density.health()
