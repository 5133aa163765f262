"""Diffusion Q-learning with LayerNorm critics, the diff-TD3 of SEEM (Yue et al. 2023, arXiv:2310.04411).

    y    = r + gamma d min_e Qbar_e(s', a'),  a' ~ pibar(s'), d = discount                                   (1)
    L_Q  = E[ (Q_e(s, a) - y)^2 ]                                                                         (2)
    L_pi = eta E[ mean_j (eps_net(s, x_t, t) - eps)_j^2 ] - alpha E[ Q_i(s, a0) ] / E|Q_i(s, a0)|           (3)
    act  = one of n samples of pi(s), drawn with probabilities softmax over min_e Q_e(s, .)               (4)

pi is a diffusion (`trimtab/policies/diffusion.py`): x_t = sqrt(ab_t) a + sqrt(1 - ab_t) eps at a random t, and a0 the
action which one step of the network finds in x_t, so that a gradient takes one call and not a chain of T. i is one of
the two critics, drawn for each update; the divisor in (3) is held constant; j counts the action's dimensions. With
`max_q_backup` each Qbar_e in (1) is the greatest of several samples of pibar.
Order in one update: the critic with the old targets, the actor with the new critic, the targets last; pibar is mixed
every `ema_every` updates, and is a copy of pi in the first `ema_start`.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; actor_loss (3), actor_error the first mean in (3), actor_q
E[Q_i(s, a0)]; *_grad_norm the global norm of that gradient, before it is clipped.
Differences from the paper's code: no cosine decay of the step size, which needs the length of the run; DDIM in place of
DPM-solver; pibar before `ema_start`, which the code leaves as it began; no resampling by returns. Diffusion-QL (Wang et
al. 2022, arXiv:2208.06193) differs in that its L_pi goes through the whole chain and its critics have no LayerNorm.
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
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target, unit_scale
from trimtab.policies.compose import SoftmaxOfN
from trimtab.policies.diffusion import Diffusion


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of diffusion Q-learning."""

    alpha: float = 2.0
    """weight of the values in (3); 0 clones the data."""
    eta: float = 1.0
    """weight of the diffusion's own loss in (3); 0.5 for AntMaze."""
    diffusion_steps: int = 100
    """T, at least 21."""
    sampler: str = "ddpm"
    """"ddpm" through all T steps, or "ddim" through `ddim_steps` of them."""
    ddim_steps: int = 15
    """calls of the network in one sample by DDIM."""
    candidates: int = 50
    """n in (4)."""
    max_q_backup: bool = False
    """take the greatest of `backup_actions` in (1); for AntMaze."""
    backup_actions: int = 10
    """samples of pibar for that."""
    ema_every: int = 5
    """updates between two mixings of pibar."""
    ema_start: int = 1_000
    """updates in which pibar is a copy of pi."""
    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    max_grad_norm: float | None = None
    """gradients are scaled down to this norm; from 1 to 10 by data set in the paper. None: as they are."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """widths of the hidden layers of all networks; mish."""
    critic_norm: str | None = "layer"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 10_000
    """environment steps with uniform random actions before the first update when trained online without data."""


class DiffusionQL(AbstractAgent):
    """See the module's docstring."""

    actor: Diffusion
    critic: Critic
    target_actor: Diffusion
    target_critic: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "DiffusionQL":
        """A fresh agent. Raises `UsageError` for discrete actions, an unknown sampler, or numbers that do not fit."""
        require_continuous(spec, "diffusion-ql")
        if config.sampler not in ("ddpm", "ddim"):
            raise UsageError(f"unknown sampler {config.sampler!r}: choose ddpm or ddim")
        for name in ("candidates", "backup_actions", "ema_every"):
            if getattr(config, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(config, name)}")
        k_actor, k_critic = jr.split(key)
        calls = config.ddim_steps if config.sampler == "ddim" else None
        actor = Diffusion.create(spec, config.hidden, k_actor, steps=config.diffusion_steps, calls=calls)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        critic = Critic.create(spec, config.hidden, 2, k_critic, activation="mish", **norm)
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            opt={name: _optimiser(config).init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return SoftmaxOfN(self.actor, self.critic, self.config.candidates)  # (4)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.policy

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["DiffusionQL", Metrics]:
        k_next, k_actor = jr.split(key)
        tx, opt = _optimiser(self.config), self.opt
        y = self._target(batch, k_next)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch, k_actor), "actor"
        )
        due = (self.step + 1) % self.config.ema_every == 0
        rate = jnp.where(self.step < self.config.ema_start, 1.0, jnp.where(due, self.config.tau, 0.0))
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=polyak(actor, self.target_actor, rate),
            target_critic=polyak(critic, self.target_critic, self.config.tau),
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        if self.config.max_q_backup:
            n = self.config.backup_actions
            wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), batch.next_obs)
            value = self.target_critic.many(batch.next_obs, self.target_actor(wide, key)).max(1).min(0)
        else:
            value = self.target_critic(batch.next_obs, self.target_actor(batch.next_obs, key)).min(0)
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: Diffusion, critic: Critic, batch: Transition, key: PRNGKeyArray):  # (3)
        k_step, k_which = jr.split(key)
        error, action = actor.one_step(batch.obs, batch.action, k_step)
        q = critic(batch.obs, action)[jr.randint(k_which, (), 0, 2)]
        loss = self.config.eta * error.mean() - self.config.alpha * unit_scale(q).mean()
        return loss, {"error": error.mean(), "q": q.mean()}


def _optimiser(config: Config) -> optax.GradientTransformation:
    adam = optax.adam(config.learning_rate)
    return adam if config.max_grad_norm is None else optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
