"""Diffusion Q-learning: one update against the equations in float64, and when its target policy is mixed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.agents import reference as ref
from trimtab.agents.diffusion_ql import Config, DiffusionQL
from trimtab.core import UsageError
from trimtab.policies.diffusion import schedule

CONFIG = Config(
    alpha=1.5,
    eta=0.7,
    diffusion_steps=21,
    candidates=4,
    ema_every=1,
    ema_start=0,
    learning_rate=ref.RATE,
    gamma=ref.GAMMA,
    tau=ref.TAU,
    hidden=(8,),
)


@pytest.fixture(scope="module")
def agent(spec) -> DiffusionQL:
    """An agent whose targets differ from its networks."""
    one, two = (DiffusionQL.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(8)))
    return replace(one, target_actor=two.actor, target_critic=two.critic)


@pytest.mark.parametrize("most", [False, True])
def test_update_is_the_equations(most, agent, batch, getkey):
    agent = replace(agent, config=replace(CONFIG, max_q_backup=most, backup_actions=3))
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    k_next, k_actor = jax.random.split(key)
    k_step, k_which = jax.random.split(k_actor)
    k_time, k_noise = jax.random.split(k_step)
    t = jax.random.randint(k_time, (16,), 0, 21)
    noise, which = jax.random.normal(k_noise, (16, 2)), int(jax.random.randint(k_which, (), 0, 2))
    # The target's actions by its own sampler (tests/unit/policies/test_diffusion.py holds it to closed forms).
    wide = jnp.broadcast_to(batch.next_obs, (3, 16, 3)) if most else batch.next_obs[None]
    actions = agent.target_actor(wide if most else batch.next_obs, k_next).reshape(-1, 16, 2)
    embedding = agent.actor.noise.time
    with jax.enable_x64(True):
        old, rows = ref.double(agent), ref.double(batch)
        noise, actions = ref.double((noise, actions))
        q = np.array([old.target_critic(rows.next_obs, action) for action in actions])  # (n, e, b)
        y = ref.backup(rows, q.max(0).min(0))  # (1); one sample is its own maximum
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)
        kept = jnp.asarray(schedule(21)[1])[t][:, None] * jnp.ones((1, 2))
        x = jnp.sqrt(kept) * rows.action + jnp.sqrt(1.0 - kept) * noise

        def parts(pi):
            angles = t[:, None].astype(jnp.float64) * jnp.asarray(10.0 ** (-4.0 * np.arange(8) / 7.0))[None]
            times = pi.noise.time.mlp(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1))
            found = pi.noise.net(jnp.concatenate([rows.obs, x, times], axis=1))
            a0 = jnp.clip((x - jnp.sqrt(1.0 - kept) * found) / jnp.sqrt(kept), -1.0, 1.0)
            return ((found - noise) ** 2).mean(), critic(rows.obs, a0)[which]

        scale = np.abs(np.asarray(parts(old.actor)[1])).mean()
        loss = lambda pi: 0.7 * parts(pi)[0] - 1.5 * parts(pi)[1].mean() / scale  # (3)
        pi_loss, pi_norm, actor = ref.first_step(loss, old.actor)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_error": parts(old.actor)[0],
            "actor_q": parts(old.actor)[1].mean(),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor.noise.net, actor.noise.net, "actor")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
    ref.assert_moved(new.actor.noise.time, embedding, "the embedding of steps")


def test_the_target_policy_is_a_copy_then_mixed_every_few_updates(agent, batch, getkey):
    agent = replace(agent, config=replace(CONFIG, ema_start=2, ema_every=3))
    for step in range(6):
        old = replace(agent, step=jnp.int32(step))
        new, _ = ref.update(old, batch, getkey())
        if step < 2:
            ref.assert_same(new.target_actor, new.actor, "a copy")
        elif (step + 1) % 3 == 0:
            ref.assert_same(new.target_actor, ref.mix(new.actor, old.target_actor), "mixed")
        else:
            ref.assert_untouched(new.target_actor, old.target_actor, "the target policy")


def test_gradients_are_scaled_down_to_a_norm(spec, batch, getkey):
    key = getkey()
    tight = DiffusionQL.create(getkey(), spec, replace(CONFIG, max_grad_norm=1e-12))
    new, metrics = ref.update(tight, batch, key)
    assert metrics["actor_grad_norm"] > 1e-3  # before it is scaled
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (new.actor, tight.actor)), strict=True)]
    assert max(moved) < 0.01 * ref.RATE  # far below Adam's 1e-8 a step is proportional to the gradient


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "dpm"}, "'dpm': choose ddpm or ddim"),
        ({"diffusion_steps": 5}, "at least 21, got 5"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"sampler": "ddim", "ddim_steps": 40}, "from 1 to 21"),
    ],
)
def test_what_does_not_fit_is_named(fields, message, spec, getkey):
    with pytest.raises(UsageError, match=message):
        DiffusionQL.create(getkey(), spec, replace(CONFIG, **fields))
