"""A small agent that plans `chunk` actions at once: it imitates windows of steps, online those with high rewards."""

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax

from trimtab.agents import AGENTS
from trimtab.batches import Chunk
from trimtab.core import AbstractAgent, AbstractPolicy
from trimtab.nets.mlp import MLP, concat
from trimtab.ops import descend


class Plans(AbstractPolicy):
    """tanh(net(s)) + sigma n: (..., h * act), clipped."""

    net: MLP
    sigma: jnp.ndarray

    def __call__(self, obs, key):
        plan = jnp.tanh(self.net(concat(obs)))
        return jnp.clip(plan + self.sigma * jr.normal(key, plan.shape), -1.0, 1.0)


@dataclass(frozen=True)
class Config:
    chunk: int = 3
    phase: str = "online"
    hidden: tuple[int, ...] = (8, 8)
    batch_size: int = 16
    buffer_size: int = 2000
    learning_starts: int = 20
    gamma: float = 0.99


class Chunky(AbstractAgent):
    net: MLP
    opt: optax.OptState
    step: jnp.ndarray
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key, spec, config):
        net = MLP.create(spec.obs_size, config.hidden, config.chunk * spec.action_size, key)
        return cls(net, optax.adam(1e-3).init(net), jnp.int32(0), config)

    @property
    def policy(self):
        return Plans(self.net, jnp.float32(0.0))

    @property
    def explorer(self):
        return Plans(self.net, jnp.float32(0.2))

    def update(self, batch: Chunk, key):
        assert batch.action.shape[1] == self.config.chunk

        def loss(net):
            plan = jnp.tanh(net(concat(batch.obs))).reshape(batch.action.shape)
            weight = batch.valid if self.config.phase == "offline" else batch.valid * jnp.exp(0.1 * batch.reward)
            error = jnp.square(plan - batch.action).mean(-1)
            return (weight * error).mean(), {"valid": batch.valid.mean()}

        net, opt, metrics = descend(optax.adam(1e-3), self.net, self.opt, loss, "actor")
        online = jnp.float32(self.config.phase == "online")
        return replace(self, net=net, opt=opt, step=self.step + 1), metrics | {"online": online}


Config.__doc__ = "Hyper-parameters."
AGENTS["chunky"] = Chunky
