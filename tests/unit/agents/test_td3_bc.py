"""TD3+BC: the update that moves everything against the equations in float64, on standardised states."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.td3_bc import TD3BC, Config

CONFIG = Config(
    alpha=2.0,
    learning_rate=ref.RATE,
    gamma=ref.GAMMA,
    tau=ref.TAU,
    hidden=(8,),
    target_noise=0.6,
    target_noise_clip=0.7,
)
MEAN, STD = np.array([0.5, -0.5, 1.0], np.float32), np.array([2.0, 0.5, 1.0], np.float32)


@pytest.fixture(scope="module")
def agent(spec) -> TD3BC:
    """An agent whose targets differ from its networks, one update before its actor is due."""
    known = replace(spec, obs_mean=MEAN, obs_std=STD)
    one, two = (TD3BC.create(key, known, CONFIG) for key in jax.random.split(jax.random.key(8)))
    return replace(one, target_actor=two.actor, target_critic=two.critic, step=jnp.int32(1))


def test_update_is_the_equations(agent, batch, getkey):
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    draws = np.asarray(jax.random.normal(key, (16, 2)), np.float64)
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        mean, spread = jnp.asarray(MEAN, jnp.float64), jnp.asarray(STD, jnp.float64) + 1e-3
        see = lambda obs: (obs - mean[None]) / spread[None]
        # The networks themselves on states standardised by hand: their own `inputs` have no say here.
        q = lambda net, obs, action: net.mlp(jnp.concatenate([see(obs), action], axis=1))[..., 0]
        pi = lambda net, obs: jnp.tanh(net.net(see(obs)))
        noise = np.clip(0.6 * draws, -0.7, 0.7)
        after = jnp.clip(pi(old.target_actor, rows.next_obs) + noise, -1.0, 1.0)
        ends = np.asarray(q(old.target_critic, rows.next_obs, after))
        assert (ends[0] < ends[1]).any() and (ends[1] < ends[0]).any()
        y = ref.backup(rows, np.minimum(ends[0], ends[1]))
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(q(f, rows.obs, rows.action), y), old.critic)
        scale = np.abs(np.asarray(q(critic, rows.obs, pi(old.actor, rows.obs))[0])).mean()

        def actor_loss(net):  # (5), the divisor a number
            action = pi(net, rows.obs)
            error = jnp.square(action - rows.action).sum(1).mean() / 2
            return -2.0 / scale * q(critic, rows.obs, action)[0].mean() + error

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        action = pi(old.actor, rows.obs)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(q(old.critic, rows.obs, rows.action)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_error": np.mean((action - rows.action) ** 2),
            "actor_q": np.mean(q(critic, rows.obs, action)[0]),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
    for name in ("actor", "critic", "target_actor", "target_critic"):
        ref.assert_untouched(getattr(new, name).inputs, getattr(agent, name).inputs, f"the moments of {name}")


@pytest.mark.parametrize("factor", [0.1, 100.0])
def test_the_scale_of_values_does_not_matter_to_the_actor(factor, agent, batch, getkey):
    # All values times a factor: the last layer of the critic times it, which the loss divides out again.
    last = agent.critic.mlp.layers[-1]
    scaled = replace(last, weight=factor * last.weight, bias=factor * last.bias)
    mlp = replace(agent.critic.mlp, layers=(*agent.critic.mlp.layers[:-1], scaled))
    other = replace(agent.critic, mlp=mlp)
    losses = [agent._actor_loss(agent.actor, critic, batch)[0] for critic in (agent.critic, other)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
