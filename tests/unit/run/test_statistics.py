"""Statistics over runs: against rliable itself, against figures worked by hand, and what one run must not claim."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from trimtab.run.statistics import aggregate, curve_band, probability_of_improvement

SCORES = np.array([[1.0, 10.0, 3.0], [2.0, 14.0, 5.0], [4.0, 12.0, 9.0], [8.0, 30.0, 1.0], [3.0, 11.0, 2.0]])
OTHERS = np.array([[2.0, 9.0, 4.0], [1.0, 13.0, 3.0], [2.5, 8.0, 8.0], [7.0, 10.0, 0.5]])


def bounds(estimate):
    return [estimate.value, estimate.low, estimate.high]


def test_aggregate_equals_rliable_on_a_matrix():
    from rliable import library, metrics

    summary = lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x), metrics.aggregate_median(x)])
    np.random.seed(3)  # noqa: NPY002  (rliable's own source of randomness)
    values, intervals = library.get_interval_estimates({"a": SCORES}, summary, reps=500)
    ours = aggregate(SCORES, reps=500, seed=3)
    for i, estimate in enumerate((ours.iqm, ours.mean, ours.median)):
        np.testing.assert_allclose(bounds(estimate), [values["a"][i], *intervals["a"][:, i]], rtol=0, atol=1e-6)
        assert estimate.low < estimate.value < estimate.high
    assert ours.runs == 5


def test_point_estimates_by_hand():
    ours = aggregate(SCORES, reps=50)
    assert ours.iqm.value == pytest.approx(trim_mean(SCORES.ravel(), 0.25), abs=1e-12)
    assert ours.mean.value == pytest.approx((18 + 77 + 20) / 15, abs=1e-12)
    assert ours.median.value == pytest.approx(20 / 5, abs=1e-12)  # task means are 3.6, 15.4 and 4
    # One task: 1 2 3 4 100 without a quarter of the runs at either end (one each), and the median over runs.
    single = aggregate(np.array([100.0, 2.0, 1.0, 4.0, 3.0]), reps=50)
    assert (single.iqm.value, single.mean.value, single.median.value) == (3.0, 22.0, 3.0)


def test_interval_covers_known_bootstrap_quantiles():
    # With two runs 0 and 1 the resampled mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4.
    assert bounds(aggregate(np.array([0.0, 1.0]), reps=500).mean) == [0.5, 0.0, 1.0]
    # The mean of many runs: normal theory, 1.96 standard errors.
    scores = np.random.default_rng(0).normal(size=200)
    mean = aggregate(scores, reps=2000).mean
    error = scores.std() / np.sqrt(200)
    np.testing.assert_allclose(
        [mean.low, mean.high], scores.mean() + np.array([-1.96, 1.96]) * error, atol=0.15 * error
    )


def test_a_lower_level_gives_a_narrower_interval():
    scores = np.arange(9.0)
    wide, narrow = aggregate(scores).mean, aggregate(scores, level=0.8).mean
    # A mean of nine draws from 0 .. 8 has a standard deviation of sqrt(20/27): 1.96 and 1.28 of it on either side.
    np.testing.assert_allclose([wide.high - 4, 4 - wide.low], 1.96 * np.sqrt(20 / 27), rtol=0.1)
    np.testing.assert_allclose([narrow.high - 4, 4 - narrow.low], 1.28 * np.sqrt(20 / 27), rtol=0.1)


def test_probability_of_improvement_equals_rliable_and_counting():
    from rliable import library, metrics

    function = lambda x, y: np.array([metrics.probability_of_improvement(x, y)])
    np.random.seed(5)  # noqa: NPY002
    values, intervals = library.get_interval_estimates({"a": [SCORES, OTHERS]}, function, reps=300)
    ours = probability_of_improvement(SCORES, OTHERS, reps=300, seed=5)
    np.testing.assert_allclose(bounds(ours), [values["a"][0], *intervals["a"][:, 0]], rtol=0, atol=1e-6)
    x, y = SCORES[:, None, :], OTHERS[None, :, :]
    assert ours.value == pytest.approx(np.mean((x > y) + 0.5 * (x == y)), abs=1e-12)
    reverse = probability_of_improvement(OTHERS, SCORES, reps=10)
    assert ours.value + reverse.value == pytest.approx(1.0)
    assert bounds(probability_of_improvement(np.arange(3.0) + 10, np.arange(3.0), reps=50)) == [1.0, 1.0, 1.0]


def test_curve_band_is_aggregate_at_each_point():
    curves = np.random.default_rng(1).normal(size=(6, 4)) * [1.0, 2.0, 0.0, 5.0] + [0.0, 10.0, 20.0, 30.0]
    value, low, high = curve_band(curves, reps=1500)
    np.testing.assert_allclose(value, [trim_mean(curves[:, i], 0.25) for i in range(4)], atol=1e-12)
    np.testing.assert_allclose([low[2], high[2]], 20.0)  # no spread, no band
    for i in (0, 1, 3):
        alone = aggregate(curves[:, i], reps=1500).iqm
        np.testing.assert_allclose([low[i], high[i]], [alone.low, alone.high], atol=0.2 * (alone.high - alone.low))


def test_same_seed_same_figures_and_global_generator_untouched():
    np.random.seed(11)  # noqa: NPY002
    expected = np.random.random(2)  # noqa: NPY002
    np.random.seed(11)  # noqa: NPY002
    first = aggregate(SCORES, reps=100, seed=1)
    np.testing.assert_array_equal(np.random.random(2), expected)  # noqa: NPY002
    assert first == aggregate(SCORES, reps=100, seed=1)
    assert first != aggregate(SCORES, reps=100, seed=2)


def test_one_run_has_no_interval():
    for scores in (np.array([7.0]), SCORES[:1]):
        one = aggregate(scores)
        assert one.runs == 1
        assert one.mean.value == pytest.approx(scores.mean())
        assert np.isnan([one.iqm.low, one.iqm.high, one.mean.low, one.mean.high, one.median.low, one.median.high]).all()
    improvement = probability_of_improvement(np.array([2.0]), np.array([1.0, 3.0, 0.0]))
    assert improvement.value == pytest.approx(2 / 3)
    assert np.isnan([improvement.low, improvement.high]).all()
    value, low, high = curve_band(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(value, [1.0, 2.0])
    assert np.isnan(low).all() and np.isnan(high).all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [(np.zeros(0), "not empty"), (np.zeros((2, 2, 2)), "runs, tasks"), (np.array([1.0, np.nan]), "finite")],
)
def test_bad_scores_are_named(scores, message):
    with pytest.raises(ValueError, match=message):
        aggregate(scores)


def test_comparing_needs_the_same_tasks():
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(SCORES, OTHERS[:, :2])
