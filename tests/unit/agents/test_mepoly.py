"""Soft MePoly: targets as explicit sums, the projection's minimum, and a bandit whose best soft policy is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.mepoly import Config, MePoly
from trimtab.core import UsageError
from trimtab.policies.polynomial import Polynomial

SMALL = Config(hidden=(8,), order=3, points=12, gamma=0.9, alpha=0.3)


def test_the_target_is_an_explicit_sum(spec, batch):
    agent = MePoly.create(jr.key(0), spec, SMALL)
    points, log_weights = agent.actor.family.grid()
    row = 3
    at = lambda tree: jax.tree.map(lambda x: x[row : row + 1], tree)
    density = agent.actor.distribution(at(batch.next_obs))
    value = 0.0
    for point, log_weight in zip(points, log_weights, strict=True):
        action = jnp.asarray(point, jnp.float32)[None]
        log_p = float(density.log_prob(action)[0])
        q = float(agent.target(at(batch.next_obs), action).min())
        value += np.exp(log_p + log_weight) * (q - 0.3 * log_p)
    expected = float(batch.reward[row]) + 0.9 * float(batch.discount[row]) * value
    np.testing.assert_allclose(agent._target(batch)[row], expected, rtol=1e-4)


def test_the_actors_loss_is_least_at_the_projection(spec, batch):
    # Where Q / alpha is a member of the family its parameters are the minimum, and the loss there is -log Z.
    agent = MePoly.create(jr.key(0), spec, SMALL)
    family = agent.actor.family
    natural = jr.normal(jr.key(1), (1, family.size))
    best = Polynomial.create(family, natural)
    q = 0.3 * (best.log_density + best.log_partition[:, None])
    loss = lambda n: (lambda d: (-d.entropy() - d.expected(q) / 0.3).sum())(Polynomial.create(family, n))
    np.testing.assert_allclose(loss(natural), -best.log_partition[0], rtol=1e-4)
    np.testing.assert_allclose(jax.grad(loss)(natural), 0.0, atol=1e-4)
    for seed in range(5):
        assert loss(natural + 0.1 * jr.normal(jr.key(seed), natural.shape)) > loss(natural)


@pytest.mark.slow
def test_a_bandit_with_two_peaks_keeps_both(make_batch, spec):
    # Reward from the first dimension alone, all episodes end: Q becomes r, pi becomes exp(r / alpha).
    agent = MePoly.create(jr.key(0), spec, replace(SMALL, hidden=(32, 32), order=6, points=16, learning_rate=3e-3))
    reward = lambda a: 1.0 - 4.0 * jnp.square(jnp.square(a[:, 0]) - 0.36)
    update = jax.jit(lambda agent, batch, key: agent.update(batch, key))
    for i in range(800):
        rows = make_batch(spec, jr.fold_in(jr.key(1), i), 128)
        rows = replace(rows, reward=reward(rows.action), discount=jnp.zeros(128))
        agent, _ = update(agent, rows, jr.key(0))
    obs = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, 0), rows.obs)
    first = np.asarray(agent.explorer(obs, jr.key(2)))[:, 0]
    assert min((first > 0.3).mean(), (first < -0.3).mean()) > 0.3
    grid = np.linspace(-1, 1, 2001)
    density = np.exp((1 - 4 * (grid**2 - 0.36) ** 2) / 0.3)
    density /= np.trapezoid(density, grid)
    expected = np.trapezoid(density * grid**2, grid)
    assert np.mean(first**2) == pytest.approx(expected, abs=0.05)
    assert abs(abs(float(agent.policy(obs, jr.key(0))[0, 0])) - 0.6) < 0.15


def test_nodes_are_enough_for_the_degree_unless_they_are_said(spec):
    points = lambda **more: MePoly.create(jr.key(0), spec, Config(hidden=(8,), **more)).actor.family.points
    assert (points(), points(order=2), points(points=7)) == (18, 12, 7)


@pytest.mark.parametrize(("dims", "batch", "points"), [(4, 128, 0), (5, 128, 16), (6, 1, 18), (2, 20_000, 16)])
def test_more_nodes_than_q_can_be_asked_at(spec, dims, batch, points):
    config = Config(hidden=(8,), batch_size=batch, points=points)
    box = (1.0,) * dims
    wide = replace(spec, action_size=dims, action_high=box, action_low=tuple(-x for x in box))
    line = (
        rf"{points or 18}\^{dims} nodes for each of {batch} states: .* fewer --agent.points, or ppo .* --agent.block 2"
    )
    with pytest.raises(UsageError, match=line):
        MePoly.create(jr.key(0), wide, config)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (dict(alpha=0.0), "alpha must be positive, got 0.0"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(order=0), "order must be at least 1"),
        (dict(points=-3), "a polynomial needs order at least 1 and 2 points, got 3 and -3"),
    ],
)
def test_what_does_not_fit(spec, changes, line):
    with pytest.raises(UsageError, match=line):
        MePoly.create(jr.key(0), spec, replace(SMALL, **changes))
