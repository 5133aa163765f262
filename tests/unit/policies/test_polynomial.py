"""Polynomial densities against closed forms, derivatives and counts (in float64 where digits are compared)."""

from collections.abc import Iterator
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

from tests.unit.agents.test_ppo import rollout
from trimtab.agents.ppo import PPO, Config
from trimtab.core import Spec, UsageError
from trimtab.envs.bandits import CurveBandit
from trimtab.nets.running import scaled_rewards
from trimtab.policies.distributions import Normal
from trimtab.policies.heads import FamilyChoice, PolynomialHead
from trimtab.policies.polynomial import Blocks, Family, Polynomial, exponents, most_likely


@pytest.fixture
def wide() -> Iterator[None]:
    """Double precision."""
    with jax.enable_x64(True):
        yield


def member(family: Family, seed: int, scale: float = 1.0, shape: tuple[int, ...] = ()) -> Polynomial:
    return Polynomial.create(family, scale * jr.normal(jr.key(seed), (*shape, family.size)))


def test_zero_is_uniform():
    found = Polynomial.create(Family.create(4, 2), jnp.zeros(15))
    np.testing.assert_allclose([found.log_partition, found.entropy()], 2 * np.log(2), rtol=1e-5)
    samples = np.asarray(jax.vmap(found.sample)(jr.split(jr.key(0), 8000)))
    for axis in range(2):
        counts = np.histogram(samples[:, axis], 8, (-1, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-3


def test_exponential_tilt(wide):
    found = Polynomial.create(Family.create(1, 1, 64), jnp.array([0.0, 3.0]))
    np.testing.assert_allclose(found.log_partition, np.log(2 * np.sinh(3) / 3), atol=1e-10)
    np.testing.assert_allclose(found.mean(), [1 / np.tanh(3) - 1 / 3], atol=1e-10)


@pytest.mark.parametrize("k", [10.0, 50.0])
def test_truncated_normal(wide, k):
    found = Polynomial.create(Family.create(2, 1, 64), jnp.array([-k / 3, 0.0, -2 * k / 3]))  # a^2 = (2 P_2 + 1) / 3
    np.testing.assert_allclose(found.log_partition, np.log(np.sqrt(np.pi / k) * erf(np.sqrt(k))), atol=1e-9)


def test_derivatives_of_the_partition_are_moments(wide):
    family = Family.create(4, 2, 40)
    natural = jr.normal(jr.key(1), (family.size,))
    log_z = lambda x: Polynomial.create(family, x).log_partition
    found = Polynomial.create(family, natural)
    np.testing.assert_allclose(jax.grad(log_z)(natural), found.moments(), atol=1e-10)
    assert np.linalg.eigvalsh(jax.hessian(log_z)(natural)).min() > -1e-10
    np.testing.assert_allclose(found.entropy(), found.log_partition - natural @ found.moments(), atol=1e-8)
    covariance = jax.hessian(log_z)(natural)
    by_entropy = jax.grad(lambda x: Polynomial.create(family, x).entropy())(natural)
    np.testing.assert_allclose(by_entropy, -covariance @ natural, atol=1e-8)


def test_kl_is_the_mean_difference_of_log_densities(wide):
    family = Family.create(3, 2, 40)
    one, other = member(family, 1), member(family, 2)
    points, log_weights = family.grid()
    density = np.exp(one.log_density + log_weights)
    at = lambda found: jax.vmap(found.log_prob)(jnp.asarray(points))
    expected = (density * (at(one) - at(other))).sum()
    np.testing.assert_allclose(one.kl(other), expected, atol=1e-6)
    np.testing.assert_allclose(one.kl(one), 0.0, atol=1e-10)


def test_both_bases_give_the_same_density(wide):
    # a^2 + 0.5 a: P_2 = (3 a^2 - 1) / 2
    legendre = Polynomial.create(Family.create(2, 1), jnp.array([1 / 3, 0.5, 2 / 3]))
    standard = Polynomial.create(Family.create(2, 1, basis="standard"), jnp.array([0.0, 0.5, 1.0]))
    a = jnp.linspace(-0.9, 0.9, 7)[:, None]
    wide_ = lambda d: jax.vmap(d.log_prob)(a)
    np.testing.assert_allclose(wide_(legendre), wide_(standard), atol=1e-9)


def test_gauss_needs_fewer_points(wide):
    log_z = lambda natural, n, rule: Polynomial.create(Family.create(5, 2, n, quadrature=rule), natural).log_partition
    natural = jr.normal(jr.key(3), (20, 21))
    mild, harsh = 0.2 * natural, 2.0 * natural
    np.testing.assert_allclose(log_z(mild, 32, "gauss"), log_z(mild, 300, "trapezoid"), atol=1e-3)
    best = log_z(harsh, 64, "gauss")
    assert np.abs(log_z(harsh, 32, "gauss") - best).max() < 1e-3
    assert np.abs(log_z(harsh, 64, "trapezoid") - best).max() > 0.1


@pytest.mark.parametrize("jitter", [True, False])
@pytest.mark.thorough
def test_samples_have_the_moments(jitter):
    family = Family.create(3, 2, 48)
    found = Polynomial.create(family, 0.7 * jr.normal(jr.key(4), (family.size,)), jitter=jitter)
    samples = jax.vmap(found.sample)(jr.split(jr.key(5), 40_000))
    statistics = np.asarray(family.statistics(samples))
    error = statistics.std(0) / np.sqrt(len(samples))
    assert (np.abs(statistics.mean(0) - found.moments()) <= 4 * error + 1e-6 + 2e-3 * jitter).all()
    assert len(np.unique(np.asarray(samples), axis=0)) > (39_000 if jitter else 0)


def test_draws_follow_the_density_within_a_cell():
    # Two cells, each half of the box: drawn evenly over a cell, places would have the mean 0.47 instead of 0.67.
    found = Polynomial.create(Family.create(1, 1, 2), jnp.array([0.0, 3.0]))
    draws = np.asarray(jax.vmap(found.sample)(jr.split(jr.key(0), 8000)))
    assert draws.mean() == pytest.approx(1 / np.tanh(3) - 1 / 3, abs=0.03)


def test_the_ratio_of_ppo_begins_at_one_on_the_edge_too():
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, False, (-1.0,) * 2, (1.0,) * 2)
    config = Config(distribution="polynomial", order=3, hidden=(8,), n_steps=4, batch_size=8, n_epochs=1)
    agent = PPO.create(jr.key(0), spec, config)
    steep = jax.tree.map(lambda p: 30.0 * p, agent.actor.net.head)
    agent = eqx.tree_at(lambda a: a.actor.net.head, agent, steep)
    edges = jnp.array([[[1.0, -1.0], [-1.0, 1.0]], [[1.0, 0.3], [1.0, 1.0]]])
    batch = rollout(spec, jr.key(1), t=4)
    batch = replace(batch, action=jnp.concatenate([edges, edges]))
    _, metrics = agent.update(batch, jr.key(2))
    assert abs(float(metrics["approx_kl"])) < 1e-6 and metrics["clip_fraction"] == 0.0


@pytest.mark.thorough
@pytest.mark.parametrize(("curve", "least"), [("lemniscate", -0.45), ("two_moons", -0.75)])
def test_what_is_most_likely_has_the_moments_of_the_data(curve, least):
    cloud, split = CurveBandit.create(curve).cloud, np.random.default_rng(0).permutation(4096)
    train, test = cloud[split[:2048]], cloud[split[2048:]]
    nll, fit = {}, jax.jit(most_likely, static_argnums=0)
    for order in (2, 6, 10, 14):
        family = Family.create(order, 2, 64)
        natural = fit(family, train)
        found = Polynomial.create(family, natural)
        wanted = np.asarray(family.statistics(train)).mean(0)
        assert np.abs(np.asarray(found.moments()) - wanted - 1e-5 * -np.asarray(natural)).max() < 1e-3
        nll[order] = -float(jax.vmap(found.log_prob)(test).mean())
    assert nll[2] > nll[6] > nll[10] > nll[14] and nll[14] < least
    at = lambda extra: Polynomial.create(family, natural + extra)
    loss = lambda extra: (
        float(-jax.vmap(at(extra).log_prob)(train).mean()) + 0.5e-5 * float(jnp.square(natural + extra).sum())
    )
    for seed in range(5):
        assert loss(0.3 * jr.normal(jr.key(seed), natural.shape)) > loss(jnp.zeros_like(natural))


def test_statistics_of_one_dimension_each_make_independent_dimensions():
    family, one = Family.create(2, 2), Family.create(2, 1)
    natural, first, second = jnp.zeros(6), jr.normal(jr.key(6), (3,)), jr.normal(jr.key(7), (3,))
    for i, e in enumerate(exponents(2, 2)):
        if 0 in e:
            natural = natural.at[i].set(first[e[0]] * float(e[1] == 0) + second[e[1]] * float(e[0] == 0))
    a = jnp.array([0.3, -0.6])
    parts = Polynomial.create(one, first).log_prob(a[:1]) + Polynomial.create(one, second).log_prob(a[1:])
    np.testing.assert_allclose(Polynomial.create(family, natural).log_prob(a), parts, rtol=1e-4)
    blocks = Blocks((Polynomial.create(one, first), Polynomial.create(one, second)))
    np.testing.assert_allclose(blocks.log_prob(a), parts, rtol=1e-5)
    assert blocks.sample(jr.key(0)).shape == blocks.mode().shape == (2,)
    np.testing.assert_allclose(blocks.entropy(), Polynomial.create(family, natural).entropy(), rtol=1e-4)
    other = Blocks((Polynomial.create(one, second), Polynomial.create(one, first)))
    swapped = jnp.zeros(6)
    for i, e in enumerate(exponents(2, 2)):
        if 0 in e:
            swapped = swapped.at[i].set(second[e[0]] * float(e[1] == 0) + first[e[1]] * float(e[0] == 0))
    whole = Polynomial.create(family, natural).kl(Polynomial.create(family, swapped))
    np.testing.assert_allclose(blocks.kl(other), whole, rtol=1e-4)


def test_the_constant_does_not_matter():
    family = Family.create(3, 2)
    natural = jr.normal(jr.key(8), (family.size,))
    one, other = (Polynomial.create(family, x) for x in (natural, natural.at[0].add(5.0)))
    a = jnp.array([0.2, 0.1])
    np.testing.assert_allclose(one.log_prob(a), other.log_prob(a), atol=1e-5)
    np.testing.assert_allclose(one.entropy(), other.entropy(), atol=1e-5)


def test_mode_and_mean_and_edges():
    peaked = Polynomial.create(
        Family.create(2, 1, 64), jnp.array([0.0, 30.0, -30.0])
    )  # the top of 30 a - 45 a^2 is 1/3
    np.testing.assert_allclose(peaked.mode(), [1 / 3], atol=0.04)
    two = Family.create(4, 1, 64)
    valley = Polynomial.create(two, jnp.array([0.0, 0.0, 20.0, 0.0, -20.0]), best="mean")
    assert abs(float(valley.mode()[0])) < 1e-3 and float(valley.log_prob(jnp.zeros(1))) < -3  # between the modes


def test_mass_on_the_edge():
    family = Family.create(1, 1, 9)
    share = lambda tilt: float(Polynomial.create(family, jnp.array([0.0, tilt])).edge_mass())
    nodes, weights = np.polynomial.legendre.leggauss(9)
    mass = weights * np.exp(4.0 * nodes) / (weights * np.exp(4.0 * nodes)).sum()
    assert share(0.0) == pytest.approx(0.0, abs=1e-6)  # an even density is no harm, however few the nodes
    assert share(4.0) == pytest.approx(mass[0] + mass[-1] - weights[0], rel=1e-4)
    assert share(500.0) > 0.5
    # In two dimensions the edge is a frame; of blocks the one with the most counts.
    both = Polynomial.create(Family.create(1, 2, 9), jnp.array([0.0, 4.0, 0.0]))
    inner = (weights[1:-1].sum() / 2) * mass[1:-1].sum()
    assert float(both.edge_mass()) == pytest.approx(1 - inner - (1 - (weights[1:-1].sum() / 2) ** 2), rel=1e-4)
    blocks = Blocks(tuple(Polynomial.create(family, jnp.array([[0.0, tilt]])) for tilt in (0.0, 4.0, 1.0)))
    assert float(blocks.health()["edge"]) == pytest.approx(share(4.0), rel=1e-4)
    assert Normal(jnp.zeros(1), jnp.zeros(1)).health() == {}


def test_the_head_cuts_actions_into_blocks():
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 5, False, (-1.0,) * 5, (1.0,) * 5)
    with pytest.raises(UsageError, match=r"a grid of 21\^5 points is beyond reach"):
        PolynomialHead.create(spec, FamilyChoice(order=5))
    head = PolynomialHead.create(spec, FamilyChoice(order=3, block=2))
    assert [f.dims for f in head.families] == [2, 2, 1] and head.size == 9 + 9 + 3
    found = head(jr.normal(jr.key(0), (3, head.size)), None)
    assert found.sample(jr.key(1)).shape == (3, 5) and found.log_prob(found.mode()).shape == (3,)


def test_the_heads_basis_is_the_one_that_was_chosen():
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 2, False, (-1.0,) * 2, (1.0,) * 2)
    for basis in ("legendre", "standard"):
        agent = PPO.create(jr.key(0), spec, Config(distribution="polynomial", basis=basis, order=2, hidden=(8,)))
        assert agent.actor.head.families[0].basis == basis
    with pytest.raises(UsageError, match="basis legendre or standard: gauss, hermite"):
        PPO.create(jr.key(0), spec, Config(distribution="polynomial", basis="hermite"))


def test_what_is_to_be_watched_is_logged():
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, False, (-1.0,) * 2, (1.0,) * 2)
    config = Config(distribution="polynomial", order=3, block=1, hidden=(8,), n_steps=4, batch_size=8, n_epochs=1)
    agent, batch = PPO.create(jr.key(0), spec, config), rollout(spec, jr.key(1), t=4)
    rows, _ = agent._rows(batch, scaled_rewards(agent.rewards, batch.reward, batch.discounted)[1])
    found = agent.actor.step(rows.x[:, 0], None, ())[0]
    _, metrics = agent.update(batch, jr.key(2))
    edges = [float(part.edge_mass().mean()) for part in found.parts]
    assert len(edges) == 2 and float(metrics["edge"]) == pytest.approx(max(edges), abs=1e-6)
    assert float(metrics["advantage_std"]) == pytest.approx(float(np.std(rows.advantage)), rel=1e-5)
