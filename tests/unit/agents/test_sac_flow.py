"""SAC Flow's losses and order of updates, from scratch and on chunks, against numbers worked out apart."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents import sac_flow, sac_flow_chunked
from trimtab.agents.sac_flow import SACFlow
from trimtab.agents.sac_flow_chunked import SACFlowChunked
from trimtab.batches import Chunk
from trimtab.core import Spec, UsageError

SMALL = dict(hidden=(8, 8), width=8)


def agent(spec, **changes) -> SACFlow:
    return SACFlow.create(jr.key(0), spec, sac_flow.Config(**(SMALL | changes)))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# From scratch


def test_the_crossq_loss_is_that_of_one_joint_pass_with_a_constant_target(spec, batch):
    flow = agent(spec)
    after = flow.actor.sample(batch.next_obs, jr.key(1))
    joint = lambda q: q.train(
        jnp.concatenate([batch.obs, batch.next_obs]), jnp.concatenate([batch.action, after.action])
    )[0]
    both = np.asarray(joint(flow.critic), np.float64)
    q, q_next = both[:, :16], both[:, 16:]
    soft = q_next.min(0) - 0.2 * np.asarray(after.log_prob)
    y = np.asarray(batch.reward) + 0.99 * np.asarray(batch.discount) * soft
    loss, (metrics, _) = flow._crossq_loss(flow.critic, batch, after.action, after.log_prob)
    np.testing.assert_allclose(loss, 0.5 * ((q - y) ** 2).mean(1).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["mean"], q.mean(), rtol=1e-4, atol=1e-5)
    constant = jnp.asarray(y, jnp.float32)
    wanted = jax.grad(lambda c: flow._critic_loss(joint(c)[:, :16], constant)[0])(flow.critic)
    found = jax.grad(lambda c: flow._crossq_loss(c, batch, after.action, after.log_prob)[0])(flow.critic)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


def test_the_actor_is_judged_by_running_statistics_and_renews_its_own(spec, batch):
    flow = agent(spec)
    loss, (metrics, renewed) = flow._actor_loss(flow.actor, flow.critic, batch, jr.key(1))
    sample, _ = flow.actor.sample_train(batch.obs, jr.key(1))
    q = flow.critic(batch.obs, sample.action).min(0)
    np.testing.assert_allclose(loss, (0.2 * sample.log_prob - q).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -sample.log_prob.mean(), rtol=1e-6)
    assert renewed.velocity.norm.calls == 4.0  # one update of the statistics a step of the rollout


@pytest.mark.thorough
def test_alpha_falls_while_the_path_has_more_entropy_than_wanted(spec, batch):
    for target, falls in ((-100.0, True), (100.0, False)):
        flow = agent(spec, target_entropy=target)
        after, _ = flow.update(batch, jr.key(1))
        assert (after.log_alpha < flow.log_alpha) == falls


def test_the_actor_waits_for_policy_delay(spec, batch):
    flow = agent(spec, policy_delay=3)
    update = jax.jit(lambda a, k: a.update(batch, k))
    for i in range(2):
        after, metrics = update(flow, jr.key(i))
        assert_same(after.actor, flow.actor)
        assert np.isnan(metrics["actor_loss"]) and np.isfinite(metrics["critic_loss"])
        flow = after
    after, metrics = update(flow, jr.key(2))
    assert np.isfinite(metrics["actor_loss"]) and after.log_alpha != flow.log_alpha


def test_a_slow_target_is_mixed_from_the_new_critic(spec, batch):
    flow = agent(spec, critic="ema")
    after, _ = flow.update(batch, jr.key(1))
    for new, old, critic in zip(*map(jax.tree.leaves, (after.target, flow.target, after.critic)), strict=True):
        np.testing.assert_allclose(new, old + 0.005 * (critic - old), rtol=1e-5, atol=1e-7)
    assert agent(spec).target is None


def test_densities_are_in_the_units_of_the_environment():
    bounds = (-0.4,) * 17, (0.4,) * 17
    humanoid = Spec(jax.ShapeDtypeStruct((348,), jnp.float32), 17, False, *bounds)
    flow = agent(humanoid)
    unit = agent(replace(humanoid, action_low=(-1.0,) * 17, action_high=(1.0,) * 17))
    obs = jnp.ones((4, 348))
    a, b = flow.actor.sample(obs, jr.key(0)), unit.actor.sample(obs, jr.key(0))
    np.testing.assert_array_equal(a.action, b.action)
    np.testing.assert_allclose(a.log_prob - b.log_prob, -17 * np.log(0.4), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"velocity": "gru"}, "gated"), ({"critic": "redq"}, "crossq"), ({"policy_delay": 0}, "policy_delay")],
)
def test_bad_choices_give_one_clear_line(spec, changes, word):
    with pytest.raises(UsageError, match=word):
        agent(spec, **changes)


# On chunks


@pytest.fixture
def windows() -> Chunk:
    """Three windows of two steps: whole, ended by termination at its second step, cut after its first."""
    obs = jr.normal(jr.key(0), (3, 3))
    return Chunk(
        obs=obs,
        action=jr.uniform(jr.key(1), (3, 2, 2), minval=-0.9, maxval=0.9),
        reward=jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        discount=jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
        next_obs=obs + 1.0,
        valid=jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
    )


def chunked(spec, **changes) -> SACFlowChunked:
    config = sac_flow_chunked.Config(hidden=(8, 8), gate_hidden=(8,), chunk=2, gamma=0.9, **changes)
    return SACFlowChunked.create(jr.key(0), spec, config)


def test_the_target_looks_over_the_whole_chunk(spec, windows):
    flow = chunked(spec, ent_coef=0.3)
    after = flow.actor.sample(windows.next_obs, jr.key(5))
    value = flow.target(windows.next_obs, after.action).mean(0) - 0.3 * after.log_prob
    expected = np.array([1 + 0.9 * 2, 3 + 0.9 * 4, 5 + 0.9 * 6]) + 0.81 * np.array([1, 0, 1]) * np.asarray(value)
    np.testing.assert_allclose(flow._target(windows, jr.key(5)), expected, rtol=1e-5)


def test_a_window_across_an_end_teaches_the_critic_nothing(spec, windows):
    flow = chunked(spec)
    flat = windows.action.reshape(3, 4)
    loss = lambda y: flow._critic_loss(flow.critic, y, windows, flat)[0]
    np.testing.assert_allclose(loss(jnp.zeros(3)), loss(jnp.array([0.0, 0.0, 50.0])))
    q = np.asarray(flow.critic(windows.obs, flat))
    np.testing.assert_allclose(loss(jnp.ones(3)), ((q[:, :2] - 1) ** 2).sum() / 6, rtol=1e-5)


def test_steps_after_an_end_teach_the_flow_nothing(spec, windows):
    flow, changed = chunked(spec), windows.action.at[2, 1].set(0.0)
    a = flow._actor_loss(flow.actor, windows, windows.action.reshape(3, 4), jr.key(3))[0]
    b = flow._actor_loss(flow.actor, windows, changed.reshape(3, 4), jr.key(3))[0]
    np.testing.assert_allclose(a, b, rtol=1e-6)
    other = windows.action.at[2, 0].set(0.0)
    assert a != flow._actor_loss(flow.actor, windows, other.reshape(3, 4), jr.key(3))[0]


@pytest.mark.thorough
def test_offline_takes_two_steps_of_each_and_online_one(spec, windows):
    counts = {}
    for phase in ("offline", "online"):
        after, metrics = chunked(spec, phase=phase).update(windows, jr.key(1))
        counts[phase] = [int(after.opt[name][0].count) for name in ("critic", "actor")]
        assert (metrics["bc_loss"] > 0) == (phase == "offline")
        assert after.step == 1
    assert counts == {"offline": [2, 2], "online": [1, 1]}


def test_without_rl_the_flow_imitates_and_the_critic_rests(spec, windows):
    flow = chunked(spec, rl=False)
    after, metrics = flow.update(windows, jr.key(1))
    assert_same(after.critic, flow.critic)
    assert metrics["bc_loss"] > 0 and metrics["critic_loss"] == 0
    assert int(after.opt["actor"][0].count) == 1


@pytest.mark.thorough
def test_the_flow_learns_the_actions_whose_tanh_it_is(spec):
    """A flow cloned on one action for all states ends at that action."""
    flow = chunked(spec, rl=False, learning_rate=3e-3)
    action = jnp.broadcast_to(jnp.array([[0.5, -0.8], [0.9, 0.0]]), (64, 2, 2))
    ones, obs = jnp.ones((64, 2)), jr.normal(jr.key(0), (64, 3))
    data = Chunk(obs, action, ones, ones, obs, ones)

    def body(i, flow):
        return flow.update(data, jr.fold_in(jr.key(1), i))[0]

    flow = jax.jit(lambda f: jax.lax.fori_loop(0, 1_500, body, f))(flow)
    planned = flow.policy(obs, jr.key(2))
    np.testing.assert_allclose(planned.mean(0), [0.5, -0.8, 0.9, 0.0], atol=0.06)
