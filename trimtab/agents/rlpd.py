"""RLPD, online learning with prior data (Ball et al. 2023, arXiv:2302.02948): SAC, a large ensemble, half of it data.

    y    = r + gamma d ( min_{e in M} Qbar_e(s', a') - alpha log pi(a' | s') ),  a' ~ pi(s'),  d = discount      (1)
    L_Q  = E[ (Q_e(s, a) - y)^2 ],  mean over all e                                                              (2)
    L_pi = E[ alpha log pi(a | s) - mean_e Q_e(s, a) ],  a ~ pi(s) reparametrised                                (3)
    L_a  = E[ alpha (-log pi(a | s) - H) ],  alpha = exp(log_alpha)                                              (4)

M are `target_members` of the `critic_members`, drawn anew for each critic step. Without `backup_entropy` the last term
of (1) is left out. A batch of `utd` times `batch_size` rows is cut into `utd` slices: a critic step each, and one step
of actor and alpha on the last. The other half of the method is the batch itself: `--sampling symmetric` makes every
second row one of the data set, so that each slice is half data and half the agent's own.
Order in one update: for each slice the critic with the target of the slices before it, then the target from the new
critic; the actor with the last critic; alpha with the actor's entropy.
Metrics: critic_loss (2) and critic_mean E[Q(s, a)], means over the slices; actor_loss (3), actor_entropy -E[log pi];
ent_coef_loss (4), ent_coef alpha after the update; *_grad_norm the global norm of that gradient.
Differences from the official code: none known in the maths.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous, require_counts
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target
from trimtab.policies.gaussian import Mean, TanhGaussian


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of RLPD."""

    utd: int = 20
    """critic steps in one update, each on `batch_size` rows of its own; 1 is plain SAC's rhythm."""
    critic_members: int = 10
    """number of Q functions; the actor climbs their mean."""
    target_members: int = 2
    """how many of them, drawn at random, the least in (1) is taken over; 1 for AntMaze."""
    critic_norm: str | None = "layer"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    backup_entropy: bool = True
    """subtract alpha log pi(a' | s') in (1); off for AntMaze and Adroit, and wherever each step costs until the end."""
    target_entropy: float | None = None
    """H in (4); None is minus half the number of action dimensions."""
    init_ent_coef: float = 1.0
    """alpha at the start."""
    learning_rate: float = 3e-4
    """Adam's step size for critic, actor and alpha."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each critic step."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics; a third one of 256 for AntMaze."""
    batch_size: int = 256
    """transitions in one critic step."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 5_000
    """environment steps before the first online update where nothing was learnt offline, of uniform random actions, or
    where batches are symmetric, then of the policy's own if something was."""


class RLPD(AbstractAgent):
    """See the module's docstring."""

    actor: TanhGaussian
    critic: Critic
    target: Critic
    log_alpha: Float[Array, ""]
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "RLPD":
        """A fresh agent. Raises `UsageError` for discrete actions, a count below 1, or more `target_members` than
        there are."""
        require_continuous(spec, "rlpd")
        require_counts(config, "utd", "critic_members", "target_members")
        if config.target_members > config.critic_members:
            raise UsageError(
                f"target_members must be at most critic_members ({config.critic_members}), got {config.target_members}"
            )
        if config.target_entropy is None:
            config = replace(config, target_entropy=-0.5 * spec.action_size)
        k_actor, k_critic = jr.split(key)
        inputs: dict[str, Any] = dict(init="glorot", standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers, **inputs)
        nets: dict[str, Any] = dict(
            actor=TanhGaussian.create(spec, config.hidden, k_actor, **inputs),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **shape),
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

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["RLPD", Metrics]:
        k_next, k_actor = jr.split(key)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        slices = self._slices(batch)
        keys = jr.split(k_next, self.config.utd) if self.config.utd > 1 else k_next[None]
        (critic, target, opt_q), m_q = jax.lax.scan(
            lambda carry, data: self._critic_step(carry, data),
            (self.critic, self.target, opt["critic"]),
            (slices, keys),
        )
        last = jax.tree.map(lambda x: x[-1], slices)
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, last, k_actor), "actor"
        )
        entropy = m_pi["actor_entropy"]
        log_alpha, opt_a, m_a = descend(
            tx, self.log_alpha, opt["log_alpha"], lambda a: self._ent_coef_loss(a, entropy), "ent_coef"
        )
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=target,
            log_alpha=log_alpha,
            opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a),
            step=self.step + 1,
        )
        means = {name: values.mean() for name, values in m_q.items()}
        return new, means | m_pi | m_a | {"ent_coef": jnp.exp(log_alpha)}

    def _slices(self, batch: Transition) -> Transition:
        """The rows with a leading axis of `utd` slices."""
        rows, utd = len(batch.reward), self.config.utd
        if rows % utd:
            raise UsageError(f"a batch of {rows} rows has no {utd} equal slices: make it a multiple of utd")
        return jax.tree.map(lambda x: x.reshape(utd, rows // utd, *x.shape[1:]), batch)

    def _critic_step(self, carry: tuple[Critic, Critic, optax.OptState], data: tuple[Transition, PRNGKeyArray]):
        """One slice: the critic, then the target."""
        critic, target, opt = carry
        batch, key = data
        y = self._target(target, batch, key)
        loss = lambda q: self._critic_loss(q, y, batch)
        critic, opt, metrics = descend(optax.adam(self.config.learning_rate), critic, opt, loss, "critic")
        return (critic, polyak(critic, target, self.config.tau), opt), metrics

    def _target(self, target: Critic, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        action, log_prob = self.actor.sample_and_log_prob(batch.next_obs, key)
        if self.config.target_members < self.config.critic_members:
            target = some_members(target, self.config.target_members, jr.fold_in(key, 0))
        value = target(batch.next_obs, action).min(0)
        if self.config.backup_entropy:
            value = value - jnp.exp(self.log_alpha) * log_prob
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: TanhGaussian, critic: Critic, batch: Transition, key: PRNGKeyArray):  # (3)
        action, log_prob = actor.sample_and_log_prob(batch.obs, key)
        loss = jnp.exp(self.log_alpha) * log_prob - critic(batch.obs, action).mean(0)
        return loss.mean(), {"entropy": -log_prob.mean()}

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):  # (4)
        assert self.config.target_entropy is not None  # create() filled it in
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}


def some_members(critic: Critic, n: int, key: PRNGKeyArray) -> Critic:
    """`n` different members of an ensemble, drawn at random: only they are computed."""
    which = jr.permutation(key, critic.mlp.layers[0].weight.shape[0])[:n]
    return replace(critic, mlp=jax.tree.map(lambda leaf: leaf[which], critic.mlp))
