"""Soft actor-critic with automatic entropy (Haarnoja et al. 2018, arXiv:1812.05905).

    y    = r + gamma d ( min_e Qbar_e(s', a') - alpha log pi(a' | s') ),  a' ~ pi(s')       (3), d = discount
    L_Q  = E[ (Q_e(s, a) - y)^2 ]                                                          (5)
    L_pi = E[ alpha log pi(a | s) - min_e Q_e(s, a) ],  a ~ pi(s) reparametrised            (7)
    L_a  = E[ alpha (-log pi(a | s) - H) ],  alpha = exp(log_alpha)                         (18)

Order in one update: the critic with the old target and the old actor, the actor with the new critic, alpha with the
actor's entropy, the target last, from the new critic.
Metrics: critic_loss (5), critic_mean E[Q(s, a)]; actor_loss (7), actor_entropy -E[log pi]; ent_coef_loss (18), ent_coef
alpha after the update; *_grad_norm the global norm of that gradient; actor_jacobian, only with `jacobian_weight`, the
squared Jacobian that is then added to (7) (Xie et al. 2026, arXiv:2602.18312).
Differences from the paper: mean over members instead of half the sum in (5), as Stable-Baselines3 does. The hyper-
parameters are Stable-Baselines3's.
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
from trimtab.nets.mlp import concat
from trimtab.ops import copy, descend, polyak, squared_jacobian, squared_jacobian_estimate, td_target
from trimtab.policies.gaussian import Mean, TanhGaussian
from trimtab.policies.linear import state_columns


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of SAC."""

    learning_rate: float = 3e-4
    """Adam's step size for critic, actor and alpha."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    init_ent_coef: float = 1.0
    """alpha at the start."""
    target_entropy: float | None = None
    """H in (18); None is minus the number of action dimensions."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics."""
    critic_members: int = 2
    """number of Q functions; the least one is used."""
    jacobian_weight: float = 0.0
    """weight in (7) of the squared Jacobian of the mean action by the observation (of a dict by its part `state`, if it
    has one), divided by the number of actions."""
    jacobian_estimator: str = "exact"
    """"exact", or "hutchinson" from one random direction a state."""
    critic_norm: str | None = None
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 100
    """environment steps with uniform random actions before the first update."""


class SAC(AbstractAgent):
    """See the module's docstring."""

    actor: TanhGaussian
    critic: Critic
    target: Critic
    log_alpha: Float[Array, ""]
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "SAC":
        """A fresh agent. Raises `UsageError` for discrete actions or an unknown estimator."""
        require_continuous(spec, "sac")
        if config.jacobian_estimator not in ("exact", "hutchinson"):
            raise UsageError(f"unknown jacobian_estimator {config.jacobian_estimator!r}: choose exact or hutchinson")
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_size))
        k_actor, k_critic = jr.split(key)
        nets: dict[str, Any] = dict(
            actor=TanhGaussian.create(spec, config.hidden, k_actor),
            critic=Critic.create(
                spec,
                config.hidden,
                config.critic_members,
                k_critic,
                norm=config.critic_norm,
                norm_layers=config.norm_layers,
            ),
            log_alpha=jnp.log(jnp.float32(config.init_ent_coef)),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Mean(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["SAC", Metrics]:
        k_next, k_actor = jr.split(key)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y = self._target(batch, k_next)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch, k_actor), "actor"
        )
        entropy = m_pi["actor_entropy"]
        log_alpha, opt_a, m_a = descend(
            tx, self.log_alpha, opt["log_alpha"], lambda a: self._ent_coef_loss(a, entropy), "ent_coef"
        )
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=polyak(critic, self.target, self.config.tau),
            log_alpha=log_alpha,
            opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a),
            step=self.step + 1,
        )
        return new, m_q | m_pi | m_a | {"ent_coef": jnp.exp(log_alpha)}

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (3)
        action, log_prob = self.actor.sample_and_log_prob(batch.next_obs, key)
        value = self.target(batch.next_obs, action).min(0) - jnp.exp(self.log_alpha) * log_prob
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (5)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: TanhGaussian, critic: Critic, batch: Transition, key: PRNGKeyArray):  # (7)
        action, log_prob = actor.sample_and_log_prob(batch.obs, key)
        loss = (jnp.exp(self.log_alpha) * log_prob - critic(batch.obs, action).min(0)).mean()
        metrics = {"entropy": -log_prob.mean()}
        if self.config.jacobian_weight:
            x, size, state = concat(batch.obs), action.shape[-1], state_columns(batch.obs)
            mean = lambda row: jnp.tanh(actor.net(row)[:size])
            if self.config.jacobian_estimator == "exact":
                squares = squared_jacobian(mean, x, *state)
            else:
                squares = squared_jacobian_estimate(mean, x, *state, jr.fold_in(key, 1))
            jacobian = squares.mean() / size
            loss, metrics = loss + self.config.jacobian_weight * jacobian, metrics | {"jacobian": jacobian}
        return loss, metrics

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):  # (18)
        assert self.config.target_entropy is not None  # create() filled it in
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}
