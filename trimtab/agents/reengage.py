"""ReenGAGE, goal-conditioned Q-learning as knowledge distillation, on DDPG (Levine and Feizi 2023, arXiv:2208.13298).

At one stored step the target is known for every goal g, not only for the one that was wanted: its gradient by g is d
numbers more to learn from. Observations s have three parts, of which g is `desired_goal`; the others are held fixed.

    y    = r + gamma d Qbar(s', pibar(s', g), g),  d = discount                                   (1)
    G_y  = d/dg [ gamma d Qbar(s', pibar(s', g), g) ]   through Qbar's goal and through pibar's   (2)
    G_q  = d/dg Q(s, a, g)                                                                        (3)
    L_Q  = E[ (Q(s, a, g) - y)^2 ] + alpha E[ m mean_i sigma_i^2 (G_q,i - G_y,i)^2 ]              (4)
    L_pi = -E[ Q(s, pi(s, g), g) ] + w E[ mean_j pi(s, g)_j^2 ],  w = action_l2, 0 unless set     (5)

m = 1 where r is the reward of a goal that was not reached, else 0: there the reward has gradient 0 by g, while at its
jump it has none. sigma_i = 1, or with `goal_scale` "std" the standard deviation of the i-th number of all goals seen.
alpha weighs a mean over the g numbers: the paper's, which weighs the squared norm, is alpha / g.

Order in one update: the goals are counted for sigma, the critic with the old targets, the actor with the new critic,
both targets last.
Metrics: critic_loss (4), critic_td and critic_match its two means; critic_mean E[Q(s, a, g)]; critic_slope and
critic_target_slope the mean lengths of (3) and (2) over the rows with m = 1, critic_cosine the mean cosine between them
(NaN if a batch has none); actor_loss (5), actor_saturation share of |pi| > 0.99; *_grad_norm the global norm of that
gradient.
Differences from the paper: rewards that have a gradient by the goal are not asked for it. From the official code: the
target's gradient is a constant of the loss, where the code lets it depend on the targets, which no optimiser moves.
Relabelling (`--her future`) belongs to the data and not to this file.
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
    require_share,
)
from trimtab.nets.critic import Critic
from trimtab.nets.running import RunningStd
from trimtab.ops import copy, descend, goal_gradient, match, polyak, td_target
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of ReenGAGE on DDPG."""

    goal_match: float = 0.2
    """alpha in (4); 0 is DDPG."""
    unreached_reward: float | None = -1.0
    """what a step pays that does not reach its goal, for m in (4); None: m = 1 everywhere."""
    goal_scale: str = "none"
    """sigma in (4): "none" for 1, "std" for the goals' standard deviation."""
    learning_rate: float = 1e-3
    """Adam's step size for critic and actor."""
    gamma: float = 0.95
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    exploration_noise: float = 0.03
    """standard deviation of the noise on collected actions."""
    random_actions: float = 0.0
    """share of collected actions that are uniform random; 0.3 for robots in hindsight's own code."""
    action_l2: float = 0.0
    """weight of E[ mean_j pi(s)_j^2 ] in the actor's loss, against saturated actions; 1 for robots in that code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critic."""
    critic_norm: str | None = None
    """LayerNorm in the critic: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update."""


class ReenGAGE(AbstractAgent):
    """See the module's docstring."""

    actor: Deterministic
    critic: Critic
    target_actor: Deterministic
    target_critic: Critic
    goals: RunningStd
    """of the goals in all batches so far."""
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "ReenGAGE":
        """A fresh agent. Raises `UsageError` for discrete actions, observations without goals, or an unknown scale."""
        require_continuous(spec, "reengage")
        require_goal(spec, "reengage")
        require_share(config, "random_actions")
        require_choice(config, "goal_scale", ("none", "std"))
        k_actor, k_critic = jr.split(key)
        actor = Deterministic.create(spec, config.hidden, k_actor)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        critic = Critic.create(spec, config.hidden, 1, k_critic, **norm)
        tx = optax.adam(config.learning_rate)
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            goals=RunningStd.create(spec.obs[DESIRED].size),
            opt={name: tx.init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return Noisy.create(self.actor, self.config.exploration_noise, self.config.random_actions)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["ReenGAGE", Metrics]:
        del key  # nothing in this update is sampled
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        goals = self.goals.seen(batch.obs[DESIRED])
        y, slope = self._target(batch)
        critic, opt_q, m_q = descend(
            tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, slope, goals, batch), "critic"
        )
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch), "actor"
        )
        targets = polyak((actor, critic), (self.target_actor, self.target_critic), self.config.tau)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=targets[0],
            target_critic=targets[1],
            goals=goals,
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _target(self, batch: Transition) -> tuple[Float[Array, " b"], Float[Array, "b g"]]:  # (1), (2)
        def value(goal: Float[Array, "b g"]) -> Float[Array, "1 b"]:
            obs = batch.next_obs | {DESIRED: goal}
            return self.target_critic(obs, self.target_actor(obs))

        value_next, slope = goal_gradient(value, batch.next_obs[DESIRED])
        y = td_target(batch.reward, batch.discount, value_next[0], self.config.gamma)
        return y, jnp.broadcast_to((self.config.gamma * batch.discount)[:, None], slope[0].shape) * slope[0]

    def _critic_loss(
        self, critic: Critic, y: Float[Array, " b"], slope: Float[Array, "b g"], goals: RunningStd, batch: Transition
    ):  # (3), (4)
        q, q_slope = goal_gradient(lambda goal: critic(batch.obs | {DESIRED: goal}, batch.action), batch.obs[DESIRED])
        unreached, scaled = self.config.unreached_reward, self.config.goal_scale == "std"
        mask = jnp.ones_like(y) if unreached is None else (batch.reward == unreached).astype(y.dtype)
        apart, metrics = match(q_slope, slope, mask, goals.std if scaled else jnp.ones_like(goals.std))
        td = jnp.square(q[0] - y).mean()
        return td + self.config.goal_match * apart, {"td": td, "match": apart, "mean": q[0].mean()} | metrics

    def _actor_loss(self, actor: Deterministic, critic: Critic, batch: Transition):  # (5)
        action = actor(batch.obs)
        saturation = (jnp.abs(action) > 0.99).mean(dtype=jnp.float32)
        loss = -critic(batch.obs, action)[0].mean()
        if self.config.action_l2:
            loss = loss + self.config.action_l2 * jnp.square(action).mean()
        return loss, {"saturation": saturation}
