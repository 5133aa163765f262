"""Q and V: shapes, members, and what they look at."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.nets import Critic, Value


@pytest.mark.parametrize("norm", [None, "layer"])
def test_critic_is_its_members(norm, spec, make_obs, getkey):
    critic = Critic.create(spec, (8, 8), 3, getkey(), norm=norm)
    obs, action = make_obs(spec, getkey(), (5,)), jax.random.uniform(getkey(), (5, 2))
    q = critic(obs, action)
    assert q.shape == (3, 5)
    for e in range(3):
        one = jax.tree.map(lambda leaf, e=e: leaf[e : e + 1], critic)
        for row in range(5):
            alone = one(obs[row : row + 1], action[row : row + 1])
            np.testing.assert_allclose(q[e, row], alone[0, 0], rtol=1e-5, atol=1e-6)


def test_linear_critic_is_linear_in_obs_and_action(dict_spec, make_obs, getkey):
    # Without hidden layers Q(s, a) = w . (s, a) + b: its slopes are the same everywhere and see every part of s.
    critic = Critic.create(dict_spec, (), 1, getkey())
    slopes = jax.grad(lambda obs, action: critic(obs, action).sum(), argnums=(0, 1))
    here = slopes(make_obs(dict_spec, getkey(), (1,)), jnp.zeros((1, 2)))
    there = slopes(make_obs(dict_spec, getkey(), (1,)), jnp.ones((1, 2)))
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        assert np.all(a != 0.0)


def test_critic_takes_dict_observations(dict_spec, make_obs, getkey):
    critic = Critic.create(dict_spec, (8,), 2, getkey())
    assert critic(make_obs(dict_spec, getkey(), (5,)), jnp.zeros((5, 2))).shape == (2, 5)


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_value_keeps_leading_axes(lead, spec, make_obs, getkey):
    value, obs = Value.create(spec, (8,), getkey()), make_obs(spec, getkey(), lead)
    v = value(obs)
    assert v.shape == lead
    rows = [value(row) for row in obs.reshape(-1, 3)]
    np.testing.assert_allclose(v.reshape(-1), np.stack(rows), rtol=1e-5, atol=1e-6)


def test_members_disagree_at_the_start(spec, make_obs, getkey):
    q = Critic.create(spec, (8, 8), 2, getkey())(make_obs(spec, getkey(), (5,)), jnp.zeros((5, 2)))
    assert np.all(np.abs(q[0] - q[1]) > 1e-4)


@pytest.mark.parametrize("norm", [None, "layer", "layer_after"])
@pytest.mark.parametrize("standardise", [False, True])
def test_many_actions_a_state_are_each_evaluated_as_one(norm, standardise, dict_spec, make_obs, getkey):
    spec = replace(
        dict_spec, obs_mean=make_obs(dict_spec, getkey(), ()), obs_std=jax.tree.map(jnp.ones_like, dict_spec.zero_obs())
    )
    critic = Critic.create(spec, (8, 8), 3, getkey(), norm=norm, standardise=standardise)
    obs, actions = make_obs(spec, getkey(), (5,)), jax.random.normal(getkey(), (4, 5, 2))
    q = critic.many(obs, actions)
    assert q.shape == (3, 4, 5)
    for i in range(4):
        np.testing.assert_allclose(q[:, i], critic(obs, actions[i]), rtol=1e-5, atol=1e-6)
