"""Conservative Q-learning on top of SAC (Kumar et al. 2020, arXiv:2006.04779).

    y    = r + gamma d min_e Qbar_e(s', a'),  a' the best of n samples of pi(s') by that minimum, d = discount   (1)
    D_e  = E_s[ logsumexp over 3n actions of Q_e(s, a_i) - log mu(a_i) ] - E[ Q_e(s, a) ]        (2), from their eq. 4
    L_Q  = E[ (Q_e(s, a) - y)^2 ] + w lambda D_e,  mean over e                                   (3)
    L_pi = E[ alpha log pi(a | s) - min_e Q_e(s, a) ],  a ~ pi(s) reparametrised                 (4)
    L_a  = E[ alpha (-log pi(a | s) - H) ],  alpha = exp(log_alpha)                              (5)
    L_l  = -w lambda (D - gap),  lambda = exp(log_lambda), D the mean of D_e                     (6)

The 3n actions of (2) are n uniform ones, n of pi(s) and n of pi(s'), all evaluated at s; mu is the density each was
drawn from, 2^-act for the uniform ones. lambda is 1 unless `lagrange`, which tunes it by (6). Without
`max_target_backup` a' is one sample of pi(s'), and `backup_entropy` subtracts alpha log pi(a' | s') then: at w = 0 that
is SAC's critic loss.
Order in one update: the critic with the old target and the old actor, lambda with its D, the actor with the new critic,
alpha with the actor's entropy, the target last, from the new critic.
Metrics: critic_loss (3), critic_mean E[Q(s, a)], critic_td the first term of (3), critic_gap D; cql_weight_loss (6),
cql_weight w lambda after the update; actor_loss (4), actor_entropy -E[log pi]; ent_coef_loss (5), ent_coef alpha after
the update; *_grad_norm the global norm of that gradient (of cql_weight 0 without `lagrange`).
Differences from Cal-QL's code, whose hyper-parameters and (1) these are: the losses of the critics are averaged and not
summed, the actor sees the new critic, (5) has alpha where the code has log alpha, lambda starts at 1 and not at e;
networks do not start orthogonal, nor log stds at -1.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous
from trimtab.nets.critic import Critic
from trimtab.ops import conservative_gap, copy, descend, polyak, td_target
from trimtab.policies.gaussian import Mean, TanhGaussian
from trimtab.policies.proposals import best_value, proposals


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of CQL."""

    cql_alpha: float = 5.0
    """w in (3); 1 for Adroit."""
    cql_actions: int = 10
    """n in (1) and (2)."""
    lagrange: bool = False
    """tune lambda by (6); for AntMaze."""
    target_gap: float = 0.8
    """gap in (6)."""
    max_target_backup: bool = True
    """a' in (1) is the best of n samples; otherwise one sample."""
    backup_entropy: bool = False
    """subtract alpha log pi(a' | s') in (1), as SAC does; only without `max_target_backup`."""
    actor_lr: float = 1e-4
    """Adam's step size for actor and alpha."""
    critic_lr: float = 3e-4
    """Adam's step size for the critics and lambda."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    init_ent_coef: float = 1.0
    """alpha at the start."""
    target_entropy: float | None = None
    """H in (5); None is minus the number of action dimensions."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics."""
    critic_members: int = 2
    """number of Q functions; the least one is used."""
    critic_norm: str | None = None
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 100
    """environment steps with uniform random actions before the first update when trained online without data."""


class CQL(AbstractAgent):
    """See the module's docstring."""

    actor: TanhGaussian
    critic: Critic
    target: Critic
    log_alpha: Float[Array, ""]
    log_lambda: Float[Array, ""]
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "CQL":
        """A fresh agent. Raises `UsageError` for discrete actions, or two rules for a' at once."""
        require_continuous(spec, "cql")
        if config.max_target_backup and config.backup_entropy:
            raise UsageError("backup_entropy needs a single next action: switch max_target_backup off")
        if config.cql_actions < 1:
            raise UsageError(f"cql_actions must be at least 1, got {config.cql_actions}")
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_size))
        k_actor, k_critic = jr.split(key)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers, **inputs)
        nets: dict[str, Any] = dict(
            actor=TanhGaussian.create(spec, config.hidden, k_actor, **inputs),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **norm),
            log_alpha=jnp.log(jnp.float32(config.init_ent_coef)),
            log_lambda=jnp.zeros(()),
        )
        opt = {name: optax.adam(_rate(config, name)).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Mean(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["CQL", Metrics]:
        k_next, k_actor = jr.split(key)
        opt, tx = self.opt, {name: optax.adam(_rate(self.config, name)) for name in self.opt}
        y = self._target(batch, k_next)
        others = proposals(self.actor, batch.obs, batch.next_obs, self.config.cql_actions, jr.fold_in(key, 0))
        critic, opt_q, m_q = descend(
            tx["critic"], self.critic, opt["critic"], lambda q: self._critic_loss(q, y, others, batch), "critic"
        )
        gap = m_q["critic_gap"]
        log_lambda, opt_l, m_l = descend(
            tx["log_lambda"], self.log_lambda, opt["log_lambda"], lambda x: self._weight_loss(x, gap), "cql_weight"
        )
        actor, opt_pi, m_pi = descend(
            tx["actor"], self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch, k_actor), "actor"
        )
        entropy = m_pi["actor_entropy"]
        log_alpha, opt_a, m_a = descend(
            tx["log_alpha"], self.log_alpha, opt["log_alpha"], lambda a: self._ent_coef_loss(a, entropy), "ent_coef"
        )
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=polyak(critic, self.target, self.config.tau),
            log_alpha=log_alpha,
            log_lambda=log_lambda,
            opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a, log_lambda=opt_l),
            step=self.step + 1,
        )
        now = {"ent_coef": jnp.exp(log_alpha), "cql_weight": self.config.cql_alpha * jnp.exp(log_lambda)}
        return new, m_q | m_l | m_pi | m_a | now

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        if self.config.max_target_backup:
            value = best_value(self.actor, self.target, batch.next_obs, self.config.cql_actions, key)
        else:
            action, log_prob = self.actor.sample_and_log_prob(batch.next_obs, key)
            value = self.target(batch.next_obs, action).min(0)
            if self.config.backup_entropy:
                value = value - jnp.exp(self.log_alpha) * log_prob
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(
        self,
        critic: Critic,
        y: Float[Array, " b"],
        others: tuple[Float[Array, "n3 b act"], Float[Array, "n3 b"]],
        batch: Transition,
    ):  # (2), (3)
        actions, log_density = others
        q, values = critic(batch.obs, batch.action), critic.many(batch.obs, actions)
        td, gap = jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), conservative_gap(q, values, log_density).mean()
        weight = self.config.cql_alpha * jnp.exp(self.log_lambda)
        return td + weight * gap, {"mean": q.mean(), "td": td, "gap": gap}

    def _weight_loss(self, log_lambda: Float[Array, ""], gap: Float[Array, ""]):  # (6)
        if not self.config.lagrange:
            return jnp.zeros(()), {}
        return -self.config.cql_alpha * jnp.exp(log_lambda) * (gap - self.config.target_gap), {}

    def _actor_loss(self, actor: TanhGaussian, critic: Critic, batch: Transition, key: PRNGKeyArray):  # (4)
        action, log_prob = actor.sample_and_log_prob(batch.obs, key)
        loss = jnp.exp(self.log_alpha) * log_prob - critic(batch.obs, action).min(0)
        return loss.mean(), {"entropy": -log_prob.mean()}

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):  # (5)
        assert self.config.target_entropy is not None  # create() filled it in
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}


def _rate(config: Config, name: str) -> float:
    """Adam's step size for the network or number of that name."""
    return config.critic_lr if name in ("critic", "log_lambda") else config.actor_lr
