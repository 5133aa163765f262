"""IQL: one update against the equations in float64."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.iql import IQL, Config

# beta and the cap so that some weights are capped and some are not.
CONFIG = Config(
    expectile=0.8, beta=5.0, max_weight=1.5, learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,)
)


@pytest.fixture(scope="module")
def agent(spec) -> IQL:
    """An agent whose target differs from its critic, with standard deviations that are not one."""
    one, two = (IQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(5)))
    actor = eqx.tree_at(lambda pi: pi.log_std, one.actor, jnp.array([-0.5, 0.2]))
    return replace(one, target=two.critic, actor=actor)


def test_update_is_the_equations(agent, batch, getkey):
    new, metrics = ref.update(agent, batch, getkey())
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        q = np.asarray(old.target(rows.obs, rows.action))
        assert (q[0] < q[1]).any() and (q[1] < q[0]).any()
        q_bar = np.minimum(q[0], q[1])

        def value_loss(v):  # (5)
            u = jnp.asarray(q_bar) - v(rows.obs)
            return (jnp.where(u < 0, 0.2, 0.8) * u**2).mean()

        v_loss, v_norm, value = ref.first_step(value_loss, old.value)
        u = q_bar - np.asarray(value(rows.obs))  # with the new V
        weight = np.minimum(np.exp(5.0 * u), 1.5)
        assert 0.0 < (weight == 1.5).mean() < 1.0

        def actor_loss(pi):  # (7), the normal density written out
            mean, log_std = pi.moments(rows.obs)
            z = (rows.action - mean) / jnp.exp(log_std)
            log_prob = (-0.5 * z**2 - log_std - 0.5 * np.log(2.0 * np.pi)).sum(1)
            return -(jnp.asarray(weight) * log_prob).mean()

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        y = ref.backup(rows, value(rows.next_obs))  # (6), with the new V
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)
        expected = {
            "value_loss": v_loss,
            "value_grad_norm": v_norm,
            "value_mean": np.mean(old.value(rows.obs)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_weight": weight.mean(),
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.value, value, "value")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.target, ref.mix(critic, old.target), "target: mixed from the new critic")
    assert new.step == 1


def test_weights_are_capped(spec, batch, getkey):
    agent = IQL.create(getkey(), spec, replace(CONFIG, beta=0.5, max_weight=2.0))
    generous = jax.tree.map(lambda leaf: leaf + 100.0 if leaf.shape == (2, 1) else leaf, agent.target)  # last biases
    _, metrics = ref.update(replace(agent, target=generous), batch, getkey())
    assert metrics["actor_weight"] == 2.0  # exp(0.5 * 100) without the cap


def test_discount_zero_leaves_the_reward(agent, batch, getkey):
    ended = eqx.tree_at(lambda b: b.discount, batch, jnp.zeros(16))
    q = agent.critic(batch.obs, batch.action)
    _, metrics = ref.update(agent, ended, getkey())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - batch.reward[None]) ** 2), rtol=1e-5)


def test_actor_log_std_learns(agent, batch, getkey):
    new, _ = ref.update(agent, batch, getkey())
    assert np.all(new.actor.log_std != agent.actor.log_std)


def test_moments_of_the_data_set_are_in_all_networks(spec, batch, getkey):
    known = replace(spec, obs_mean=np.full(3, 5.0, np.float32), obs_std=np.full(3, 2.0, np.float32))
    key = getkey()
    plain, scaled = IQL.create(key, spec, CONFIG), IQL.create(key, known, replace(CONFIG, normalize_obs=True))
    far = 5.0 + 2.001 * batch.obs
    moved = replace(batch, obs=far, next_obs=5.0 + 2.001 * batch.next_obs)
    np.testing.assert_allclose(scaled.policy(far, key), plain.policy(batch.obs, key), atol=1e-5)
    (new, found), (_, wanted) = ref.update(scaled, moved, key), ref.update(plain, batch, key)
    for name in ("value_loss", "critic_loss", "actor_loss"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4)
    for net in ("actor", "critic", "value"):
        ref.assert_untouched(getattr(new, net).inputs, getattr(scaled, net).inputs, "the moments")
