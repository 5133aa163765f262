"""Linear policies find the gains that are known to be the best ones, and lose them to a large penalty; a small penalty
makes control smooth."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from trimtab import api
from trimtab.cli.main import main
from trimtab.core import Spec
from trimtab.papers import action_jacobian
from trimtab.papers.recipe import folder
from trimtab.policies.linear import LinearPolicyNet

pytestmark = pytest.mark.slow

A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.0], [0.1]])
Q, R, HORIZON = np.diag([1.0, 0.1]), np.array([[0.01]]), 8


def riccati() -> np.ndarray:
    """The best gains of each step, backwards from a final cost of x' Q x; u = K x."""
    p, gains = Q, []
    for _ in range(HORIZON):
        k = -np.linalg.solve(R + B.T @ p @ B, B.T @ p @ A)
        p = Q + k.T @ R @ k + (A + B @ k).T @ p @ (A + B @ k)
        gains.append(k)
    return np.array(gains[::-1])


def learnt(penalty: float) -> np.ndarray:
    vector = lambda n: jax.ShapeDtypeStruct((n,), jnp.float32)
    spec = Spec({"phase": vector(HORIZON), "state": vector(2)}, 1, False, (-1.0,), (1.0,))
    net = LinearPolicyNet.create(spec, (32,), jr.key(0))
    a, b, q = (jnp.asarray(m, jnp.float32) for m in (A, B, Q))
    phases = jnp.eye(HORIZON)  # what the time is told by

    def loss(net, key):
        x, cost = jr.normal(key, (256, 2)), 0.0
        for t in range(HORIZON):
            features = jnp.concatenate([jnp.broadcast_to(phases[t], (256, HORIZON)), x], axis=1)
            u, gains = net.with_squared_gains(features)
            cost = cost + ((x @ q) * x).sum(1) + R[0, 0] * jnp.square(u[:, 0]) + penalty * gains
            x = x @ a.T + u @ b.T
        return (cost + ((x @ q) * x).sum(1)).mean()

    tx = optax.adam(optax.exponential_decay(3e-3, 1000, 0.5))

    def step(carry, key):
        net, opt = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = tx.update(jax.grad(loss)(net, key), opt, net)
            return (optax.apply_updates(net, updates), opt), None

    (net, _), _ = jax.jit(lambda net: jax.lax.scan(step, (net, tx.init(net)), jr.split(jr.key(1), 5000)))(net)
    return np.asarray(net.gains(phases)[0])


def test_the_gains_are_riccatis():
    expected = riccati()
    found = learnt(0.0)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05
    assert np.linalg.norm(expected) > 1.0


def test_a_large_penalty_leaves_none():
    assert np.linalg.norm(learnt(1e3)) < 0.01 * np.linalg.norm(riccati())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_penalty_takes_the_high_frequencies_and_no_reward(tmp_path, seed):
    # The recipe's runs. A penalty that did nothing would leave the plain network's power above 10 Hz.
    found, wanted = {}, ("plain", "penalty", "linear, penalty")
    for job in action_jacobian.plan("small"):
        if (job.setting, job.seed) == ("ArmTrack", seed) and job.method in wanted:
            assert main(job.command(tmp_path)[1:]) == 0
            found[job.method], _ = action_jacobian.judge(api.load(folder(job, tmp_path)).agent.policy)
    plain, penalty, linear = (found[method] for method in wanted)
    power, changes = action_jacobian.POWER, action_jacobian.CHANGES
    assert linear[power] <= 0.03 and linear["reward"] >= 0.993, found
    assert plain[power] >= 0.1 and min(plain["reward"], penalty["reward"]) >= 0.99, found
    assert plain[power] >= 5.0 * linear[power] and plain[power] >= 3.0 * penalty[power], found
    assert plain[changes] >= 1.4 * max(linear[changes], penalty[changes]), found
