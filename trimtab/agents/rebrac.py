"""ReBRAC: TD3+BC with a penalty on both actor and critic (Tarasov et al. 2023, arXiv:2305.09836).

    a'   = clip(pibar(s') + clip(sigma n, -c, c), -1, 1),  n standard normal
    y    = r + gamma d ( min_e Qbar_e(s', a') - alpha_c k |a' - a'_data|^2 ),  d = discount                 (1)
    L_Q  = E[ (Q_e(s, a) - y)^2 ]                                                                        (2)
    L_pi = E[ -min_e Q_e(s, pi(s)) / E|min_e Q_e(s, pi(s))| + alpha_a |pi(s) - a|^2 ]                    (3)

every `policy_delay`-th update. Squares are summed over the action's dimensions; the divisor in (3) is held constant.
a'_data is what the data did in s'; k is 1 where the data knows it and 0 at the end of an episode, terminated or cut,
where the penalty is dropped. Without the critic's penalty and with alpha_a = 1/(2.5 act) this is TD3+BC but for the
least of two critics in (3).
Order in one update: the critic with the old targets; every `policy_delay`-th update the actor with the new critic and
then both targets. Metrics: critic_loss (2), critic_mean E[Q(s, a)], critic_penalty E[k |a' - a'_data|^2] over all rows;
actor_loss (3), actor_distance E|pi(s) - a|^2, actor_q E[min_e Q_e(s, pi(s))], the three and actor_grad_norm NaN in
updates that leave the actor alone; *_grad_norm the global norm of that gradient.
Differences from the official code (FQL's version, whose networks and rates these are): at the end of an episode it
takes the first action of the next one for a'_data; its targets are mixed from the networks before the update, here from
the new ones; the noise on collected actions is not clipped.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Sarsa
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous, require_counts
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target, unit_scale
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of ReBRAC."""

    alpha_actor: float = 0.01
    """alpha_a in (3); depends on the data (cube-single: 1)."""
    alpha_critic: float = 0.01
    """alpha_c in (1); grows with the scale of rewards (cube-single: 0)."""
    normalize_obs: bool = False
    """standardise observations over the data set."""
    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor; 0.995 for long tasks."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    policy_delay: int = 2
    """critic updates for each update of the actor and the targets."""
    target_noise: float = 0.2
    """sigma."""
    target_noise_clip: float = 0.5
    """c."""
    exploration_noise: float = 0.2
    """standard deviation of the noise on actions collected online."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers of actor and critics."""
    activation: str = "gelu"
    """what stands between them."""
    critic_norm: str | None = "layer_after"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps with uniform random actions before the first update when trained online without data."""


class ReBRAC(AbstractAgent):
    """See the module's docstring."""

    actor: Deterministic
    critic: Critic
    target_actor: Deterministic
    target_critic: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "ReBRAC":
        """A fresh agent. Raises `UsageError` for discrete actions or a policy_delay below 1."""
        require_continuous(spec, "rebrac")
        require_counts(config, "policy_delay")
        k_actor, k_critic = jr.split(key)
        shape: dict[str, Any] = dict(activation=config.activation, init="glorot", standardise=config.normalize_obs)
        actor = Deterministic.create(spec, config.hidden, k_actor, **shape)
        shape |= dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        critic = Critic.create(spec, config.hidden, 2, k_critic, **shape)
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            opt={name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return Noisy.create(self.actor, self.config.exploration_noise)

    def update(self, batch: Sarsa, key: PRNGKeyArray) -> tuple["ReBRAC", Metrics]:
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y, penalty = self._target(batch, key)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")

        def with_actor(_):
            actor, opt_pi, m_pi = descend(
                tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch), "actor"
            )
            targets = polyak((actor, critic), (self.target_actor, self.target_critic), self.config.tau)
            return (actor, opt_pi, *targets), m_pi

        def without_actor(_):
            skipped = {f"actor_{name}": jnp.full((), jnp.nan) for name in ("loss", "grad_norm", "distance", "q")}
            return (self.actor, opt["actor"], self.target_actor, self.target_critic), skipped

        due = (self.step + 1) % self.config.policy_delay == 0
        (actor, opt_pi, target_actor, target_critic), m_pi = jax.lax.cond(due, with_actor, without_actor, None)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=target_actor,
            target_critic=target_critic,
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi | {"critic_penalty": penalty.mean()}

    def _target(self, batch: Sarsa, key: PRNGKeyArray) -> tuple[Float[Array, " b"], Float[Array, " b"]]:  # (1)
        """y, and the penalty before it is weighed."""
        action = self.target_actor(batch.next_obs)
        clip = self.config.target_noise_clip
        noise = jnp.clip(self.config.target_noise * jr.normal(key, action.shape), -clip, clip)
        action = jnp.clip(action + noise, -1.0, 1.0)
        penalty = batch.next_valid * jnp.square(action - batch.next_action).sum(-1)
        value = self.target_critic(batch.next_obs, action).min(0) - self.config.alpha_critic * penalty
        return td_target(batch.reward, batch.discount, value, self.config.gamma), penalty

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Sarsa):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: Deterministic, critic: Critic, batch: Sarsa):  # (3)
        action = actor(batch.obs)
        q = critic(batch.obs, action).min(0)
        distance = jnp.square(action - batch.action).sum(-1).mean()
        return self.config.alpha_actor * distance - unit_scale(q).mean(), {"distance": distance, "q": q.mean()}
