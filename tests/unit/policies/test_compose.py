"""Noise, clipping, best-of-n and uniform actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.core import AbstractPolicy, Spec, UsageError
from trimtab.nets import Critic
from trimtab.policies import BestOfN, Clip, Deterministic, Gaussian, Noisy, SoftmaxOfN, TanhGaussian, Uniform


class Constant(AbstractPolicy):
    """The same action everywhere."""

    action: jax.Array

    def __call__(self, obs, key):
        return jnp.broadcast_to(self.action, (*jax.tree.leaves(obs)[0].shape[:-1], *self.action.shape))


def test_noisy_has_its_deviation(getkey):
    policy = Noisy.create(Constant(jnp.array([0.2, -0.1])), 0.1)
    actions = policy(jnp.zeros((20_000, 3)), getkey())
    np.testing.assert_allclose(actions.mean(0), [0.2, -0.1], atol=4e-3)
    np.testing.assert_allclose(actions.std(0), [0.1, 0.1], rtol=0.03)
    assert abs(np.corrcoef(np.asarray(actions).T)[0, 1]) < 0.04  # each dimension has noise of its own


def test_noisy_stays_in_range(getkey):
    actions = np.asarray(Noisy.create(Constant(jnp.array([0.9, -0.9])), 2.0)(jnp.zeros((100, 3)), getkey()))
    assert actions.min() == -1.0 and actions.max() == 1.0


def test_a_share_of_actions_is_uniform(getkey):
    inner = Constant(jnp.array([0.9, -0.9]))
    actions = np.asarray(Noisy.create(inner, 0.0, 0.3)(jnp.zeros((20_000, 3)), getkey()))
    drawn = (actions != np.asarray(inner.action)).all(1)
    np.testing.assert_array_equal(drawn, (actions != np.asarray(inner.action)).any(1))  # the whole action or nothing
    assert drawn.mean() == pytest.approx(0.3, abs=0.015)
    np.testing.assert_allclose(actions[drawn].mean(0), [0, 0], atol=0.03)
    np.testing.assert_allclose(actions[drawn].std(0), [3**-0.5] * 2, rtol=0.03)
    with pytest.raises(UsageError, match="share of random actions"):
        Noisy.create(inner, 0.1, 1.5)


def test_noisy_without_sigma_is_its_inner_policy(spec, make_obs, getkey):
    inner, obs = Deterministic.create(spec, (8,), getkey()), make_obs(spec, getkey(), (6,))
    np.testing.assert_array_equal(Noisy.create(inner, 0.0)(obs, getkey()), inner(obs))


def test_noisy_gives_inner_and_noise_different_keys(spec, getkey):
    # With one key for both, inner noise and added noise would be the same draw and their variances would not add.
    still = jax.tree.map(jnp.zeros_like, Gaussian.create(spec, (8,), getkey()).net)
    inner = Gaussian(still, jnp.log(jnp.array([0.1, 0.1])))
    obs = jnp.zeros((20_000, 3))
    alone = np.asarray(inner(obs, getkey())).std(0)
    both = np.asarray(Noisy.create(inner, 0.1)(obs, getkey())).std(0)
    np.testing.assert_allclose(both, np.sqrt(alone**2 + 0.01), rtol=0.03)


def test_clip(getkey):
    inner = Constant(jnp.array([0.9, -0.9, 0.3]))
    np.testing.assert_allclose(Clip.create(inner, 0.5)(jnp.zeros((2, 3)), getkey()), [[0.5, -0.5, 0.3]] * 2)
    np.testing.assert_array_equal(Clip.create(inner)(jnp.zeros(3), getkey()), inner.action)


@pytest.mark.parametrize("kind", ["spec", "dict_spec"])
def test_best_of_n_takes_the_candidate_with_the_greatest_least_q(kind, request, make_obs, getkey):
    spec: Spec = request.getfixturevalue(kind)
    inner, critic = TanhGaussian.create(spec, (8,), getkey()), Critic.create(spec, (8,), 2, getkey())
    obs, key, n = make_obs(spec, getkey(), (4,)), getkey(), 5
    best = BestOfN(inner, critic, n)(obs, key)
    # The candidates: inner, asked for a leading axis of n with the same key.
    candidates = inner(jax.tree.map(lambda x: jnp.broadcast_to(x[None], (n, *x.shape)), obs), key)
    chosen = []
    for row in range(4):
        here = jax.tree.map(lambda x, row=row: x[row : row + 1], obs)
        scores = [float(min(critic(here, candidates[i, row][None])[:, 0])) for i in range(n)]
        chosen.append(int(np.argmax(scores)))
        np.testing.assert_array_equal(best[row], candidates[chosen[-1], row])
    assert len(set(chosen)) > 1  # a fixed index would not pass


def test_best_of_n_uses_the_least_member(spec, make_obs, getkey):
    critic = Critic.create(spec, (8,), 2, getkey())
    obs, key = make_obs(spec, getkey(), (64,)), getkey()
    inner = TanhGaussian.create(spec, (8,), getkey())
    best = BestOfN(inner, critic, 5)(obs, key)
    candidates = inner(jnp.broadcast_to(obs[None], (5, 64, 3)), key)
    q = np.stack([critic(obs, candidates[i]) for i in range(5)])  # (n, e, b)
    pick = lambda score: np.asarray(candidates)[score.argmax(0), np.arange(64)]
    np.testing.assert_array_equal(best, pick(q.min(1)))
    for other in (q.max(1), q.mean(1), q[:, 0], q[:, 1]):
        assert np.any(pick(other) != best)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_best_of_n_keeps_leading_axes(lead, spec, make_obs, getkey):
    policy = BestOfN(TanhGaussian.create(spec, (8,), getkey()), Critic.create(spec, (8,), 2, getkey()), 5)
    action = policy(make_obs(spec, getkey(), lead), getkey())
    assert action.shape == (*lead, 2) and np.abs(action).max() <= 1.0


def test_best_of_one_is_the_inner_policy(spec, make_obs, getkey):
    inner, critic = TanhGaussian.create(spec, (8,), getkey()), Critic.create(spec, (8,), 2, getkey())
    obs, key = make_obs(spec, getkey(), (4,)), getkey()
    np.testing.assert_allclose(BestOfN(inner, critic, 1)(obs, key), inner(obs[None], key)[0], rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_uniform_shape(lead, dict_spec, make_obs, getkey):
    assert Uniform.create(dict_spec)(make_obs(dict_spec, getkey(), lead), getkey()).shape == (*lead, 2)


def test_uniform_fills_the_range(spec, getkey):
    actions = np.asarray(Uniform.create(spec)(jnp.zeros((20_000, 3)), getkey()))
    assert -1.0 <= actions.min() < -0.999 and 0.999 < actions.max() <= 1.0
    np.testing.assert_allclose(actions.mean(0), 0.0, atol=0.02)
    np.testing.assert_allclose(actions.var(0), 1.0 / 3.0, rtol=0.03)


def test_uniform_draws_every_index_alike(getkey):
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 4, discrete=True)
    actions = np.asarray(Uniform.create(spec)(jnp.zeros((20_000, 3)), getkey()))
    assert actions.shape == (20_000,) and actions.dtype == np.int32
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / 20_000, 0.25, atol=0.015)


def test_softmax_of_n_draws_by_the_least_q(spec, make_obs, getkey):
    inner, critic = TanhGaussian.create(spec, (8,), getkey()), Critic.create(spec, (8,), 2, getkey())
    obs, key, n = make_obs(spec, getkey(), (1,)), getkey(), 3
    # Many rows of one state: each has candidates of its own, so look at how far the choice leans to the better ones.
    rows = jnp.broadcast_to(obs, (30_000, 3))
    big = jax.tree.map(lambda x: 3.0 * x, critic)  # differences of Q that matter
    k_inner, _ = jax.random.split(key)
    wide = inner(jnp.broadcast_to(rows[None], (n, 30_000, 3)), k_inner)
    values = np.stack([big(rows, wide[i]).min(0) for i in range(n)])
    probabilities = np.exp(values) / np.exp(values).sum(0)
    picked = np.asarray(SoftmaxOfN(inner, big, n)(rows, key))
    is_chosen = np.stack([np.all(picked == np.asarray(wide[i]), axis=1) for i in range(n)])
    assert (is_chosen.sum(0) == 1).all()
    for low, high in ((0.0, 0.3), (0.3, 0.5), (0.5, 1.0)):
        near = (probabilities >= low) & (probabilities < high)
        np.testing.assert_allclose(is_chosen[near].mean(), probabilities[near].mean(), atol=0.015)
    assert values.std(0).mean() > 0.05  # the choice is not indifferent


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_softmax_of_n_keeps_leading_axes(lead, spec, make_obs, getkey):
    policy = SoftmaxOfN(TanhGaussian.create(spec, (8,), getkey()), Critic.create(spec, (8,), 2, getkey()), 5)
    assert policy(make_obs(spec, getkey(), lead), getkey()).shape == (*lead, 2)
