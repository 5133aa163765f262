"""Flow policy optimisation (McAllister et al. 2025, arXiv:2507.21053): PPO for a flow, which does not know its density.

    a = x_K,  x_{k+1} = x_k + v(s, x_k, k / K) / K,  x_0 ~ N(0, I)
    l_i(v) = mean_d ( v(s, (1 - t_i) e_i + t_i a, t_i) - (a - e_i) )_d^2,  e_i ~ N(0, I), t_i ~ U(0, 1)        (1)
    rho    = exp( clip( mean_i clip(l_i(v_old) - l_i(v), -c, c), -c, c ) )                                    (2)
    L_pi   = -E[ min(rho A, clip(rho, 1 - eps, 1 + eps) A) ]                                                  (3)
    L_V    = E[ (V - R)^2 ],  R = A + V_old,  A by generalised advantage estimation with gamma and lambda     (4)

The flow-matching loss (1) bounds the negative log density but for a constant, so (2) stands where PPO has the ratio of
densities. The same `pairs` pairs (e_i, t_i) serve an action through all epochs. A is normalised in each minibatch; d is
`discount`, as in PPO. There is no entropy bonus, since no entropy is known.

Order in one update, which learns from one rollout: the scale of rewards from all that were seen; values, advantages,
pairs and their losses with the networks that acted; `n_epochs` times all minibatches in a new order, in each the actor
and then the critic; last, the rollout's observations into the normaliser, so that rho is exactly 1 in the first
minibatch.
Metrics: actor_loss (3), actor_matching mean of (1), actor_approx_kl E[rho - 1 - log rho], actor_clip_fraction share of
|rho - 1| > eps; critic_loss (4); *_grad_norm the norm of that gradient before clipping; explained_variance
1 - Var[R - V_old] / Var[R]; reward_scale what rewards are divided by; skipped share of minibatches left out because of
`target_kl`. Those of the losses are means over the minibatches that were learnt from.
Differences from the paper: the cuts in (2) and one optimiser each for actor and critic are those of the baseline in
MePoly's code (Liu et al. 2026, arXiv:2602.17832), which this follows; advantages are normalised in each minibatch and
not over the rollout; pairs are drawn when the rollout is learnt from and not when it is collected, which is the same.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Rollout
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous, require_counts
from trimtab.nets.mlp import MLP
from trimtab.nets.running import Normaliser, RunningStd, scaled_rewards
from trimtab.ops import clipped_surrogate, descend, epochs, explained_variance, gae
from trimtab.policies.actor import normalised
from trimtab.policies.flow_actor import FlowActor, Velocity


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FPO."""

    learning_rate: float = 3e-4
    """Adam's step size for actor and critic."""
    n_steps: int = 2048
    """steps of each environment in a rollout."""
    batch_size: int = 64
    """steps in a minibatch; must divide n_steps times the number of environments."""
    n_epochs: int = 10
    """times that a rollout is learnt from."""
    gamma: float = 0.99
    """discount factor."""
    gae_lambda: float = 0.95
    """lambda of the advantages."""
    clip_range: float = 0.2
    """eps in (3)."""
    pairs: int = 50
    """pairs (e_i, t_i) an action in (2); MePoly's code has 50, and 2000 for bandits."""
    loss_bound: float = 3.0
    """c in (2)."""
    flow_steps: int = 10
    """K, Euler steps of a draw."""
    max_grad_norm: float | None = 0.5
    """largest norm of each network's gradient; None does not clip."""
    target_kl: float | None = None
    """actor_approx_kl above which the rest of a rollout's minibatches is left out; None leaves out none."""
    normalise_obs: bool = True
    """whether observations have mean 0 and standard deviation 1 over all that were seen, cut at 10."""
    normalise_reward: bool = True
    """whether rewards are divided by the standard deviation of the discounted return, and cut at 10."""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of velocity and critic."""
    activation: str = "relu"
    """of the hidden layers."""


class Rows(eqx.Module):
    """A rollout as rows, with what was worked out before the epochs."""

    x: Float[Array, "b i"]
    action: Float[Array, "b d"]
    start: Float[Array, "b n d"]
    """e_i."""
    times: Float[Array, "b n"]
    """t_i."""
    matching: Float[Array, "b n"]
    """l_i(v_old)."""
    value: Float[Array, " b"]
    advantage: Float[Array, " b"]


class FPO(AbstractAgent):
    """See the module's docstring."""

    actor: Velocity
    critic: MLP
    inputs: Normaliser | None
    rewards: RunningStd | None
    """of discounted returns."""
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "FPO":
        """A fresh agent. Raises `UsageError` for discrete actions or a count below 1."""
        require_continuous(spec, "fpo")
        require_counts(config, "n_steps", "batch_size", "n_epochs", "pairs", "flow_steps")
        k_actor, k_critic = jr.split(key)
        size, act = spec.obs_size, config.activation
        nets: dict[str, Any] = dict(
            actor=Velocity.create(size, spec.action_size, config.hidden, k_actor, activation=act),
            critic=MLP.create(size, config.hidden, 1, k_critic, activation=act, init="orthogonal"),
        )
        return cls(
            **nets,
            inputs=Normaliser.create(size) if config.normalise_obs else None,
            rewards=RunningStd.create(1) if config.normalise_reward else None,
            opt={name: _optimiser(config).init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.explorer

    @property
    def explorer(self) -> AbstractPolicy:
        actions = self.actor.mlp.layers[-1].bias.shape[-1]
        return FlowActor(self.actor, self.inputs, actions, self.config.flow_steps)

    def update(self, batch: Rollout, key: PRNGKeyArray) -> tuple["FPO", Metrics]:
        config, tx = self.config, _optimiser(self.config)
        k_pairs, k_epochs = jr.split(key)
        rewards, reward, scale = scaled_rewards(self.rewards, batch.reward, batch.discounted)
        rows, explained = self._rows(batch, reward, k_pairs)
        sizes = (rows.advantage.size, config.batch_size, config.n_epochs)

        def learn(state: Any, order: Int[Array, " m"], _: PRNGKeyArray) -> tuple[Any, Metrics]:
            actor, critic, opt = state
            some = jax.tree.map(lambda x: x[order], rows)
            actor, opt_pi, m_pi = descend(tx, actor, opt["actor"], lambda pi: self._actor_loss(pi, some), "actor")
            critic, opt_v, m_v = descend(tx, critic, opt["critic"], lambda v: self._critic_loss(v, some), "critic")
            return (actor, critic, dict(actor=opt_pi, critic=opt_v)), m_pi | m_v

        state = (self.actor, self.critic, self.opt)
        (actor, critic, opt), metrics = epochs(learn, state, sizes, k_epochs, "actor_approx_kl", config.target_kl)
        seen = normalised(batch.obs, None)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            inputs=None if self.inputs is None else self.inputs.seen(seen.reshape(-1, seen.shape[-1])),
            rewards=rewards,
            opt=opt,
            step=self.step + 1,
        )
        return new, metrics | {"explained_variance": explained, "reward_scale": scale}

    def _rows(
        self, batch: Rollout, reward: Float[Array, "t n"], key: PRNGKeyArray
    ) -> tuple[Rows, Float[Array, ""]]:  # (1), (4)
        """The rollout with its advantages, pairs and losses, and how much of the returns' variance the critic
        explains."""
        config, (k_start, k_time) = self.config, jr.split(key)
        x, next_x = normalised(batch.obs, self.inputs), normalised(batch.next_obs, self.inputs)
        value, next_value = self.critic(x)[..., 0], self.critic(next_x)[..., 0]
        sizes = (config.gamma, config.gae_lambda)
        advantage = gae(reward, batch.discount, batch.last, value, next_value, *sizes)
        x, action, value, advantage = (
            leaf.reshape(-1, *leaf.shape[2:]) for leaf in (x, batch.action, value, advantage)
        )
        pairs = (len(action), config.pairs)
        start, times = jr.normal(k_start, (*pairs, action.shape[-1])), jr.uniform(k_time, pairs)
        matching = self.actor.losses(x, action, start, times)
        return Rows(x, action, start, times, matching, value, advantage), explained_variance(advantage, value)

    def _actor_loss(self, actor: Velocity, rows: Rows):  # (2), (3)
        bound = self.config.loss_bound
        matching = actor.losses(rows.x, rows.action, rows.start, rows.times)
        log_ratio = jnp.clip(jnp.clip(rows.matching - matching, -bound, bound).mean(-1), -bound, bound)
        loss, metrics = clipped_surrogate(log_ratio, rows.advantage, self.config.clip_range)
        return loss, metrics | {"matching": matching.mean()}

    def _critic_loss(self, critic: MLP, rows: Rows):  # (4)
        return jnp.square(critic(rows.x)[:, 0] - rows.advantage - rows.value).mean(), {}


def _optimiser(config: Config) -> optax.GradientTransformation:
    adam = optax.adam(config.learning_rate, eps=1e-5)
    return adam if config.max_grad_norm is None else optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
