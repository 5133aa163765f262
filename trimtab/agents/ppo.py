"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347).

    delta_t = r_t + gamma d_t V(s'_t) - V(s_t),  A_t = delta_t + gamma lambda (1 - last_t) A_{t+1}          (11)
    L_pi = -E[ min(rho A, clip(rho, 1 - eps, 1 + eps) A) ],  rho = pi(a | s) / pi_old(a | s)                (7)
    L_V  = E[ max((V - R)^2, (V_old + clip(V - V_old, -eps_v, eps_v) - R)^2) ] / 2,  R = A + V_old
    L    = L_pi + c_v L_V - c_H E[ entropy of pi(s) ]                                                       (9)

d is `discount`: 0 where the episode terminated, 1 where it was cut, when s' is the true final observation; `last` is
set in both cases. A is normalised in each minibatch. With `eps_v` None, L_V is E[(V - R)^2] / 2.

Order in one update, which learns from one rollout: the scale of rewards from all that were seen; values, advantages and
log probabilities of the actions with the networks that acted; `n_epochs` times all minibatches in a new order; last,
the rollout's observations into the normaliser, so that rho is exactly 1 in the first minibatch.
Metrics: actor_loss (7), approx_kl E[rho - 1 - log rho], clip_fraction share of |rho - 1| > eps, entropy; critic_loss
L_V, explained_variance 1 - Var[R - V_old] / Var[R]; loss (9), grad_norm the norm of its gradient before clipping;
reward_scale what rewards are divided by; advantage_std the standard deviation of A over the rollout: where A is
normalised, c_H advantage_std reward_scale is the temperature in units of reward; skipped share of minibatches left out
because of `target_kl`; jacobian, only with `jacobian_weight`, E[|d mean / d state|^2] / actions, which is added to (9)
(Xie et al. 2026, arXiv:2602.18312); edge, only of polynomials, the probability of the outermost cells beyond an even
density's, of the block with the most. Those of the losses are means over the minibatches that were learnt from.
Differences from the paper: what later code agrees on (Huang et al. 2022, "The 37 implementation details of PPO"), as
fields of the config. A cut episode is bootstrapped from, and what a recurrent network remembered is stored with steps.
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
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_counts
from trimtab.nets.masks import allowed, feature_size
from trimtab.nets.mlp import MLP
from trimtab.nets.recurrent import Remembering
from trimtab.nets.running import Normaliser, RunningStd, scaled_rewards
from trimtab.ops import clipped_surrogate, descend, epochs, explained_variance, gae
from trimtab.policies.actor import Actor, Mode, Sample, normalised
from trimtab.policies.heads import AbstractHead, FamilyChoice, choose_head
from trimtab.policies.linear import LinearPolicyNet, state_columns, tied_columns


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of PPO."""

    learning_rate: float = 3e-4
    """Adam's step size for actor and critic."""
    anneal_steps: int = 0
    """environment steps over which the step size falls linearly to 0; 0 keeps it."""
    n_steps: int = 2048
    """steps of each environment in a rollout."""
    batch_size: int = 64
    """steps in a minibatch; must divide n_steps times the number of environments."""
    n_epochs: int = 10
    """times that a rollout is learnt from."""
    gamma: float = 0.99
    """discount factor."""
    gae_lambda: float = 0.95
    """lambda in (11)."""
    clip_range: float = 0.2
    """eps in (7)."""
    clip_range_vf: float | None = None
    """eps_v; None does not clip."""
    ent_coef: float = 0.0
    """c_H in (9)."""
    vf_coef: float = 0.5
    """c_v in (9)."""
    max_grad_norm: float | None = 0.5
    """largest norm of the gradient of (9) over both networks; None does not clip."""
    target_kl: float | None = None
    """approx_kl above which the rest of a rollout's minibatches is left out; None leaves out none."""
    normalise_advantage: bool = True
    """whether A has mean 0 and standard deviation 1 in each minibatch."""
    normalise_obs: bool = True
    """whether observations have mean 0 and standard deviation 1 over all that were seen, cut at 10."""
    normalise_reward: bool = True
    """whether rewards are divided by the standard deviation of the discounted return, and cut at 10."""
    log_std_init: float = 0.0
    """log standard deviation of continuous actions at the start."""
    fixed_std: bool = False
    """whether it stays what it is at the start."""
    hidden: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of actor and critic."""
    activation: str = "tanh"
    """of the hidden layers."""
    shared: bool = False
    """whether the critic is one layer on the actor's last hidden layer, which then learns from L_V, too."""
    distribution: str = "normal"
    """of continuous actions: "normal", "mixture" of normals, or "polynomial" (MePoly)."""
    components: int = 4
    """normals of a mixture."""
    order: int = 5
    """degree of the polynomial."""
    points: int = 0
    """its quadrature's points a dimension; 0: 3 order + 6."""
    quadrature: str = "gauss"
    """"gauss" or "trapezoid"."""
    basis: str = "legendre"
    """"legendre", or "standard" for monomials."""
    block: int = 0
    """dimensions that one polynomial is about; the blocks are independent given the state; 0: all in one."""
    natural_bound: float = 100.0
    """largest natural parameter of the polynomial; approached by tanh."""
    network: str = "mlp"
    """of the actor: "mlp", or "linear" in the state with gains that depend on the phase (LPN)."""
    rank: int | None = None
    """of the linear policy's gains; None is full."""
    jacobian_weight: float = 0.0
    """w_J: weight of the squared Jacobian of the mean action by the state, divided by the number of actions."""
    jacobian_estimator: str = "exact"
    """"exact", or "hutchinson" from one random direction a state."""
    memory: int = 0
    """width of a GRU before the hidden layers of actor and critic, 0 for none."""
    sequence: int = 16
    """successive steps that a recurrent network is differentiated through; must divide n_steps and batch_size."""


class Rows(eqx.Module):
    """A rollout as sequences of `l` successive steps (1 without memory), with what was worked out before the epochs."""

    x: Float[Array, "b l i"]
    mask: Any
    action: Array
    last: Array
    log_prob: Float[Array, "b l"]
    value: Float[Array, "b l"]
    advantage: Float[Array, "b l"]
    actor_memory: Any
    """before the first step of each sequence."""
    critic_memory: Any


class PPO(AbstractAgent):
    """See the module's docstring."""

    actor: Actor
    critic: Remembering
    inputs: Normaliser | None
    rewards: RunningStd | None
    """of discounted returns."""
    opt: optax.OptState
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "PPO":
        """A fresh agent. Raises `UsageError` for sizes or choices that do not fit each other."""
        require_counts(config, "n_steps", "batch_size", "n_epochs", "sequence")
        if config.memory and (config.n_steps % config.sequence or config.batch_size % config.sequence):
            raise UsageError(f"sequence {config.sequence} must divide n_steps {config.n_steps} and batch_size")
        k_actor, k_critic = jr.split(key)
        size, head = feature_size(spec), _head(spec, config)
        shape: dict[str, Any] = dict(memory=config.memory, activation=config.activation)
        if config.network == "linear":
            gains: dict[str, Any] = dict(rank=config.rank, activation=config.activation)
            net = Remembering(None, LinearPolicyNet.create(spec, config.hidden, k_actor, **gains))
        else:
            scale = 1.0 if config.distribution == "mixture" else 0.01  # the parts of a mixture must begin apart
            net = Remembering.create(size, config.hidden, head.size, k_actor, out_scale=scale, **shape)
        actor = Actor(net, head, state_columns(spec.obs))
        layers = (config.hidden[-1], ()) if config.shared else (size, config.hidden)
        critic = Remembering.create(*layers, 1, k_critic, **shape)
        nets: Any = (actor, critic)
        return cls(
            actor=actor,
            critic=critic,
            inputs=Normaliser.create(size, tied_columns(spec.obs)) if config.normalise_obs else None,
            rewards=RunningStd.create(1) if config.normalise_reward else None,
            opt=_optimiser(config, jnp.float32(0.0)).init(nets),
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return Mode(self.actor, self.inputs)

    @property
    def explorer(self) -> AbstractPolicy:
        return Sample(self.actor, self.inputs, self.critic if self.config.memory else None)

    def update(self, batch: Rollout, key: PRNGKeyArray) -> tuple["PPO", Metrics]:
        config, steps = self.config, batch.reward.size
        rewards, reward, scale = scaled_rewards(self.rewards, batch.reward, batch.discounted)
        rows, explained = self._rows(batch, reward)
        left = 1.0 - self.step * steps / config.anneal_steps if config.anneal_steps else 1.0
        tx = _optimiser(config, jnp.float32(config.learning_rate) * jnp.maximum(jnp.float32(left), 0.0))
        count, length = rows.advantage.shape
        sizes = (count, config.batch_size // length, config.n_epochs)

        def learn(state: Any, order: Int[Array, " m"], k_loss: PRNGKeyArray) -> tuple[Any, Metrics]:
            some = jax.tree.map(lambda x: x[order], rows)
            nets, opt = state
            nets, opt, metrics = descend(tx, nets, opt, lambda nets: self._loss(nets, some, k_loss), "joint")
            return (nets, opt), {name.removeprefix("joint_"): value for name, value in metrics.items()}

        state = ((self.actor, self.critic), self.opt)
        ((actor, critic), opt), metrics = epochs(learn, state, sizes, key, "approx_kl", config.target_kl)
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
        whole = {"explained_variance": explained, "reward_scale": scale, "advantage_std": rows.advantage.std()}
        return new, metrics | whole

    def _rows(self, batch: Rollout, reward: Float[Array, "t n"]) -> tuple[Rows, Float[Array, ""]]:  # (11)
        """The rollout with its advantages, and how much of the returns' variance the critic explains."""
        config, (actor_memory, critic_memory) = self.config, batch.memory
        x, mask = normalised(batch.obs, self.inputs), allowed(batch.obs)
        seen, next_seen = (self._seen(self.actor, given) for given in (x, normalised(batch.next_obs, self.inputs)))
        value, after = self.critic.step(seen, critic_memory)
        next_value, _ = self.critic.step(next_seen, after)
        value, next_value = value[..., 0], next_value[..., 0]
        sizes = (config.gamma, config.gae_lambda)
        advantage = gae(reward, batch.discount, batch.last, value, next_value, *sizes)
        log_prob = self.actor.log_prob(x, mask, actor_memory, batch.action, config.batch_size)
        length = config.sequence if config.memory else 1

        def cut(leaf: Array) -> Array:
            t, n = leaf.shape[:2]
            rows = jnp.swapaxes(leaf.reshape(t // length, length, n, *leaf.shape[2:]), 1, 2)
            return rows.reshape(t // length * n, length, *leaf.shape[2:])

        each = (x, mask, batch.action, batch.last, log_prob, value, advantage)
        first = jax.tree.map(lambda leaf: cut(leaf)[:, 0], (actor_memory, critic_memory))
        return Rows(*jax.tree.map(cut, each), *first), explained_variance(advantage, value)

    def _seen(self, actor: Actor, x: Float[Array, "*b i"]) -> Float[Array, "*b h"]:
        """What the critic sees: the features, or what the actor's hidden layers make of them."""
        if not self.config.shared:
            return x
        assert isinstance(actor.net.head, MLP)
        return actor.net.head.hidden(x)[-1]

    def _loss(self, nets: tuple[Actor, Remembering], rows: Rows, key: PRNGKeyArray):  # (9)
        config = self.config
        actor_loss, m_pi = self._actor_loss(nets[0], rows, key)
        critic_loss = self._critic_loss(nets[1], self._seen(nets[0], rows.x), rows)
        loss = actor_loss + config.vf_coef * critic_loss - config.ent_coef * m_pi["entropy"]
        if config.jacobian_weight:
            loss = loss + config.jacobian_weight * m_pi["jacobian"]
        return loss, m_pi | {"actor_loss": actor_loss, "critic_loss": critic_loss}

    def _actor_loss(self, actor: Actor, rows: Rows, key: PRNGKeyArray):  # (7)
        config, given, more = self.config, (rows.x, rows.mask, rows.actor_memory, rows.last), {}
        if config.jacobian_weight:
            random = key if config.jacobian_estimator == "hutchinson" else None
            found, squares = actor.unroll_with_jacobian(*given, random)
            more = {"jacobian": squares.mean() / actor.head.size}
        else:
            found = actor.unroll(*given)
        log_ratio = found.log_prob(rows.action) - rows.log_prob
        loss, metrics = clipped_surrogate(log_ratio, rows.advantage, config.clip_range, config.normalise_advantage)
        return loss, more | metrics | {"entropy": found.entropy().mean()} | found.health()

    def _critic_loss(self, critic: Remembering, seen: Float[Array, "b l h"], rows: Rows) -> Float[Array, ""]:
        value = critic.unroll(seen, rows.critic_memory, rows.last)[..., 0]
        target, eps = rows.advantage + rows.value, self.config.clip_range_vf
        error = jnp.square(value - target)
        if eps is not None:
            near = rows.value + jnp.clip(value - rows.value, -eps, eps)
            error = jnp.maximum(error, jnp.square(near - target))
        return 0.5 * error.mean()


def _head(spec: Spec, config: Config) -> AbstractHead:
    """What the actor's outputs mean. Raises `UsageError` for choices that do not go together."""
    if config.shared and (config.network == "linear" or config.memory or not config.hidden):
        raise UsageError("actor and critic can share the hidden layers of a perceptron, not a memory or linear gains")
    choices = dict(network=("mlp", "linear"), jacobian_estimator=("exact", "hutchinson"))
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UsageError(f"unknown {name} {getattr(config, name)!r}: choose {' or '.join(known)}")
    simple = config.distribution == "normal" and not spec.discrete and not config.memory
    if not simple and (config.jacobian_weight or config.network == "linear"):
        raise UsageError("the action Jacobian and linear policies need continuous, normal actions and no memory")
    if config.rank is not None and config.network != "linear":
        raise UsageError("rank is that of a linear policy's gains: add --agent.network linear")
    sizes = (config.order, config.points, config.quadrature, config.block, config.natural_bound)
    family = FamilyChoice(*sizes, config.basis)
    return choose_head(spec, config.distribution, config.log_std_init, config.fixed_std, config.components, family)


def _optimiser(config: Config, rate: Float[Array, ""]) -> optax.GradientTransformation:
    adam = optax.adam(rate, eps=1e-5)
    return adam if config.max_grad_norm is None else optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
