"""SAC Flow from data to online, on chunks of actions (arXiv:2509.25756, section on offline-to-online; after QC).

A chunk a = (a_t, .., a_{t+h-1}) is one action of the flow, executed open loop. With R = sum_i gamma^i r_{t+i}, m = 0 if
a step of the window terminated, and v = 1 if the window lies within one episode:

    y    = R + gamma^h m ( mean_e Qbar_e(s_{t+h}, a') - alpha logp' ),  a', logp' = rollout(s_{t+h}; acting_std)
    L_Q  = E[ v (Q_e(s, a) - y)^2 ]
    L_BC = E[ valid (v(t, x_t, s) - (u - x_0))^2 ],  x_t = (1 - t) x_0 + t u,  u = arctanh(a)
    L_pi = beta E[ valid (a_pi - a)^2 ] - E[ mean_e Q_e(s, a_pi) - alpha logp ],  a_pi, logp = rollout(s; actor_std)

Order in one update. Offline, two steps on the same batch: the critic, then the actor down L_BC; the critic again, then
the actor down L_pi with the new critic. Online: the second of them alone. The target is mixed after each critic step.
Noise is `ConstStd`: sigma sqrt(dt) a step. The official code's constant 0.05 a step in the actor's loss at K = 4 is the
paper's sigma = 0.10; its 0.02 for acting and targets is sigma = 0.04, which is our default there.
Metrics: critic_loss L_Q, critic_mean E[Q]; bc_loss L_BC (0 online); actor_loss L_pi, actor_distance the mean that beta
weighs, actor_q E[mean_e Q_e(s, a_pi)], actor_entropy -E[logp], actor_saturation share of |x_K| > 5; *_grad_norm the
global norm of that gradient. Without `rl` those of critic and actor are 0: only L_BC is learnt.
Differences from the official code: noise is drawn anew at each step (its gated agent repeats one draw for ever), and
alpha is fixed, 0 by default: with a constant std the entropy cannot follow alpha, whose tuning would run away. The code
regresses the flow on a and squashes its end by tanh again, which makes 0.76 of an action of 1; here tanh of the flow's
end is the action. One Adam for each network instead of one for all; critic and actor are stepped in turn.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Chunk
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak
from trimtab.policies.flow import (
    ConstStd,
    DecoderVelocity,
    FlowPolicy,
    GatedVelocity,
    MLPVelocity,
    Ode,
    flow_matching_loss,
)

SATURATED = 5.0
"""|x_K| beyond which tanh is flat in float32."""

EDGE = 1.0 - 1e-5
"""Actions of the data are kept this far inside [-1, 1]."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of SAC Flow on chunks."""

    velocity: str = "gated"
    """form of the velocity network: "gated" (Flow-G), "decoder" (Flow-T) or "mlp" (naive)."""
    flow_steps: int = 4
    """K, Euler steps of a rollout."""
    chunk: int = 5
    """h, actions planned and executed at once."""
    beta: float = 100.0
    """weight of the distance to the data's actions; depends on the scale of rewards (cube-double: 300)."""
    rl: bool = True
    """whether there is a critic at all; without, the flow only imitates the data."""
    acting_std: float = 0.04
    """sigma of rollouts that act and that targets are made of."""
    actor_std: float = 0.10
    """sigma of the rollouts in the actor's loss (paper: 0.10)."""
    drift_corrected: bool = False
    """correct the drift for that noise, as the paper does and the official code does not."""
    ent_coef: float = 0.0
    """alpha, fixed."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of critics and of the flow's networks (paper: 512, four times)."""
    gate_hidden: tuple[int, ...] = (256,)
    """widths of the gate's hidden layers."""
    d_model: int = 128
    """width of the decoder's tokens."""
    decoder_layers: int = 2
    """layers of the decoder."""
    decoder_norm: str = "post_ln"
    """"pre_ln" (paper from scratch) or "post_ln" (official code)."""
    critic_members: int = 2
    """number of Q functions; their mean is used."""
    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target."""
    batch_size: int = 256
    """windows in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay, the data set's among them."""
    learning_starts: int = 5_000
    """online steps before the first online update; the policy itself collects them after offline training."""
    phase: str = "online"
    """"offline" or "online"; set by the training loop."""


class SACFlowChunked(AbstractAgent):
    """See the module's docstring."""

    actor: FlowPolicy
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "SACFlowChunked":
        """A fresh agent. Raises `UsageError` for discrete actions, an unknown velocity or norm, or chunk < 1."""
        require_continuous(spec, "sac-flow-chunked")
        if config.chunk < 1:
            raise UsageError(f"chunk must be at least 1, got {config.chunk}")
        k_actor, k_critic = jr.split(key)
        chunks = replace(
            spec,
            action_size=spec.action_size * config.chunk,
            action_low=spec.action_low * config.chunk,
            action_high=spec.action_high * config.chunk,
        )
        shape: dict[str, Any] = dict(activation="gelu", norm="layer", init="glorot", standardise=config.normalize_obs)
        critic = Critic.create(chunks, config.hidden, config.critic_members, k_critic, **shape)
        nets: dict[str, Any] = dict(actor=_make_actor(chunks, config, k_actor), critic=critic)
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(critic), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Ode(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Chunk, key: PRNGKeyArray) -> tuple["SACFlowChunked", Metrics]:
        action = jnp.clip(batch.action, -EDGE, EDGE).reshape(len(batch.reward), -1)
        k_clone, k_improve = jr.split(key)
        agent, metrics = self, {"bc_loss": jnp.zeros(()), "bc_grad_norm": jnp.zeros(())}
        if self.config.phase == "offline" or not self.config.rl:
            agent, metrics = agent._clone(batch, action, k_clone)
        if self.config.rl:
            agent, more = agent._improve(batch, action, k_improve)
        else:
            names = ["critic_loss", "critic_grad_norm", "critic_mean"]
            names += [f"actor_{name}" for name in ("loss", "grad_norm", "distance", "q", "entropy", "saturation")]
            more = {name: jnp.zeros(()) for name in names}
        return replace(agent, step=self.step + 1), metrics | more

    def _clone(self, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):
        """The critic, then the actor down L_BC."""
        agent, tx = self, optax.adam(self.config.learning_rate)
        if self.config.rl:
            agent, _ = self._update_critic(batch, action, jr.fold_in(key, 1))
        loss = lambda pi: self._bc_loss(pi, batch, action, key)
        actor, opt, metrics = descend(tx, agent.actor, agent.opt["actor"], loss, "bc")
        return replace(agent, actor=actor, opt=agent.opt | dict(actor=opt)), metrics

    def _improve(self, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):
        """The critic, then the actor down L_pi."""
        tx, (k_critic, k_actor) = optax.adam(self.config.learning_rate), jr.split(key)
        agent, m_q = self._update_critic(batch, action, k_critic)
        loss = lambda pi: agent._actor_loss(pi, batch, action, k_actor)
        actor, opt, m_pi = descend(tx, agent.actor, agent.opt["actor"], loss, "actor")
        return replace(agent, actor=actor, opt=agent.opt | dict(actor=opt)), m_q | m_pi

    def _update_critic(self, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):
        y, tx = self._target(batch, key), optax.adam(self.config.learning_rate)
        loss = lambda q: self._critic_loss(q, y, batch, action)
        critic, opt, metrics = descend(tx, self.critic, self.opt["critic"], loss, "critic")
        target = polyak(critic, self.target, self.config.tau)
        return replace(self, critic=critic, target=target, opt=self.opt | dict(critic=opt)), metrics

    def _target(self, batch: Chunk, key: PRNGKeyArray) -> Float[Array, " b"]:
        gamma, h = self.config.gamma, self.config.chunk
        powers = jnp.broadcast_to(gamma ** jnp.arange(h, dtype=jnp.float32), batch.reward.shape)
        after = self.actor.sample(batch.next_obs, key)
        value = self.target(batch.next_obs, after.action).mean(0) - self.config.ent_coef * after.log_prob
        return (powers * batch.reward).sum(1) + gamma**h * batch.discount.min(1) * value

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Chunk, action: Float[Array, "b plan"]):
        q = critic(batch.obs, action)
        error = jnp.square(q - jnp.broadcast_to(y, q.shape)) * jnp.broadcast_to(batch.valid[:, -1], q.shape)
        return error.mean(), {"mean": q.mean()}

    def _bc_loss(self, actor: FlowPolicy, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):
        error = flow_matching_loss(actor.velocity, batch.obs, _latent(action), key)
        steps = error.reshape(*batch.valid.shape, -1).mean(-1)
        return (steps * batch.valid).mean(), {}

    def _actor_loss(self, actor: FlowPolicy, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):
        assert isinstance(actor.noise, ConstStd)  # create() gave it
        noisier = replace(actor, noise=replace(actor.noise, std=self.config.actor_std))
        sample = noisier.sample(batch.obs, key)
        steps = jnp.square(sample.action - action).reshape(*batch.valid.shape, -1).mean(-1)
        distance = (steps * batch.valid).mean()
        q = self.critic(batch.obs, sample.action).mean(0).mean()
        entropy = -sample.log_prob.mean()
        metrics = {
            "distance": distance,
            "q": q,
            "entropy": entropy,
            "saturation": (jnp.abs(sample.path[-1]) > SATURATED).mean(dtype=jnp.float32),
        }
        return self.config.beta * distance - q - self.config.ent_coef * entropy, metrics


def _latent(action: Float[Array, "b plan"]) -> Float[Array, "b plan"]:
    """What the flow must end at for tanh of it to be the action, which is first kept inside +-0.98 (latents +-2.3)."""
    return jnp.arctanh(jnp.clip(action, -0.98, 0.98))


def _make_actor(chunks: Spec, config: Config, key: PRNGKeyArray) -> FlowPolicy:
    """The flow over chunks that `config` describes. Raises `UsageError` for an unknown velocity or norm."""
    shape: dict[str, Any] = dict(std_head=False, standardise=config.normalize_obs)
    if config.velocity == "gated":
        velocity = GatedVelocity.create(
            chunks,
            key,
            hidden=config.hidden,
            gate_hidden=config.gate_hidden,
            input_norm=False,
            time_embedding=False,
            activation="gelu",
            init="glorot",
            **shape,
        )
    elif config.velocity == "decoder":
        if config.decoder_norm == "post_brn":
            raise UsageError("sac-flow-chunked keeps no batch statistics: choose decoder_norm pre_ln or post_ln")
        velocity = DecoderVelocity.create(
            chunks,
            key,
            d_model=config.d_model,
            layers=config.decoder_layers,
            norm=config.decoder_norm,
            **shape,
        )
    elif config.velocity == "mlp":
        velocity = MLPVelocity.create(
            chunks, key, hidden=config.hidden, input_norm=False, activation="gelu", init="glorot", **shape
        )
    else:
        raise UsageError(f"unknown velocity {config.velocity!r}: choose gated, decoder or mlp")
    noise = ConstStd(config.acting_std, drift_corrected=config.drift_corrected)
    return FlowPolicy.create(chunks, velocity, noise, config.flow_steps)
