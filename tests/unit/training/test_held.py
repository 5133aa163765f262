"""The loop's leaves between calls: what comes of them is what the trees would give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents import DQN, PPO, SAC, config_class
from trimtab.core import Spec
from trimtab.data.rollouts import RolloutSource
from trimtab.data.sources import ReplaySource
from trimtab.envs.gym import Stepped
from trimtab.training.compile import Held, act, act_on, chunk, no_totals

SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)
BOX, CHOICES = Spec(SHAPE, 2, False, (-1.0, -1.0), (1.0, 1.0)), Spec(SHAPE, 4, True)


def stepped(spec: Spec, i: int, last: bool = False) -> Stepped:
    rng = np.random.default_rng(i)
    obs = rng.normal(size=(2, 1, 3)).astype(np.float32)
    action = (
        rng.integers(0, 4, (1,)).astype(np.int32) if spec.discrete else rng.uniform(-1, 1, (1, 2)).astype(np.float32)
    )
    return Stepped(
        obs[0], action, np.ones(1, np.float32), np.ones(1, np.float32), obs[1], np.ones(1, bool) if last else None
    )


@pytest.mark.parametrize(("agent", "spec"), [(DQN, CHOICES), (SAC, BOX)])
def test_updates_and_actions_are_those_of_the_trees(agent, spec):
    config = replace(config_class(agent)(), hidden=(8,), batch_size=4, buffer_size=32)
    made = agent.create(jr.key(0), spec, config)
    source = ReplaySource.create(spec, 32, 4)
    tree = (made, source.init(jr.key(1)))
    tree = (*tree, no_totals(source, *tree, None))
    held = Held(source, *jax.tree.map(jnp.copy, tree))
    obs = stepped(spec, 99).obs
    for i in range(6):
        rows = stepped(spec, i)
        held.update(jr.key(2), rows, np.int32(i > 1))
        tree = chunk(source, *tree, jr.key(2), rows.rows(), np.int32(i > 1))
        np.testing.assert_allclose(
            held.act(obs, jr.key(3), np.int32(i)), act(tree[0].explorer, obs, jr.key(3), np.int32(i)), atol=1e-6
        )
    for ours, theirs in zip(jax.tree.leaves(held.tree()), jax.tree.leaves(tree), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert held.tree()[0].step == 4 and jax.tree.structure(held.tree()) == jax.tree.structure(tree)


@pytest.mark.parametrize(("spec", "memory"), [(CHOICES, 0), (BOX, 0), (BOX, 4)])
def test_what_an_actor_draws_does_and_remembers(spec, memory):
    config = config_class(PPO)(hidden=(8,), n_steps=4, batch_size=4, sequence=2, memory=memory)
    agent = PPO.create(jr.key(0), spec, config)
    actor = agent.explorer
    source = RolloutSource.create(spec, actor.memory(()), 0.99, 1, 4)
    state = source.init(jr.key(1))
    held = Held(source, agent, state, no_totals(source, agent, state, None))
    obs, before = stepped(spec, 0).obs, jax.tree.map(lambda x: x + 0.5, actor.memory((1,)))
    found, expected = (f(obs, before, jr.key(3), np.int32(5)) for f in (held.act_on, lambda *xs: act_on(actor, *xs)))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    if spec is BOX:  # what is done is what is drawn, clipped
        many = np.stack([held.act_on(obs, before, jr.key(3), np.int32(i))[:2] for i in range(50)])
        assert (np.abs(many[:, 0]) > 1).any() and (np.clip(many[:, 0], -1, 1) == many[:, 1]).all()


def test_the_same_frame_compiles_once():
    config = replace(config_class(DQN)(), hidden=(8,), batch_size=4, buffer_size=32)
    source = ReplaySource.create(CHOICES, 32, 4)
    frames = []
    for seed in (0, 1):
        agent = DQN.create(jr.key(seed), CHOICES, config)
        state = source.init(jr.key(1))
        frames.append(Held(source, agent, state, no_totals(source, agent, state, None))._frame)
    assert frames[0] == frames[1] and hash(frames[0]) == hash(frames[1])
    other = DQN.create(jr.key(0), CHOICES, replace(config, gamma=0.5))
    state = source.init(jr.key(1))
    assert Held(source, other, state, no_totals(source, other, state, None))._frame != frames[0]
