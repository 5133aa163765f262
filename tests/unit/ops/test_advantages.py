import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.ops import gae

GAMMA, LAMBDA = 0.9, 0.7


def rows(seed=0, t=9, n=3):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, t, n)).astype(np.float32)
    terminated, cut = rng.random((t, n)) < 0.2, rng.random((t, n)) < 0.2
    return reward, (~terminated).astype(np.float32), terminated | cut, value, next_value


def by_sum(reward, discount, last, value, next_value, gamma, gae_lambda):
    """A_t = sum_k (gamma lambda)^k delta_(t+k), over the steps from t to the end of its episode."""
    delta = reward + gamma * discount * next_value - value
    advantages = np.zeros_like(reward)
    for t, i in np.ndindex(*reward.shape):
        for k in range(len(reward) - t):
            advantages[t, i] += (gamma * gae_lambda) ** k * delta[t + k, i]
            if last[t + k, i]:
                break
    return advantages


@pytest.mark.parametrize("gae_lambda", [0.0, LAMBDA, 1.0])
def test_equals_the_explicit_sum(gae_lambda):
    given = rows()
    assert given[2].any() and (given[2] & (given[1] == 1)).any()  # both ways to end
    found = gae(*map(jnp.asarray, given), GAMMA, gae_lambda)
    np.testing.assert_allclose(found, by_sum(*given, GAMMA, gae_lambda), rtol=1e-5, atol=1e-6)


def test_lambda_zero_is_the_one_step_error():
    reward, discount, last, value, next_value = map(jnp.asarray, rows(1))
    found = gae(reward, discount, last, value, next_value, GAMMA, 0.0)
    np.testing.assert_allclose(found, reward + GAMMA * discount * next_value - value, rtol=1e-6)


def test_lambda_one_is_the_return_minus_the_value():
    # One environment, five steps; the episode terminates after the third and is cut after the fifth.
    reward = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    discount = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
    last = jnp.array([False, False, True, False, True])[:, None]
    value = jnp.array([0.5, 0.4, 0.3, 0.2, 0.1])[:, None]
    next_value = jnp.array([0.4, 0.3, 99.0, 0.1, 7.0])[:, None]
    found = gae(reward, discount, last, value, next_value, GAMMA, 1.0)[:, 0]
    returns = [1 + 0.9 * (2 + 0.9 * 3), 2 + 0.9 * 3, 3, 4 + 0.9 * (5 + 0.9 * 7), 5 + 0.9 * 7]
    np.testing.assert_allclose(found, np.array(returns) - np.array(value)[:, 0], rtol=1e-6)
