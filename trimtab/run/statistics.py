"""Robust statistics over runs, by rliable (Agarwal et al. 2021, arXiv:2108.13264). The only place that imports it.

Scores are arrays (runs,) or (runs, tasks), in the unit of the return. Intervals are 95 % percentile intervals of the
stratified bootstrap: runs are drawn with replacement within each task. A single run says nothing about the spread over
seeds, so its interval is (nan, nan), never a made-up one; with two to four runs the interval exists but is too narrow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, of 95 % unless another level was asked for; `low` and `high` are nan where there is
    none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregate:
    """What a set of runs amounts to. `median` is the median over tasks of the mean over runs, as in rliable; with one
    task that would be the mean again, so there it is the median over runs."""

    runs: int
    iqm: Estimate
    mean: Estimate
    median: Estimate


def aggregate(scores: Float[np.ndarray, "..."], reps: int = 2000, seed: int = 0, level: float = 0.95) -> Aggregate:
    """Interquartile mean, mean and median, with intervals of `level`. ValueError for scores of another shape, nan or
    inf."""
    _, metrics = _rliable()
    matrix = _matrix(scores)
    median = metrics.aggregate_median if matrix.shape[1] > 1 else np.median
    summary = lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x), median(x)])
    value, low, high = _estimate(matrix, summary, reps, seed, level)
    return Aggregate(len(matrix), *(Estimate(*map(float, row)) for row in zip(value, low, high, strict=True)))


def probability_of_improvement(
    x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], reps: int = 2000, seed: int = 0
) -> Estimate:
    """P(X > Y) for one random run of each, ties counting half, averaged over tasks. The numbers of runs may differ."""
    _, metrics = _rliable()
    first, second = _matrix(x), _matrix(y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"scores to compare need the same tasks, not {first.shape[1]} and {second.shape[1]}")
    probability = lambda a, b: np.array([metrics.probability_of_improvement(a, b)])
    value, low, high = _estimate([first, second], probability, reps, seed)
    return Estimate(float(value[0]), float(low[0]), float(high[0]))


def curve_band(
    curves: Float[np.ndarray, "runs points"], reps: int = 2000, seed: int = 0
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Interquartile mean over runs at each point of a learning curve, and the lower and upper bound of its interval."""
    from scipy.stats import trim_mean

    matrix = _matrix(curves)
    # rliable's aggregate_iqm knows no axis; this is its definition at all points at once. Axes: runs, one task, points.
    iqm = lambda x: trim_mean(x[:, 0], proportiontocut=0.25, axis=0)
    return _estimate(matrix[:, None, :], iqm, reps, seed)


def _matrix(scores: Float[np.ndarray, "..."]) -> Float[np.ndarray, "runs tasks"]:
    matrix = np.asarray(scores, np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"scores must be (runs,) or (runs, tasks) and not empty, not of shape {np.shape(scores)}")
    if not np.isfinite(matrix).all():
        raise ValueError("scores must be finite: leave out the runs that have none")
    return matrix


def _estimate(scores: np.ndarray | list[np.ndarray], summary: Callable, reps: int, seed: int, level: float = 0.95):
    """Value and interval bounds of `summary`, three arrays alike in shape."""
    library, _ = _rliable()
    arrays = [scores] if isinstance(scores, np.ndarray) else scores
    if min(len(array) for array in arrays) < 2:
        value = summary(*arrays)
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    with _numpy_seed(seed):
        values, intervals = library.get_interval_estimates(
            {"": scores}, summary, reps=reps, confidence_interval_size=level
        )
    return values[""], intervals[""][0], intervals[""][1]


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    # rliable 1.2 draws from numpy's global generator whatever `random_state` it is given (and passing one warns with
    # arch 7), so the global generator is seeded here and put back.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _rliable():
    """rliable's two modules, imported late: they bring pandas and statsmodels, two seconds."""
    try:
        from rliable import library, metrics
    except (ImportError, TypeError) as error:  # arch < 8, which rliable 1.2 asks for, raises TypeError on pandas 3
        raise ImportError("rliable does not import; install it with `pip install 'rliable>=1.2' 'pandas<3'`") from error
    return library, metrics
