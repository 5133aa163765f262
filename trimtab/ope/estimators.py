"""Estimators of a policy's value from trajectories of another, as functions of arrays.

With rho_t = prod_{k <= t} pi(a_k | s_k) / b(a_k | s_k), n trajectories i and the discount factor gamma:

    w_t^i = rho_t^i / n                                     ordinary weights
    w_t^i = rho_t^i / sum_j rho_t^j                         self-normalised weights (WDR)
    V     = sum_i sum_t gamma^t ( w_t^i r_t^i - w_t^i Q(s_t^i, a_t^i) + w_{t-1}^i V(s_t^i) ),  w_{-1} = 1/n

The first weights give DR (Jiang and Li 2016, arXiv:1511.03722), the second WDR (Thomas and Brunskill 2016,
arXiv:1604.00923). With Q = V = 0 they are per-decision importance sampling, ordinary and weighted. A trajectory that
has terminated gives 0 from then on and keeps its last rho in the sum over j. One that was cut after its step L - 1 also
gives gamma^L w_{L-1} V(s_L): the rest of it is the critic's guess.

Everything is float64 on the host: a product of a thousand ratios has no place in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Trajectories:
    """`n` trajectories side by side, padded with zeros to the longest of them, `t` steps."""

    reward: Float[np.ndarray, "n t"]
    log_ratio: Float[np.ndarray, "n t"]
    """log pi(a | s) - log b(a | s) of each step."""
    q: Float[np.ndarray, "n t"]
    """the critic's Q(s, a) under pi, of each step."""
    v: Float[np.ndarray, "n t"]
    """the critic's V(s) under pi, of each step."""
    length: Int[np.ndarray, " n"]
    """steps of each trajectory, at least 1."""
    tail: Float[np.ndarray, " n"]
    """V of the state after the last step where the trajectory was cut; 0 where it terminated."""

    def take(self, index: Int[np.ndarray, " m"]) -> "Trajectories":
        """Those trajectories, in that order; some may come twice."""
        return Trajectories(
            self.reward[index],
            self.log_ratio[index],
            self.q[index],
            self.v[index],
            self.length[index],
            self.tail[index],
        )


def lengths(last: Bool[np.ndarray, " b"]) -> Int[np.ndarray, " n"]:
    """The number of rows of each trajectory; `last` is set on the last row of each, and the rows end with one."""
    ends = np.flatnonzero(np.append(last[:-1], True))
    return np.diff(ends, prepend=-1)


def side_by_side(rows: Float[np.ndarray, " b"], length: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n t"]:
    """Rows that lie one trajectory after the other as a matrix with one trajectory a row, zeros after its end."""
    lived = np.arange(length.max())[None, :] < length[:, None]
    matrix = np.zeros(lived.shape)
    matrix[lived] = rows
    return matrix


def log_products(log_ratio: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """log rho_t. After the end of a trajectory its ratios are padded with log 1: it keeps its last product."""
    return np.cumsum(log_ratio, axis=1)


def ordinary_weights(log_rho: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """`rho / n`."""
    return np.exp(log_rho) / len(log_rho)


def normalised_weights(log_rho: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """`rho_t / sum_j rho_t^j`: each column sums to 1, whatever the size of the products."""
    rho = np.exp(log_rho - log_rho.max(axis=0, keepdims=True))
    return rho / rho.sum(axis=0, keepdims=True)


def doubly_robust(data: Trajectories, gamma: float, *, weighted: bool = True) -> float:
    """WDR, or with `weighted` off DR: see the module's docstring."""
    n, steps = data.reward.shape
    log_rho = log_products(data.log_ratio)
    weights = normalised_weights(log_rho) if weighted else ordinary_weights(log_rho)
    before = np.concatenate([np.full((n, 1), 1.0 / n), weights[:, :-1]], axis=1)
    each = weights * (data.reward - data.q) + before * data.v
    value = (gamma ** np.arange(steps) * each.sum(0)).sum()
    after = weights[np.arange(n), data.length - 1] * data.tail
    return float(value + (gamma**data.length * after).sum())


def effective_sizes(log_rho: Float[np.ndarray, "n t"]) -> Float[np.ndarray, " t"]:
    """The effective sample size of each step's weights, `1 / sum_i w_i^2`: n for equal ones, 1 if one has all."""
    return 1.0 / np.square(normalised_weights(log_rho)).sum(0)


def bootstrap(
    estimate: Callable[[Trajectories], float], data: Trajectories, reps: int, seed: int
) -> Float[np.ndarray, " reps"]:
    """The estimate on `reps` draws of as many trajectories with replacement."""
    rng, n = np.random.default_rng(seed), len(data.length)
    return np.array([estimate(data.take(rng.integers(n, size=n))) for _ in range(reps)])


def linear_fitted_q(
    features: Float[np.ndarray, "b k"],
    next_features: Float[np.ndarray, "b k"],
    reward: Float[np.ndarray, " b"],
    discount: Float[np.ndarray, " b"],
    gamma: float,
    iterations: int,
) -> Float[np.ndarray, " k"]:
    """Fitted Q evaluation by least squares (Le et al. 2019, arXiv:1903.08738): the weights w of Q = features w.

    `next_features` are the expected features of (s', a') under the policy. From w = 0, each iteration is one regression
    on r + gamma d (next_features w), so k iterations give the value of k steps. One-hot features of (s, a) make it
    exact for tables; a pair without data has Q = 0.
    """
    regress = np.linalg.pinv(features.T @ features) @ features.T
    weights = np.zeros(features.shape[1])
    for _ in range(iterations):
        weights = regress @ (reward + gamma * discount * (next_features @ weights))
    return weights
