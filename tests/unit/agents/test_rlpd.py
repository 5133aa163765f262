"""RLPD: one update against the equations in float64, its slices one by one, and the members of its target."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.unit.agents import reference as ref
from tests.unit.agents.test_sac import sample
from trimtab.agents.rlpd import RLPD, Config, some_members
from trimtab.core import UsageError
from trimtab.nets.critic import Critic
from trimtab.ops import descend, polyak

CONFIG = Config(
    utd=1,
    critic_members=3,
    target_members=2,
    init_ent_coef=0.3,
    learning_rate=ref.RATE,
    gamma=ref.GAMMA,
    tau=ref.TAU,
    hidden=(8,),
)


@pytest.fixture(scope="module")
def agent(spec) -> RLPD:
    """An agent whose target differs from its critic."""
    one, two = (RLPD.create(key, spec, CONFIG) for key in jax.random.split(jax.random.key(12)))
    return replace(one, target=two.critic)


@pytest.mark.parametrize("entropy_in_backup", [True, False])
def test_update_is_the_equations(entropy_in_backup, agent, batch, getkey):
    agent = replace(agent, config=replace(agent.config, backup_entropy=entropy_in_backup))
    key = getkey()
    new, metrics = ref.update(agent, batch, key)
    k_next, k_actor = jax.random.split(key)
    draws = [jax.random.normal(k, (16, 2)) for k in (k_next, k_actor)]
    two = np.asarray(jax.random.permutation(jax.random.fold_in(k_next, 0), 3))[:2]
    with jax.enable_x64(True):
        old, rows, alpha = ref.double(agent), ref.double(batch), 0.3
        next_draws, here_draws = ref.double(draws)
        action, log_prob = sample(old.actor, rows.next_obs, next_draws)
        q = np.asarray(old.target(rows.next_obs, action))
        assert not np.array_equal(q[two].min(0), q.min(0))  # the third member would have mattered
        bonus = alpha * np.asarray(log_prob) if entropy_in_backup else 0.0
        y = ref.backup(rows, q[two].min(0) - bonus)  # (1)
        q_loss, q_norm, critic = ref.first_step(lambda f: ref.mean_square(f(rows.obs, rows.action), y), old.critic)

        def actor_loss(pi):  # (3), on the new critic
            action, log_prob = sample(pi, rows.obs, here_draws)
            q = critic(rows.obs, action)
            return (alpha * log_prob - (q[0] + q[1] + q[2]) / 3.0).mean()

        pi_loss, pi_norm, actor = ref.first_step(actor_loss, old.actor)
        entropy = -float(sample(old.actor, rows.obs, here_draws)[1].mean())
        a_loss, a_norm, log_alpha = ref.first_step(lambda a: jnp.exp(a) * (entropy + 1.0), old.log_alpha)  # (4)
        expected = {
            "critic_loss": q_loss,
            "critic_grad_norm": q_norm,
            "critic_mean": np.mean(old.critic(rows.obs, rows.action)),
            "actor_loss": pi_loss,
            "actor_grad_norm": pi_norm,
            "actor_entropy": entropy,
            "ent_coef_loss": a_loss,
            "ent_coef_grad_norm": a_norm,
            "ent_coef": np.exp(log_alpha),
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor")
        ref.assert_same(new.log_alpha, log_alpha, "temperature")
        ref.assert_same(new.target, ref.mix(critic, old.target), "target")


def test_slices_are_critic_steps_one_after_the_other(agent, batch, getkey):
    """Four slices of four rows: four critics and targets, then one actor, on the last slice."""
    agent, key = replace(agent, config=replace(agent.config, utd=4)), getkey()
    new, metrics = ref.update(agent, batch, key)
    k_next, k_actor = jax.random.split(key)
    critic, target, opt, losses = agent.critic, agent.target, agent.opt["critic"], []
    tx = optax.adam(ref.RATE)
    for i, k in enumerate(jax.random.split(k_next, 4)):
        rows = jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch)
        y = agent._target(target, rows, k)
        loss = lambda q, y=y, rows=rows: agent._critic_loss(q, y, rows)
        critic, opt, found = descend(tx, critic, opt, loss, "critic")
        target = polyak(critic, target, ref.TAU)
        losses.append(found["critic_loss"])
    ref.assert_same(new.critic, critic, "critic")
    ref.assert_same(new.target, target, "target")
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-4)
    wanted, _ = agent._actor_loss(agent.actor, critic, rows, k_actor)
    np.testing.assert_allclose(metrics["actor_loss"], wanted, rtol=1e-3)
    assert new.step == 1


def test_the_members_of_a_target_are_two_of_ten_by_key(spec, make_batch):
    critic, batch = Critic.create(spec, (4,), 10, jax.random.key(0), norm="layer"), make_batch(spec, jax.random.key(1))
    whole = np.asarray(critic(batch.obs, batch.action))
    seen = np.zeros(10)
    for i in range(40):
        two = np.asarray(some_members(critic, 2, jax.random.key(i))(batch.obs, batch.action))
        again = some_members(critic, 2, jax.random.key(i))(batch.obs, batch.action)
        np.testing.assert_array_equal(two, again)
        which = [int(np.abs(whole - q[None]).sum(1).argmin()) for q in two]
        np.testing.assert_allclose(two, whole[which], rtol=1e-5, atol=1e-6)
        assert len(set(which)) == 2
        seen[which] += 1
    assert seen.min() >= 1 and seen.sum() == 80


def test_all_networks_start_by_glorot(agent):
    """Uniform up to sqrt(6 / (in + out)), biases 0: the official code's start, of the actor as well."""
    for layer in (*agent.actor.net.layers, *agent.critic.mlp.layers):
        bound = np.sqrt(6.0 / sum(layer.weight.shape[-2:]))
        assert 0.7 * bound < np.abs(layer.weight).max() <= bound and not np.any(layer.bias)


def test_what_does_not_fit_is_named(agent, batch, spec, getkey):
    with pytest.raises(UsageError, match="target_members must be at most critic_members"):
        RLPD.create(getkey(), spec, replace(CONFIG, target_members=4))
    with pytest.raises(UsageError, match="utd must be at least 1, got 0"):
        RLPD.create(getkey(), spec, replace(CONFIG, utd=0))
    with pytest.raises(UsageError, match="a batch of 16 rows has no 5 equal slices"):
        replace(agent, config=replace(agent.config, utd=5)).update(batch, getkey())
