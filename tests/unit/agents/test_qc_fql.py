"""QC-FQL's losses on windows, against numbers worked out apart. With windows of one step it is FQL: see the limits."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.qc_fql import QCFQL, Config
from trimtab.batches import Chunk
from trimtab.core import UsageError
from trimtab.policies.flow import flow_matching_loss


def agent(spec, **changes) -> QCFQL:
    fields = dict(hidden=(8, 8), chunk=3, gamma=0.9, flow_steps=3, alpha=0.7)
    return QCFQL.create(jr.key(0), spec, Config(**(fields | changes)))


@pytest.fixture(scope="module")
def windows() -> Chunk:
    """Four windows of three steps: whole; terminated at its last step; cut after one; terminated after two."""
    k = jr.split(jr.key(5), 4)
    return Chunk(
        obs=jr.normal(k[0], (4, 3)),
        action=jr.uniform(k[1], (4, 3, 2), minval=-1.0, maxval=1.0),
        reward=jr.normal(k[2], (4, 3)),
        discount=jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]),
        next_obs=jr.normal(k[3], (4, 3)),
        valid=jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    )


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_the_target_looks_over_the_whole_chunk(q_agg, spec, windows):
    made = agent(spec, q_agg=q_agg)
    q = np.asarray(made.target(windows.next_obs, made.actor(windows.next_obs, jr.key(1))))
    value = q.mean(0) if q_agg == "mean" else q.min(0)
    r = np.asarray(windows.reward)
    wanted = r[:, 0] + 0.9 * r[:, 1] + 0.81 * r[:, 2] + 0.729 * np.array([1, 0, 1, 0]) * value
    np.testing.assert_allclose(made._target(windows, jr.key(1)), wanted, rtol=1e-5, atol=1e-6)


def test_windows_beyond_an_end_teach_the_critic_nothing_and_the_flow_their_beginnings(spec, windows):
    made, action = agent(spec), windows.action.reshape(4, 6)
    y = jnp.arange(4.0)
    q = np.asarray(made.critic(windows.obs, action))
    wanted = (np.square(q - np.arange(4.0)) * np.array([1, 1, 0, 0])).mean()
    np.testing.assert_allclose(made._critic_loss(made.critic, y, windows, action)[0], wanted, rtol=1e-5)
    late = windows.action.at[2, 1:].add(0.5).at[3, 2:].add(-0.5)
    error = np.asarray(flow_matching_loss(made.flow.velocity, windows.obs, late.reshape(4, 6), jr.key(2)))
    wanted = (error * np.repeat([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]], 2, axis=1)).mean()
    np.testing.assert_allclose(made._bc_loss(made.flow, windows, late.reshape(4, 6), jr.key(2))[0], wanted, rtol=1e-5)


def test_one_update_moves_all_and_the_target_follows(spec, windows):
    made = agent(spec)
    new, metrics = made.update(windows, jr.key(3))
    k_actor = jr.split(jr.key(3), 3)[1]
    z = jr.normal(k_actor, (4, 6))
    mu, end = made.actor.mu(windows.obs, z), made.flow.rollout(windows.obs, z, None)[0].action
    q = new.critic(windows.obs, jnp.clip(mu, -1.0, 1.0))
    wanted = 0.7 * np.square(mu - end).mean() - q.mean()
    np.testing.assert_allclose(metrics["actor_loss"], wanted, rtol=1e-4)
    for a, b, c in zip(*(jax.tree.leaves(x) for x in (new.target, made.target, new.critic)), strict=True):
        np.testing.assert_allclose(a, 0.995 * b + 0.005 * c, rtol=1e-5, atol=1e-6)


def test_actions_are_chunks(spec):
    made = agent(spec)
    assert made.policy(jnp.zeros((5, 3)), jr.key(0)).shape == (5, 6)


@pytest.mark.parametrize(
    ("bad", "said"), [(dict(chunk=0), "chunk must be at least 1, got 0"), (dict(q_agg="max"), "'max'")]
)
def test_what_does_not_fit_is_named(bad, said, spec):
    with pytest.raises(UsageError, match=said):
        agent(spec, **bad)
