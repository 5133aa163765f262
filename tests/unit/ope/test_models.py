"""The critic, the behaviour model and the probabilities of actions at the bounds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.batches import Recorded, Transition
from trimtab.core import Spec
from trimtab.data.sources import OfflineSource
from trimtab.ope import behaviour, fqe
from trimtab.ope.density import EDGE, edged_log_prob, has_density, is_deterministic, log_prob
from trimtab.policies.compose import Noisy, Uniform
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.gaussian import Gaussian, Mean, TanhGaussian
from trimtab.training.compile import chunk, no_totals


@pytest.mark.parametrize("squashed", [True, False])
@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.3), (1.5, 0.7), (-0.9, 2.0)])
def test_probabilities_sum_to_one(squashed, mean, std):
    # The density between the bounds by the midpoint rule, and the two outermost outcomes.
    width = (2.0 - 2.0 * EDGE) / 20_000
    grid = (-1.0 + EDGE + width * (jnp.arange(20_000, dtype=jnp.float32) + 0.5))[:, None]
    p = lambda x: jnp.exp(edged_log_prob(x, jnp.full(x.shape, mean), jnp.full(x.shape, np.log(std)), squashed=squashed))
    inside, edges = p(grid), p(jnp.asarray([[1.0], [-1.0]]))
    assert width * np.asarray(inside, np.float64).sum() + float(edges.sum()) == pytest.approx(1.0, abs=1e-3)
    # The edges are as probable as draws fall there.
    draws = mean + std * jr.normal(jr.key(0), (200_000,))
    draws = jnp.tanh(draws) if squashed else jnp.clip(draws, -1.0, 1.0)
    assert float(edges[0]) == pytest.approx(float((draws >= 1.0 - EDGE).mean()), abs=4e-3)
    assert float(edges[1]) == pytest.approx(float((draws <= -1.0 + EDGE).mean()), abs=4e-3)


def test_between_the_bounds_it_is_the_policy_s_own_density(spec, make_obs):
    obs = make_obs(spec, jr.key(0), (9,))
    action = jr.uniform(jr.key(1), (9, 2), minval=-0.99, maxval=0.99)
    for policy in (TanhGaussian.create(spec, (8,), jr.key(2)), Gaussian.create(spec, (8,), jr.key(2))):
        np.testing.assert_allclose(log_prob(policy, obs, action), policy.log_prob(obs, action), rtol=1e-5, atol=1e-5)
    inner = Deterministic.create(spec, (8,), jr.key(2))
    found = log_prob(Noisy.create(inner, 0.5), obs, action)
    z = (np.asarray(action) - np.asarray(inner(obs))) / 0.5
    np.testing.assert_allclose(found, (-0.5 * z**2 - np.log(0.5 * np.sqrt(2 * np.pi))).sum(-1), rtol=1e-4)


def test_which_policies_have_a_density(spec):
    squashed, inner = TanhGaussian.create(spec, (8,), jr.key(0)), Deterministic.create(spec, (8,), jr.key(0))
    assert has_density(squashed) and has_density(Noisy.create(Mean(squashed), 0.1))
    assert not any(map(has_density, (Mean(squashed), inner, Uniform.create(spec), Noisy.create(squashed, 0.1))))
    assert is_deterministic(inner) and is_deterministic(Mean(squashed)) and not is_deterministic(squashed)


def recorded(**changes) -> Recorded:
    """Three episodes: two steps and an end, one step and a cut, one step and an end."""
    usual = dict(
        obs=jnp.arange(12.0).reshape(4, 3),
        action=jnp.zeros((4, 2)),
        reward=jnp.asarray([1.0, 2.0, 4.0, 8.0]),
        discount=jnp.asarray([1.0, 0.0, 1.0, 0.0]),
        next_obs=jnp.arange(12.0).reshape(4, 3) + 1.0,
    )
    return Recorded(Transition(**(usual | changes)), jnp.asarray([False, True, True, True]))


def test_returns_to_go_stop_at_the_end_of_an_episode():
    to_go = [1.0 + 0.5 * 2.0, 2.0, 4.0, 8.0]
    assert fqe.spread_of_returns(recorded(), 0.5) == pytest.approx((np.mean(to_go), np.std(to_go)))
    assert fqe.spread_of_returns(recorded(reward=jnp.zeros(4)), 0.5) == (0.0, 1.0)
    ones = recorded(reward=jnp.asarray([1.0, 2.0, 2.0, 2.0]))
    assert fqe.spread_of_returns(ones, 0.5) == (2.0, 2.0)


def test_the_target_of_each_member_is_its_own(spec):
    data, inner = recorded(), Deterministic.create(spec, (8,), jr.key(0))
    config = fqe.Config(gamma=0.5, hidden=(8,), members=2)
    agent = fqe.FQE.create(jr.key(1), spec, config, policy=inner, data=data)
    batch = data.transition
    q = np.asarray(agent.q(batch.next_obs, inner(batch.next_obs)))
    assert np.abs(q[0] - q[1]).min() > 1e-3
    # y = r + gamma d Q(s', pi(s')): what terminated gives r alone, what was cut bootstraps.
    wanted = np.asarray(batch.reward) + 0.5 * np.asarray(batch.discount) * q
    np.testing.assert_allclose(agent._target(batch, jr.key(2)), wanted, rtol=1e-6)
    np.testing.assert_allclose(agent._target(batch, jr.key(2))[:, 1], 2.0)


def test_values_start_at_the_data_s_returns(spec):
    data = recorded(reward=jnp.asarray([1001.0, 999.0, 1000.0, 1002.0]))
    agent = fqe.FQE.create(jr.key(0), spec, fqe.Config(gamma=0.5, hidden=(8,)), data=data)
    shift, scale = fqe.spread_of_returns(data, 0.5)
    q = np.asarray(agent.q(data.transition.obs, data.transition.action))
    assert np.abs(q - shift).max() < 3 * scale


def test_training_leaves_the_policy_alone(spec, batch):
    policy = TanhGaussian.create(spec, (8,), jr.key(0))
    before = jax.tree.map(np.asarray, policy)
    agent = fqe.FQE.create(jr.key(1), spec, fqe.Config(hidden=(8,), steps=4), policy=policy)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(agent))
    source = OfflineSource(batch, 4)
    totals = no_totals(source, agent, (), None)
    trained, _, totals = chunk(source, agent, (), totals, jr.key(2), None, np.int32(4))
    assert isinstance(trained, fqe.FQE) and int(trained.step) == 4
    # Training was given the agent's arrays for good; the policy's own are still there and as they were.
    for old, own, new in zip(*map(jax.tree.leaves, (before, policy, trained.given)), strict=True):
        assert (old == np.asarray(own)).all() and (old == np.asarray(new)).all()
    assert {name: int(count) for name, (_, count) in totals.named().items()} == dict.fromkeys(
        ("fqe_loss", "fqe_mean", "fqe_grad_norm"), 4
    )


def test_the_step_size_falls_to_nothing(spec, batch):
    agent = fqe.FQE.create(jr.key(1), spec, fqe.Config(hidden=(8,), steps=5))
    moved, update = [], jax.jit(lambda agent, key: agent.update(batch, key)[0])
    for i in range(6):
        new = update(agent, jr.key(i))
        moved.append(float(jnp.abs(new.critic.mlp.layers[0].weight - agent.critic.mlp.layers[0].weight).max()))
        agent = new
    assert moved[0] == pytest.approx(3e-4, rel=1e-2) and moved[5] == 0.0 and 0.0 < moved[4] < 0.7 * moved[0]


@pytest.mark.parametrize("squashed", [True, False])
@pytest.mark.thorough
def test_the_behaviour_model_finds_two_ways(squashed):
    # Actions near +0.6 or -0.6 by the toss of a coin that the state loads; a tenth of them clipped to 1.
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, False, (-1.0,), (1.0,))
    rng = np.random.default_rng(0)
    state = rng.normal(size=(4_000, 1)).astype(np.float32)
    share = 1.0 / (1.0 + np.exp(-2.0 * state))
    side = np.where(rng.random((4_000, 1)) < share, 0.6, -0.6)
    action = np.clip(side + 0.1 * rng.normal(size=side.shape), -1.0, 1.0)
    action = np.where(rng.random(side.shape) < 0.1, 1.0, action).astype(np.float32)
    zeros = jnp.zeros(4_000)
    data = Recorded(
        Transition(jnp.asarray(state), jnp.asarray(action), zeros, zeros + 1.0, jnp.asarray(state)), zeros == 1
    )
    spec = replace(spec, obs_mean=state.mean(0), obs_std=state.std(0))
    config = behaviour.Config(components=3, squashed=squashed, hidden=(32,), learning_rate=3e-3)
    agent = behaviour.Behaviour.create(jr.key(0), spec, config)
    source = OfflineSource(data.transition, config.batch_size)
    totals = no_totals(source, agent, (), None)
    agent, _, _ = chunk(source, agent, (), totals, jr.key(1), None, np.int32(1_500))
    assert isinstance(agent, behaviour.Behaviour)
    obs = jnp.asarray([[1.0], [1.0], [1.0], [-1.0]])
    found = np.exp(agent.policy.log_prob(obs, jnp.asarray([[0.6], [-0.6], [1.0], [0.6]])))
    peak, plus = 1 / (0.1 * np.sqrt(2 * np.pi)), 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(
        found, [0.9 * plus * peak, 0.9 * (1 - plus) * peak, 0.1, 0.9 * (1 - plus) * peak], rtol=0.35
    )
    # Its draws are distributed alike: a tenth at the bound, and the sides as the state says.
    drawn = np.asarray(agent.policy(jnp.ones((4_000, 1)), jr.key(2)))
    assert (drawn >= 1.0 - EDGE).mean() == pytest.approx(0.1, abs=0.03)
    assert (drawn < 0).mean() == pytest.approx(0.9 * (1 - plus), abs=0.03)
    # No gradient moved the moments.
    np.testing.assert_allclose(agent.mixture.inputs.mean, state.mean(0), rtol=1e-5)
