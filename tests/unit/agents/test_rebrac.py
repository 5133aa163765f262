"""ReBRAC: the update that moves everything against the equations in float64, and where its penalty is dropped."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.rebrac import Config, ReBRAC
from trimtab.batches import Sarsa

CONFIG = Config(
    alpha_actor=0.4,
    alpha_critic=0.3,
    learning_rate=ref.RATE,
    gamma=ref.GAMMA,
    tau=ref.TAU,
    hidden=(8,),
    target_noise=0.6,
    target_noise_clip=0.7,
)


@pytest.fixture(scope="module")
def agent(spec) -> ReBRAC:
    """An agent whose targets differ from its networks, one update before its actor is due."""
    one, two = (ReBRAC.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(8)))
    return replace(one, target_actor=two.actor, target_critic=two.critic, step=jnp.int32(1))


@pytest.fixture
def rows(batch) -> Sarsa:
    """Sixteen transitions of which every third has no next action."""
    known = (jnp.arange(16) % 3 != 0).astype(jnp.float32)
    after = jax.random.uniform(jax.random.key(3), (16, 2), minval=-1.0)
    return Sarsa(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, after, known)


def test_update_is_the_equations(agent, rows, getkey):
    key = getkey()
    new, metrics = ref.update(agent, rows, key)
    draws = np.asarray(jax.random.normal(key, (16, 2)), np.float64)
    with jax.enable_x64(True):
        old, batch = ref.double(agent), ref.double(rows)
        noise = np.clip(0.6 * draws, -0.7, 0.7)
        action = np.clip(np.asarray(old.target_actor(batch.next_obs)) + noise, -1.0, 1.0)
        q = np.asarray(old.target_critic(batch.next_obs, jnp.asarray(action)))
        assert (q[0] < q[1]).any() and (q[1] < q[0]).any()
        penalty = ((action - np.asarray(batch.next_action)) ** 2).sum(1)
        penalty[::3] = 0.0  # no next action in the data
        y = ref.backup(batch, np.minimum(q[0], q[1]) - 0.3 * penalty)  # (1)
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(batch.obs, batch.action), y), old.critic)
        least = lambda pi: critic(batch.obs, pi(batch.obs)).min(0)
        scale = np.abs(np.asarray(least(old.actor))).mean()
        distance = lambda pi: ((pi(batch.obs) - batch.action) ** 2).sum(1).mean()
        pi_loss, pi_norm, actor = ref.first_step(
            lambda pi: 0.4 * distance(pi) - least(pi).mean() / scale, old.actor
        )  # (3)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(batch.obs, batch.action)),
            "critic_penalty": penalty.mean(),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_distance": distance(old.actor),
            "actor_q": least(old.actor).mean(),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
    assert new.step == 2


def test_a_next_action_of_another_episode_has_no_say(agent, rows, getkey):
    key = getkey()
    ends = rows.next_valid == 0
    shift = jnp.where(jnp.broadcast_to(ends[:, None], rows.next_action.shape), 0.9, 0.0)
    other = replace(rows, next_action=rows.next_action - shift)
    (a, m), (b, n) = (ref.update(agent, batch, key) for batch in (rows, other))
    ref.assert_untouched(a, b, "an update")
    assert m["critic_loss"] == n["critic_loss"]
    seen = replace(rows, next_action=rows.next_action - (0.9 - shift))
    assert ref.update(agent, seen, key)[1]["critic_loss"] != m["critic_loss"]


def test_actor_and_targets_move_every_other_update(agent, rows, getkey):
    for step, moves in ((0, False), (1, True), (2, False), (3, True)):
        old = replace(agent, step=jnp.int32(step))
        new, metrics = ref.update(old, rows, getkey())
        assert np.isfinite(metrics["actor_loss"]) == moves
        for name in ("actor", "target_actor", "target_critic"):
            pairs = zip(jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(old, name)), strict=True)
            assert any(np.any(a != b) for a, b in pairs) == moves
        ref.assert_moved(new.critic, old.critic, "critic")


def test_discount_zero_leaves_the_reward(agent, rows, getkey):
    ended = eqx.tree_at(lambda b: b.discount, rows, jnp.zeros(16))
    q = agent.critic(rows.obs, rows.action)
    _, metrics = ref.update(agent, ended, getkey())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - rows.reward[None]) ** 2), rtol=1e-5)
