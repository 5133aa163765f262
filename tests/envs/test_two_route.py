"""TwoRoute: its rules by hand, and what its scripted data hold."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.core import AbstractPolicy, UsageError
from trimtab.envs.make import find
from trimtab.envs.two_route import VARIANTS, Behaviour, TwoRoute, demonstrations
from trimtab.envs.wrappers import TimeLimit
from trimtab.training.evaluate import WorldEvaluator

STILL = TwoRoute.create(noise=0.0, start_noise=0.0)


def step(p, action, world=STILL):
    after, out = world.step(jnp.asarray(p, jnp.float32), jnp.asarray(action, jnp.float32), jr.key(0))
    np.testing.assert_array_equal(after, out.obs)
    return np.asarray(after).tolist(), float(out.reward), bool(out.terminated), bool(out.info["success"])


@pytest.mark.parametrize(
    ("p", "action", "after", "reward"),
    [
        ((0.0, -0.8), (0.5, 1.0), (0.05, -0.7), -1.0),
        ((0.0, -0.4), (0.0, 1.0), (0.0, -0.4), -1.0),  # the wall: it stays where it is
        ((0.0, -0.44), (0.0, 0.8), (0.0, -0.36), -1.0),
        ((0.35, 0.0), (0.0, 1.0), (0.35, 0.1), -1.0),  # along the wall's edge
        ((0.95, 0.95), (1.0, 1.0), (1.0, 1.0), -1.0),  # the border
        ((0.0, -0.8), (3.0, -3.0), (0.1, -0.9), -1.0),  # actions are clipped
        ((0.0, 0.6), (0.0, 0.6), (0.0, 0.66), 0.0),
        ((0.0, 0.6), (0.0, 0.4), (0.0, 0.64), -1.0),
    ],
)
def test_steps_by_hand(p, action, after, reward):
    found, r, terminated, success = step(p, action)
    np.testing.assert_allclose(found, after, atol=1e-6)
    assert (r, terminated, success) == (reward, reward == 0.0, reward == 0.0)


def test_start_and_parameters():
    starts = np.asarray(jax.vmap(lambda k: TwoRoute.create().reset(k)[1])(jr.split(jr.key(0), 2000)))
    np.testing.assert_allclose(starts.mean(0), [0.0, -0.8], atol=0.005)
    np.testing.assert_allclose(starts.std(0), [0.05, 0.05], atol=0.003)
    # Parameters are arrays: many worlds at once, each with its own.
    worlds = jax.vmap(lambda w: TwoRoute(*map(jnp.float32, (0.1, 0.0, 0.0)), w, jnp.float32(0.15)))(
        jnp.array([0.1, 0.5])
    )
    after, _ = jax.vmap(lambda world: world.step(jnp.array([0.0, -0.4]), jnp.array([0.0, 1.0]), jr.key(0)))(worlds)
    np.testing.assert_allclose(after, [[0.0, -0.3], [0.0, -0.4]], atol=1e-6)
    assert isinstance(find("trimtab/TwoRoute-v0").own, TwoRoute)


def test_scripted_data():
    data = demonstrations(VARIANTS["two-route"], 0)
    last = data["terminals"] | data["timeouts"]
    assert last.sum() == 400 and last[-1]
    assert 13_000 < len(last) < 15_000
    assert data["terminals"].sum() / 400 == pytest.approx(0.96, abs=0.02)
    lengths = np.diff(np.concatenate([[-1], np.flatnonzero(last)]))
    assert lengths.max() == 60 and lengths[data["terminals"][last]].mean() == pytest.approx(33.5, abs=1.5)
    np.testing.assert_array_equal(data["next_observations"][:-1][~last[:-1]], data["observations"][1:][~last[:-1]])
    np.testing.assert_array_equal(data["rewards"], np.where(data["terminals"], 0.0, -1.0))
    # Nobody is ever in the wall, nor beyond the border; both sides are taken.
    places = np.concatenate([data["observations"], data["next_observations"]])
    assert not (np.abs(places) < 0.35).all(1).any() and np.abs(places).max() <= 1.0
    sides = [
        np.sign(x[np.abs(x).argmax()]) for x in np.split(data["observations"][:, 0], np.flatnonzero(last)[:-1] + 1)
    ]
    assert np.mean(np.array(sides) < 0) == pytest.approx(0.5, abs=0.08)
    assert np.abs(data["actions"]).max() <= 1.0
    assert all(array.dtype == np.float32 for name, array in data.items() if name not in ("terminals", "timeouts"))
    again = demonstrations(VARIANTS["two-route"], 0)
    assert all(np.array_equal(data[name], again[name]) for name in data)
    assert not np.array_equal(data["actions"][:100], demonstrations(VARIANTS["two-route"], 1)["actions"][:100])


@pytest.mark.thorough
def test_variants():
    one, slow, sparse = (demonstrations(VARIANTS[f"two-route-{name}"], 0) for name in ("one-sided", "slow", "sparse"))
    middle = np.abs(one["observations"][:, 1]) < 0.2
    assert (one["observations"][middle, 0] < 0).all()
    ends = lambda data: data["terminals"] | data["timeouts"]
    assert ends(slow).sum() == 400 and len(ends(slow)) / 400 > 60  # more than an episode of the world itself lasts
    assert np.linalg.norm(slow["actions"], axis=1).mean() < 0.45
    assert ends(sparse).sum() == 100
    with pytest.raises(UsageError, match="episodes must be at least 1, got 0"):
        demonstrations(Behaviour(episodes=0), 0)


class Around(AbstractPolicy):
    """Passes the wall on the right as fast as it can; with `plan` > 1 it plans that many steps ahead, blindly."""

    def __call__(self, obs, key):
        x, y = obs[..., 0], obs[..., 1]
        right = jnp.where(y < 0.4, 0.5, 0.0) - x
        up = jnp.where((x < 0.4) & (y < -0.42), jnp.clip(-0.42 - y, 0.0, 0.1), jnp.where(x < 0.4, 0.8 - y, 1.0))
        up = jnp.where((y >= 0.4) | (x >= 0.4), 0.8 - y, up)
        return jnp.clip(10.0 * jnp.stack([right, up], axis=-1), -1.0, 1.0)


class Idle(AbstractPolicy):
    """Stays."""

    def __call__(self, obs, key):
        return jnp.zeros_like(obs)


def test_success_is_reported():
    episodes = WorldEvaluator(TwoRoute.create(), 0)(Around(), 20)
    assert [e["success"] for e in episodes] == [1.0] * 20
    assert all(15 < e["length"] < 30 and e["return"] == 1 - e["length"] for e in episodes)
    idle = WorldEvaluator(TwoRoute.create(), 0)(Idle(), 3)
    assert [(e["success"], e["length"], e["return"]) for e in idle] == [(0.0, 60, -60.0)] * 3


class Blind(AbstractPolicy):
    """Plans 7 actions, all the one that `Around` would take now."""

    def __call__(self, obs, key):
        return jnp.tile(Around()(obs, key), 7)


def test_an_evaluation_follows_plans_of_a_length_that_does_not_divide_the_episode():
    world = TimeLimit(TwoRoute.create())
    (found,) = WorldEvaluator(TwoRoute.create(), 5)(Blind(), 1)
    k_reset, k_run = jr.split(jr.split(jr.key(5), 1)[0])
    state, obs = world.reset(k_reset)
    total, over = 0.0, False
    for t, k in enumerate(jr.split(k_run, 60)):
        if t % 7 == 0:
            action = Around()(obs, k)
        state, out = world.step(state, action, jr.split(k)[1])
        total, obs, over = total + float(out.reward), out.obs, bool(out.terminated | out.truncated)
        if over:
            break
    assert (found["return"], found["length"]) == (total, t + 1)
