"""A small MDP whose values a linear solve gives: every estimator must come within 2 % of them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array

from trimtab.batches import Recorded, Transition
from trimtab.core import AbstractPolicy, Spec
from trimtab.data.sources import OfflineSource
from trimtab.ope import fqe
from trimtab.ope.estimators import Trajectories, doubly_robust, lengths, linear_fitted_q, side_by_side
from trimtab.training.compile import chunk, no_totals

GAMMA = 0.9
STATES, ACTIONS = 4, 2
WITHIN = 0.02


@dataclass(frozen=True)
class MDP:
    """Random transitions, rewards, ends and two policies; the first state is 0 or 1."""

    move: np.ndarray
    """(s, a, s')"""
    reward: np.ndarray
    """(s, a)"""
    ends: np.ndarray
    """(s, a), probability of terminating."""
    target: np.ndarray
    """(s, a)"""
    behaviour: np.ndarray
    start: np.ndarray

    def values(self, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Q (s, a) and V (s) of the target policy, for ever by a linear solve, or over so many steps."""
        goes_on = GAMMA * (1.0 - self.ends)[..., None] * self.move  # (s, a, s')
        if steps is None:
            policy_move = np.einsum("sa,sat->st", self.target, goes_on)
            v = np.linalg.solve(np.eye(STATES) - policy_move, (self.target * self.reward).sum(1))
        else:
            v = np.zeros(STATES)
            for _ in range(steps - 1):
                v = (self.target * (self.reward + goes_on @ v)).sum(1)
            if steps == 0:
                return np.zeros((STATES, ACTIONS)), v
        q = self.reward + goes_on @ v
        return q, (self.target * q).sum(1)


@pytest.fixture(scope="module")
def mdp() -> MDP:
    rng = np.random.default_rng(3)
    return MDP(
        move=rng.dirichlet(np.ones(STATES), (STATES, ACTIONS)),
        reward=rng.uniform(0.5, 1.0, (STATES, ACTIONS)) + np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
        ends=rng.uniform(0.05, 0.3, (STATES, ACTIONS)),
        target=np.array([[0.7, 0.3], [0.25, 0.75], [0.6, 0.4], [0.35, 0.65]]),
        behaviour=np.full((STATES, ACTIONS), 0.5),
        start=np.array([0.6, 0.4, 0.0, 0.0]),
    )


@dataclass(frozen=True)
class Rows:
    """Steps, one trajectory after the other."""

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    ended: np.ndarray
    after: np.ndarray
    last: np.ndarray
    time: np.ndarray


def collect(mdp: MDP, n: int, limit: int, seed: int) -> Rows:
    """`n` trajectories of the behaviour policy, cut after `limit` steps."""
    rng = np.random.default_rng(seed)
    draw = lambda p: (p.cumsum(-1) < rng.random((len(p), 1))).sum(-1)
    state, alive, steps = draw(np.tile(mdp.start, (n, 1))), np.ones(n, bool), []
    for t in range(limit):
        action = draw(mdp.behaviour[state])
        ended = rng.random(n) < mdp.ends[state, action]
        after = draw(mdp.move[state, action])
        last = ended | (t == limit - 1)
        steps.append((state, action, mdp.reward[state, action], ended, after, last, np.full(n, t), alive))
        state, alive = after, alive & ~ended
    columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]
    return Rows(*(column[columns[-1]] for column in columns[:-1]))


def one_hot(rows: Rows) -> np.ndarray:
    return np.eye(STATES * ACTIONS)[rows.state * ACTIONS + rows.action]


def tabular_q(mdp: MDP, rows: Rows, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Fitted Q evaluation with one feature a state and action."""
    expected = np.einsum("bs,sa->bsa", np.eye(STATES)[rows.after], mdp.target).reshape(len(rows.state), -1)
    weights = linear_fitted_q(one_hot(rows), expected, rows.reward, 1.0 - rows.ended, GAMMA, iterations)
    q = weights.reshape(STATES, ACTIONS)
    return q, (mdp.target * q).sum(1)


def trajectories(mdp: MDP, rows: Rows, q: np.ndarray, v: np.ndarray, *, known: bool = True) -> Trajectories:
    """What WDR sees: with the true probabilities of both policies, or with none (ratios of 1)."""
    length = lengths(rows.last)
    at, final = (rows.state, rows.action), np.cumsum(length) - 1
    ratio = np.log(mdp.target[at] / mdp.behaviour[at]) if known else np.zeros(len(rows.state))
    tail = np.where(rows.ended, 0.0, v[rows.after])[final]
    columns = (rows.reward, ratio, q[at], v[rows.state])
    return Trajectories(*(side_by_side(column, length) for column in columns), length, tail)


def test_the_linear_solve_is_the_limit_of_many_steps(mdp):
    for exact, limit in zip(mdp.values(), mdp.values(400), strict=True):
        np.testing.assert_allclose(exact, limit, rtol=1e-9)


def test_until_it_terminates(mdp):
    exact = float(mdp.start @ mdp.values()[1])
    rows = collect(mdp, 4_000, 300, 0)
    assert rows.ended[rows.last].all()
    q, v = tabular_q(mdp, rows, 300)
    assert float(mdp.start @ v) == pytest.approx(exact, rel=WITHIN)
    assert doubly_robust(trajectories(mdp, rows, q, v), GAMMA) == pytest.approx(exact, rel=WITHIN)
    # The behaviour's own value is far enough away for this to mean something.
    nothing = (np.zeros_like(q), np.zeros_like(v))
    own = doubly_robust(trajectories(mdp, rows, *nothing, known=False), GAMMA)
    assert abs(own / exact - 1.0) > 2 * WITHIN


def test_over_a_fixed_number_of_steps(mdp):
    # The critic of k steps to go is the k-th iteration; no trajectory has a tail, since nothing comes after the last.
    horizon = 6
    exact = float(mdp.start @ mdp.values(horizon)[1])
    rows = collect(mdp, 6_000, horizon, 1)
    tables = [tabular_q(mdp, rows, k) for k in range(1, horizon + 1)]
    assert float(mdp.start @ tables[-1][1]) == pytest.approx(exact, rel=WITHIN)
    to_go = horizon - 1 - rows.time
    q = np.stack([table[0] for table in tables])[to_go, rows.state, rows.action]
    v = np.stack([table[1] for table in tables])[to_go, rows.state]
    length = lengths(rows.last)
    ratio = np.log(mdp.target / mdp.behaviour)[rows.state, rows.action]
    columns = (side_by_side(column, length) for column in (rows.reward, ratio, q, v))
    data = Trajectories(*columns, length, np.zeros(len(length)))
    assert doubly_robust(data, GAMMA) == pytest.approx(exact, rel=WITHIN)
    assert doubly_robust(data, GAMMA, weighted=False) == pytest.approx(exact, rel=WITHIN)
    # Many steps more would be worth far more.
    assert abs(mdp.start @ mdp.values()[1] / exact - 1.0) > 2 * WITHIN


def test_cut_by_a_time_limit(mdp):
    exact = float(mdp.start @ mdp.values()[1])
    rows = collect(mdp, 4_000, 4, 2)
    assert 0.3 < (~rows.ended[rows.last]).mean() < 0.9
    q, v = tabular_q(mdp, rows, 300)
    assert float(mdp.start @ v) == pytest.approx(exact, rel=WITHIN)
    data = trajectories(mdp, rows, q, v)
    assert doubly_robust(data, GAMMA) == pytest.approx(exact, rel=WITHIN)
    # A time limit taken for an end loses a good part of the value.
    ended = Trajectories(data.reward, data.log_ratio, data.q, data.v, data.length, np.zeros(len(data.tail)))
    assert doubly_robust(ended, GAMMA) < (1.0 - 5 * WITHIN) * exact


def test_either_the_critic_or_the_probabilities_may_be_wrong(mdp):
    exact = float(mdp.start @ mdp.values()[1])
    rows = collect(mdp, 20_000, 300, 4)
    q, v = mdp.values()
    no_critic = trajectories(mdp, rows, np.zeros_like(q), np.zeros_like(v))
    no_probabilities = trajectories(mdp, rows, q, v, known=False)
    neither = trajectories(mdp, rows, np.zeros_like(q), np.zeros_like(v), known=False)
    assert doubly_robust(no_critic, GAMMA) == pytest.approx(exact, rel=WITHIN)
    assert doubly_robust(no_probabilities, GAMMA) == pytest.approx(exact, rel=WITHIN)
    assert abs(doubly_robust(neither, GAMMA) / exact - 1.0) > 2 * WITHIN


class Table(AbstractPolicy):
    """Draws a one-hot action from a table of probabilities by a one-hot state."""

    log_share: Array

    def __call__(self, obs: Array, key: Array) -> Array:
        return jax.nn.one_hot(jr.categorical(key, obs @ self.log_share), ACTIONS)


@pytest.mark.parametrize(
    "limit", [pytest.param(300, id="terminating"), pytest.param(4, id="cut", marks=pytest.mark.slow)]
)
@pytest.mark.thorough
def test_networks_come_to_the_same_value(mdp, limit):
    exact_q, exact_v = mdp.values()
    rows = collect(mdp, 8_000, limit, 5)
    data = Transition(
        obs=jax.nn.one_hot(rows.state, STATES),
        action=jax.nn.one_hot(rows.action, ACTIONS),
        reward=jnp.asarray(rows.reward, jnp.float32),
        discount=jnp.asarray(1.0 - rows.ended, jnp.float32),
        next_obs=jax.nn.one_hot(rows.after, STATES),
    )
    recorded = Recorded(data, jnp.asarray(rows.last))
    spec = Spec(jax.ShapeDtypeStruct((STATES,), jnp.float32), ACTIONS, False, (-1.0,) * ACTIONS, (1.0,) * ACTIONS)
    policy = Table(jnp.log(jnp.asarray(mdp.target, jnp.float32)))
    config = fqe.Config(gamma=GAMMA, hidden=(32,), members=2, learning_rate=1e-3, steps=4_000)
    agent = fqe.FQE.create(jr.key(0), spec, config, policy=policy, data=recorded)
    source = OfflineSource(data, config.batch_size)
    totals = no_totals(source, agent, (), None)
    agent, _, _ = chunk(source, agent, (), totals, jr.key(1), None, np.int32(config.steps))
    assert isinstance(agent, fqe.FQE)
    q = agent.q(jnp.repeat(jnp.eye(STATES), ACTIONS, 0), jnp.tile(jnp.eye(ACTIONS), (STATES, 1)))
    q = np.asarray(q).mean(0).reshape(STATES, ACTIONS)
    v = (mdp.target * q).sum(1)
    assert float(mdp.start @ v) == pytest.approx(float(mdp.start @ exact_v), rel=WITHIN)
    np.testing.assert_allclose(q, exact_q, rtol=3 * WITHIN)
    # What is left is the data's error and not the networks': a table fitted to the same data says the same.
    assert float(mdp.start @ v) == pytest.approx(float(mdp.start @ tabular_q(mdp, rows, 300)[1]), rel=WITHIN / 4)
    # The mean over sampled actions is the same value.
    sampled = np.asarray(agent.v(jnp.eye(STATES), jr.key(2), 64)).mean(0)
    np.testing.assert_allclose(sampled, v, rtol=3 * WITHIN)
