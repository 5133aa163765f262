"""Diffusion policies: the schedule by hand, and on Gaussian data, whose noise is known, against closed forms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.policies.diffusion import Diffusion, ddim, ddpm, denoised, schedule

MEAN, STD = 0.1, 0.15
"""Of the data; three standard deviations lie well inside [-1, 1], so that the clip of (2) has next to no say."""


def exact(steps):
    """The noise that a perfect network finds: E[eps | x_t], t - 1 = i, for data N(MEAN, STD^2)."""
    kept = jnp.asarray(schedule(steps)[1], jnp.float32)

    def denoise(x, i):
        ab = jnp.full_like(x, kept[i])
        return jnp.sqrt(1.0 - ab) * (x - jnp.sqrt(ab) * MEAN) / (ab * STD**2 + 1.0 - ab)

    return denoise


def test_schedule_by_hand():
    # T = 40: from 1e-4 * 25 to 0.02 * 25.
    betas, kept = schedule(40)
    assert betas[0] == pytest.approx(2.5e-3) and betas[-1] == pytest.approx(0.5) and len(betas) == 40
    np.testing.assert_allclose(np.diff(betas), (0.5 - 2.5e-3) / 39)
    assert kept[0] == pytest.approx(1 - betas[0])
    assert kept[1] == pytest.approx((1 - betas[0]) * (1 - betas[1]))
    assert kept[2] == pytest.approx((1 - betas[0]) * (1 - betas[1]) * (1 - betas[2]))
    assert kept[-1] < 1e-4  # next to nothing of the action is left at the end


@pytest.mark.parametrize("steps", [0, 20])
def test_a_schedule_that_would_reach_one_is_refused(steps):
    with pytest.raises(UsageError, match="at least 21"):
        schedule(steps)


def test_one_step_undoes_the_noise():
    a, noise = jnp.array([[0.3, -0.7], [0.9, -1.0]]), jnp.array([[1.2, -0.3], [-2.0, 0.4]])
    kept = jnp.array([[0.9, 0.9], [0.01, 0.01]])
    x = jnp.sqrt(kept) * a + jnp.sqrt(1.0 - kept) * noise
    np.testing.assert_allclose(denoised(x, noise, kept), a, atol=1e-5)
    np.testing.assert_array_equal(
        denoised(jnp.full((1, 2), 5.0), jnp.zeros((1, 2)), jnp.full((1, 2), 0.5)), [[1.0, 1.0]]
    )


def test_ddpm_ends_at_the_data():
    steps, n = 100, 40_000
    start, noise = jr.normal(jr.key(0), (n, 1)), jr.normal(jr.key(1), (steps, n, 1))
    found = np.asarray(jax.jit(lambda s, e: ddpm(exact(steps), s, e))(start, noise))[:, 0]
    # With an exact network each step is linear in x, so mean and variance follow a recursion.
    betas, kept = schedule(steps)
    mean, variance = 0.0, 1.0
    for t in reversed(range(steps)):
        ab, before = kept[t], kept[t - 1] if t else 1.0
        total = ab * STD**2 + 1.0 - ab
        gain = np.sqrt(ab) * STD**2 / total  # a0 = gain x + rest
        rest = MEAN * (1.0 - ab) / total
        c0, cx = np.sqrt(before) * betas[t] / (1.0 - ab), np.sqrt(1.0 - betas[t]) * (1.0 - before) / (1.0 - ab)
        mean = c0 * (gain * mean + rest) + cx * mean
        variance = (c0 * gain + cx) ** 2 * variance + betas[t] * (1.0 - before) / (1.0 - ab)
    np.testing.assert_allclose(found.mean(), mean, atol=4 * STD / np.sqrt(n))
    np.testing.assert_allclose(found.std(), np.sqrt(variance), rtol=0.02)
    # The posterior's variance is that of one data point: samples are too narrow, by 15 % at T = 100, by 2 % at 1000.
    assert mean == pytest.approx(MEAN, abs=1e-4) and np.sqrt(variance) / STD == pytest.approx(0.848, abs=1e-3)


@pytest.mark.parametrize(("steps", "calls", "width"), [(100, 15, 0.631), (100, 100, 0.919), (1000, 1000, 0.990)])
def test_ddim_carries_the_normal_to_the_data(steps, calls, width):
    # Without noise x_t keeps its place in the distribution, up to the error of finite steps, which makes it narrower.
    z = jnp.linspace(-2.0, 2.0, 9)[:, None]
    found = np.asarray(jax.jit(lambda s: ddim(exact(steps), s, steps, calls))(z))[:, 0]
    kept = schedule(steps)[1]
    times = np.unique(np.linspace(0, steps - 1, calls).round().astype(int))
    expected = np.asarray(z)[:, 0].astype(np.float64)
    for j in reversed(range(len(times))):
        ab, after = kept[times[j]], kept[times[j - 1]] if j else 1.0
        a0 = np.clip(MEAN + np.sqrt(ab) * STD**2 / (ab * STD**2 + 1 - ab) * (expected - np.sqrt(ab) * MEAN), -1, 1)
        expected = np.sqrt(after) * a0 + np.sqrt(1 - after) * (expected - np.sqrt(ab) * a0) / np.sqrt(1 - ab)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(found, MEAN + width * STD * np.asarray(z)[:, 0], atol=3e-3)


def test_ddim_by_one_call_is_one_step():
    x = jnp.array([[0.5], [-0.2]])
    kept = jnp.full_like(x, schedule(50)[1][-1].astype(np.float32))
    noise = exact(50)(x, jnp.int32(49))
    np.testing.assert_allclose(ddim(exact(50), x, 50, 1), denoised(x, noise, kept), rtol=1e-4)


@pytest.mark.parametrize("calls", [None, 4])
def test_the_policy_runs_its_network_through_the_steps(calls, dict_spec, make_obs, getkey):
    policy = Diffusion.create(dict_spec, (8,), getkey(), steps=21, calls=calls)
    obs, key = make_obs(dict_spec, getkey(), (3,)), getkey()
    flat = jnp.concatenate([obs["goal"], obs["position"]], axis=1)

    def denoise(x, i):  # the network written out: [s, x, embedding of t - 1]
        angles = i.astype(jnp.float32) * jnp.asarray(10.0 ** (-4.0 * np.arange(8) / 7.0), jnp.float32)
        embedding = policy.noise.time.mlp(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))
        return policy.noise.net(jnp.concatenate([flat, x, jnp.broadcast_to(embedding, (3, 16))], axis=1))

    k_start, k_noise = jr.split(key)
    start = jr.normal(k_start, (3, 2))
    wanted = ddim(denoise, start, 21, 4) if calls else ddpm(denoise, start, jr.normal(k_noise, (21, 3, 2)))
    np.testing.assert_allclose(policy(obs, key), wanted, atol=1e-4)


def test_one_step_is_learnt_from_noised_actions(spec, batch, getkey):
    policy, key = Diffusion.create(spec, (8,), getkey(), steps=30), getkey()
    error, action = policy.one_step(batch.obs, batch.action, key)
    k_time, k_noise = jr.split(key)
    t, noise = np.asarray(jr.randint(k_time, (16,), 0, 30)), np.asarray(jr.normal(k_noise, (16, 2)))
    kept = schedule(30)[1][t][:, None]
    x = np.sqrt(kept) * np.asarray(batch.action) + np.sqrt(1.0 - kept) * noise
    found = policy.noise(batch.obs, jnp.asarray(x, jnp.float32), policy.noise.time(jnp.asarray(t, jnp.float32)))
    np.testing.assert_allclose(error, (np.asarray(found) - noise) ** 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(action, np.clip((x - np.sqrt(1.0 - kept) * found) / np.sqrt(kept), -1, 1), atol=1e-4)
    assert len(set(t.tolist())) > 5


@pytest.mark.parametrize("calls", [0, 31])
def test_calls_that_do_not_fit_are_refused(calls, spec, getkey):
    with pytest.raises(UsageError, match="from 1 to 30"):
        Diffusion.create(spec, (8,), getkey(), steps=30, calls=calls)
