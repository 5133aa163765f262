# ruff: noqa: I001
"""AWAC where its weights are one: behaviour cloning."""

import jax.numpy as jnp
import jax.random as jr

from trimtab.agents.awac import AWAC, Config


def test_at_an_infinite_temperature_the_actor_clones(spec, batch):
    agent = AWAC.create(jr.key(0), spec, Config(hidden=(8, 8), temperature=jnp.inf))
    _, metrics = agent.update(batch, jr.key(1))
    cloning = -agent.actor.log_prob(batch.obs, batch.action).mean()
    assert metrics["actor_weight"] == 1.0
    assert jnp.allclose(metrics["actor_loss"], cloning)


def test_the_weights_are_capped(spec, batch):
    agent = AWAC.create(jr.key(0), spec, Config(hidden=(8, 8), max_weight=0.5, temperature=jnp.inf))
    _, metrics = agent.update(batch, jr.key(1))
    assert metrics["actor_weight"] == 0.5
