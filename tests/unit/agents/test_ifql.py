"""IFQL: one update against the equations in float64, and its choice among candidates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.ifql import IFQL, Config
from trimtab.core import UsageError

CONFIG = Config(
    expectile=0.8, candidates=5, flow_steps=3, learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,)
)


@pytest.fixture(scope="module")
def agent(spec) -> IFQL:
    """An agent whose target differs from its critic."""
    one, two = (IFQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(5)))
    return replace(one, target=two.critic)


def test_update_is_the_equations(agent, batch, getkey):
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    k_start, k_time = jax.random.split(key)
    draws, times = jax.random.normal(k_start, (16, 2)), jax.random.uniform(k_time, (16,))
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        x0, times = ref.double((draws, times))
        q = np.asarray(old.target(rows.obs, rows.action))
        assert (q[0] < q[1]).any() and (q[1] < q[0]).any()
        q_bar = np.minimum(q[0], q[1])

        def value_loss(v):  # (1)
            u = jnp.asarray(q_bar) - v(rows.obs)
            return (jnp.where(u < 0, 0.2, 0.8) * u**2).mean()

        v_loss, v_norm, value = ref.first_step(value_loss, old.value)

        def bc_loss(pi):  # (3)
            t = times[:, None] * jnp.ones((1, 2))
            row = jnp.concatenate([rows.obs, (1.0 - t) * x0 + t * rows.action, t[:, :1]], axis=1)
            return ((pi.velocity.net(row) - (rows.action - x0)) ** 2).mean()

        pi_loss, pi_norm, actor = ref.first_step(bc_loss, old.actor)
        y = ref.backup(rows, value(rows.next_obs))  # (2), with the new V
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)
        expected = {
            "value_loss": v_loss,
            "value_grad_norm": v_norm,
            "value_mean": np.mean(old.value(rows.obs)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
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


def test_it_acts_by_the_best_of_the_flows_samples(agent, batch, getkey):
    key = getkey()
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (5, *x.shape)), batch.obs)
    samples = agent.actor(wide, key)
    q = np.array([agent.critic(batch.obs, action).min(0) for action in samples])
    chosen = agent.policy(batch.obs, key)
    for row in range(16):
        np.testing.assert_allclose(chosen[row], samples[q[:, row].argmax(), row], atol=1e-6)
    assert len(set(q.argmax(0).tolist())) > 2


def test_candidates_are_needed(spec, getkey):
    with pytest.raises(UsageError, match="candidates must be at least 1, got 0"):
        IFQL.create(getkey(), spec, replace(CONFIG, candidates=0))
