"""Cal-QL, calibrated CQL for offline pre-training and online fine-tuning (Nakamoto et al. 2023, arXiv:2303.05479).

    y    = r + gamma d min_e Qbar_e(s', a'),  a' the best of n samples of pi(s') by that minimum, d = discount   (1)
    C_e  = Q_e(s, a_i) for the uniform a_i,  max( Q_e(s, a_i), G(s) ) for those of pi                            (2)
    D_e  = E_s[ logsumexp over 3n actions of C_e - log mu(a_i) ] - E[ Q_e(s, a) ]                                (3)
    L_Q  = E[ (Q_e(s, a) - y)^2 ] + w lambda D_e,  mean over e                                                   (4)
    L_pi = E[ alpha log pi(a | s) - min_e Q_e(s, a) ],  a ~ pi(s) reparametrised                                 (5)
    L_a  = E[ alpha (-log pi(a | s) - H) ],  alpha = exp(log_alpha)                                              (6)
    L_l  = -w lambda (D - gap),  lambda = exp(log_lambda), D the mean of D_e                                     (7)

CQL (arXiv:2006.04779) pushes the policy's values down without end. Here they are pushed no further than to G(s), the
discounted return that the data had from this row on: what the policy that made the data is worth, which a learnt one
should not fall below. So values keep the scale of real returns, and the first steps online do not look better than
all that was learnt. The 3n actions are n uniform ones, n of pi(s) and n of pi(s'), evaluated at s; mu is the density
each was drawn from, 2^-act for the uniform ones. lambda is 1 unless `lagrange`. With G = -inf it is CQL.
The batch brings G. Rows of an episode that still goes on have none yet, G = -inf. An episode that was cut goes on with
`cut_value`, by default with the least reward of the data for ever, or 0 if that is more, below which no value can be:
for rewards of -1 until the goal that is the official code's rule for episodes which did not reach it.
Order in one update: the critic with the old target and the old actor, lambda with its D, the actor with the new critic,
alpha with the actor's entropy, the target last, from the new critic.
Metrics: critic_loss (4), critic_mean E[Q(s, a)], critic_td the first term of (4), critic_gap D, critic_calibrated share
of the policy's values in (2) that are below G; cql_weight_loss (7), cql_weight w lambda after the update; actor_loss
(5), actor_entropy -E[log pi]; ent_coef_loss (6), ent_coef alpha after the update; *_grad_norm the global norm of that
gradient (of cql_weight 0 without `lagrange`).
Differences from the official code: the losses of the critics are averaged and not summed, the actor sees the new
critic, (6) has alpha where the code has log alpha, lambda starts at 1 and not at e, and has no bound (there
1e6, from memory); networks do not start orthogonal, nor log stds at -1; any reward may be cut, see above, where the
code knows two kinds of tasks.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import ToGo
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous, require_counts
from trimtab.nets.critic import Critic
from trimtab.ops import conservative_gap, copy, descend, polyak, td_target
from trimtab.policies.gaussian import Mean, TanhGaussian
from trimtab.policies.proposals import best_value, proposals


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of Cal-QL."""

    cql_alpha: float = 5.0
    """w in (4); 1 for Adroit."""
    cql_actions: int = 10
    """n in (1) and (2)."""
    cut_value: float | None = None
    """what an episode is worth after it was cut, for G; None is the least reward of the data for ever, at most 0."""
    lagrange: bool = False
    """tune lambda by (7); for AntMaze."""
    target_gap: float = 0.8
    """gap in (7)."""
    max_target_backup: bool = True
    """a' in (1) is the best of n samples; otherwise one sample."""
    actor_lr: float = 1e-4
    """Adam's step size for actor and alpha."""
    critic_lr: float = 3e-4
    """Adam's step size for the critics and lambda."""
    gamma: float = 0.99
    """discount factor, of values and of returns."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    init_ent_coef: float = 1.0
    """alpha at the start."""
    target_entropy: float | None = None
    """H in (6); None is minus the number of action dimensions."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of the actor, and of the critics unless these have their own."""
    critic_hidden: tuple[int, ...] | None = None
    """widths of the hidden layers of the critics; None is those of the actor. AntMaze: four of 256."""
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
    learning_starts: int = 1_000
    """environment steps before the first online update where batches are symmetric or nothing was learnt before."""


class CalQL(AbstractAgent):
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
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "CalQL":
        """A fresh agent. Raises `UsageError` for discrete actions or a count below 1."""
        require_continuous(spec, "cal-ql")
        require_counts(config, "cql_actions", "critic_members")
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_size))
        k_actor, k_critic = jr.split(key)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers, **inputs)
        nets: dict[str, Any] = dict(
            actor=TanhGaussian.create(spec, config.hidden, k_actor, **inputs),
            critic=Critic.create(spec, config.critic_hidden or config.hidden, config.critic_members, k_critic, **norm),
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

    def update(self, batch: ToGo, key: PRNGKeyArray) -> tuple["CalQL", Metrics]:
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

    def _target(self, batch: ToGo, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        if self.config.max_target_backup:
            value = best_value(self.actor, self.target, batch.next_obs, self.config.cql_actions, key)
        else:
            action, _ = self.actor.sample_and_log_prob(batch.next_obs, key)
            value = self.target(batch.next_obs, action).min(0)
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(
        self,
        critic: Critic,
        y: Float[Array, " b"],
        others: tuple[Float[Array, "n3 b act"], Float[Array, "n3 b"]],
        batch: ToGo,
    ):  # (2), (3), (4)
        actions, log_density = others
        q, values = critic(batch.obs, batch.action), critic.many(batch.obs, actions)
        bounded, calibrated = calibrate(values, self.config.cql_actions, batch.to_go)
        td, gap = jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), conservative_gap(q, bounded, log_density).mean()
        weight = self.config.cql_alpha * jnp.exp(self.log_lambda)
        return td + weight * gap, {"mean": q.mean(), "td": td, "gap": gap, "calibrated": calibrated}

    def _weight_loss(self, log_lambda: Float[Array, ""], gap: Float[Array, ""]):  # (7)
        if not self.config.lagrange:
            return jnp.zeros(()), {}
        return -self.config.cql_alpha * jnp.exp(log_lambda) * (gap - self.config.target_gap), {}

    def _actor_loss(self, actor: TanhGaussian, critic: Critic, batch: ToGo, key: PRNGKeyArray):  # (5)
        action, log_prob = actor.sample_and_log_prob(batch.obs, key)
        loss = jnp.exp(self.log_alpha) * log_prob - critic(batch.obs, action).min(0)
        return loss.mean(), {"entropy": -log_prob.mean()}

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):  # (6)
        assert self.config.target_entropy is not None  # create() filled it in
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}


def calibrate(
    others: Float[Array, "e n3 b"], uniform: int, to_go: Float[Array, " b"]
) -> tuple[Float[Array, "e n3 b"], Float[Array, ""]]:
    """(2): values of actions, the first `uniform` of them as they are, and the share of the others below `to_go`."""
    free, policy = others[:, :uniform], others[:, uniform:]
    bound = jnp.broadcast_to(to_go, policy.shape)
    share = (policy < bound).mean(dtype=jnp.float32)
    return jnp.concatenate([free, jnp.maximum(policy, bound)], axis=1), share


def _rate(config: Config, name: str) -> float:
    """Adam's step size for the network or number of that name."""
    return config.critic_lr if name in ("critic", "log_lambda") else config.actor_lr
