"""Linear policies: their Jacobian is what they put out; penalties against finite differences; PPO and SAC with them."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents.ppo import PPO, Rows
from trimtab.agents.ppo import Config as PPOConfig
from trimtab.agents.sac import SAC
from trimtab.agents.sac import Config as SACConfig
from trimtab.core import Spec, UsageError
from trimtab.nets.mlp import MLP, concat
from trimtab.ops import squared_jacobian, squared_jacobian_estimate
from trimtab.policies.linear import LinearPolicyNet, columns, state_columns, tied_columns

vector = lambda n: jax.ShapeDtypeStruct((n,), jnp.float32)
SPEC = Spec({"phase": vector(2), "state": vector(4)}, 2, False, (-1.0,) * 2, (1.0,) * 2)
CENTRED = replace(SPEC, obs={"phase": vector(2), "reference": vector(4), "state": vector(4)})


def rows(spec: Spec, n: int = 5):
    return concat({name: jr.normal(jr.key(i), (n, leaf.size)) for i, (name, leaf) in enumerate(spec.obs.items())})


@pytest.mark.parametrize("spec", [SPEC, CENTRED], ids=["plain", "centred"])
@pytest.mark.parametrize("rank", [None, 1, 2])
def test_the_jacobian_is_what_the_network_puts_out(spec, rank):
    net, x = LinearPolicyNet.create(spec, (8,), jr.key(0), rank=rank), rows(spec)
    first, end = columns(spec.obs, "state")
    jacobian = jax.vmap(jax.jacfwd(net))(x)[:, :, first:end]
    gains, k = net.gains(x[:, slice(*columns(spec.obs, "phase"))])
    np.testing.assert_allclose(jacobian, gains, atol=1e-6)
    mean, squares = net.with_squared_gains(x)
    np.testing.assert_allclose(mean, net(x), atol=1e-6)
    np.testing.assert_allclose(squares, np.square(gains).sum((1, 2)), rtol=1e-5)
    if rank is not None:
        assert max(np.linalg.matrix_rank(g, tol=1e-5) for g in np.asarray(gains)) <= rank
    if spec is CENTRED:  # on the reference only the feed-forward is left
        there = x.at[:, first:end].set(x[:, slice(*columns(spec.obs, "reference"))])
        np.testing.assert_allclose(net(there), k, atol=1e-6)
    table = net.export_table(x[:, slice(*columns(spec.obs, "phase"))])
    np.testing.assert_allclose(table[0], gains, atol=1e-6)


def test_the_penalty_against_finite_differences():
    net, x = MLP.create(6, (16,), 2, jr.key(1), activation="tanh"), jr.normal(jr.key(2), (3, 6))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), net)
        x = x.astype(jnp.float64)
        found, expected, h = squared_jacobian(wide, x, 2, 6), np.zeros(3), 1e-5
        for column in range(2, 6):
            step = jnp.zeros(6).at[column].set(h)
            expected += np.square((wide(x + step[None]) - wide(x - step[None])) / (2 * h)).sum(1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        wider = MLP.create(6, (16,), 5, jr.key(3), activation="tanh")  # more outputs than inputs: forward mode
        one = squared_jacobian(wider, x, 2, 4)
        both = np.square(jax.vmap(jax.jacrev(wider))(x)[:, :, 2:4]).sum((1, 2))
        np.testing.assert_allclose(one, both, rtol=1e-5)


def test_the_estimate_is_right_in_the_mean():
    net, x = MLP.create(6, (16,), 2, jr.key(1), activation="tanh"), jr.normal(jr.key(2), (1, 6))
    exact = squared_jacobian(net, x, 2, 6)
    many = squared_jacobian_estimate(net, jnp.broadcast_to(x, (10_000, 6)), 2, 6, jr.key(3))
    np.testing.assert_allclose(many.mean(), exact[0], rtol=0.02)


def test_what_a_linear_policy_needs():
    with pytest.raises(UsageError, match="the parts phase and state"):
        LinearPolicyNet.create(replace(SPEC, obs=vector(6)), (8,), jr.key(0))
    with pytest.raises(UsageError, match="the part reference has 2 numbers, but the part state 4"):
        LinearPolicyNet.create(replace(CENTRED, obs=CENTRED.obs | {"reference": vector(2)}), (8,), jr.key(0))
    with pytest.raises(UsageError, match="rank must be at least 1"):
        LinearPolicyNet.create(SPEC, (8,), jr.key(0), rank=0)
    for config in (PPOConfig(network="linear", memory=16), PPOConfig(distribution="mixture", jacobian_weight=0.1)):
        with pytest.raises(UsageError, match="need continuous, normal actions and no memory"):
            PPO.create(jr.key(0), SPEC, config)
    with pytest.raises(UsageError, match="unknown jacobian_estimator"):
        SAC.create(jr.key(0), SPEC, SACConfig(jacobian_estimator="fast"))


def test_the_activation_is_the_one_that_was_chosen():
    for activation in ("relu", "elu"):
        agent = PPO.create(jr.key(0), SPEC, PPOConfig(network="linear", hidden=(8,), activation=activation))
        assert agent.actor.net.head.net.activation == agent.critic.head.activation == activation


def test_columns_of_nested_parts():
    obs = {"goal": vector(2), "state": {"b": vector(3), "a": vector(1)}, "reference": vector(4)}
    assert columns(obs, "state") == state_columns(obs) == (6, 10) and columns(obs, "reference") == (2, 6)
    assert tied_columns(obs) == ((2, 6), (6, 10)) and tied_columns({"state": vector(1)}) is None
    assert state_columns({"goal": vector(2), "obs": vector(3)}) == (0, 5) and state_columns(vector(3)) == (0, 3)


def test_the_reference_is_normalised_like_the_state():
    # Else K would multiply something when the state is where it should be.
    agent = PPO.create(jr.key(0), CENTRED, PPOConfig(network="linear", hidden=(8,)))
    assert agent.inputs is not None
    seen = rows(CENTRED, 50) * 3.0 + jnp.arange(10, dtype=jnp.float32)[None]
    agent = replace(agent, inputs=agent.inputs.seen(seen))
    state = jnp.array([1.0, -2.0, 30.0, 0.5])
    obs = {"phase": jnp.array([0.6, 0.8]), "state": state, "reference": state}
    net, phase = agent.actor.net.head, slice(*columns(CENTRED.obs, "phase"))
    x = agent.inputs(concat(obs))
    np.testing.assert_allclose(net(x), net.gains(x[phase])[1], atol=1e-6)
    first, end = columns(CENTRED.obs, "state")
    np.testing.assert_allclose(
        x[first:end], np.clip((state - seen.mean(0)[first:end]) / seen.std(0)[first:end], -10, 10), rtol=1e-4
    )


@pytest.mark.parametrize("spec", [SPEC, CENTRED], ids=["plain", "centred"])
def test_the_penalty_in_the_losses(spec, make_batch):
    """PPO's and SAC's Jacobian is that of the mean by the state alone, over the number of actions, times its weight."""
    first, end = columns(spec.obs, "state")
    mean_of_squares = lambda f, x: float(jnp.square(jax.vmap(jax.jacrev(f))(x)[:, :, first:end]).sum((1, 2)).mean() / 2)
    batch = make_batch(spec, jr.key(1), 6)
    x = concat(batch.obs)
    sac = SAC.create(jr.key(0), spec, SACConfig(hidden=(8,), jacobian_weight=0.5))
    loss, metrics = sac._actor_loss(sac.actor, sac.critic, batch, jr.key(2))
    expected = mean_of_squares(lambda row: jnp.tanh(sac.actor.net(row)[:2]), x)
    np.testing.assert_allclose(metrics["jacobian"], expected, rtol=1e-4)
    plain = replace(sac, config=replace(sac.config, jacobian_weight=0.0))
    without, _ = plain._actor_loss(sac.actor, sac.critic, batch, jr.key(2))
    np.testing.assert_allclose(loss, without + 0.5 * expected, rtol=1e-4)
    for network in ("mlp", "linear"):
        ppo = PPO.create(jr.key(0), spec, PPOConfig(hidden=(8,), network=network, jacobian_weight=0.5, ent_coef=0.1))
        actor = eqx.tree_at(lambda a: a.net.head, ppo.actor, _louder(ppo.actor.net.head))
        ones, none = jnp.ones((6, 1)), jnp.zeros((6, 1), bool)
        seen = Rows(x[:, None], None, jnp.zeros((6, 1, 2)), none, -ones, ones, ones, (), ())
        loss, metrics = ppo._loss((actor, ppo.critic), seen, jr.key(2))
        expected = mean_of_squares(actor.net.head, x)
        np.testing.assert_allclose(metrics["jacobian"], expected, rtol=1e-4)
        plain = replace(ppo, config=replace(ppo.config, jacobian_weight=0.0))
        without, _ = plain._loss((actor, ppo.critic), seen, jr.key(2))
        np.testing.assert_allclose(loss, without + 0.5 * expected, rtol=1e-4)


def _louder(net):
    """With twice the parameters: a Jacobian that shows beside the rest of the loss."""
    return jax.tree.map(lambda p: 2.0 * p, net)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["ppo", "linear", "sac"])
def test_the_penalty_shrinks_the_jacobian(kind, make_batch):
    """Many times the same update: with the penalty the Jacobian that is measured ends far below what it is without."""
    ends = {}
    for weight in (1e-9, 30.0):
        if kind == "sac":
            agent = SAC.create(jr.key(0), SPEC, SACConfig(hidden=(8,), jacobian_weight=weight, learning_rate=3e-3))
            batch, name = make_batch(SPEC, jr.key(1), 32), "actor_jacobian"
        else:
            from tests.golden.regenerate import rollout

            sizes = dict(hidden=(8,), batch_size=32, n_epochs=2, learning_rate=3e-3, activation="elu")
            network = "linear" if kind == "linear" else "mlp"
            agent = PPO.create(jr.key(0), SPEC, PPOConfig(network=network, jacobian_weight=weight, **sizes))
            plain = rollout(jr.key(1))
            split = lambda x: {"phase": x[..., :2], "state": jnp.concatenate([x[..., 2:], x], axis=-1)}
            batch, name = replace(plain, obs=split(plain.obs), next_obs=split(plain.next_obs)), "jacobian"
        update = jax.jit(lambda agent, key, batch=batch: agent.update(batch, key))
        for i in range(60):
            agent, metrics = update(agent, jr.fold_in(jr.key(2), i))
        ends[weight] = float(metrics[name])
    assert ends[30.0] < 0.3 * ends[1e-9]
