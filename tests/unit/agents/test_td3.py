"""TD3: two updates against the equations in float64, and its delays."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.td3 import TD3, Config

# Noise so wide that some draws are clipped and some are not, and some actions leave [-1, 1].
CONFIG = Config(
    learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,), target_noise=0.6, target_noise_clip=0.7
)


@pytest.fixture(scope="module")
def agent(spec) -> TD3:
    """An agent whose targets differ from its networks."""
    one, two = (TD3.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(8)))
    wide = jax.tree.map(lambda leaf: 4.0 * leaf, two.actor)  # target actions near the bounds
    return TD3(one.actor, one.critic, wide, two.critic, one.opt, one.step, CONFIG)


def target(old: TD3, rows, draws) -> np.ndarray:
    """(14) and (10)."""
    plain = np.asarray(old.target_actor(rows.next_obs))
    noise = np.clip(0.6 * draws, -0.7, 0.7)
    assert 0.05 < (np.abs(noise) == 0.7).mean() < 0.95 and (np.abs(plain + noise) > 1.0).any()
    q = np.asarray(old.target_critic(rows.next_obs, jnp.asarray(np.clip(plain + noise, -1.0, 1.0))))
    assert (q[0] < q[1]).any() and (q[1] < q[0]).any()
    return ref.backup(rows, np.minimum(q[0], q[1]))


def test_first_update_moves_the_critic_only(agent, batch, getkey):
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    draws = np.asarray(jax.random.normal(key, (16, 2)), np.float64)
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        y = target(old, rows, draws)
        loss, norm, critic = ref.first_step(lambda q: ref.mean_square(q(rows.obs, rows.action), y), old.critic)
        expected = {
            "critic_loss": loss,
            "critic_grad_norm": norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
        }
        skipped = dict.fromkeys(("actor_loss", "actor_grad_norm", "actor_saturation"), np.nan)
        ref.assert_metrics(metrics, expected | skipped)
        ref.assert_same(new.critic, critic, "critic")
    for name in ("actor", "target_actor", "target_critic"):
        ref.assert_untouched(getattr(new, name), getattr(agent, name), name)
    ref.assert_untouched(new.opt["actor"], agent.opt["actor"], "the actor's optimiser")
    assert new.step == 1


def test_second_update_moves_actor_and_targets(agent, batch, getkey):
    key = getkey()
    agent = replace(agent, step=jnp.int32(1))
    new, metrics = ref.update(agent, batch, key)
    draws = np.asarray(jax.random.normal(key, (16, 2)), np.float64)
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        y = target(old, rows, draws)
        _, _, critic = ref.first_step(lambda q: ref.mean_square(q(rows.obs, rows.action), y), old.critic)
        q1 = lambda pi: critic(rows.obs, pi(rows.obs))[0]
        loss, norm, actor = ref.first_step(lambda pi: -q1(pi).mean(), old.actor)
        assert abs(loss + float(critic(rows.obs, old.actor(rows.obs)).min(0).mean())) > 1e-3  # Q_1, not the least
        expected = {"actor_loss": loss, "actor_grad_norm": norm, "actor_saturation": 0.0}
        ref.assert_metrics({name: metrics[name] for name in expected}, expected)
        ref.assert_same(new.actor, actor, "actor: it descends on the first member of the new critic")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
    assert new.step == 2


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_every_delay_th_update(delay, spec, batch, getkey):
    agent = TD3.create(getkey(), spec, replace(CONFIG, policy_delay=delay))
    moved = []
    for _ in range(6):
        new, metrics = ref.update(agent, batch, getkey())
        changed = {
            name: any(
                np.any(a != b)
                for a, b in zip(jax.tree.leaves(getattr(new, name)), jax.tree.leaves(getattr(agent, name)), strict=True)
            )
            for name in ("critic", "actor", "target_actor", "target_critic")
        }
        assert changed["critic"]
        assert (
            changed["actor"]
            == changed["target_actor"]
            == changed["target_critic"]
            == np.isfinite(metrics["actor_loss"])
        )
        moved.append(changed["actor"])
        agent = new
    assert moved == [(i + 1) % delay == 0 for i in range(6)]


def test_discount_zero_leaves_the_reward(agent, batch, getkey):
    ended = eqx.tree_at(lambda b: b.discount, batch, jnp.zeros(16))
    q = agent.critic(batch.obs, batch.action)
    _, metrics = ref.update(agent, ended, getkey())
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - batch.reward[None]) ** 2), rtol=1e-5)
