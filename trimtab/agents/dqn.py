"""Deep Q-learning (Mnih et al. 2013, arXiv:1312.5602) and what became of it: double, dueling, n-step, prioritised, C51,
quantiles.

    y     = r + gamma d Qbar(s', a*),  a* = argmax Q(s', .) (double) or argmax Qbar(s', .)                  (1)
    L     = E[ w huber(Q(s, a) - y) ]                                                      critic "td"
    L     = E[ -w sum_i m_i log p_i(s, a) ],  m the projection of r + gamma d z, by pbar(s', a*)     "c51" (2)
    L     = E[ w mean_j sum_i |tau_i - 1(u_ij < 0)| huber(u_ij) ],  u_ij = r + gamma d thetabar_j - theta_i  "qr" (3)

d is `discount`, gamma^(n-1) of it for n steps; tau_i = (i + 1/2) / N. Forbidden actions (an `action_mask` in the
observation) are neither in the argmax nor drawn. The weight w is 1, or with prioritised replay (N P)^-beta, divided by
the batch's largest, where P is the probability with which the row was drawn: proportional to (|delta| + 1e-6)^alpha
(Schaul et al. 2015).

Order in one update: Q with the old target; every `target_every`-th update the target, from the new Q. Metrics:
critic_loss, critic_mean E[Q(s, a)], critic_grad_norm; epsilon of the exploration after the update.
Differences from the papers: Adam, with a step size that may fall; "double" by default (van Hasselt et al. 2015);
dueling (Wang et al. 2015) with one network for both streams up to the last layer; C51 (Bellemare et al. 2017) by the
triangular form of its projection; quantiles (Dabney et al. 2018) with a Huber threshold of 1. Priorities are renewed
after the update, by the new Q, from the loss of a row where the critic is a distribution.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition, Weighted
from trimtab.core import AbstractPolicy, AbstractSurprised, Metrics, Spec, UsageError, require_counts, require_discrete
from trimtab.nets.discrete import DiscreteQ
from trimtab.nets.masks import allowed, features, masked
from trimtab.ops import copy, descend, polyak, project, quantile_huber
from trimtab.policies.compose import EpsilonGreedy, Greedy

CRITICS = ("td", "c51", "qr")


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of DQN."""

    learning_rate: float = 3e-4
    """Adam's step size."""
    anneal_updates: int = 0
    """updates over which it falls linearly to 0; 0 keeps it."""
    gamma: float = 0.99
    """discount factor."""
    critic: str = "td"
    """what is learnt of the return: "td" its mean, "c51" a distribution on fixed atoms, "qr" its quantiles."""
    double: bool = True
    """whether the online network chooses a* in (1)."""
    dueling: bool = False
    """whether Q is V + A - mean A."""
    n_step: int = 1
    """rewards before the bootstrap."""
    prioritised: bool = False
    """whether rows are drawn by what was last to learn from them."""
    alpha: float = 0.6
    """power of the priorities; 0 draws uniformly."""
    beta: float = 0.4
    """power of the weights at the start."""
    beta_updates: int = 100_000
    """updates over which beta rises to 1."""
    atoms: int = 51
    """atoms of "c51", quantiles of "qr"."""
    v_min: float = -100.0
    """lowest atom."""
    v_max: float = 100.0
    """highest atom."""
    tau: float = 0.005
    """share of the new Q mixed into the target when it is renewed."""
    target_every: int = 1
    """updates between renewals of the target."""
    epsilon: float = 0.05
    """share of random actions in the end."""
    exploration_updates: int = 10_000
    """updates over which it falls from 1."""
    hidden: tuple[int, ...] = (128, 128)
    """widths of the hidden layers."""
    batch_size: int = 128
    """transitions in one update."""
    buffer_size: int = 100_000
    """transitions kept for replay."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update."""


class DQN(AbstractSurprised):
    """See the module's docstring."""

    critic: DiscreteQ
    target: DiscreteQ
    opt: optax.OptState
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "DQN":
        """A fresh agent. Raises `UsageError` unless actions are one discrete choice, and if numbers do not fit."""
        require_discrete(spec, "dqn")
        require_counts(config, "n_step", "target_every", "exploration_updates", "beta_updates", "atoms")
        if config.critic not in CRITICS:
            raise UsageError(f"unknown critic {config.critic!r}: choose {', '.join(CRITICS)}")
        if config.critic == "c51" and (config.atoms < 2 or config.v_min >= config.v_max):
            raise UsageError("c51 needs at least 2 atoms, and v_min below v_max")
        outputs = 1 if config.critic == "td" else config.atoms
        span = (config.v_min, config.v_max) if config.critic == "c51" else None
        critic = DiscreteQ.create(spec, config.hidden, outputs, key, dueling=config.dueling, span=span)
        opt = optax.adam(config.learning_rate).init(critic)  # pyright: ignore[reportArgumentType]
        return cls(critic=critic, target=copy(critic), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Greedy(self.critic)

    @property
    def explorer(self) -> AbstractPolicy:
        return EpsilonGreedy(Greedy(self.critic), self._epsilon(self.step))

    def update(self, batch: Transition | Weighted, key: PRNGKeyArray) -> tuple["DQN", Metrics]:
        del key  # nothing in DQN is sampled
        config, rows = self.config, batch.transition if isinstance(batch, Weighted) else batch
        tx, weight = optax.adam(self._rate()), self._weight(batch)
        target = self._target(rows)
        critic, opt, metrics = descend(
            tx, self.critic, self.opt, lambda q: self._critic_loss(q, target, rows, weight), "critic"
        )
        due = (self.step + 1) % config.target_every == 0
        renew = lambda _: polyak(critic, self.target, config.tau)
        renewed = jax.lax.cond(due, renew, lambda _: self.target, None)
        new = replace(self, critic=critic, target=renewed, opt=opt, step=self.step + 1)
        return new, metrics | {"epsilon": self._epsilon(new.step)}

    def surprise(self, batch: Weighted) -> Float[Array, " b"]:
        """(|delta| + 1e-6)^alpha; the loss stands for |delta| where the critic is a distribution."""
        target = self._target(batch.transition)
        loss, q = self._each(self.critic, target, batch.transition)
        delta = jnp.abs(target[:, 0] - q) if self.config.critic == "td" else loss
        return (delta + 1e-6) ** self.config.alpha

    def _rate(self) -> Float[Array, ""]:
        left = 1.0 - self.step / self.config.anneal_updates if self.config.anneal_updates else 1.0
        return jnp.float32(self.config.learning_rate) * jnp.maximum(jnp.float32(left), 0.0)

    def _epsilon(self, step: Int[Array, ""]) -> Float[Array, ""]:
        share = jnp.minimum(step / self.config.exploration_updates, 1.0)
        return jnp.float32(1.0) - (1.0 - self.config.epsilon) * share

    def _weight(self, batch: Transition | Weighted) -> Float[Array, " b"]:
        if not isinstance(batch, Weighted):
            return jnp.ones_like(batch.reward)
        beta = self.config.beta + (1.0 - self.config.beta) * jnp.minimum(self.step / self.config.beta_updates, 1.0)
        weight = batch.density ** -jnp.broadcast_to(beta, batch.density.shape)
        return weight / weight.max()

    def _target(self, rows: Transition) -> Float[Array, "b n"]:  # (1)
        """y; the probabilities m on the atoms (2); or the values of which quantiles are learnt (3)."""
        config, x, mask = self.config, features(rows.next_obs), allowed(rows.next_obs)
        after = self.target(x)
        chooser = self.critic(x) if config.double else after
        best = masked(self.critic.values(chooser), mask).argmax(-1)
        after = _chosen(after, best)
        scale = config.gamma * rows.discount
        if config.critic == "c51":
            return project(jax.nn.softmax(after), config.v_min, config.v_max, rows.reward, scale)
        wide = lambda x: jnp.broadcast_to(x[:, None], after.shape)
        return wide(rows.reward) + wide(scale) * after

    def _each(
        self, critic: DiscreteQ, target: Float[Array, "b n"], rows: Transition
    ) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """The loss of each row, and Q(s, a)."""
        out = critic(features(rows.obs))
        found = _chosen(out, rows.action)
        q = jnp.take_along_axis(critic.values(out), rows.action[:, None], axis=1)[:, 0]
        if self.config.critic == "c51":
            return -(target * jax.nn.log_softmax(found)).sum(-1), q  # (2)
        if self.config.critic == "qr":
            return quantile_huber(found, target), q  # (3)
        return optax.huber_loss(found[:, 0], target[:, 0]), q

    def _critic_loss(self, critic: DiscreteQ, target: Float[Array, "b n"], rows: Transition, weight: Array):
        loss, q = self._each(critic, target, rows)
        return (weight * loss).mean(), {"mean": q.mean()}


def _chosen(out: Float[Array, "b a n"], action: Int[Array, " b"]) -> Float[Array, "b n"]:
    """What the network puts out for the actions."""
    return jnp.take_along_axis(out, action[:, None, None], axis=1)[:, 0]
