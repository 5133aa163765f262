"""Importance weights and doubly robust sums by hand, in their limits, and out of the range of floats."""

import numpy as np
import pytest

from trimtab.ope.estimators import (
    Trajectories,
    bootstrap,
    doubly_robust,
    effective_sizes,
    lengths,
    linear_fitted_q,
    log_products,
    normalised_weights,
    ordinary_weights,
    side_by_side,
)


def trajectories(**changes) -> Trajectories:
    """Two trajectories of two steps."""
    usual = dict(
        reward=np.array([[1.0, 2.0], [0.0, 4.0]]),
        log_ratio=np.log([[2.0, 0.5], [0.5, 3.0]]),
        q=np.array([[0.5, 1.0], [0.2, 3.0]]),
        v=np.array([[0.6, 1.2], [0.4, 2.5]]),
        length=np.array([2, 2]),
        tail=np.zeros(2),
    )
    return Trajectories(**(usual | changes))


def test_two_steps_by_hand():
    # rho: 2, 1/2, then 1, 3/2. w: 0.8, 0.2, then 0.4, 0.6.
    first = 0.8 * 0.5 + 0.2 * -0.2 + 0.5 * 0.6 + 0.5 * 0.4
    second = 0.4 * 1.0 + 0.6 * 1.0 + 0.8 * 1.2 + 0.2 * 2.5
    assert doubly_robust(trajectories(), 0.5) == pytest.approx(first + 0.5 * second)
    assert first + 0.5 * second == pytest.approx(2.09)
    # Ordinary weights: rho / 2.
    assert doubly_robust(trajectories(), 0.5, weighted=False) == pytest.approx(0.95 + 0.5 * 3.075)


def test_a_finished_trajectory_keeps_its_last_weight():
    data = trajectories(
        reward=np.array([[0.0, 0.0], [0.0, 5.0]]),
        log_ratio=np.log([[3.0, 1.0], [1.0, 2.0]]),
        q=np.zeros((2, 2)),
        v=np.zeros((2, 2)),
        length=np.array([1, 2]),
    )
    # At the second step the first trajectory, over since the first, still weighs 3 against 2.
    assert doubly_robust(data, 0.5) == pytest.approx(0.5 * (2 / 5) * 5.0)
    assert normalised_weights(log_products(data.log_ratio))[:, 1] == pytest.approx([0.6, 0.4])


def test_the_rest_of_a_cut_trajectory_is_the_critics():
    data = trajectories(
        reward=np.zeros((2, 2)),
        log_ratio=np.log([[3.0, 1.0], [1.0, 2.0]]),
        q=np.zeros((2, 2)),
        v=np.zeros((2, 2)),
        length=np.array([1, 2]),
        tail=np.array([8.0, 10.0]),
    )
    # After step 1 with weight 3/4, after step 2 with weight 2/5.
    assert doubly_robust(data, 0.5) == pytest.approx(0.5 * 0.75 * 8.0 + 0.25 * 0.4 * 10.0)


def test_without_a_critic_it_is_per_decision_importance_sampling():
    data = trajectories(q=np.zeros((2, 2)), v=np.zeros((2, 2)))
    assert doubly_robust(data, 0.5, weighted=False) == pytest.approx((2 * 1 + 0.5 * (1 * 2 + 1.5 * 4)) / 2)
    assert doubly_robust(data, 0.5) == pytest.approx(0.8 * 1 + 0.5 * (0.4 * 2 + 0.6 * 4))


@pytest.mark.parametrize("weighted", [True, False])
def test_on_its_own_data_a_policy_gets_the_mean_return(weighted):
    data = trajectories(log_ratio=np.zeros((2, 2)), q=np.zeros((2, 2)), v=np.zeros((2, 2)))
    assert doubly_robust(data, 0.5, weighted=weighted) == pytest.approx(((1 + 0.5 * 2) + 0.5 * 4) / 2)


@pytest.mark.parametrize("weighted", [True, False])
def test_with_the_exact_critic_and_a_sure_world_any_weights_give_the_value(weighted):
    # Where q = r + gamma v' along every trajectory, the sum telescopes to the mean of v at the start.
    rng, gamma = np.random.default_rng(0), 0.9
    length, steps, n = np.array([3, 5, 1, 4]), 5, 4
    lived = np.arange(steps)[None] < length[:, None]
    reward, v = (np.where(lived, rng.normal(size=(n, steps)), 0.0) for _ in range(2))
    tail = np.array([0.0, 2.0, -1.0, 0.0])
    after = np.concatenate([v[:, 1:], np.zeros((n, 1))], axis=1)
    after[np.arange(n), length - 1] = tail
    data = Trajectories(
        reward=reward,
        log_ratio=np.where(lived, 3.0 * rng.normal(size=(n, steps)), 0.0),
        q=np.where(lived, reward + gamma * after, 0.0),
        v=v,
        length=length,
        tail=tail,
    )
    assert doubly_robust(data, gamma, weighted=weighted) == pytest.approx(v[:, 0].mean())
    # and a critic that is wrong does depend on them
    wrong = Trajectories(data.reward, data.log_ratio, data.q + 1.0, data.v, data.length, data.tail)
    assert abs(doubly_robust(wrong, gamma, weighted=weighted) - v[:, 0].mean()) > 0.1


def test_products_beyond_all_floats_have_weights():
    data = trajectories(log_ratio=np.array([[900.0, 900.0], [899.0, 900.0]]))
    weights = normalised_weights(log_products(data.log_ratio))
    assert weights[:, 1] == pytest.approx([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))])
    small = trajectories(log_ratio=-data.log_ratio)
    assert np.isfinite(doubly_robust(small, 0.9))


def test_effective_sizes():
    assert effective_sizes(np.zeros((7, 2))) == pytest.approx([7.0, 7.0])
    assert effective_sizes(np.array([[0.0], [-900.0], [-900.0]])) == pytest.approx([1.0])
    assert effective_sizes(np.log([[2.0], [1.0], [1.0]])) == pytest.approx([16 / 6])


def test_ordinary_weights():
    assert ordinary_weights(np.log([[2.0, 4.0], [1.0, 1.0]])) == pytest.approx(np.array([[1.0, 2.0], [0.5, 0.5]]))


def test_rows_become_trajectories():
    last = np.array([False, True, True, False, False, False])  # the last one was cut by the end of the data
    length = lengths(last)
    assert length.tolist() == [2, 1, 3]
    rows = np.arange(1.0, 7.0)
    assert side_by_side(rows, length).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert lengths(np.array([True])).tolist() == [1]


def test_the_bootstrap_draws_whole_trajectories():
    data = trajectories(q=np.zeros((2, 2)), v=np.zeros((2, 2)))
    draws = bootstrap(lambda d: float(d.reward.sum()), data, 400, 0)
    # Both, the first twice, the second twice.
    assert set(draws) == {7.0, 6.0, 8.0}
    assert np.mean(draws == 7.0) == pytest.approx(0.5, abs=0.1)
    assert (draws == bootstrap(lambda d: float(d.reward.sum()), data, 400, 0)).all()


def test_each_iteration_of_fitted_q_adds_a_step():
    # One state, one action, reward 1: after k iterations the value of k steps.
    one = np.ones((4, 1))
    for k, value in ((0, 0.0), (1, 1.0), (2, 1.5), (3, 1.75)):
        assert linear_fitted_q(one, one, np.ones(4), np.ones(4), 0.5, k) == pytest.approx([value])
    # Terminations are not bootstrapped through: half of them end here, Q = 1 + gamma Q / 2.
    assert linear_fitted_q(one, one, np.ones(4), np.array([0.0, 1, 0, 1]), 0.5, 99) == pytest.approx([4 / 3])
