"""SAC Flow: soft actor-critic whose policy is a flow, trained through all of its steps (arXiv:2509.25756).

    a', logp' = rollout(s'; running statistics)
    y    = r + gamma d ( min_e Q_e(s', a') - alpha logp' ),  d = discount
    L_Q  = 1/2 sum_e E[ (Q_e(s, a) - y)^2 ]
    L_pi = E[ alpha logp - min_e Q_e(s, a) ],  (a, logp) = rollout(s; batch statistics), gradient through all K steps
    L_a  = alpha ( -E[logp] - H ),  alpha = exp(log_alpha),  H = 0

logp is the density of the rollout's path (policies/flow.py), not of the action. What keeps the gradient through K steps
steady is the form of the velocity: "gated" (Flow-G), "decoder" (Flow-T); "mlp" is the naive flow.
Critics: "crossq" has batch renormalisation and no target network: Q(s, a) and Q(s', a') come out of one joint pass.
"ema" is SAC's pair with a slow target, mixed last.
Order in one update: the critic with the old actor; every `policy_delay`-th update the actor with the new critic
(running statistics), then alpha with the actor's entropy.
Metrics: critic_loss, critic_mean E[Q(s, a)]; actor_loss, actor_entropy -E[logp], actor_log_std mean log std of the
steps' noise, actor_saturation share of |x_K| > 5 (where tanh is flat in float32: a dead actor); ent_coef_loss, ent_coef
alpha after the update; *_grad_norm the global norm of that gradient. Those of actor and alpha are NaN in updates that
leave the actor alone.
Differences from the paper and the official code: the step noise is the code's (learned std without drift correction)
and its density is exact for the decoder, too, whose log std the code leaves out; the tanh correction is the stable
form. Sizes are for a CPU: `reproduce sac-flow --scale paper` has the paper's (critics 1024x2, batch 512, 50,000 random
steps, policy_delay 3).
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
from trimtab.nets.critic import Critic, CrossQCritic
from trimtab.ops import copy, descend, descend_stateful, polyak, td_target
from trimtab.policies.flow import DecoderVelocity, FlowPolicy, GatedVelocity, LearnedStd, MLPVelocity, Ode

SATURATED = 5.0
"""|x_K| beyond which tanh is flat in float32."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of SAC Flow."""

    velocity: str = "gated"
    """form of the velocity network: "gated" (Flow-G), "decoder" (Flow-T) or "mlp" (naive)."""
    flow_steps: int = 4
    """K, Euler steps of a rollout."""
    width: int = 128
    """width of the actor's hidden layers (paper: 128, code: 512); of the decoder's tokens, half of it (paper: 64)."""
    decoder_layers: int = 2
    """layers of the decoder."""
    decoder_norm: str = "pre_ln"
    """"pre_ln" (paper), "post_ln" or "post_brn" (official code)."""
    candidate_bound: float | None = None
    """b of a candidate b tanh(.) in the gated velocity (the paper's table has 50); None: linear, as in the code."""
    input_norm: bool = True
    """batch renormalisation of the velocity network's input (not the decoder's)."""
    noise_on_velocity: bool = False
    """noise the velocity instead of the state, as the official decoder does: a step's std is then sigma/K."""
    official_flow_t_logp: bool = False
    """leave log(sigma/K) out of the density, as the official decoder does; for comparisons only."""
    critic: str = "crossq"
    """"crossq" (batch renormalisation, no target) or "ema" (target networks)."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the critics' hidden layers (paper: 1024 1024)."""
    critic_members: int = 2
    """number of Q functions; the least one is used."""
    actor_lr: float = 3e-4
    """Adam's step size for the actor."""
    critic_lr: float = 1e-3
    """Adam's step size for the critics."""
    ent_coef_lr: float = 1e-3
    """Adam's step size for alpha."""
    adam_b1: float = 0.5
    """Adam's decay of the first moment."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target ("ema" only)."""
    policy_delay: int = 1
    """critic updates for each update of actor and alpha (paper: 3)."""
    init_ent_coef: float = 0.2
    """alpha at the start."""
    target_entropy: float = 0.0
    """H, of the path."""
    batch_size: int = 256
    """transitions in one update (paper: 512)."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 1_000
    """environment steps with uniform random actions before the first update (paper: 50,000)."""


class SACFlow(AbstractAgent):
    """See the module's docstring."""

    actor: FlowPolicy
    critic: CrossQCritic | Critic
    target: Critic | None
    log_alpha: Float[Array, ""]
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "SACFlow":
        """A fresh agent. Raises `UsageError` for discrete actions, or an unknown velocity or critic."""
        require_continuous(spec, "sac-flow")
        if config.critic not in ("crossq", "ema"):
            raise UsageError(f"unknown critic {config.critic!r}: choose 'crossq' or 'ema'")
        if config.policy_delay < 1:
            raise UsageError(f"policy_delay must be at least 1, got {config.policy_delay}")
        k_actor, k_critic = jr.split(key)
        make = CrossQCritic.create if config.critic == "crossq" else Critic.create
        nets: dict[str, Any] = dict(
            actor=make_actor(spec, config, k_actor),
            critic=make(spec, config.hidden, config.critic_members, k_critic),
            log_alpha=jnp.log(jnp.float32(config.init_ent_coef)),
        )
        opt = {name: _adam(config, name).init(net) for name, net in nets.items()}
        target = copy(nets["critic"]) if config.critic == "ema" else None
        return cls(**nets, target=target, opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Ode(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["SACFlow", Metrics]:
        k_next, k_actor = jr.split(key)
        critic, opt_q, m_q = self._update_critic(batch, k_next)

        def with_actor(_):
            actor, opt_pi, m_pi = descend_stateful(
                _adam(self.config, "actor"),
                self.actor,
                self.opt["actor"],
                lambda pi: self._actor_loss(pi, critic, batch, k_actor),
                "actor",
            )
            log_alpha, opt_a, m_a = descend(
                _adam(self.config, "log_alpha"),
                self.log_alpha,
                self.opt["log_alpha"],
                lambda a: self._ent_coef_loss(a, m_pi["actor_entropy"]),
                "ent_coef",
            )
            return (actor, opt_pi, log_alpha, opt_a), m_pi | m_a

        def without_actor(_):
            names = [f"actor_{name}" for name in ("loss", "grad_norm", "entropy", "log_std", "saturation")]
            skipped = {name: jnp.full((), jnp.nan) for name in [*names, "ent_coef_loss", "ent_coef_grad_norm"]}
            return (self.actor, self.opt["actor"], self.log_alpha, self.opt["log_alpha"]), skipped

        if self.config.policy_delay == 1:
            (actor, opt_pi, log_alpha, opt_a), m_pi = with_actor(None)
        else:
            due = (self.step + 1) % self.config.policy_delay == 0
            (actor, opt_pi, log_alpha, opt_a), m_pi = jax.lax.cond(due, with_actor, without_actor, None)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=None if self.target is None else polyak(critic, self.target, self.config.tau),
            log_alpha=log_alpha,
            opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a),
            step=self.step + 1,
        )
        return new, m_q | m_pi | {"ent_coef": jnp.exp(log_alpha)}

    def _update_critic(self, batch: Transition, key: PRNGKeyArray):
        tx, opt, after = _adam(self.config, "critic"), self.opt["critic"], self.actor.sample(batch.next_obs, key)
        if self.target is None:
            loss = lambda q: self._crossq_loss(q, batch, after.action, after.log_prob)
            return descend_stateful(tx, self.critic, opt, loss, "critic")
        y = self._target(batch, self.target(batch.next_obs, after.action), after.log_prob)
        return descend(tx, self.critic, opt, lambda q: self._critic_loss(q(batch.obs, batch.action), y), "critic")

    def _target(self, batch: Transition, q_next: Float[Array, "e b"], log_prob: Float[Array, " b"]):
        value = q_next.min(0) - jnp.exp(self.log_alpha) * log_prob
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, q: Float[Array, "e b"], y: Float[Array, " b"]):
        return 0.5 * jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(1).sum(), {"mean": q.mean()}

    def _crossq_loss(self, critic: CrossQCritic, batch: Transition, action: Array, log_prob: Float[Array, " b"]):
        obs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), batch.obs, batch.next_obs)
        both, critic = critic.train(obs, jnp.concatenate([batch.action, action]))
        q, q_next = jnp.split(both, 2, axis=1)
        # The target comes out of the same pass as the prediction: only a stop can keep it constant.
        loss, metrics = self._critic_loss(q, jax.lax.stop_gradient(self._target(batch, q_next, log_prob)))
        return loss, (metrics, critic)

    def _actor_loss(self, actor: FlowPolicy, critic: CrossQCritic | Critic, batch: Transition, key: PRNGKeyArray):
        sample, actor = actor.sample_train(batch.obs, key)
        loss = jnp.exp(self.log_alpha) * sample.log_prob - critic(batch.obs, sample.action).min(0)
        metrics = {
            "entropy": -sample.log_prob.mean(),
            "log_std": sample.log_std,
            "saturation": (jnp.abs(sample.path[-1]) > SATURATED).mean(dtype=jnp.float32),
        }
        return loss.mean(), (metrics, actor)

    def _ent_coef_loss(self, log_alpha: Float[Array, ""], entropy: Float[Array, ""]):
        return jnp.exp(log_alpha) * (entropy - self.config.target_entropy), {}


def make_actor(spec: Spec, config: Config, key: PRNGKeyArray) -> FlowPolicy:
    """The flow policy that `config` describes. Raises `UsageError` for an unknown velocity or bad sizes."""
    if config.velocity == "gated":
        velocity = GatedVelocity.create(
            spec,
            key,
            hidden=(config.width,),
            std_hidden=(config.width, config.width),
            input_norm=config.input_norm,
            bound=config.candidate_bound,
        )
    elif config.velocity == "decoder":
        velocity = DecoderVelocity.create(
            spec, key, d_model=config.width // 2, layers=config.decoder_layers, norm=config.decoder_norm
        )
    elif config.velocity == "mlp":
        velocity = MLPVelocity.create(spec, key, hidden=(config.width, config.width), input_norm=config.input_norm)
    else:
        raise UsageError(f"unknown velocity {config.velocity!r}: choose gated, decoder or mlp")
    noise = LearnedStd(on_velocity=config.noise_on_velocity, official_logp=config.official_flow_t_logp)
    return FlowPolicy.create(spec, velocity, noise, config.flow_steps)


def _adam(config: Config, name: str) -> optax.GradientTransformation:
    rates = {"actor": config.actor_lr, "critic": config.critic_lr, "log_alpha": config.ent_coef_lr}
    return optax.adam(rates[name], b1=config.adam_b1)
