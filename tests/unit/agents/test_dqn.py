"""Targets of DQN by hand, masks, and priorities."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.dqn import DQN, Config
from trimtab.batches import Transition, Weighted
from trimtab.core import Spec, UsageError
from trimtab.ops import project, quantile_huber

SPEC = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 4, True)
SMALL = Config(hidden=(8,), gamma=0.9, atoms=5, v_min=-3.0, v_max=3.0)


def rows(key: jax.Array, n: int = 6) -> Transition:
    keys = jr.split(key, 5)
    return Transition(
        jr.normal(keys[0], (n, 3)),
        jr.randint(keys[1], (n,), 0, 4),
        jr.normal(keys[2], (n,)),
        jnp.array([1.0, 0.0, 0.81, 1.0, 0.0, 1.0])[:n],
        jr.normal(keys[3], (n, 3)),
    )


def agent_with(**changes) -> DQN:
    """An agent whose target is another network."""
    agent = DQN.create(jr.key(0), SPEC, replace(SMALL, **changes))
    return replace(agent, target=DQN.create(jr.key(1), SPEC, replace(SMALL, **changes)).critic)


def q_values(net, x):
    return np.asarray(net.values(net(x)))


@pytest.mark.parametrize("double", [True, False])
def test_the_loss_by_hand(double):
    agent, batch = agent_with(double=double), rows(jr.key(2))
    online, target = q_values(agent.critic, batch.next_obs), q_values(agent.target, batch.next_obs)
    best = (online if double else target).argmax(1)
    y = np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * target[np.arange(6), best]
    error = np.abs(q_values(agent.critic, batch.obs)[np.arange(6), batch.action] - y)
    expected = np.where(error <= 1, 0.5 * error**2, error - 0.5).mean()
    _, metrics = agent.update(batch, jr.key(3))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)
    assert (online.argmax(1) != target.argmax(1)).any()  # or both would be the same


@pytest.mark.parametrize(("double", "expected"), [(True, 0.0), (False, 1.5388)])
def test_the_best_of_ten_noises_is_not_worth_anything(double, expected):
    # All ten arms pay nothing, and both networks are wrong by noise of their own, N(0, 1). The greatest of ten is
    # 1.5388 in the mean, and so is DQN's target; the other network's choice is no better than chance.
    states = 2000
    spec = Spec(jax.ShapeDtypeStruct((states,), jnp.float32), 10, True)
    agent = DQN.create(jr.key(0), spec, Config(hidden=(), gamma=1.0, double=double))
    tables = [jax.tree.map(lambda p, k=k: jr.normal(jr.key(k), p.shape), agent.critic) for k in (1, 2)]
    zero = jnp.zeros(states)
    every = Transition(jnp.eye(states), zero.astype(jnp.int32), zero, jnp.ones(states), jnp.eye(states))
    target = replace(agent, critic=_without_bias(tables[0]), target=_without_bias(tables[1]))._target(every)
    assert float(target.mean()) == pytest.approx(expected, abs=5 / np.sqrt(states))


def _without_bias(critic):
    """Else one arm would be better than another everywhere."""
    return eqx.tree_at(lambda q: q.mlp.layers[0].bias, critic, replace_fn=jnp.zeros_like)


@pytest.mark.parametrize("critic", ["c51", "qr"])
def test_distributional_losses_by_hand(critic):
    agent, batch = agent_with(critic=critic), rows(jr.key(2))
    best = q_values(agent.critic, batch.next_obs).argmax(1)
    after = np.asarray(agent.target(batch.next_obs))[np.arange(6), best]
    found = np.asarray(agent.critic(batch.obs))[np.arange(6), batch.action]
    scale = 0.9 * np.asarray(batch.discount)
    if critic == "c51":
        m = project(jax.nn.softmax(jnp.asarray(after)), -3.0, 3.0, batch.reward, jnp.asarray(scale))
        expected = -(np.asarray(m) * np.asarray(jax.nn.log_softmax(jnp.asarray(found)))).sum(1).mean()
    else:
        samples = np.asarray(batch.reward)[:, None] + scale[:, None] * after
        expected = quantile_huber(jnp.asarray(found), jnp.asarray(samples)).mean()
    _, metrics = agent.update(batch, jr.key(3))
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-5)


def test_dueling_adds_value_and_centred_advantage():
    agent = DQN.create(jr.key(0), SPEC, replace(SMALL, dueling=True))
    x = jr.normal(jr.key(1), (2, 3))
    raw = np.asarray(agent.critic.mlp(x))
    expected = raw[:, :1] + raw[:, 1:] - raw[:, 1:].mean(1, keepdims=True)
    np.testing.assert_allclose(q_values(agent.critic, x), expected, rtol=1e-5)


def test_weights_and_priorities():
    agent, batch = agent_with(prioritised=True, alpha=0.5, beta=0.4, beta_updates=100), rows(jr.key(2))
    density = jnp.array([4.0, 1.0, 0.25, 1.0, 2.0, 0.5])
    weighted = Weighted(batch, jnp.arange(6), density)
    agent = replace(agent, step=jnp.int32(50))  # beta is half-way between 0.4 and 1
    expected = np.asarray(density) ** -0.7
    np.testing.assert_allclose(agent._weight(weighted), expected / expected.max(), rtol=1e-5)
    target = agent._target(batch)[:, 0]
    delta = np.abs(target - q_values(agent.critic, batch.obs)[np.arange(6), batch.action])
    np.testing.assert_allclose(agent.surprise(weighted), np.sqrt(delta + 1e-6), rtol=1e-5)


def test_masks_hold_in_targets_and_exploration():
    parts = {"action_mask": jax.ShapeDtypeStruct((4,), jnp.float32), "x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    agent = DQN.create(jr.key(0), Spec(parts, 4, True), SMALL)
    assert agent.critic.mlp.layers[0].weight.shape[0] == 3  # the mask is no input
    x = jr.normal(jr.key(1), (200, 3))
    best = q_values(agent.critic, x).argmax(1)
    mask = jnp.ones((200, 4)).at[jnp.arange(200), best].set(0.0)  # what it would like best
    obs = {"action_mask": mask, "x": x}
    for policy in (agent.policy, agent.explorer):
        action = policy(obs, jr.key(2))
        assert (np.asarray(mask)[np.arange(200), action] == 1).all()
    batch = Transition(obs, jnp.zeros(200, jnp.int32), jnp.zeros(200), jnp.ones(200), obs)
    allowed = np.where(np.asarray(mask) == 1, q_values(agent.critic, x), -np.inf)
    np.testing.assert_allclose(agent._target(batch)[:, 0], 0.9 * allowed.max(1), rtol=1e-5)


def test_epsilon_falls():
    agent = DQN.create(jr.key(0), SPEC, replace(SMALL, epsilon=0.1, exploration_updates=10))
    for step, expected in ((0, 1.0), (5, 0.55), (10, 0.1), (99, 0.1)):
        np.testing.assert_allclose(replace(agent, step=jnp.int32(step)).explorer.epsilon, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [(dict(critic="iqn"), "unknown critic"), (dict(n_step=0), "n_step must"), (dict(critic="c51", v_min=4.0), "v_min")],
)
def test_what_does_not_fit(changes, says):
    with pytest.raises(UsageError, match=says):
        agent_with(**changes)
    with pytest.raises(UsageError, match="several choices at once"):
        DQN.create(jr.key(0), replace(SPEC, action_size=2, factors=(2, 3)), SMALL)
