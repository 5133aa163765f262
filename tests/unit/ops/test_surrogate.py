import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.ops import clipped_surrogate, epochs, explained_variance, shuffled


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


@pytest.mark.parametrize("count", [1, 2, 3, 100, 2048, 2**16, 2**16 + 1])
def test_a_shuffle_has_each_row_once(count):
    order = np.asarray(shuffled(jr.key(0), count))
    assert order.dtype == np.int32 and (np.sort(order) == np.arange(count)).all()
    again = np.asarray(shuffled(jr.key(1), count))
    assert count < 3 or (order != again).any()


def test_all_orders_are_as_likely():
    drawn = np.asarray(jax.vmap(lambda key: shuffled(key, 4))(jr.split(jr.key(0), 24_000)))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.square(counts - 1000).sum() / 1000 < 49.7  # chi-square of 23 degrees: 1 in 1000


def test_equal_random_numbers_leave_no_order():
    """At 2^16 rows 16 bits are left, so that a round by itself leaves each second row beside one it was before."""
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, 2**16))(jr.split(jr.key(0), 8)))
    rises = (np.diff(orders, axis=1) > 0).mean()
    assert abs(rises - 0.5) < 5 * (1 / 12 / orders.size) ** 0.5  # the standard error of a random order's rises
