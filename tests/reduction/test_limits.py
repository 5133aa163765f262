"""Limits in which one method becomes another, or a plain regression: they hold the agents together.

Each is exact in the definitions. Where two programs compute the same thing in different order, the comparison is to
float32; where the arithmetic is the same, to the bit.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents import (
    AGENTS,
    bc,
    cal_ql,
    config_class,
    cql,
    ddpg,
    diffusion_ql,
    flow_ac,
    fql,
    ifql,
    iql,
    qc_fql,
    rebrac,
    rlpd,
    sac,
    td3,
    td3_bc,
)
from trimtab.batches import Chunk, Sarsa, ToGo

RATE, TAU = 1e-2, 0.1
BOOTSTRAPPING = ("ddpg", "iql", "sac", "td3", "td3-bc")
"""Agents whose only use of `next_obs` is a bootstrap."""

update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def assert_close(a, b, rtol=1e-3, atol=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def assert_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def twice(net):
    """An ensemble of one as an ensemble of two equal members."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), net)


def test_td3_without_delay_noise_and_twin_is_ddpg(spec, make_batch, getkey):
    shared = dict(learning_rate=RATE, tau=TAU, hidden=(8,))
    plain = ddpg.DDPG.create(getkey(), spec, ddpg.Config(**shared))
    twin = td3.TD3.create(getkey(), spec, td3.Config(**shared, policy_delay=1, target_noise=0.0))
    twin = replace(
        twin,
        actor=plain.actor,
        critic=twice(plain.critic),
        target_actor=plain.target_actor,
        target_critic=twice(plain.target_critic),
    )
    for _ in range(4):
        batch, key = make_batch(spec, getkey()), getkey()
        plain, m = update(plain, batch, key)
        twin, n = update(twin, batch, key)
        for name in ("critic_loss", "critic_mean", "actor_loss", "actor_grad_norm", "actor_saturation"):
            np.testing.assert_allclose(n[name], m[name], rtol=1e-4, atol=1e-6, err_msg=name)
        # Each of the two equal members carries half of the mean's gradient: |(g/2, g/2)| = |g| / sqrt 2.
        np.testing.assert_allclose(n["critic_grad_norm"], m["critic_grad_norm"] / np.sqrt(2.0), rtol=1e-4)
    assert_close((twin.actor, twin.target_actor), (plain.actor, plain.target_actor))
    assert_close((twin.critic, twin.target_critic), (twice(plain.critic), twice(plain.target_critic)))


def test_td3_with_noise_clipped_to_nothing_is_td3_without_noise(spec, batch, getkey):
    key, k_update = getkey(), getkey()
    clipped = td3.TD3.create(key, spec, td3.Config(hidden=(8,), target_noise_clip=0.0))
    silent = td3.TD3.create(key, spec, td3.Config(hidden=(8,), target_noise=0.0))
    noisy = td3.TD3.create(key, spec, td3.Config(hidden=(8,)))
    losses = [update(agent, batch, k_update)[1]["critic_loss"] for agent in (clipped, silent, noisy)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-5


def test_sac_without_temperature_and_noise_updates_its_critic_as_td3(spec, batch, getkey):
    # alpha = 1e-30 and log std = -20 leave y = r + gamma d min Qbar(s', tanh(mean(s'))).
    soft = sac.SAC.create(getkey(), spec, sac.Config(learning_rate=RATE, hidden=(8,), init_ent_coef=1e-30))
    hard = td3.TD3.create(getkey(), spec, td3.Config(learning_rate=RATE, hidden=(8,), target_noise=0.0))
    # The last layer of SAC's actor (four outputs: two means, two log stds) with the stds shut.
    shut = lambda leaf: leaf.at[..., 2:].set(-20.0 if leaf.ndim == 1 else 0.0) if leaf.shape[-1] == 4 else leaf
    means = lambda leaf: leaf[..., :2] if leaf.shape[-1] == 4 else leaf
    soft = replace(soft, actor=jax.tree.map(shut, soft.actor))
    mean_net = jax.tree.unflatten(jax.tree.structure(hard.actor), [means(leaf) for leaf in jax.tree.leaves(soft.actor)])
    assert_close(mean_net(batch.obs), soft.policy(batch.obs, getkey()))
    hard = replace(hard, actor=mean_net, target_actor=mean_net, critic=soft.critic, target_critic=soft.target)
    new_soft, m = update(soft, batch, getkey())
    new_hard, n = update(hard, batch, getkey())
    for name in ("critic_loss", "critic_mean", "critic_grad_norm"):
        np.testing.assert_allclose(m[name], n[name], rtol=1e-5, err_msg=name)
    assert_close(new_soft.critic, new_hard.critic)


def test_sac_without_temperature_has_no_entropy_in_its_losses(spec, batch, getkey):
    agent = sac.SAC.create(getkey(), spec, sac.Config(hidden=(8,), init_ent_coef=1e-30))
    other = sac.SAC.create(getkey(), spec, sac.Config(hidden=(8,), init_ent_coef=1.0))
    agent, other = replace(agent, target=other.critic), replace(agent, target=other.critic, log_alpha=other.log_alpha)
    key = getkey()
    new, metrics = update(agent, batch, key)
    # The actions by the actor's own sampler, the rest by hand.
    k_next, k_actor = jr.split(key)
    value = agent.target(batch.next_obs, agent.actor(batch.next_obs, k_next)).min(0)
    y = batch.reward + 0.99 * batch.discount * value
    q = agent.critic(batch.obs, batch.action)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q - y[None]) ** 2), rtol=1e-5)
    q = new.critic(batch.obs, agent.actor(batch.obs, k_actor)).min(0)
    np.testing.assert_allclose(metrics["actor_loss"], -q.mean(), rtol=1e-5)
    # At alpha = 1 the entropy is there.
    assert abs(update(other, batch, key)[1]["critic_loss"] - metrics["critic_loss"]) > 1e-2


def test_rlpd_with_plain_settings_is_sac(spec, make_batch, getkey):
    # The target's least over all members is SAC's; the actor's mean is its least where both members are one.
    shared = dict(learning_rate=RATE, tau=TAU, hidden=(8,), critic_norm=None, target_entropy=-2.0)
    soft = sac.SAC.create(getkey(), spec, sac.Config(**shared))
    prior = rlpd.RLPD.create(getkey(), spec, rlpd.Config(**shared, utd=1, critic_members=2, target_members=2))
    batch, key = make_batch(spec, getkey()), getkey()
    apart = replace(prior, actor=soft.actor, critic=soft.critic, target=soft.target)
    m, n = update(soft, batch, key)[1], update(apart, batch, key)[1]
    for name in ("critic_loss", "critic_mean", "critic_grad_norm", "actor_entropy", "ent_coef_loss"):
        np.testing.assert_allclose(n[name], m[name], rtol=1e-5, err_msg=name)
    assert abs(n["actor_loss"] - m["actor_loss"]) > 1e-4
    members = lambda critic: twice(jax.tree.map(lambda leaf: leaf[:1], critic))
    soft = replace(soft, critic=members(soft.critic), target=members(soft.target))
    prior = replace(prior, actor=soft.actor, critic=soft.critic, target=soft.target)
    for _ in range(3):
        batch, key = make_batch(spec, getkey()), getkey()
        soft, m = update(soft, batch, key)
        prior, n = update(prior, batch, key)
        for name in m:
            np.testing.assert_allclose(n[name], m[name], rtol=1e-4, atol=1e-6, err_msg=name)
    parts = lambda agent: (agent.actor, agent.critic, agent.target, agent.log_alpha)
    assert_close(parts(prior), parts(soft))


def test_cql_without_its_penalty_has_the_critic_of_sac(spec, make_batch, getkey):
    soft = sac.SAC.create(getkey(), spec, sac.Config(learning_rate=RATE, hidden=(8,), tau=TAU))
    config = cql.Config(
        cql_alpha=0.0,
        max_target_backup=False,
        backup_entropy=True,
        actor_lr=RATE,
        critic_lr=RATE,
        tau=TAU,
        hidden=(8,),
    )
    careful = cql.CQL.create(getkey(), spec, config)
    careful = replace(careful, actor=soft.actor, critic=soft.critic, target=soft.target)
    for _ in range(3):
        batch, key = make_batch(spec, getkey()), getkey()
        soft, m = update(soft, batch, key)
        careful, n = update(careful, batch, key)
        for name in m:
            np.testing.assert_allclose(n[name], m[name], rtol=1e-5, atol=1e-7, err_msg=name)
        assert n["critic_gap"] != 0.0
    assert_close((careful.actor, careful.critic, careful.target), (soft.actor, soft.critic, soft.target), rtol=1e-4)
    # With the penalty the loss is another.
    harsh = replace(careful, config=replace(config, cql_alpha=1.0, target_entropy=careful.config.target_entropy))
    assert abs(update(harsh, batch, key)[1]["critic_loss"] - update(careful, batch, key)[1]["critic_loss"]) > 1e-2


@pytest.mark.parametrize("lagrange", [False, True])
def test_cal_ql_without_a_known_return_is_cql(lagrange, spec, make_batch, getkey):
    shared = dict(actor_lr=RATE, critic_lr=RATE, tau=TAU, hidden=(8,), cql_actions=3, lagrange=lagrange)
    plain = cql.CQL.create(getkey(), spec, cql.Config(**shared))
    same = cal_ql.CalQL.create(getkey(), spec, cal_ql.Config(**shared))
    names = ("actor", "critic", "target", "log_alpha", "log_lambda")
    same = replace(same, **{name: getattr(plain, name) for name in names})
    for _ in range(2):
        rows, key = make_batch(spec, getkey()), getkey()
        fields = (rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs)
        bound = ToGo(*fields, jnp.full(16, 1e3))
        raised = update(same, bound, key)[1]
        plain, m = update(plain, rows, key)
        same, n = update(same, ToGo(*fields, jnp.full(16, -jnp.inf)), key)
        for name in m:
            np.testing.assert_array_equal(n[name], m[name], err_msg=name)
        assert n["critic_calibrated"] == 0.0
    assert_bits([getattr(same, name) for name in names], [getattr(plain, name) for name in names])
    assert raised["critic_calibrated"] == 1.0 and raised["critic_gap"] > m["critic_gap"] + 100.0


def test_td3_bc_without_values_is_deterministic_cloning(spec, batch, getkey):
    key = getkey()
    both = td3_bc.TD3BC.create(
        getkey(), spec, td3_bc.Config(alpha=0.0, learning_rate=RATE, hidden=(8,), policy_delay=1)
    )
    clone = bc.BC.create(getkey(), spec, bc.Config(policy="deterministic", learning_rate=RATE, hidden=(8,)))
    clone = replace(clone, actor=replace(both.actor, inputs=None))  # no data set: the moments are the identity
    for _ in range(3):
        both, m = update(both, batch, key)
        clone, n = update(clone, batch, key)
        np.testing.assert_allclose(m["actor_loss"], n["actor_loss"], rtol=1e-6)
    assert_close(both.actor.net, clone.actor.net, rtol=1e-5, atol=1e-7)


def test_td3_bc_without_cloning_is_td3(spec, batch, getkey):
    # At alpha = 1e6 the error is nothing beside the values, and Adam does not see the scale of a loss.
    shared = dict(learning_rate=RATE, hidden=(8,), policy_delay=1)
    plain = td3.TD3.create(getkey(), spec, td3.Config(**shared))
    both = td3_bc.TD3BC.create(getkey(), spec, td3_bc.Config(alpha=1e6, normalize_obs=False, **shared))
    nets = ("actor", "critic", "target_actor", "target_critic")
    both = replace(both, **{name: getattr(plain, name) for name in nets})
    key = getkey()
    plain, m = update(plain, batch, key)
    both, n = update(both, batch, key)
    assert m["critic_loss"] == n["critic_loss"]
    assert_close([getattr(both, name) for name in nets], [getattr(plain, name) for name in nets], rtol=1e-2, atol=1e-4)


def with_next(batch, action, valid):
    """`batch` with the next actions `action`."""
    return Sarsa(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, action, valid)


@pytest.mark.parametrize("why", ["no weight", "no next action"])
def test_rebrac_without_its_critic_penalty_is_td3_bc(why, spec, make_batch, getkey):
    # With equal members the least of two is the first; alpha_a |.|^2 = mean_j (.)^2 / 2.5 makes the loss TD3+BC's over
    # 2.5, and Adam does not see scale.
    shared = dict(learning_rate=RATE, tau=TAU, hidden=(8,), normalize_obs=False)
    plain = td3_bc.TD3BC.create(getkey(), spec, td3_bc.Config(**shared))
    weight = 0.0 if why == "no weight" else 1.0
    config = rebrac.Config(**shared, alpha_actor=0.4 / 2, alpha_critic=weight, activation="relu", critic_norm=None)
    both = rebrac.ReBRAC.create(getkey(), spec, config)
    members = lambda critic: twice(jax.tree.map(lambda leaf: leaf[:1], critic))
    plain = replace(plain, critic=members(plain.critic), target_critic=members(plain.target_critic))
    nets = ("actor", "critic", "target_actor", "target_critic")
    both = replace(both, **{name: getattr(plain, name) for name in nets})
    for i in range(4):
        batch, key = make_batch(spec, getkey()), getkey()
        valid = jnp.ones(16) if why == "no weight" else jnp.zeros(16)
        plain, m = update(plain, batch, key)
        both, n = update(both, with_next(batch, batch.action[::-1], valid), key)
        for name in ("critic_loss", "critic_mean", "critic_grad_norm", "actor_q"):
            np.testing.assert_allclose(n[name], m[name], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(2.5 * n["actor_loss"], m["actor_loss"], rtol=1e-4, atol=1e-5)
        assert np.isfinite(m["actor_loss"]) == (i % 2 == 1)
    assert_close([getattr(both, name) for name in nets], [getattr(plain, name) for name in nets])
    # With the penalty the critic's loss is another.
    harsh = replace(both, config=replace(config, alpha_critic=1.0))
    _, n = update(harsh, with_next(batch, batch.action[::-1], jnp.ones(16)), key)
    assert abs(n["critic_loss"] - update(plain, batch, key)[1]["critic_loss"]) > 1e-2


def test_fql_without_values_is_flow_cloning(spec, make_batch, getkey):
    shared = dict(learning_rate=RATE, hidden=(8,))
    student = fql.FQL.create(getkey(), spec, fql.Config(**shared, rl=False, alpha=1.0))
    clone = bc.BC.create(getkey(), spec, bc.Config(**shared, policy="flow"))
    implicit = ifql.IFQL.create(getkey(), spec, ifql.Config(**shared))
    clone, implicit = replace(clone, actor=student.flow), replace(implicit, actor=student.flow)
    start = student
    for _ in range(3):
        batch, key = make_batch(spec, getkey()), getkey()
        k_flow, k_actor, _ = jr.split(key, 3)
        before = student
        student, m = update(student, batch, key)
        clone, n = update(clone, batch, k_flow)
        implicit, o = update(implicit, batch, k_flow)
        for other in (n, o):
            np.testing.assert_allclose(m["bc_loss"], other["actor_loss"], rtol=1e-5)
            np.testing.assert_allclose(m["bc_grad_norm"], other["actor_grad_norm"], rtol=1e-5)
        # What acts is the flow in one step, and nothing else.
        z = jr.normal(k_actor, (16, 2))
        error = jnp.square(before.actor.mu(batch.obs, z) - before.flow(batch.obs, k_actor)).mean()
        np.testing.assert_allclose(m["actor_loss"], error, rtol=1e-5)
    assert_close(student.flow, clone.actor)
    assert_close(student.flow, implicit.actor)
    assert_bits((student.critic, student.target), (start.critic, start.target))


def test_fac_without_its_penalty_has_the_critic_of_fql(spec, batch, getkey):
    # For the same target: what the weights and the policy's actions are plays no part, to the bit.
    plain = fql.FQL.create(getkey(), spec, fql.Config(hidden=(8,)))
    gated = flow_ac.FlowAC.create(getkey(), spec, flow_ac.Config(hidden=(8,), alpha=0.0))
    y, a_p, w = batch.reward, batch.action[::-1], jnp.linspace(0.0, 1.0, 16)
    ours = lambda q: gated._critic_loss(q, y, batch, a_p, w)[0]
    theirs = lambda q: plain._critic_loss(q, y, batch)[0]
    assert_bits(jax.value_and_grad(ours)(plain.critic), jax.value_and_grad(theirs)(plain.critic))


def test_fql_with_distance_alone_moves_mu_as_without_values(spec, batch, getkey):
    # alpha = 1e8: the values are nothing beside the distance, and Adam does not see the scale of a loss.
    key, k_update = getkey(), getkey()
    kinds = (fql.Config(hidden=(8,), alpha=1e8), fql.Config(hidden=(8,), rl=False))
    valued, blind = (update(fql.FQL.create(key, spec, config), batch, k_update)[0] for config in kinds)
    assert_close(valued.actor, blind.actor, rtol=1e-3, atol=1e-6)
    assert_close(valued.flow, blind.flow, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fields", [dict(), dict(q_agg="min", normalize_q=True)], ids=["mean", "min, normalised"])
def test_qc_fql_on_single_steps_is_fql(fields, spec, make_batch, getkey):
    key, shared = getkey(), dict(learning_rate=RATE, hidden=(8,), tau=TAU, alpha=3.0, flow_steps=3)
    plain = fql.FQL.create(key, spec, fql.Config(**shared, **fields))
    chunked = qc_fql.QCFQL.create(key, spec, qc_fql.Config(**shared, **fields, chunk=1))
    nets = lambda agent: (agent.actor, agent.flow, agent.critic, agent.target)
    assert_bits(nets(chunked), nets(plain))
    for _ in range(3):
        b, key = make_batch(spec, getkey()), getkey()
        wide = [x[:, None] for x in (b.action, b.reward, b.discount)]
        plain, m = update(plain, b, key)
        chunked, n = update(chunked, Chunk(b.obs, *wide, b.next_obs, jnp.ones((16, 1))), key)
        for name in m:
            np.testing.assert_allclose(n[name], m[name], rtol=1e-6, err_msg=name)
        assert n.keys() == m.keys()
    assert_close(nets(chunked), nets(plain), rtol=1e-5, atol=1e-6)


def test_diffusion_ql_without_values_is_a_plain_diffusion(spec, batch, getkey):
    # alpha = 0: the actor's loss is the noise's error, whatever the critics are.
    key, k_update = getkey(), getkey()
    make = lambda k: diffusion_ql.DiffusionQL.create(
        k, spec, diffusion_ql.Config(hidden=(8,), alpha=0.0, diffusion_steps=21)
    )
    one, other = make(key), replace(make(getkey()), actor=make(key).actor)
    (a, m), (b, n) = (update(agent, batch, k_update) for agent in (one, other))
    assert m["actor_loss"] == m["actor_error"] == n["actor_error"]
    assert_bits(a.actor, b.actor)
    assert m["critic_loss"] != n["critic_loss"]


def test_iql_at_expectile_half_regresses_v_on_half_the_mean_square(spec, batch, getkey):
    agent = iql.IQL.create(getkey(), spec, iql.Config(expectile=0.5, learning_rate=RATE, hidden=(8,)))
    q_bar = agent.target(batch.obs, batch.action).min(0)
    loss, grads = jax.value_and_grad(lambda v: 0.5 * jnp.square(q_bar - v(batch.obs)).mean())(agent.value)
    new, metrics = update(agent, batch, getkey())
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["value_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_grad_norm"], norm, rtol=1e-5)
    stepped = jax.tree.map(lambda p, g: p - RATE * g / (jnp.abs(g) + 1e-8), agent.value, grads)  # Adam's first step
    assert_close(new.value, stepped)


def test_iql_at_beta_zero_clones_the_behaviour(spec, batch, getkey):
    # All weights are exp(0) = 1: the loss is -E[log pi], whatever the critics say.
    key = getkey()
    agents = [iql.IQL.create(k, spec, iql.Config(beta=0.0, hidden=(8,))) for k in (key, getkey())]
    agents[1] = replace(agents[1], actor=agents[0].actor)
    outcomes = [update(agent, batch, key) for agent in agents]
    for _, metrics in outcomes:
        assert metrics["actor_weight"] == 1.0
        expected = -agents[0].actor.log_prob(batch.obs, batch.action).mean()
        np.testing.assert_allclose(metrics["actor_loss"], expected, rtol=1e-5)
    assert_bits(outcomes[0][0].actor, outcomes[1][0].actor)


def test_iql_capped_at_a_weight_below_all_is_a_slower_clone(spec, batch, getkey):
    # w_max below every exp(beta u): all weights are w_max, so the loss is w_max times the clone's.
    key = getkey()
    clone = iql.IQL.create(key, spec, iql.Config(beta=0.0, hidden=(8,)))
    capped = iql.IQL.create(key, spec, iql.Config(beta=1.0, max_weight=1e-3, hidden=(8,)))
    m, n = (update(agent, batch, key)[1] for agent in (clone, capped))
    for name in ("actor_loss", "actor_grad_norm"):
        np.testing.assert_allclose(n[name], 1e-3 * m[name], rtol=1e-4)


@pytest.mark.parametrize("name", BOOTSTRAPPING)
def test_gamma_zero_is_all_terminated(name, spec, batch, getkey):
    # gamma d V(s') is zero either way, so the whole agent is the same.
    key, k_update = getkey(), getkey()
    kind = config_class(AGENTS[name])
    blind = AGENTS[name].create(key, spec, kind(hidden=(8,), gamma=0.0))
    ended = eqx.tree_at(lambda b: b.discount, batch, jnp.zeros(16))
    seeing = AGENTS[name].create(key, spec, kind(hidden=(8,)))
    a, m = update(blind, batch, k_update)
    b, n = update(seeing, ended, k_update)
    assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert_close(m, n, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BOOTSTRAPPING)
def test_tau_one_copies_the_networks(name, spec, batch, getkey):
    agent = AGENTS[name].create(getkey(), spec, config_class(AGENTS[name])(hidden=(8,), tau=1.0, learning_rate=RATE))
    start = agent.critic
    for _ in range(2):
        agent, _ = update(agent, batch, getkey())
    target = agent.target if name in ("iql", "sac") else agent.target_critic
    assert_close(target, agent.critic, rtol=1e-5, atol=1e-6)
    pairs = zip(jax.tree.leaves(target), jax.tree.leaves(start), strict=True)
    assert max(float(np.abs(x - y).max()) for x, y in pairs) > RATE
