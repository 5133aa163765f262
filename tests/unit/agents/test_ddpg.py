"""DDPG: one update against the equations in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.ddpg import DDPG, Config

CONFIG = Config(learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,), exploration_noise=0.3, action_l2=0.7)


@pytest.fixture(scope="module")
def agent(spec) -> DDPG:
    """An agent whose targets differ from its networks."""
    one, two = (DDPG.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(3)))
    return DDPG(one.actor, one.critic, two.actor, two.critic, one.opt, one.step, CONFIG)


def test_update_is_the_equations(agent, batch, getkey):
    new, metrics = ref.update(agent, batch, getkey())
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        y = ref.backup(rows, old.target_critic(rows.next_obs, old.target_actor(rows.next_obs))[0])
        critic_loss, critic_norm, critic = ref.first_step(
            lambda q: ref.mean_square(q(rows.obs, rows.action), y), old.critic
        )

        def actor_objective(pi):
            action = pi(rows.obs)
            return -critic(rows.obs, action).mean() + 0.7 * (action**2).mean()

        actor_loss, actor_norm, actor = ref.first_step(actor_objective, old.actor)
        expected = {
            "critic_loss": critic_loss,
            "critic_grad_norm": critic_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "actor_loss": actor_loss,
            "actor_grad_norm": actor_norm,
            "actor_saturation": 0.0,
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor: it descends on the new critic")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic: from the new critic")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor: from the new actor")
    ref.assert_moved(new.actor, agent.actor, "actor")
    assert new.step == 1


def test_discount_zero_leaves_the_reward(agent, batch, getkey):
    ended = eqx.tree_at(lambda b: b.discount, batch, jnp.zeros(16))
    q = agent.critic(batch.obs, batch.action)[0]
    _, metrics = ref.update(agent, ended, getkey())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - batch.reward) ** 2), rtol=1e-5)


def test_saturation_counts_actions_at_the_bounds(agent, batch, getkey):
    far = jax.tree.map(lambda leaf: 20.0 * leaf, agent.actor)
    share = (np.abs(far(batch.obs)) > 0.99).mean()
    assert 0.1 < share < 1.0
    _, metrics = ref.update(eqx.tree_at(lambda a: a.actor, agent, far), batch, getkey())
    np.testing.assert_allclose(metrics["actor_saturation"], share, rtol=1e-6)


def test_explores_with_the_configured_noise(agent, getkey):
    obs = jnp.zeros((5000, 3))
    noise = np.asarray(agent.explorer(obs, getkey()) - agent.policy(obs, getkey()))
    assert np.abs(agent.policy(obs[0], getkey())).max() < 0.4  # so that the bounds are two deviations away
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.05)
