"""The auto-encoder's density against the closed form of a linear one, and what it learns of two clusters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from scipy.stats import norm

from trimtab.core import Spec
from trimtab.nets.linear import Linear
from trimtab.ops import descend
from trimtab.policies.vae import VAE

SPEC = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, False, (-1.0,), (1.0,))
WIDE, STD = 0.6, 0.25
"""a = 0.1 + 0.6 h_1 + 0.25 e: a ~ N(0.1, 0.65^2), whatever the state."""


def linear(known: bool) -> VAE:
    """That model; with its exact posterior as encoder, or with the prior."""
    vae = VAE.create(SPEC, (), jr.key(0))
    decoder = Linear(jnp.array([[0.0], [WIDE], [0.0]]), jnp.array([0.1]))
    slope, spread = WIDE / (WIDE**2 + STD**2), STD / np.sqrt(WIDE**2 + STD**2)
    weight = jnp.zeros((2, 4)).at[1, 0].set(slope)
    posterior = Linear(weight, jnp.array([-0.1 * slope, 0.0, np.log(spread), 0.0], jnp.float32))
    prior = Linear(jnp.zeros((2, 4)), jnp.zeros(4))
    return replace(
        vae,
        encoder=replace(vae.encoder, layers=(posterior if known else prior,)),
        decoder=replace(vae.decoder, layers=(decoder,)),
        log_std=jnp.log(jnp.array([STD])),
    )


ACTIONS = jnp.array([[-0.9], [0.0], [0.1], [0.8]])
EXACT = norm.logpdf(np.asarray(ACTIONS)[:, 0], 0.1, np.hypot(WIDE, STD))


def test_with_the_posterior_one_sample_is_exact():
    for seed in range(3):
        found = linear(True).log_density(jnp.zeros((4, 1)), ACTIONS, jr.key(seed), 1)
        np.testing.assert_allclose(found, EXACT, atol=1e-5)
    bounds = jax.vmap(lambda key: linear(True).elbo(jnp.zeros((4, 1)), ACTIONS, key))(jr.split(jr.key(1), 4_000))
    np.testing.assert_allclose(bounds.mean(0), EXACT, atol=0.05)


def test_with_another_code_more_samples_come_nearer_from_below():
    vae, keys = linear(False), jr.split(jr.key(2), 2_000)
    bound = jax.vmap(lambda key: vae.elbo(jnp.zeros((4, 1)), ACTIONS, key))(keys).mean(0)
    of = lambda n: jax.vmap(lambda key: vae.log_density(jnp.zeros((4, 1)), ACTIONS, key, n))(keys).mean(0)
    one, many = of(1), of(64)
    np.testing.assert_allclose(one, bound, atol=0.3)  # the divergence is zero, so that (2) with one sample is (1)
    assert (one < EXACT - 0.3).all() and (np.abs(many - EXACT) < 0.1).all()


def test_moments_of_the_data_set_are_seen():
    known = replace(SPEC, obs_mean=np.full(1, 5.0, np.float32), obs_std=np.full(1, 2.0, np.float32))
    plain = VAE.create(SPEC, (8,), jr.key(0))
    scaled = VAE.create(known, (8,), jr.key(0), standardise=True)
    obs = jnp.linspace(-1.0, 1.0, 4)[:, None]
    found = scaled.log_density(5.0 + 2.001 * obs, ACTIONS, jr.key(1), 3)
    np.testing.assert_allclose(found, plain.log_density(obs, ACTIONS, jr.key(1), 3), atol=1e-4)
    np.testing.assert_allclose(
        scaled.elbo(5.0 + 2.001 * obs, ACTIONS, jr.key(1)), plain.elbo(obs, ACTIONS, jr.key(1)), atol=1e-4
    )


@pytest.mark.thorough
def test_two_clusters_are_learnt():
    """Actions of N(+-0.6, 0.1^2), the sign that of the state in three of four: the density knows both, the gap, and
    which is the likelier; it is lower than the data's, for some of it lies in between."""

    @jax.jit
    def train(key):
        vae, tx = VAE.create(SPEC, (32, 32), key), optax.adam(3e-3)

        def step(carry, key):
            k_obs, k_flip, k_noise, k_loss = jr.split(key, 4)
            obs = jr.rademacher(k_obs, (256, 1), jnp.float32)
            side = jnp.where(jr.uniform(k_flip, (256, 1)) < 0.75, obs, -obs)
            action = 0.6 * side + 0.1 * jr.normal(k_noise, (256, 1))
            return descend(tx, *carry, lambda v: (-v.elbo(obs, action, k_loss).mean(), {}), "vae")[:2], None

        (vae, _), _ = jax.lax.scan(step, (vae, tx.init(vae)), jr.split(jr.fold_in(key, 1), 2_000))
        return vae.log_density(jnp.ones((3, 1)), jnp.array([[0.6], [-0.6], [0.0]]), jr.fold_in(key, 2), 64)

    found = train(jr.key(0))
    wanted = norm.logpdf(0.0, 0.0, 0.1) + np.log([0.75, 0.25])
    np.testing.assert_allclose(found[:2], wanted, atol=0.9)
    assert found[0] > found[1] + 0.8 and found[1] > found[2] + 0.5
