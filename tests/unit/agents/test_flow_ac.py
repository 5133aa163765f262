"""FAC's weight, penalty, scores and order of updates, against closed forms and numbers worked out apart."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.unit.agents import reference as ref
from trimtab.agents.flow_ac import WEIGHTS, Config, FlowAC, penalty_weight
from trimtab.batches import Scored, Transition
from trimtab.core import Spec, UsageError
from trimtab.data.sources import ScoredSource
from trimtab.nets.critic import Critic
from trimtab.nets.time import waves
from trimtab.ops import polyak
from trimtab.policies.velocity import AbstractVelocity
from trimtab.ranges import check_ranges
from trimtab.training.compile import scores


def agent(spec, **changes) -> FlowAC:
    return FlowAC.create(jr.key(0), spec, Config(**(dict(hidden=(8, 8), gamma=0.9) | changes)))


def scored(batch: Transition, score: float = 0.0) -> Scored:
    return Scored(batch, jnp.full(batch.reward.shape, score), jnp.float32(score))


class GaussianFlow(AbstractVelocity):
    """The rectified flow from N(0, I) to N(mean, std^2 I), whatever the observation."""

    action_size: int = eqx.field(static=True)
    mean: float = eqx.field(static=True)
    std: float = eqx.field(static=True)

    def encode(self, obs, times):
        return times

    def forward(self, x, i, memory, train):
        t = memory[i]
        c = (t * self.std**2 - (1.0 - t)) / (t**2 * self.std**2 + (1.0 - t) ** 2)
        return self.mean + c * (x - t * self.mean), None, self


def known(spec, **changes) -> FlowAC:
    """An agent whose proxy is the flow to N(0.3, 0.5^2 I)."""
    made = agent(spec, **changes)
    return eqx.tree_at(lambda a: a.proxy.velocity, made, GaussianFlow(spec.action_size, 0.3, 0.5))


@pytest.mark.parametrize("form", sorted(WEIGHTS))
def test_the_weight_is_zero_exactly_where_the_flow_has_been(form):
    ratio = jnp.array([-jnp.inf, -5.0, -0.1, 0.0, 0.1, 200.0])
    w = np.asarray(penalty_weight(ratio, form))
    assert (w[3:] == 0.0).all() and w[0] == 1.0
    assert (np.diff(w[:4]) < 0).all() and ((w >= 0) & (w <= 1)).all()


def test_weights_by_hand():
    half = jnp.log(jnp.array([0.5]))
    np.testing.assert_allclose(penalty_weight(half, "linear"), [0.5], rtol=1e-6)
    np.testing.assert_allclose(penalty_weight(half, "logarithmic"), [1 - np.log(1.5) / np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(penalty_weight(half, "convex"), [1 - np.log(1 + 0.5**0.5) / np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(penalty_weight(half, "concave"), [1 - np.log(1.25) / np.log(2)], rtol=1e-5)


def test_densities_are_those_of_the_proxy(spec, batch):
    fac = known(spec, density_steps=400)
    z = (np.asarray(batch.action, np.float64) - 0.3) / 0.5
    exact = (-0.5 * z**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(fac.log_density(batch.obs, batch.action, jr.key(1)), exact, atol=0.05)
    rk4 = known(spec, density_method="rk4", density_steps=20)
    np.testing.assert_allclose(rk4.log_density(batch.obs, batch.action, jr.key(1)), exact, atol=1e-3)
    # The Jacobian of this flow is diagonal, so that one random direction is enough.
    probed = known(spec, density_method="rk4", density_steps=20, probes=1)
    np.testing.assert_allclose(probed.log_density(batch.obs, batch.action, jr.key(1)), exact, atol=1e-3)
    # Not one of normal numbers, whose square is 1 only on average.
    for probes, near in ((1, False), (2000, True)):
        gaussian = known(spec, density_method="rk4", density_steps=20, probes=probes, probe_noise="gaussian")
        error = np.abs(gaussian.log_density(batch.obs, batch.action, jr.key(1)) - exact).max()
        assert (error < 0.1) == near


def test_the_penalty_gates_by_the_rows_own_threshold_or_the_least(spec, batch):
    fac = known(spec)
    density = fac.log_density(batch.obs, fac.actor(batch.obs, jr.split(jr.key(3))[0]), jr.key(4))
    own = density + jnp.where(jnp.arange(16) % 2 == 0, 1.0, -1.0)  # every second row's data action is less likely
    rows = Scored(batch, own, own.min())
    a_p, w, found = fac._penalty(batch, rows, jr.key(3))
    np.testing.assert_array_equal(a_p, fac.actor(batch.obs, jr.split(jr.key(3))[0]))
    np.testing.assert_allclose(w, np.where(np.arange(16) % 2 == 0, 1 - np.exp(-1.0), 0.0), atol=1e-4)
    np.testing.assert_allclose(found["critic_gated"], 0.5)
    _, w, _ = replace(fac, config=replace(fac.config, threshold="dataset"))._penalty(batch, rows, jr.key(3))
    np.testing.assert_allclose(w, 1 - np.exp(np.minimum(density - own.min(), 0.0)), atol=1e-4)
    elsewhere = replace(rows, least=own.min() - 5.0)  # the data set's least is no row's of this batch
    for quantile in (0.0, 0.4):
        batchs = replace(fac, config=replace(fac.config, threshold="batch-least", quantile=quantile))
        _, w, _ = batchs._penalty(batch, elsewhere, jr.key(3))
        np.testing.assert_allclose(w, 1 - np.exp(np.minimum(density - np.quantile(own, quantile), 0.0)), atol=1e-4)


@pytest.mark.parametrize("quantile", [0.0, 0.3])
def test_online_the_threshold_is_the_batchs(quantile, spec, batch):
    """By the proxy after its update: the least log density of the batch's own actions, or that quantile of them."""
    batch = replace(batch, action=0.3 * batch.action)  # near the middle, so that some of the actor's are less likely
    fac = agent(spec, phase="online", threshold="dataset", quantile=quantile)
    new, metrics = fac.update(batch, jr.key(7))
    _, k_improve, _ = jr.split(jr.key(7), 3)
    a_p = fac.actor(batch.obs, jr.split(jr.split(k_improve, 3)[1])[0])
    density = lambda action: np.asarray(new.log_density(batch.obs, action, jr.key(0)))
    eps = np.quantile(density(batch.action), quantile)
    w = 1.0 - np.exp(np.minimum(density(a_p) - eps, 0.0))
    assert (w > 0.0).any() and (w == 0.0).any()
    np.testing.assert_allclose(metrics["critic_weight"], w.mean(), rtol=1e-3)


def test_a_vaes_density_stands_in_for_the_flows(spec, batch):
    """In the scores and in the penalty; both are fitted in the phases of the proxy, and neither after it."""
    fac = agent(spec, density="vae", vae_samples=4, phase="proxy")
    of = lambda fac, action: fac.vae.log_density(batch.obs, action, jr.key(3), 4)
    np.testing.assert_array_equal(fac.log_density(batch.obs, batch.action, jr.key(3)), of(fac, batch.action))
    new, metrics = jax.jit(lambda fac, batch: fac.update(batch, jr.key(7)))(fac, batch)
    ref.assert_moved(new.vae, fac.vae, "the VAE"), ref.assert_moved(new.proxy, fac.proxy, "the flow")
    plain = agent(spec, phase="proxy")
    alone, lone = plain.update(batch, jr.key(7))
    np.testing.assert_allclose(ravel_pytree(new.proxy)[0], ravel_pytree(alone.proxy)[0], atol=1e-6)
    k_proxy = jr.split(jr.key(7), 3)[0]
    elbo = fac.vae.elbo(batch.obs, jnp.clip(batch.action, -1 + 1e-5, 1 - 1e-5), jr.fold_in(k_proxy, 1)).mean()
    np.testing.assert_allclose(metrics["proxy_loss"], lone["proxy_loss"] - elbo, rtol=1e-4)
    offline = replace(fac, config=replace(fac.config, phase="offline"))
    rows = Scored(batch, of(fac, batch.action), jnp.float32(0.0))
    _, w, _ = offline._penalty(batch, rows, jr.key(3))
    a_p = fac.actor(batch.obs, jr.split(jr.key(3))[0])
    density = fac.vae.log_density(batch.obs, a_p, jr.split(jr.key(3))[1], 4)
    np.testing.assert_allclose(w, penalty_weight(density - rows.score, "linear"), atol=1e-5)
    after, _ = jax.jit(lambda fac, rows: fac.update(rows, jr.key(7)))(offline, rows)
    ref.assert_untouched(after.vae, fac.vae, "the VAE"), ref.assert_untouched(after.proxy, fac.proxy, "the flow")
    ref.assert_moved(after.critic, fac.critic, "the critic")


@pytest.mark.thorough
def test_a_tables_optimum_is_the_operators():
    """min sum_a b(a) (Q - y)^2 + alpha sum_a pi(a) w(a) Q(a) has Q = y - alpha/2 w pi/b.

    The table is an affine critic of actions that are unit vectors; its least loss is found by Newton's step.
    """
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 4, False, (-1.0,) * 4, (1.0,) * 4)
    counts, policy = np.array([6, 3, 2, 1]), np.array([1, 3, 2, 6])
    weight, units = jnp.array([0.0, 0.3, 1.0, 0.5]), jnp.eye(4)
    data, taken = np.repeat(np.arange(4), counts), np.repeat(np.arange(4), policy)
    obs = jnp.zeros((12, 1))
    batch = Transition(obs, units[data], jnp.zeros(12), jnp.ones(12), obs)
    fac, y = agent(spec, alpha=0.7), jnp.full(12, 2.0)
    start, back = ravel_pytree(Critic.create(spec, (), 1, jr.key(0)))
    loss = lambda flat: fac._critic_loss(back(flat), y, batch, units[taken], weight[taken])[0]
    hessian, gradient = (np.asarray(d(loss)(start), np.float64) for d in (jax.hessian, jax.grad))
    best = back(start - jnp.asarray(np.linalg.lstsq(hessian, gradient, rcond=1e-6)[0], jnp.float32))
    found = best(jnp.zeros((4, 1)), units)[0]
    np.testing.assert_allclose(found, 2.0 - 0.35 * np.asarray(weight) * policy / counts, rtol=1e-5)


OTHERS = dict(alpha=0.7, lam=0.3, weight="convex", normalize_q=False)


@pytest.mark.parametrize("changes", [{}, OTHERS], ids=["defaults", "others"])
def test_one_update_step_by_step(changes, spec, batch):
    """Critic and actor move from the same old networks, the target follows the new critic, the proxy stays."""
    fac, key = agent(spec, **changes), jr.key(7)
    new, metrics = fac.update(scored(batch), key)
    _, k_improve, _ = jr.split(key, 3)
    k_next, k_penalty, k_actor = jr.split(k_improve, 3)
    after = np.asarray(fac.target(batch.next_obs, fac.actor(batch.next_obs, k_next)), np.float64).mean(0)
    y = jnp.asarray(np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * after, jnp.float32)
    a_p = fac.actor(batch.obs, jr.split(k_penalty)[0])
    ratio = np.exp(np.minimum(fac.log_density(batch.obs, a_p, jr.key(0)), 0.0))  # the scores are 0
    w = 1.0 - np.log1p(np.sqrt(ratio)) / np.log(2.0) if changes else 1.0 - ratio
    assert ((w > 0.01) & (w < 0.99)).all()
    q, q_p = fac.critic(batch.obs, batch.action), fac.critic(batch.obs, a_p)
    alpha, lam = (0.7, 0.3) if changes else (1.0, 1.0)
    wanted = np.square(q - y[None]).mean() + alpha * (w[None] * np.asarray(q_p)).mean()
    np.testing.assert_allclose(metrics["critic_loss"], wanted, rtol=1e-4)
    z = jr.normal(k_actor, batch.action.shape)
    mu, flow = fac.actor.mu(batch.obs, z), fac.proxy.rollout(batch.obs, z, None)[0].action
    value = fac.critic(batch.obs, jnp.clip(mu, -1.0, 1.0)).mean(0)
    wanted = lam * np.square(mu - flow).mean() - value.mean() / (1.0 if changes else np.abs(value).mean())
    np.testing.assert_allclose(metrics["actor_loss"], wanted, rtol=1e-4)
    followed = polyak(new.critic, fac.target, fac.config.tau)
    for a, b in zip(jax.tree.leaves(new.target), jax.tree.leaves(followed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for a, b in zip(jax.tree.leaves(new.proxy), jax.tree.leaves(fac.proxy), strict=True):
        np.testing.assert_array_equal(a, b)


def test_phases_learn_what_is_theirs(spec, batch):
    moved = lambda a, b: not all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))
    for phase, rows, parts in (
        ("proxy", batch, {"proxy"}),
        ("offline", scored(batch), {"actor", "critic", "target"}),
        ("online", batch, {"proxy", "actor", "critic", "target"}),
    ):
        fac = agent(spec, phase=phase)
        new, _ = fac.update(rows, jr.key(1))
        names = ("proxy", "actor", "critic", "target")
        assert {name for name in names if moved(getattr(fac, name), getattr(new, name))} == parts


def test_defaults_are_those_of_the_official_code():
    c = Config()
    assert (c.gamma, c.tau, c.learning_rate, c.batch_size, c.hidden) == (0.995, 0.005, 3e-4, 256, (512,) * 4)
    assert (c.flow_steps, c.density_steps, c.density_method, c.weight) == (10, 10, "euler", "linear")
    assert c.normalize_q and c.critic_members == 2 and c.critic_norm == "layer_after"


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_targets_q_agg_as_asked(q_agg, spec, batch):
    fac = agent(spec, q_agg=q_agg)
    q = np.asarray(fac.target(batch.next_obs, fac.actor(batch.next_obs, jr.key(1))))
    value = q.mean(0) if q_agg == "mean" else q.min(0)
    wanted = np.asarray(batch.reward) + 0.9 * np.asarray(batch.discount) * value
    np.testing.assert_allclose(fac._target(batch, jr.key(1)), wanted, rtol=1e-5, atol=1e-6)


def test_every_row_is_scored_once_in_its_place(spec, make_batch):
    rows, fac = make_batch(spec, jr.key(2), 1500), known(spec)  # more than one block, and no whole number of them
    found = scores(ScoredSource(rows, 16), fac, jr.key(5), None)
    direct = fac.score(rows, jr.key(0))
    np.testing.assert_allclose(found.each, direct, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.least, np.min(direct), rtol=1e-4)
    source = ScoredSource(rows, 64)
    batch = source.batch(found, jr.key(6))
    np.testing.assert_allclose(batch.score, fac.score(batch.transition, jr.key(0)), rtol=1e-4, atol=1e-4)
    assert batch.least == found.least
    restored = source.restored(source.stored(found))
    np.testing.assert_array_equal(restored.each, found.each)


def test_the_threshold_may_be_a_quantile_of_the_data(spec, make_batch):
    rows = make_batch(spec, jr.key(2), 1500)
    found = scores(ScoredSource(rows, 16), known(spec, threshold="dataset", quantile=0.1), jr.key(5), None)
    np.testing.assert_allclose(found.least, np.quantile(found.each, 0.1), rtol=1e-5)
    assert np.mean(found.each < found.least) == 0.1


@pytest.mark.parametrize("quantile", [0.0, 0.2])
def test_seeds_are_scored_as_each_would_be_alone(quantile, spec, make_batch):
    source = ScoredSource(make_batch(spec, jr.key(2), 40), 16)
    config = Config(hidden=(8, 8), probes=2, quantile=quantile)
    each = [FlowAC.create(jr.key(i), spec, config) for i in range(2)]
    stacked = replace(jax.tree.map(lambda *x: jnp.stack(x), *each), step=each[0].step)
    keys = jnp.stack([jr.key(10), jr.key(11)])
    found = scores(source, stacked, keys, 2)
    for i, one in enumerate(each):
        alone = scores(source, one, keys[i], None)
        np.testing.assert_allclose(found.each[i], alone.each, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.least[i], alone.least, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("threshold", "row"),
        ("weight", "cubic"),
        ("q_agg", "max"),
        ("density", "diffusion"),
        ("density_method", "midpoint"),
        ("probe_noise", "normal"),
    ],
)
def test_unknown_choices(name, bad, spec):
    with pytest.raises(UsageError, match=f"unknown {name} '{bad}': choose one of"):
        agent(spec, **{name: bad})


@pytest.mark.parametrize("bad", [-0.1, 1.0, float("nan")])
def test_quantiles_out_of_range(bad, spec):
    with pytest.raises(UsageError, match=f"quantile must be at least 0 and less than 1, got {bad}"):
        agent(spec, quantile=bad)


def test_the_proxy_sees_time_at_frequencies(spec, batch):
    """[s, x, t] and sin, cos of pi t, 2 pi t, 4 pi t: six inputs more, which alone tell times apart."""
    fac, plain = agent(spec, time_waves=3), agent(spec)
    sizes = [made.proxy.velocity.net.layers[0].weight.size for made in (fac, plain)]
    width = plain.config.hidden[0]
    assert sizes[0] - sizes[1] == 6 * width
    np.testing.assert_allclose(
        waves(jnp.array([0.0, 0.25, 1.0]), 3),
        [[0, 0, 0, 0, 1, 1, 1], [0.25, 0.5**0.5, 1, 0, 0.5**0.5, 0, -1], [1, 0, 0, 0, -1, 1, 1]],
        atol=1e-6,
    )
    x = jnp.zeros((len(batch.obs), spec.action_size))

    def apart(blind) -> float:
        """How far velocities at two times are apart if the first layer does not see those of its last seven inputs."""
        weight = lambda v: v.net.layers[0].weight
        seen = eqx.tree_at(weight, fac.proxy.velocity, weight(fac.proxy.velocity).at[blind].set(0.0))
        one, two = (np.asarray(seen(x, jnp.float32(t), batch.obs)) for t in (0.1, 0.9))
        return float(np.abs(one - two).max())

    assert apart(slice(-7, None)) == 0.0 and apart(-7) > 1e-3 and apart(slice(-6, None)) > 1e-3
    fac, _ = fac.update(batch, jr.key(0))
    assert np.isfinite(np.asarray(fac.log_density(batch.obs, batch.action, jr.key(1)))).all()
    with pytest.raises(UsageError, match="time_waves must not be negative"):
        check_ranges(Config(time_waves=-1))


@pytest.mark.parametrize("name", ["proxy_steps", "density_steps", "vae_samples"])
def test_counts_below_one(name, spec):
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got -3"):
        agent(spec, **{name: -3})
