"""Behaviour cloning: one update of each policy against its equation in float64."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.bc import BC, Config
from trimtab.core import UsageError

CONFIG = Config(learning_rate=ref.RATE, hidden=(8,))


def expect(new, metrics, loss, error, norm, actor):
    """One update's outcome."""
    ref.assert_metrics(metrics, {"actor_loss": loss, "actor_error": error, "actor_grad_norm": norm})
    ref.assert_same(new.actor, actor, "actor")
    assert new.step == 1


def test_gaussian_maximises_the_likelihood(spec, batch, getkey):
    agent = BC.create(getkey(), spec, CONFIG)
    agent = replace(agent, actor=eqx.tree_at(lambda pi: pi.log_std, agent.actor, jnp.array([-0.5, 0.2])))
    new, metrics = ref.update(agent, batch, getkey())
    with jax.enable_x64(True):
        old, rows = ref.double(agent.actor), ref.double(batch)

        def loss(pi):  # (1)
            mean, log_std = pi.moments(rows.obs)
            z = (rows.action - mean) / jnp.exp(log_std)
            return (0.5 * z**2 + log_std + 0.5 * np.log(2.0 * np.pi)).sum(1).mean()

        error = np.mean((np.asarray(old.mode(rows.obs)) - np.asarray(rows.action)) ** 2)
        value, norm, actor = ref.first_step(loss, old)
        expect(new, metrics, value, error, norm, actor)
    assert np.all(new.actor.log_std != agent.actor.log_std)


def test_deterministic_regresses(spec, batch, getkey):
    agent = BC.create(getkey(), spec, replace(CONFIG, policy="deterministic"))
    new, metrics = ref.update(agent, batch, getkey())
    with jax.enable_x64(True):
        old, rows = ref.double(agent.actor), ref.double(batch)
        value, norm, actor = ref.first_step(lambda pi: ((pi(rows.obs) - rows.action) ** 2).mean(), old)  # (2)
        expect(new, metrics, value, value, norm, actor)


def test_flow_matches_the_velocity(spec, batch, getkey):
    key = getkey()
    agent = BC.create(getkey(), spec, replace(CONFIG, policy="flow", flow_steps=3))
    new, metrics = ref.update(agent, batch, key)
    k_start, k_time = jax.random.split(key)
    draws, times = jax.random.normal(k_start, (16, 2)), jax.random.uniform(k_time, (16,))
    with jax.enable_x64(True):
        old, rows = ref.double(agent.actor), ref.double(batch)
        x0, t = ref.double(draws), ref.double(times)[:, None] * jnp.ones((1, 2))

        def loss(pi):  # (3), the network's input written out: [s, x, t]
            x = (1.0 - t) * x0 + t * rows.action
            v = pi.velocity.net(jnp.concatenate([rows.obs, x, t[:, :1]], axis=1))
            return ((v - (rows.action - x0)) ** 2).mean()

        value, norm, actor = ref.first_step(loss, old)
        expect(new, metrics, value, value, norm, actor)


@pytest.mark.thorough
def test_polynomial_maximises_the_likelihood(spec, batch, getkey):
    agent = BC.create(getkey(), spec, replace(CONFIG, policy="polynomial", order=2, points=8))
    new, metrics = ref.update(agent, batch, getkey())
    nodes, weights = np.polynomial.legendre.leggauss(8)
    with jax.enable_x64(True):
        old, rows = ref.double(agent.actor), ref.double(batch)
        p = lambda x: (jnp.ones_like(x), x, (3 * x**2 - 1) / 2)  # Legendre's

        def statistics(a):  # by the sum of the degrees, then the first one's
            (p0, p1, p2), (q0, q1, q2) = p(a[..., 0]), p(a[..., 1])
            return jnp.stack([p0 * q0, p0 * q1, p1 * q0, p0 * q2, p1 * q1, p2 * q0], axis=-1)

        grid = jnp.stack(jnp.meshgrid(jnp.asarray(nodes), jnp.asarray(nodes), indexing="ij"), axis=-1).reshape(64, 2)
        weight = jnp.outer(jnp.asarray(weights), jnp.asarray(weights)).reshape(64)
        natural = lambda pi: jnp.concatenate([jnp.zeros((16, 1)), 100.0 * jnp.tanh(pi.net(rows.obs) / 100.0)], axis=1)
        inside = jnp.clip(rows.action, -1 + 1e-4, 1 - 1e-4)

        def loss(pi):  # (4)
            log_z = jnp.log((jnp.exp(natural(pi) @ statistics(grid).T) * weight[None]).sum(1))
            return (log_z - (natural(pi) * statistics(inside)).sum(1)).mean()

        best = np.asarray(grid)[np.asarray(natural(old) @ statistics(grid).T).argmax(1)]
        error = np.mean((best - np.asarray(rows.action)) ** 2)
        value, norm, actor = ref.first_step(loss, old)
        expect(new, metrics, value, error, norm, actor)
    np.testing.assert_allclose(agent.policy(batch.obs, getkey()), best, atol=1e-6)


def test_moments_of_the_data_set_are_in_the_policy(spec, batch, getkey):
    known = replace(spec, obs_mean=np.full(3, 5.0, np.float32), obs_std=np.full(3, 2.0, np.float32))
    key = getkey()
    plain, scaled = BC.create(key, spec, CONFIG), BC.create(key, known, replace(CONFIG, normalize_obs=True))
    far = 5.0 + 2.001 * batch.obs
    np.testing.assert_allclose(scaled.policy(far, key), plain.policy(batch.obs, key), atol=1e-5)
    new, _ = ref.update(scaled, batch, getkey())
    ref.assert_untouched(new.actor.inputs, scaled.actor.inputs, "the moments")


def test_an_unknown_policy_is_named(spec, getkey):
    with pytest.raises(UsageError, match="'gausian': choose gaussian, deterministic, flow or polynomial"):
        BC.create(getkey(), spec, replace(CONFIG, policy="gausian"))
