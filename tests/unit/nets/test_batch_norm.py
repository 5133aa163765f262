"""Batch renormalisation against NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.nets.batch_norm import WARM_UP, BatchRenorm
from trimtab.nets.critic import CrossQCritic


@pytest.fixture
def rows():
    return 3.0 + 2.0 * jr.normal(jr.key(0), (64, 5))


def test_before_the_warm_up_it_is_batch_normalisation(rows):
    y, norm = BatchRenorm.create(5).train(rows)
    x = np.asarray(rows, np.float64)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.mean, 0.01 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.variance, 0.99 + 0.01 * x.var(0), rtol=1e-5)
    assert norm.calls == 1


def test_after_it_with_nothing_clipped_it_is_the_running_normalisation(rows):
    warm = replace(
        BatchRenorm.create(5),
        mean=rows.mean(0) + 0.5,
        variance=1.5 * rows.var(0),
        calls=jnp.float32(WARM_UP),
        scale=jnp.arange(1.0, 6.0),
        shift=jnp.ones(5),
    )
    y, norm = warm.train(rows)
    np.testing.assert_allclose(y, warm(rows), rtol=1e-4, atol=1e-4)
    assert norm.calls == WARM_UP


def test_r_and_d_are_clipped(rows):
    far = replace(BatchRenorm.create(5), mean=jnp.full(5, -1e3), variance=jnp.full(5, 1e-2), calls=jnp.float32(WARM_UP))
    y, _ = far.train(rows)
    x = np.asarray(rows, np.float64)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * 3 + 5, rtol=1e-4, atol=1e-4)


def test_statistics_get_no_gradient(rows):
    norm = replace(BatchRenorm.create(5), calls=jnp.float32(WARM_UP))
    grad = jax.grad(lambda n: jnp.sin(n.train(rows)[0]).sum())(norm)
    assert not (grad.mean.any() or grad.variance.any() or grad.calls.any())
    assert grad.scale.all() and grad.shift.any()


def test_members_are_normalised_apart(rows):
    both = jnp.stack([rows, 10.0 * rows])
    y, norm = BatchRenorm.create(5, members=2).train(both)
    for i in range(2):
        alone, one = BatchRenorm.create(5).train(both[i])
        np.testing.assert_allclose(y[i], alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.mean[i], one.mean, rtol=1e-6)


def test_leading_axes_count_as_one_batch(rows):
    y, norm = BatchRenorm.create(5).train(rows.reshape(4, 16, 5))
    flat, same = BatchRenorm.create(5).train(rows)
    np.testing.assert_allclose(y.reshape(64, 5), flat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.variance, same.variance, rtol=1e-6)


def test_a_joint_pass_normalises_both_halves_together(spec):
    critic = CrossQCritic.create(spec, (8, 8), 2, jr.key(0))
    obs, action = jr.normal(jr.key(1), (32, 3)), jr.uniform(jr.key(2), (32, 2))
    joint, after = critic.train(jnp.concatenate([obs, 5.0 + obs]), jnp.concatenate([action, action]))
    alone, _ = critic.train(obs, action)
    assert joint.shape == (2, 64)
    assert float(jnp.abs(joint[:, :32] - alone).max()) > 0.1
    inputs = jnp.concatenate([jnp.concatenate([obs, 5.0 + obs]), jnp.concatenate([action, action])], 1)
    np.testing.assert_allclose(after.norms[0].mean[0], 0.01 * inputs.mean(0), rtol=1e-4, atol=1e-6)
    assert [norm.calls for norm in after.norms] == [1.0, 1.0, 1.0]
