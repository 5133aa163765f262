"""Standardised observations: by hand, never trained, and the identity without a data set."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trimtab.nets.critic import Critic
from trimtab.nets.standardise import Standardise
from trimtab.ops import descend
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.gaussian import Gaussian


@pytest.fixture
def known(spec):
    """`spec` with moments."""
    return replace(
        spec, obs_mean=np.array([1.0, -2.0, 0.0], np.float32), obs_std=np.array([0.999, 1.999, 0], np.float32)
    )


def test_by_hand(known):
    x = jnp.array([[2.0, 0.0, 0.003]])
    np.testing.assert_allclose(Standardise.create(known)(x), [[1.0, 1.0, 3.0]], rtol=1e-5)


def test_parts_of_an_observation_are_laid_side_by_side(dict_spec):
    mean = {"goal": np.array([1.0, 2.0], np.float32), "position": np.array([3.0, 4.0, 5.0], np.float32)}
    std = jax.tree.map(np.ones_like, mean)
    both = Standardise.create(replace(dict_spec, obs_mean=mean, obs_std=std))
    np.testing.assert_array_equal(both.mean, [1.0, 2.0, 3.0, 4.0, 5.0])


def test_without_moments_it_is_the_identity(spec, getkey):
    x = jax.random.normal(getkey(), (4, 3))
    np.testing.assert_array_equal(Standardise.create(spec)(x), x)


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "critic"])
def test_networks_see_standardised_states_and_leave_the_moments_alone(kind, known, spec, batch, getkey):
    key = getkey()
    shape = ((8,), 2) if kind == "critic" else ((8,),)
    make = {"deterministic": Deterministic, "gaussian": Gaussian, "critic": Critic}[kind].create
    plain, net = make(spec, *shape, key), make(known, *shape, key, standardise=True)
    assert plain.inputs is None  # and no leaf of it: checkpoints of networks without stay as they are
    call = {
        "critic": lambda net, obs: net(obs, batch.action),
        "gaussian": lambda net, obs: net.mode(obs),
        "deterministic": lambda net, obs: net(obs),
    }[kind]
    np.testing.assert_allclose(call(net, batch.obs), call(plain, net.inputs(batch.obs)), rtol=1e-6)
    tx = optax.adam(1e-2)
    new, _, metrics = descend(tx, net, tx.init(net), lambda n: (jnp.square(call(n, batch.obs)).sum(), {}), "x")
    _, _, without = descend(
        tx, plain, tx.init(plain), lambda n: (jnp.square(call(n, net.inputs(batch.obs))).sum(), {}), "x"
    )
    np.testing.assert_allclose(metrics["x_grad_norm"], without["x_grad_norm"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(new.inputs), jax.tree.leaves(net.inputs), strict=True):
        np.testing.assert_array_equal(a, b)
