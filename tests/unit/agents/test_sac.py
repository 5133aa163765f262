"""SAC: one update against the equations in float64, and the temperature's direction."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.sac import SAC, Config

CONFIG = Config(learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,), init_ent_coef=0.3)


@pytest.fixture(scope="module")
def agent(spec) -> SAC:
    """An agent whose target differs from its critic."""
    one, two = (SAC.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(12)))
    return replace(one, target=two.critic)


def sample(actor, obs, draws):
    """A reparametrised action and its log density, with the change of variables written out."""
    mean, log_std = actor.moments(obs)
    action = jnp.tanh(mean + jnp.exp(log_std) * draws)
    normal = -0.5 * draws**2 - log_std - 0.5 * np.log(2.0 * np.pi)
    return action, (normal - jnp.log(1.0 - action**2)).sum(1)


def test_update_is_the_equations(agent, batch, getkey):
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    k_next, k_actor = jax.random.split(key)
    next_draws, draws = (np.asarray(jax.random.normal(k, (16, 2)), np.float64) for k in (k_next, k_actor))
    with jax.enable_x64(True):
        old, rows, alpha = ref.double(agent), ref.double(batch), 0.3
        action, log_prob = sample(old.actor, rows.next_obs, jnp.asarray(next_draws))
        q = np.asarray(old.target(rows.next_obs, action))
        assert (q[0] < q[1]).any() and (q[1] < q[0]).any()
        y = ref.backup(rows, np.minimum(q[0], q[1]) - alpha * np.asarray(log_prob))  # (3)
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)

        def actor_loss(pi):  # (7), on the new critic
            action, log_prob = sample(pi, rows.obs, jnp.asarray(draws))
            q = critic(rows.obs, action)
            return (alpha * log_prob - jnp.minimum(q[0], q[1])).mean()

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        entropy = -float(sample(old.actor, rows.obs, jnp.asarray(draws))[1].mean())
        a_loss, a_norm, log_alpha = ref.first_step(lambda a: jnp.exp(a) * (entropy + 2.0), old.log_alpha)  # (18)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_entropy": entropy,
            "ent_coef_loss": a_loss,
            "ent_coef_grad_norm": a_norm,
            "ent_coef": np.exp(log_alpha),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.log_alpha, log_alpha, "temperature")
        ref.assert_same(new.target, ref.mix(critic, old.target), "target: mixed from the new critic")
    assert new.step == 1


@pytest.mark.parametrize("above", [True, False])
def test_alpha_moves_against_the_entropys_error(above, spec, batch, getkey):
    # Two uniform-ish actions have an entropy of at most 2 log 2 = 1.4.
    agent = SAC.create(getkey(), spec, replace(CONFIG, target_entropy=-20.0 if above else 5.0))
    _, metrics = ref.update(agent, batch, getkey())
    assert (metrics["actor_entropy"] > agent.config.target_entropy) == above
    if above:  # enough entropy already: pay less for it
        assert metrics["ent_coef"] < 0.3
    else:
        assert metrics["ent_coef"] > 0.3


def test_target_entropy_defaults_to_minus_the_action_size(spec, getkey):
    assert SAC.create(getkey(), spec, CONFIG).config.target_entropy == -2.0


def test_discount_zero_leaves_the_reward(agent, batch, getkey):
    ended = eqx.tree_at(lambda b: b.discount, batch, jnp.zeros(16))
    q = agent.critic(batch.obs, batch.action)
    _, metrics = ref.update(agent, ended, getkey())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - batch.reward[None]) ** 2), rtol=1e-5)


@pytest.mark.parametrize("members", [1, 3])
def test_any_number_of_members(members, spec, batch, getkey):
    agent = SAC.create(getkey(), spec, replace(CONFIG, critic_members=members))
    assert agent.critic(batch.obs, batch.action).shape == (members, 16)
    new, _ = jax.eval_shape(lambda a, b, k: a.update(b, k), agent, batch, getkey())
    assert jax.tree.structure(new) == jax.tree.structure(agent)
