"""The classic worlds step as Gymnasium's do, from the same states with the same actions."""

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.envs.classic import CartPole, Pendulum


@pytest.mark.parametrize(("world", "name"), [(CartPole(), "CartPole-v1"), (Pendulum(), "Pendulum-v1")])
def test_steps_are_gymnasiums(world, name):
    theirs = gymnasium.make(name).unwrapped
    theirs.reset(seed=0)
    rng, step = np.random.default_rng(1), jax.jit(lambda s, a: world.step(s, a, jr.key(0)))
    ends = 0
    for _ in range(40):
        state = rng.normal(size=4 if name == "CartPole-v1" else 2) * (
            np.array([1.5, 1.0, 0.12, 1.0]) if name == "CartPole-v1" else np.array([4.0, 4.0])
        )
        theirs.state = state.copy()
        theirs.steps_beyond_terminated = None
        action = rng.integers(2) if name == "CartPole-v1" else rng.uniform(-1, 1, 1).astype(np.float32)
        obs, reward, terminated, _, _ = theirs.step(action if name == "CartPole-v1" else 2.0 * action)
        _, out = step(jnp.asarray(state, jnp.float32), jnp.asarray(action))
        np.testing.assert_allclose(out.obs, obs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.reward, reward, rtol=1e-4)
        assert bool(out.terminated) == terminated
        ends += terminated
    assert ends > 3 or name == "Pendulum-v1"


@pytest.mark.parametrize(("world", "name"), [(CartPole(), "CartPole-v1"), (Pendulum(), "Pendulum-v1")])
def test_episodes_begin_and_end_alike(world, name):
    theirs = gymnasium.make(name)
    assert world.max_steps == theirs.spec.max_episode_steps
    space = theirs.observation_space
    _, ours = jax.vmap(world.reset)(jr.split(jr.key(0), 500))
    first = np.stack([theirs.reset(seed=i)[0] for i in range(500)])
    assert all(space.contains(np.asarray(x)) for x in ours[:10])
    np.testing.assert_allclose(ours.mean(0), first.mean(0), atol=0.15)
    np.testing.assert_allclose(ours.std(0), first.std(0), atol=0.1)
