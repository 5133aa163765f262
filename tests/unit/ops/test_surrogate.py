import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.ops import clipped_surrogate, epochs, explained_variance


def test_the_surrogate_by_hand():
    ratio, advantage = jnp.array([0.5, 1.1, 1.5, 0.9]), jnp.array([1.0, 2.0, 3.0, -4.0])
    loss, metrics = clipped_surrogate(jnp.log(ratio), advantage, 0.2, normalise=False)
    # Only the third is cut: 1.2 in place of 1.5. The first is not, since the smaller of both counts.
    np.testing.assert_allclose(loss, -(0.5 + 2.2 + 1.2 * 3 - 0.9 * 4) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], 0.5)
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-5)
    normal = (advantage - 0.5) / np.std(advantage)
    whole, _ = clipped_surrogate(jnp.log(ratio), advantage, 0.2)
    part, _ = clipped_surrogate(jnp.log(ratio), normal, 0.2, normalise=False)
    np.testing.assert_allclose(whole, part, rtol=1e-5)


def test_one_row_is_not_normalised():
    loss, _ = clipped_surrogate(jnp.zeros(1), jnp.array([3.0]), 0.2)
    assert loss == -3.0


def test_explained_variance_of_perfect_constant_and_opposite_critics():
    returns = jnp.array([1.0, 2.0, 4.0, 9.0])
    for value, expected in ((returns, 1.0), (jnp.full(4, 2.0), 0.0), (-returns, -3.0)):
        np.testing.assert_allclose(explained_variance(returns - value, value), expected, atol=1e-6)


def counted(counts, order, key):
    """Counts how often each row is met; its metric grows with each minibatch."""
    counts = counts.at[order].add(1)
    return counts, {"kl": counts.sum() / 4.0, "key": jr.uniform(key)}


def test_each_row_once_an_epoch():
    counts, metrics = epochs(counted, jnp.zeros(12), (12, 4, 3), jr.key(0), "kl")
    assert (counts == 3).all() and metrics["skipped"] == 0.0
    np.testing.assert_allclose(metrics["kl"], np.mean(np.arange(1, 10)))
    # What fills no minibatch waits for another epoch; a minibatch has at most all rows.
    counts, _ = epochs(counted, jnp.zeros(10), (10, 4, 3), jr.key(0), "kl")
    assert counts.sum() == 24 and counts.max() <= 3
    counts, _ = epochs(counted, jnp.zeros(3), (3, 64, 2), jr.key(0), "kl")
    assert (counts == 2).all()


def test_minibatches_have_keys_of_their_own():
    def learn(state, order, key):
        return state.at[state[-1].astype(int)].set(jr.uniform(key)).at[-1].add(1.0), {}

    state, _ = epochs(learn, jnp.zeros(7), (12, 4, 2), jr.key(0), "kl")
    seen = np.asarray(state[:-1])
    assert state[-1] == 6 and len(set(seen.tolist())) == 6


@pytest.mark.parametrize("target_kl, kept", [(2.5, 2), (0.5, 0), (99.0, 9)])
def test_a_large_kl_ends_the_epochs(target_kl, kept):
    counts, metrics = epochs(counted, jnp.zeros(12), (12, 4, 3), jr.key(0), "kl", target_kl)
    assert counts.sum() == 4 * kept
    np.testing.assert_allclose(metrics["skipped"], (9 - kept) / 9, rtol=1e-6)
    expected = np.mean(np.arange(1, kept + 1)) if kept else np.nan
    np.testing.assert_allclose(metrics["kl"], expected)


def test_a_loss_that_is_not_a_number_is_not_taken_for_one_left_out():
    def learn(state, order, key):
        return state + 1.0, {"kl": jnp.where(state == 1.0, jnp.nan, 0.0)}

    _, metrics = epochs(learn, jnp.zeros(()), (12, 4, 1), jr.key(0), "kl", 1.0)
    assert np.isnan(metrics["kl"]) and metrics["skipped"] == 0.0
