"""ReenGAGE on DDPG and SAC: one update against the equations in float64, its limits, and its gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.unit.agents import reference as ref
from trimtab.agents import ddpg, reengage, reengage_sac, sac
from trimtab.batches import Transition
from trimtab.core import DESIRED, Spec, UsageError
from trimtab.envs.seek import DriveSeek

ALPHA = 0.7
SHARED = dict(learning_rate=ref.RATE, gamma=ref.GAMMA, tau=ref.TAU, hidden=(8,))
CONFIG = reengage.Config(**SHARED, goal_match=ALPHA, action_l2=0.7)
SIZE = 3
"""Numbers of a goal."""


@pytest.fixture(scope="module")
def goal_spec() -> Spec:
    """Goals of three numbers, two actions."""
    sizes = {"achieved_goal": SIZE, "desired_goal": SIZE, "observation": 2}
    return Spec({name: jax.ShapeDtypeStruct((n,), jnp.float32) for name, n in sizes.items()}, 2)


@pytest.fixture(scope="module")
def rows(goal_spec, make_batch) -> Transition:
    """Sixteen steps with one goal before and after, of which about a half reached it."""
    batch = make_batch(goal_spec, jr.key(5))
    reward = jnp.where(jr.bernoulli(jr.key(6), 0.5, (16,)), 0.0, -1.0)
    next_obs = batch.next_obs | {DESIRED: batch.obs[DESIRED]}
    return dataclasses.replace(batch, reward=reward, next_obs=next_obs)


def two(goal_spec, config=CONFIG) -> reengage.ReenGAGE:
    """An agent whose targets differ from its networks."""
    one, other = (reengage.ReenGAGE.create(key, goal_spec, config) for key in jr.split(jr.key(3)))
    return dataclasses.replace(one, target_actor=other.actor, target_critic=other.critic)


def slopes(value, goal):
    """The gradient of each row's value by its own goal, one row after the other."""
    one = lambda i: lambda g: value(goal.at[i].set(g))[i]
    return jnp.stack([jax.grad(one(i))(goal[i]) for i in range(goal.shape[0])])


def test_update_is_the_equations(goal_spec, rows, getkey):
    agent = two(goal_spec)
    new, metrics = ref.update(agent, rows, getkey())
    with jax.enable_x64(True):
        old, b = ref.double(agent), ref.double(rows)
        after = lambda goal: old.target_critic(
            b.next_obs | {DESIRED: goal}, old.target_actor(b.next_obs | {DESIRED: goal})
        )[0]
        goal = b.obs[DESIRED]
        y = ref.backup(b, after(goal))
        wanted = ref.GAMMA * b.discount[:, None] * slopes(after, goal)
        mask = np.where(np.asarray(b.reward) == -1.0, 1.0, 0.0)
        assert 3 < mask.sum() < 13

        def apart(q):
            found = slopes(lambda goal: q(b.obs | {DESIRED: goal}, b.action)[0], goal)
            return sum(mask[i] * jnp.sum((found[i] - wanted[i]) ** 2) for i in range(16)) / 16, found

        td = lambda q: ref.mean_square(q(b.obs, b.action), y)
        # The weight of a mean over the goal's numbers: ALPHA / SIZE of the squared norm.
        loss = lambda q: td(q) + ALPHA / SIZE * apart(q)[0]
        critic_loss, critic_norm, critic = ref.first_step(loss, old.critic)
        objective = lambda pi: -critic(b.obs, pi(b.obs)).mean() + 0.7 * (pi(b.obs) ** 2).mean()
        actor_loss, actor_norm, actor = ref.first_step(objective, old.actor)
        matched, found = apart(old.critic)
        on, length = mask == 1.0, lambda x: np.linalg.norm(np.asarray(x), axis=-1)
        cosine = np.asarray((found * wanted).sum(-1)) / np.maximum(length(found) * length(wanted), 1e-12)
        expected = {
            "critic_loss": critic_loss,
            "critic_td": float(td(old.critic)),
            "critic_match": float(matched) / SIZE,
            "critic_slope": length(found)[on].mean(),
            "critic_target_slope": length(wanted)[on].mean(),
            "critic_cosine": cosine[on].mean(),
            "critic_grad_norm": critic_norm,
            "critic_mean": np.mean(old.critic(b.obs, b.action)),
            "actor_loss": actor_loss,
            "actor_grad_norm": actor_norm,
            "actor_saturation": 0.0,
        }
        ref.assert_metrics(metrics, expected)
        ref.assert_same(new.critic, critic, "critic")
        ref.assert_same(new.actor, actor, "actor: it descends on the new critic")
        # Targets move by mixing alone: no gradient reaches them.
        ref.assert_same(new.target_critic, ref.mix(critic, old.target_critic), "target critic")
        ref.assert_same(new.target_actor, ref.mix(actor, old.target_actor), "target actor")
    assert new.step == 1


def smooth(tree):
    """The same networks with tanh in place of relu: finite differences need a second derivative."""
    nets = lambda node: isinstance(node, eqx.Module) and "activation" in {f.name for f in dataclasses.fields(node)}
    change = lambda node: dataclasses.replace(node, activation="tanh") if nets(node) else node
    return jax.tree.map(change, tree, is_leaf=nets)


def test_the_targets_gradient_is_the_finite_difference(goal_spec, rows):
    noisy = reengage_sac.ReenGAGESAC.create(jr.key(3), goal_spec, reengage_sac.Config(**SHARED))
    with jax.enable_x64(True):
        b, key = ref.double(rows), jr.key(8)
        for agent, ask in ((two(goal_spec), lambda a, b: a._target(b)), (noisy, lambda a, b: a._target(b, key))):
            agent = ref.double(smooth(agent))
            y = jax.jit(lambda goal, a=agent, ask=ask: ask(a, move(b, goal)))
            goal = b.next_obs[DESIRED]
            slope = y(goal)[1]
            assert float(jnp.abs(slope).max()) > 0.01
            for i in range(SIZE):
                h = jnp.zeros_like(goal).at[:, i].set(1e-6)
                difference = (y(goal + h)[0] - y(goal - h)[0]) / 2e-6
                np.testing.assert_allclose(slope[:, i], difference, rtol=1e-5, atol=1e-8)


def move(batch: Transition, goal) -> Transition:
    return dataclasses.replace(batch, next_obs=batch.next_obs | {DESIRED: goal})


@pytest.mark.parametrize("kind", ["ddpg", "sac"])
def test_the_losss_gradient_is_the_finite_difference(goal_spec, rows, kind):
    # Second order: the loss holds a gradient by the goal, and is differentiated by the parameters.
    config = reengage_sac.Config(**SHARED, goal_match=ALPHA)
    plain = two(goal_spec) if kind == "ddpg" else reengage_sac.ReenGAGESAC.create(jr.key(3), goal_spec, config)
    with jax.enable_x64(True):
        b, agent = ref.double(rows), ref.double(smooth(plain))
        y, slope = jr.normal(jr.key(1), (16,), jnp.float64), jr.normal(jr.key(2), (16, SIZE), jnp.float64)
        flat, back = ravel_pytree(agent.critic)
        loss = jax.jit(lambda flat: agent._critic_loss(back(flat), y, slope, agent.goals, b)[0])
        grads = jax.grad(loss)(flat)
        for i in range(4):
            way = jr.normal(jr.fold_in(jr.key(4), i), flat.shape, jnp.float64)
            difference = (loss(flat + 1e-5 * way) - loss(flat - 1e-5 * way)) / 2e-5
            np.testing.assert_allclose(grads @ way, difference, rtol=1e-6)


def all_equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))


def with_and_without(goal_spec, rows):
    """DDPG, and ReenGAGE that does not match, after three updates each; the names of what both hold."""
    a = ddpg.DDPG.create(jr.key(0), goal_spec, ddpg.Config(**SHARED, action_l2=0.7))
    b = reengage.ReenGAGE.create(jr.key(0), goal_spec, dataclasses.replace(CONFIG, goal_match=0.0))
    for i in range(3):
        a, _ = ref.update(a, rows, jr.key(i))
        b, _ = ref.update(b, rows, jr.key(i))
    return a, b, {f.name for f in dataclasses.fields(a)} - {"config"}


@pytest.mark.slow  # with the compiler's usual settings: those of `make test` take sums in another order
def test_without_the_match_it_is_ddpg_bit_for_bit(goal_spec, rows):
    a, b, names = with_and_without(goal_spec, rows)
    assert all(all_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_without_the_match_it_is_ddpg(goal_spec, rows):
    a, b, names = with_and_without(goal_spec, rows)
    for name in names:
        ref.assert_same(getattr(b, name), getattr(a, name), name)
    c = reengage.ReenGAGE.create(jr.key(0), goal_spec, CONFIG)
    assert not all_equal(ref.update(c, rows, jr.key(0))[0].critic, ref.update(b, rows, jr.key(0))[0].critic)


def test_without_the_match_it_is_sac(goal_spec, rows):
    # Not to the bit: XLA sums the critics in another order beside their gradient by the goal.
    a = sac.SAC.create(jr.key(0), goal_spec, sac.Config(**SHARED))
    b = reengage_sac.ReenGAGESAC.create(jr.key(0), goal_spec, reengage_sac.Config(**SHARED, goal_match=0.0))
    assert all_equal((a.actor, a.critic, a.target), (b.actor, b.critic, b.target))
    (a, of_a), (b, of_b) = (ref.update(agent, rows, jr.key(0)) for agent in (a, b))
    names = {f.name for f in dataclasses.fields(a)} - {"config", "opt"}
    for name in names:
        ref.assert_same(getattr(b, name), getattr(a, name), name)
    ref.assert_metrics({name: of_b[name] for name in of_a}, {name: float(value) for name, value in of_a.items()})


def test_the_mask_leaves_reached_goals_out(goal_spec, rows):
    agent, open_ = two(goal_spec), two(goal_spec, dataclasses.replace(CONFIG, unreached_reward=None))
    with_reward = lambda r: dataclasses.replace(rows, reward=jnp.full((16,), r))
    _, metrics = ref.update(agent, with_reward(0.0), jr.key(0))
    assert float(metrics["critic_match"]) == 0.0 and float(metrics["critic_loss"]) == float(metrics["critic_td"])
    never, everywhere = ref.update(agent, with_reward(-1.0), jr.key(0)), ref.update(open_, with_reward(-1.0), jr.key(0))
    assert float(never[1]["critic_match"]) == float(everywhere[1]["critic_match"]) > 0.0
    assert all_equal(never[0].critic, everywhere[0].critic)


@pytest.mark.thorough
def test_the_scale_is_the_goals_standard_deviation(goal_spec, rows):
    agent = two(goal_spec, dataclasses.replace(CONFIG, goal_scale="std", unreached_reward=None))
    plain = two(goal_spec, dataclasses.replace(CONFIG, unreached_reward=None))
    spread = rows.obs[DESIRED].std(0)
    wide = dataclasses.replace(agent, goals=agent.goals.seen(rows.obs[DESIRED]))
    y, slope = plain._target(rows)
    weighted = wide._critic_loss(agent.critic, y, slope, wide.goals, rows)[1]["match"]
    each = [
        plain._critic_loss(agent.critic, y, keep(slope, agent, rows, i), wide.goals, rows)[1]["match"]
        for i in range(SIZE)
    ]
    np.testing.assert_allclose(weighted, sum(jnp.square(spread[i]) * each[i] for i in range(SIZE)), rtol=1e-4)
    _, metrics = ref.update(agent, rows, jr.key(0))
    np.testing.assert_allclose(metrics["critic_match"], weighted, rtol=1e-4)


def keep(slope, agent, batch, i):
    """A target that differs from the critic's own gradient in the i-th number only."""
    own = slopes(lambda g: agent.critic(batch.obs | {DESIRED: g}, batch.action)[0], batch.obs[DESIRED])
    return own.at[:, i].set(slope[:, i])


def test_sac_matches_each_member_to_one_gradient(goal_spec, rows):
    config = reengage_sac.Config(**SHARED, goal_match=ALPHA)
    agent = reengage_sac.ReenGAGESAC.create(jr.key(3), goal_spec, config)
    y, slope = agent._target(rows, jr.key(1))
    loss, metrics = agent._critic_loss(agent.critic, y, slope, agent.goals, rows)
    mask, total = np.asarray(rows.reward == -1.0), 0.0
    for e in range(2):
        found = slopes(lambda g, e=e: agent.critic(rows.obs | {DESIRED: g}, rows.action)[e], rows.obs[DESIRED])
        td = np.mean((np.asarray(agent.critic(rows.obs, rows.action)[e]) - np.asarray(y)) ** 2)
        apart = np.square(np.asarray(found - slope)) * mask[:, None]
        total += 0.5 * (td + ALPHA * apart.mean())  # half of the sum over the members
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert float(metrics["match"]) > 0.0


@pytest.mark.parametrize("kind", [reengage.ReenGAGE, reengage_sac.ReenGAGESAC])
def test_what_does_not_fit_is_refused(spec, goal_spec, kind):
    module = reengage if kind is reengage.ReenGAGE else reengage_sac
    with pytest.raises(UsageError, match="needs observations with the parts achieved_goal"):
        kind.create(jr.key(0), spec, module.Config())
    with pytest.raises(UsageError, match="unknown goal_scale 'max': choose one of none, std"):
        kind.create(jr.key(0), goal_spec, module.Config(goal_scale="max"))
    with pytest.raises(UsageError, match="here goals are sets: choose reengage-sets"):
        kind.create(jr.key(0), DriveSeek.create().spec, module.Config())
