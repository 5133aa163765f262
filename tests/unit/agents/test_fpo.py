"""FPO: its draws, flow-matching losses and ratio by hand, and a flow that follows what pays."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.unit.agents.test_ppo import rollout
from trimtab.agents.fpo import FPO, Config
from trimtab.core import UsageError

SMALL = Config(hidden=(8,), n_steps=3, batch_size=6, n_epochs=1, pairs=4, gamma=0.9, gae_lambda=0.8)


def by_hand(net, *parts) -> np.ndarray:
    """The velocity of a network with one hidden layer."""
    (w0, b0), (w1, b1) = ((np.asarray(layer.weight), np.asarray(layer.bias)) for layer in net.mlp.layers)
    return np.maximum(np.concatenate(parts) @ w0 + b0, 0.0) @ w1 + b1


def test_a_draw_is_ten_euler_steps(spec):
    agent, s, x = FPO.create(jr.key(0), spec, SMALL), np.array([0.3, -1.0, 2.0], np.float32), np.array([0.5, -0.2])
    start = jnp.asarray(x, jnp.float32)
    for k in range(10):
        x = x + 0.1 * by_hand(agent.actor, s, x, [0.1 * k])
    np.testing.assert_allclose(agent.actor.draw(jnp.asarray(s), start, 10), x, rtol=1e-5)
    drawn = jax.vmap(lambda k: agent.explorer.draw(jnp.asarray(s), (), k)[0])(jr.split(jr.key(1), 50))
    assert (np.abs(drawn) > 1.0).any() and np.abs(agent.explorer.applied(drawn)).max() == 1.0


def test_the_matching_loss_and_the_ratio_by_hand(spec):
    agent, old = (FPO.create(jr.key(i), spec, replace(SMALL, loss_bound=0.4)) for i in range(2))
    batch = rollout(spec, jr.key(2), memory=())
    rows, _ = old._rows(batch, batch.reward, jr.key(3))
    rho, matching, cut = [], [], 0
    for i in range(6):
        differences = []
        for j in range(4):
            t, e, a = np.asarray(rows.times)[i, j], np.asarray(rows.start)[i, j], np.asarray(rows.action)[i]
            loss = [
                np.mean((by_hand(n, rows.x[i], (1 - t) * e + t * a, [t]) - (a - e)) ** 2)
                for n in (old.actor, agent.actor)
            ]
            matching.append(loss[1])
            differences.append(np.clip(loss[0] - loss[1], -0.4, 0.4))
            cut += abs(loss[0] - loss[1]) > 0.4
        rho.append(np.exp(np.mean(differences)))
    assert 0 < cut < 24  # the bound bites, and not everywhere
    rho, advantage = np.array(rho), np.asarray(rows.advantage)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    expected = -np.minimum(rho * advantage, np.clip(rho, 0.8, 1.2) * advantage).mean()
    loss, metrics = agent._actor_loss(agent.actor, rows)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["matching"], np.mean(matching), rtol=1e-4)
    assert metrics["clip_fraction"] == np.mean(np.abs(rho - 1) > 0.2) > 0


def test_the_first_ratio_is_one_and_a_small_kl_ends_the_epochs(spec):
    batch, config = rollout(spec, jr.key(1), memory=()), replace(SMALL, n_epochs=4, target_kl=1e-6, learning_rate=0.1)
    update = jax.jit(lambda agent, key: agent.update(batch, key))
    _, metrics = update(FPO.create(jr.key(0), spec, config), jr.key(2))
    # The first minibatch has a ratio of one and is learnt from; the second has not.
    assert abs(float(metrics["actor_approx_kl"])) < 1e-6
    assert metrics["actor_clip_fraction"] == 0.0 and metrics["skipped"] == 0.75


@pytest.mark.thorough
def test_draws_move_to_what_pays(spec):
    """One state, reward for being near either of two places: draws end there (at one of them, since there is no bonus
    for entropy)."""
    config = replace(SMALL, n_steps=256, batch_size=64, n_epochs=10, pairs=20, hidden=(32, 32), learning_rate=3e-3)
    config = replace(config, normalise_obs=False, normalise_reward=False, gamma=0.0)
    agent, peaks = FPO.create(jr.key(0), spec, config), jnp.array([[0.6, 0.0], [-0.6, 0.0]])
    obs = jnp.ones((256, 1, 3))
    paid = lambda a: jnp.exp(-jnp.square(a[..., None, :] - peaks[None, None]).sum(-1) / 0.1).max(-1)

    @jax.jit
    def iteration(agent, key):
        k_act, k_update = jr.split(key)
        action, _ = agent.explorer.draw(obs, (), k_act)
        ones, over = jnp.ones((256, 1)), jnp.ones((256, 1), bool)
        batch = rollout(spec, key, 256, 1, ())
        batch = replace(
            batch, obs=obs, next_obs=obs, action=action, reward=paid(action), discount=0.0 * ones, last=over
        )
        return agent.update(batch, k_update)[0], paid(action).mean()

    found = []
    for i in range(40):
        agent, mean = iteration(agent, jr.key(i))
        found.append(float(mean))
    assert found[0] < 0.25 and np.mean(found[-5:]) > 0.9


def test_what_does_not_fit(spec):
    with pytest.raises(UsageError, match="pairs must be at least 1"):
        FPO.create(jr.key(0), spec, replace(SMALL, pairs=0))
