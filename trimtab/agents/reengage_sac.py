"""ReenGAGE, goal-conditioned Q-learning as knowledge distillation, on SAC (Levine and Feizi 2023, arXiv:2208.13298).

As on DDPG (`reengage.py`), the critics are also fitted to the gradient of their target by the goal g, the part
`desired_goal` of an observation s:

    V(g) = min_e Qbar_e(s', a', g) - alpha log pi(a' | s', g),  a' = a'(g, n) ~ pi(s', g)         (1)
    y    = r + gamma d V(g),  d = discount                                                        (2)
    G_y  = d/dg [ gamma d V(g) ]  at fixed noise n: through the least Qbar, a' and log pi         (3)
    G_e  = d/dg Q_e(s, a, g)                                                                      (4)
    L_Q  = E[ (Q_e(s, a, g) - y)^2 ] + beta E[ m mean_i sigma_i^2 (G_e,i - G_y,i)^2 ]             (5)
    L_pi = E[ alpha log pi(a | s, g) - min_e Q_e(s, a, g) ],  a ~ pi(s, g)                        (6)
    L_a  = E[ alpha (-log pi(a | s, g) - H) ],  alpha = exp(log_alpha)                            (7)

m = 1 where r is the reward of a goal that was not reached, else 0; sigma_i = 1, or with `goal_scale` "std" the standard
deviation of the i-th number of all goals seen. beta weighs a mean over the g numbers: the paper's alpha, which weighs
the squared norm, is beta / g. Means go over the members e, too: of two that is the paper's half of a sum.

Order in one update: the goals are counted for sigma, the critics with the old target and the old actor, the actor with
the new critics, alpha with the actor's entropy, the target last.
Metrics: critic_loss (5), critic_td and critic_match its two means; critic_mean E[Q]; critic_slope and
critic_target_slope the mean lengths of (4) and (3) over the rows with m = 1, critic_cosine the mean cosine between them
(NaN if a batch has none); actor_loss (6), actor_entropy -E[log pi]; ent_coef_loss (7), ent_coef alpha after the update;
*_grad_norm the global norm of that gradient.
Differences from the paper: rewards that have a gradient by the goal are not asked for it, no noise is added to the
policy's own. Relabelling (`--her future`) belongs to the data and not to this file.
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
    DESIRED,
    AbstractAgent,
    AbstractPolicy,
    Metrics,
    Spec,
    require_choice,
    require_continuous,
    require_goal,
)
from trimtab.nets.critic import Critic
from trimtab.nets.running import RunningStd
from trimtab.ops import copy, descend, goal_gradient, match, polyak, td_target
from trimtab.policies.gaussian import Mean, TanhGaussian


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of ReenGAGE on SAC."""

    goal_match: float = 0.2
    """beta in (5); 0 is SAC."""
    unreached_reward: float | None = -1.0
    """what a step pays that does not reach its goal, for m in (5); None: m = 1 everywhere."""
    goal_scale: str = "none"
    """sigma in (5): "none" for 1, "std" for the goals' standard deviation."""
    learning_rate: float = 1e-3
    """Adam's step size for critics, actor and alpha."""
    gamma: float = 0.95
    """discount factor."""
    tau: float = 0.005
    """share of the new critics mixed into the target."""
    init_ent_coef: float = 1.0
    """alpha at the start."""
    target_entropy: float | None = None
    """H in (7); None is minus the number of action dimensions."""
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
    """transitions kept for replay."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update."""


class ReenGAGESAC(AbstractAgent):
    """See the module's docstring."""

    actor: TanhGaussian
    critic: Critic
    target: Critic
    log_alpha: Float[Array, ""]
    goals: RunningStd
    """of the goals in all batches so far."""
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "ReenGAGESAC":
        """A fresh agent. Raises `UsageError` for discrete actions, observations without goals, or an unknown scale."""
        require_continuous(spec, "reengage-sac")
        require_goal(spec, "reengage-sac")
        require_choice(config, "goal_scale", ("none", "std"))
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_size))
        k_actor, k_critic = jr.split(key)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        nets: dict[str, Any] = dict(
            actor=TanhGaussian.create(spec, config.hidden, k_actor),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **norm),
            log_alpha=jnp.log(jnp.float32(config.init_ent_coef)),
        )
        return cls(
            **nets,
            target=copy(nets["critic"]),
            goals=RunningStd.create(spec.obs[DESIRED].size),
            opt={name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return Mean(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["ReenGAGESAC", Metrics]:
        k_next, k_actor = jr.split(key)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        goals = self.goals.seen(batch.obs[DESIRED])
        y, slope = self._target(batch, k_next)
        critic, opt_q, m_q = descend(
            tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, slope, goals, batch), "critic"
        )
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
            goals=goals,
            opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a),
            step=self.step + 1,
        )
        return new, m_q | m_pi | m_a | {"ent_coef": jnp.exp(log_alpha)}

    def _target(self, batch: Transition, key: PRNGKeyArray) -> tuple[Float[Array, " b"], Float[Array, "b g"]]:
        def value(goal: Float[Array, "b g"]) -> Float[Array, "1 b"]:  # (1); the key fixes the noise
            obs = batch.next_obs | {DESIRED: goal}
            action, log_prob = self.actor.sample_and_log_prob(obs, key)
            return (self.target(obs, action).min(0) - jnp.exp(self.log_alpha) * log_prob)[None]

        value_next, slope = goal_gradient(value, batch.next_obs[DESIRED])
        y = td_target(batch.reward, batch.discount, value_next[0], self.config.gamma)  # (2), (3)
        return y, jnp.broadcast_to((self.config.gamma * batch.discount)[:, None], slope[0].shape) * slope[0]

    def _critic_loss(
        self, critic: Critic, y: Float[Array, " b"], slope: Float[Array, "b g"], goals: RunningStd, batch: Transition
    ):  # (4), (5)
        q, q_slope = goal_gradient(lambda goal: critic(batch.obs | {DESIRED: goal}, batch.action), batch.obs[DESIRED])
        unreached, scaled = self.config.unreached_reward, self.config.goal_scale == "std"
        mask = jnp.ones_like(y) if unreached is None else (batch.reward == unreached).astype(y.dtype)
        apart, metrics = match(q_slope, slope, mask, goals.std if scaled else jnp.ones_like(goals.std))
        td = jnp.square(q - jnp.broadcast_to(y, q.shape)).mean()
        return td + self.config.goal_match * apart, {"td": td, "match": apart, "mean": q.mean()} | metrics

    def _actor_loss(self, actor: TanhGaussian, critic: Critic, batch: Transition, key: PRNGKeyArray):  # (6)
        action, log_prob = actor.sample_and_log_prob(batch.obs, key)
        loss = jnp.exp(self.log_alpha) * log_prob - critic(batch.obs, action).min(0)
        return loss.mean(), {"entropy": -log_prob.mean()}

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):  # (7)
        assert self.config.target_entropy is not None  # create() filled it in
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}
