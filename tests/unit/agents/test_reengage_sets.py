"""Multi-ReenGAGE: what gates may and may not do, the target's gradient, and its limits."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.reengage_sets import Config, ReenGAGESets
from trimtab.batches import Transition
from trimtab.core import Spec, UsageError
from trimtab.envs.goals import goal_spec
from trimtab.nets.sets import SetEncoder, split
from trimtab.policies.sets import SetPolicy

N = 5
SPEC: Spec = goal_spec(2, 3 * N, 3, 2)
CONFIG = Config(encoder=(8,), embedding=4, hidden=(8,), learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU)


@pytest.fixture(scope="module")
def rows(make_batch) -> Transition:
    """Sixteen steps with sets of one to five goals; every fourth reaches its first one and is paid for it."""
    batch, draw = make_batch(SPEC, jr.key(5)), jr.split(jr.key(6), 2)
    present = (jnp.arange(N)[None] < jr.randint(draw[0], (16, 1), 1, N + 1)).astype(jnp.float32)
    items = jnp.round(3.0 * jr.normal(draw[1], (16, N, 2))) * present[..., None]
    goal = jnp.concatenate([present[..., None], items], axis=-1).reshape(16, -1)
    hit = jnp.arange(16) % 4 == 0
    achieved = jnp.where(hit[:, None], items[:, 0], 100.0)
    obs, after = batch.obs | {"desired_goal": goal}, batch.next_obs | {"desired_goal": goal, "achieved_goal": achieved}
    # Two goals in one cell do not happen in a set: let a hit be of the first one only.
    twice = (items[:, 1:] == items[:, :1]).all(-1).any(1) & hit
    assert not twice.any()
    return Transition(obs, batch.action, hit.astype(jnp.float32), batch.discount, after)


@pytest.fixture(scope="module")
def agent() -> ReenGAGESets:
    """An agent whose targets differ from its networks."""
    one, two = (ReenGAGESets.create(key, SPEC, CONFIG) for key in jr.split(jr.key(3)))
    return dataclasses.replace(one, target_actor=two.actor, target_critic=two.critic)


def with_rows(obs, change):
    """The observation with `change` made to its rows (b, n, 3)."""
    goal = obs["desired_goal"]
    return obs | {"desired_goal": change(goal.reshape(16, -1, 3)).reshape(16, -1)}


def test_absent_rows_have_no_say(agent, rows):
    gates, _, _ = split(rows.obs)
    assert 0 < (gates == 0).sum() < gates.size
    slope = jax.grad(lambda g: agent.critic.at(g, rows.obs, rows.action).sum())(gates)
    assert (np.asarray(slope)[np.asarray(gates) == 0] == 0.0).all()
    assert (np.asarray(slope)[np.asarray(gates) == 1] != 0.0).any()
    elsewhere = with_rows(rows.obs, lambda r: r.at[..., 1:].add(jnp.where(r[..., :1] == 0.0, 7.0, 0.0)))
    np.testing.assert_array_equal(agent.critic(elsewhere, rows.action), agent.critic(rows.obs, rows.action))
    np.testing.assert_array_equal(agent.policy(elsewhere, jr.key(0)), agent.policy(rows.obs, jr.key(0)))


def test_the_order_of_rows_does_not_matter(agent, rows):
    order = jnp.array([3, 0, 4, 1, 2])
    turned = with_rows(rows.obs, lambda r: r[:, order])
    np.testing.assert_allclose(agent.critic(turned, rows.action), agent.critic(rows.obs, rows.action), atol=1e-6)
    np.testing.assert_allclose(agent.policy(turned, jr.key(0)), agent.policy(rows.obs, jr.key(0)), atol=1e-6)
    slope = lambda obs: jax.grad(lambda g: agent.critic.at(g, obs, rows.action).sum())(split(obs)[0])
    np.testing.assert_allclose(slope(turned), slope(rows.obs)[:, order], atol=1e-6)


def test_twice_the_room_halves_the_encoding(rows):
    encoder = SetEncoder.create(SPEC, (8,), 4, jr.key(0))
    gates, items, context = split(rows.obs)
    wide = lambda x: jnp.concatenate([x, jnp.zeros_like(x)], axis=1)
    np.testing.assert_allclose(
        encoder(wide(gates), wide(items), context), 0.5 * encoder(gates, items, context), rtol=1e-5
    )


def test_without_a_future_the_gradient_is_the_rewards(rows):
    agent = ReenGAGESets.create(jr.key(0), SPEC, dataclasses.replace(CONFIG, gamma=0.0))
    y, slope = agent._target(rows)
    np.testing.assert_array_equal(y, rows.reward)
    expected = np.zeros((16, N))
    expected[::4, 0] = 2.0
    np.testing.assert_array_equal(slope, expected)


@pytest.mark.parametrize("through", [False, True])
def test_the_targets_gradient_is_the_finite_difference(agent, rows, through):
    agent = dataclasses.replace(agent, config=dataclasses.replace(CONFIG, through_policy=through))
    with jax.enable_x64(True):
        old, b = ref.double(agent), ref.double(rows)
        gates = split(b.next_obs)[0]
        policy = SetPolicy(old.target_critic.encoder, old.target_actor)
        cut = policy(b.next_obs)

        @jax.jit
        def value(g):
            action = policy.at(g, b.next_obs) if through else cut
            return ref.GAMMA * b.discount * old.target_critic.at(g, b.next_obs, action)[0]

        slope = np.array(old._target(b)[1])
        slope[::4, 0] -= 2.0  # the reward's own
        for i in range(N):
            h = jnp.zeros_like(gates).at[:, i].set(1e-7)
            np.testing.assert_allclose(slope[:, i], (value(gates + h) - value(gates - h)) / 2e-7, rtol=1e-4, atol=1e-7)


def test_update_is_the_equations(agent, rows, getkey):
    new, metrics = ref.update(agent, rows, getkey())
    with jax.enable_x64(True):
        old, b = ref.double(agent), ref.double(rows)
        y, wanted = old._target(b)  # tested above
        gates = split(b.obs)[0]

        def loss(q):
            slope = jax.vmap(
                lambda g, o, a: jax.grad(lambda g: q.at(g[None], jax.tree.map(lambda x: x[None], o), a[None])[0, 0])(g)
            )(gates, b.obs, b.action)
            match = jnp.square(slope - wanted).sum() / (16 * N)
            return jnp.square(q(b.obs, b.action)[0] - y).mean() + CONFIG.goal_match * match

        critic_loss, critic_norm, critic = ref.first_step(loss, old.critic)
        policy = lambda head: SetPolicy(critic.encoder, head)(b.obs)
        actor_loss, _, actor = ref.first_step(lambda head: -critic(b.obs, policy(head)).mean(), old.actor)
        found = [metrics[name] for name in ("critic_loss", "critic_grad_norm", "actor_loss")]
        np.testing.assert_allclose(found, [critic_loss, critic_norm, actor_loss], rtol=2e-4)
        ref.assert_same(new.critic, critic, "critic, its encoder too")
        ref.assert_same(new.actor, actor, "actor: its head alone, on the new critic")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")


def test_goals_that_are_no_sets_are_refused(spec):
    with pytest.raises(UsageError, match="desired_goal has 5 numbers"):
        ReenGAGESets.create(jr.key(0), goal_spec(2, 5, 3, 2), CONFIG)
    with pytest.raises(UsageError, match="reengage-sets needs observations with the parts"):
        ReenGAGESets.create(jr.key(0), spec, CONFIG)


def test_gates_enter_squared(rows):
    encoder = SetEncoder.create(SPEC, (8,), 4, jr.key(0))
    gates, items, context = split(rows.obs)
    whole = encoder(gates, items, context)
    np.testing.assert_allclose(encoder(0.5 * gates, items, context), 0.25 * whole, rtol=1e-5, atol=1e-7)
    slope = jax.jvp(lambda b: encoder(b, items, context), (gates,), (gates,))[1]
    np.testing.assert_allclose(slope, 2.0 * whole, rtol=1e-5, atol=1e-7)  # sum_i b_i dz/db_i
