"""SEEM: three computations that agree, limits whose sign is known, linear and homogeneous cases, and the monitor."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.core import AbstractAgent, AbstractPolicy, Spec, UsageError
from trimtab.diagnostics.seem import (
    Kernels,
    SeemMonitor,
    arnoldi,
    crash_step,
    dense_kernels,
    fit_divergence,
    member,
    mlp_kernels,
    power,
    q_value,
    seem,
    seem_verdicts,
    spectrum,
)
from trimtab.nets.critic import Critic
from trimtab.nets.mlp import MLP

NORMS = [dict(), dict(norm="layer"), dict(norm="layer_after"), dict(norm="layer", norm_layers=(1,))]
KINDS = [dict(activation=activation, **norm) for activation in ("relu", "tanh") for norm in NORMS]


def linear(w: jax.Array, x: jax.Array) -> jax.Array:
    return w @ x


def bias_free(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return (x @ weights[-1])[0]


def rows(getkey, n: int = 24, size: int = 5) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, x* of a larger scale, and discounts with some terminal rows."""
    return (
        jr.normal(getkey(), (n, size)),
        2.0 * jr.normal(getkey(), (n, size)),
        jr.bernoulli(getkey(), 0.75, (n,)).astype(jnp.zeros(()).dtype),
    )


def trained(getkey, **kind) -> MLP:
    """A network whose biases and norms are not those of the start."""
    mlp = MLP.create(5, (16, 12), 1, getkey(), **kind)
    leaves, structure = jax.tree.flatten(mlp)
    moved = [leaf + 0.3 * jr.normal(getkey(), leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(structure, moved)


# The three computations


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_structured_kernel_is_that_of_the_features(getkey, kind):
    mlp, data = trained(getkey, **kind), rows(getkey)
    dense, structured = dense_kernels(q_value, mlp, *data), mlp_kernels(mlp, *data)
    assert dense.size == structured.size == sum(leaf.size for leaf in jax.tree.leaves(mlp))
    scale = float(jnp.abs(dense.ntk).max())
    np.testing.assert_allclose(structured.ntk, dense.ntk, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(structured.cross, dense.cross, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", NORMS, ids=str)
def test_arnoldi_finds_the_dense_eigenvalue(getkey, kind):
    mlp, data = trained(getkey, **kind), rows(getkey, 40)
    found = spectrum(dense_kernels(q_value, mlp, *data), 0.99)
    value, normalised = arnoldi(q_value, mlp, *data, 0.99)
    norm = float(np.linalg.norm(found.matrix))
    assert value == pytest.approx(found.value, rel=1e-4, abs=1e-5 * norm)
    assert normalised == pytest.approx(found.normalised, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_any_member_of_a_critic_by_any_method(spec, batch, getkey, index):
    critic = Critic.create(spec, (8, 8), 2, getkey(), norm="layer")
    data = (batch.obs, batch.action, batch.next_obs, batch.action[::-1], batch.discount, 0.9)
    found = [seem(critic, *data, index=index, method=m) for m in ("structured", "dense", "arnoldi")]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-5)
    features = lambda obs, action: jax.vmap(jax.grad(lambda q, o, a: q(o[None], a[None])[index, 0]), (None, 0, 0))(
        critic, obs, action
    )
    flat = lambda tree: np.concatenate([np.asarray(g).reshape(16, -1) for g in jax.tree.leaves(tree)], 1)
    here, there = flat(features(*data[:2])), flat(features(*data[2:4]))
    a = 0.9 * np.asarray(batch.discount)[:, None] * there @ here.T - here @ here.T
    assert found[0][0] == pytest.approx(np.linalg.eigvals(a).real.max(), rel=1e-4, abs=1e-4)
    assert found[0][1] == pytest.approx(found[0][0] / np.linalg.norm(a), rel=1e-4)
    with pytest.raises(UsageError, match="structured, dense, arnoldi"):
        seem(critic, *data, method="power")


# Limits


@pytest.mark.parametrize("kind", NORMS, ids=str)
def test_without_a_future_nothing_is_excited(getkey, kind):
    with jax.enable_x64(True):
        mlp, (x, next_x, discount) = trained(getkey, **kind), rows(getkey)
        for gamma, d in ((0.0, discount), (0.99, jnp.zeros_like(discount))):
            assert spectrum(mlp_kernels(mlp, x, next_x, d), gamma).eigenvalues.real.max() <= 1e-8


def test_a_target_that_is_the_value_itself_contracts(getkey):
    """x* = x: SEEM = -(1 - gamma) times the least eigenvalue of G."""
    with jax.enable_x64(True):
        mlp, (x, _, _) = trained(getkey), rows(getkey)
        kernels = mlp_kernels(mlp, x, x, jnp.ones(len(x)))
        least = np.linalg.eigvalsh(kernels.size * np.asarray(kernels.ntk))[0]
        assert least > 0
        assert spectrum(kernels, 0.9).value == pytest.approx(-0.1 * least, rel=1e-6)


def test_terminal_rows_have_no_future(getkey):
    mlp, (x, next_x, discount) = trained(getkey), rows(getkey)
    cross = np.asarray(mlp_kernels(mlp, x, next_x, discount).cross)
    ended = np.asarray(discount) == 0
    assert ended.any() and not cross[ended].any() and cross[~ended].all(axis=1).any()


def test_an_aligned_and_longer_target_excites():
    """f = w x in one dimension, x* = 2 x: A = (2 gamma - 1) x x', whose one eigenvalue is (2 gamma - 1) |x|^2."""
    x = jnp.array([[1.0], [2.0], [-1.0]])
    found = spectrum(dense_kernels(linear, jnp.ones(1), x, 2 * x, jnp.ones(3)), 0.9)
    assert found.value == pytest.approx(0.8 * 6.0, rel=1e-6)
    assert found.normalised == pytest.approx(1.0, rel=1e-6)


def test_kernels_that_are_not_finite_have_no_seem():
    kernels = Kernels(jnp.full((3, 3), jnp.inf), jnp.ones((3, 3)), 10)
    assert np.isnan(spectrum(kernels, 0.9).value)


# Linear models


def test_a_linear_model_follows_the_matrix_exactly(getkey):
    with jax.enable_x64(True):
        x, next_x, discount = rows(getkey)
        w, reward, gamma, eta = jr.normal(getkey(), (5,)), jr.normal(getkey(), (24,)), 0.99, 0.01
        a = spectrum(dense_kernels(linear, w, x, next_x, discount), gamma).matrix
        mask = np.asarray(discount)[:, None]
        np.testing.assert_allclose(a, gamma * mask * np.asarray(next_x @ x.T) - np.asarray(x @ x.T), atol=1e-12)
        error = lambda w: x @ w - reward - gamma * discount * (next_x @ w)
        loss = lambda w, y: 0.5 * jnp.square(x @ w - y).sum()
        for _ in range(3):
            y = reward + gamma * discount * (next_x @ w)
            new = w - eta * jax.grad(loss)(w, y)
            np.testing.assert_allclose(error(new), error(w) + eta * a @ np.asarray(error(w)), atol=1e-12)
            w = new


def test_a_network_follows_the_matrix_to_first_order(getkey):
    """The row of x* and the column of x: a transposed A fails."""
    with jax.enable_x64(True):
        mlp, (x, next_x, discount) = trained(getkey, norm="layer"), rows(getkey)
        reward, gamma, eta = jr.normal(getkey(), (24,)), 0.9, 1e-7
        a = spectrum(mlp_kernels(mlp, x, next_x, discount), gamma).matrix
        target = lambda net: reward + gamma * discount * net(next_x)[:, 0]
        y = target(mlp)
        grads = jax.grad(lambda net: 0.5 * jnp.square(net(x)[:, 0] - y).sum())(mlp)
        new = jax.tree.map(lambda w, g: w - eta * g, mlp, grads)
        error = lambda net: np.asarray(net(x)[:, 0] - target(net))
        moved = (error(new) - error(mlp)) / eta
        expected = a @ error(mlp)
        assert np.abs(moved - expected).max() < 1e-4 * np.abs(expected).max()
        assert np.abs(moved - a.T @ error(mlp)).max() > 1e-2 * np.abs(expected).max()


def test_bairds_counterexample_excites_itself():
    """Seven states, eight features, every transition into the seventh state (Baird 1995)."""
    features = np.zeros((7, 8))
    features[np.arange(6), np.arange(6)], features[:6, 7] = 2.0, 1.0
    features[6, 6], features[6, 7] = 1.0, 2.0
    into = np.tile(features[6], (7, 1))
    with jax.enable_x64(True):
        kernels = dense_kernels(linear, jnp.ones(8), jnp.asarray(features), jnp.asarray(into), jnp.ones(7))
        found = spectrum(kernels, 0.99)
    # In the space of parameters: dw = -X' (X - gamma X*) w, whose matrix has the same eigenvalues but for zeros.
    growth = np.linalg.eigvals(features.T @ (0.99 * into - features)).real.max()
    assert found.value > 0.1 and found.value == pytest.approx(growth, rel=1e-9)


# Networks


@pytest.mark.parametrize("layers", [2, 3])
def test_scaling_a_homogeneous_network(getkey, layers):
    with jax.enable_x64(True):
        sizes = (5, 16, 1) if layers == 2 else (5, 16, 12, 1)
        weights = [jr.normal(getkey(), pair) for pair in pairwise(sizes)]
        data, k = rows(getkey), 3.0
        scaled = [k * w for w in weights]
        f = jax.vmap(bias_free, (None, 0))
        np.testing.assert_allclose(f(scaled, data[0]), k**layers * f(weights, data[0]), rtol=1e-10)
        one, two = (dense_kernels(bias_free, w, *data) for w in (weights, scaled))
        np.testing.assert_allclose(two.ntk, k ** (2 * layers - 2) * one.ntk, rtol=1e-10)
        found = spectrum(one, 0.99), spectrum(two, 0.99)
        assert found[1].normalised == pytest.approx(found[0].normalised, abs=1e-6)
        assert found[1].value == pytest.approx(k ** (2 * layers - 2) * found[0].value, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_along_a_ray(seed):
    """k(lambda x, x) grows with lambda, and LayerNorm before the activations bounds it."""
    x = jr.normal(jr.key(100 + seed), (1, 5))

    def ray(norm: str | None) -> list[float]:
        mlp = MLP.create(5, (64, 64), 1, jr.key(seed), norm=norm)
        kernel = lambda size: float(mlp_kernels(mlp, x, size * x, jnp.ones(1)).cross[0, 0])
        return [kernel(size) for size in (1e1, 1e2, 1e3)]

    plain, normed = ray(None), ray("layer")
    assert 8 <= plain[2] / plain[1] <= 12
    assert max(normed) <= 1.5 * min(normed)


# What follows from it


def test_the_crash_of_a_known_blow_up():
    """u' = c lambda u with lambda = a |u|^p: |u|^-p = |u_0|^-p - p c a t, at zero at the step that is predicted."""
    for layers in (2, 3):
        p, c, a, start = power(layers), 0.02, 0.7, 1.5
        end = start**-p / (p * c * a)
        steps = np.linspace(0.0, 0.9 * end, 50)
        q = (start**-p - p * c * a * steps) ** (-1 / p)
        for step, value in zip(steps.tolist(), (a * q**p).tolist(), strict=True):
            assert crash_step(step, value, layers, c) == pytest.approx(end, rel=1e-9)
        law = fit_divergence(steps, q, "sgd", layers)
        assert law.crash_step == pytest.approx(end, rel=1e-9) and law.r2 == pytest.approx(1.0)
    assert power(2) == 1.0 and power(3) == pytest.approx(4 / 3)
    assert crash_step(10.0, -0.1, 2, 0.02) == np.inf


def test_polynomial_growth_has_no_crash():
    steps = np.arange(100.0, 200.0)
    law = fit_divergence(steps, 1e-3 * (steps - 30) ** 3, "adam", 3)
    assert law.r2 == pytest.approx(1.0) and law.crash_step == np.inf and "t^3" in law.text
    assert fit_divergence(steps, np.exp(steps / 4), "adam", 3).r2 < 0.95
    with pytest.raises(UsageError, match="sgd or adam"):
        fit_divergence(steps, steps, "rmsprop", 2)


# The monitor


@dataclass(frozen=True)
class Config:
    gamma: float = 0.9
    learning_rate: float = 1e-3


class Still(AbstractPolicy):
    """a = 0."""

    def __call__(self, obs, key) -> jax.Array:
        return jnp.zeros((len(obs), 2))


class Agent(AbstractAgent):
    """A critic and a policy, and nothing that learns."""

    critic: Critic
    step: jax.Array
    config: Config

    @classmethod
    def create(cls, key, spec: Spec, config: Config) -> "Agent":
        return cls(Critic.create(spec, (8,), 2, key), jnp.int32(0), config)

    @property
    def policy(self) -> AbstractPolicy:
        return Still()

    @property
    def explorer(self) -> AbstractPolicy:
        return Still()

    def update(self, batch, key):
        raise AssertionError


def looks(monitor: SeemMonitor, sequence, config=Config()):
    """Judgements of looks given as (target scale, updates, |theta|): x* = scale * x under f = w x excites above 1."""
    memory, judged = {}, []
    for scale, updates, norm in sequence:
        g = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) + np.diag([0.1, 0.2, 0.3])
        found = dict(
            ntk=g, cross=scale * g, params=np.array([norm, 0.0, 0.0, 0.0]), gradient=np.ones(4), q_mean=np.float64(2.0),
            q_max=np.float64(3.0), updates=np.int64(updates), layers=np.int64(2), members=np.int64(2),
        )  # fmt: skip
        judgement = monitor.judge(config, found, memory)
        memory = judgement.memory
        judged.append(judgement)
    return judged


def test_an_alarm_takes_two_looks_in_a_row():
    safe, wild = 0.5, 3.0
    found = looks(SeemMonitor(), [(safe, 10, 1.0), (wild, 20, 1.0), (safe, 30, 1.0), (wild, 40, 1.0), (wild, 50, 1.5)])
    assert [judged.alarm is not None for judged in found] == [False, False, False, False, True]
    assert [judged.metrics["diverging"] for judged in found] == [0, 0, 0, 0, 1]
    assert found[-1].alarm is not None and "updates^2" in found[-1].alarm
    # (0.5 in |theta| over 10 updates) / (1e-3 sqrt(4))
    assert found[-1].metrics["growth"] == pytest.approx(0.05 / 2e-3)
    assert np.isnan(found[0].metrics["growth"]) and np.isnan(found[0].metrics["ntk_cosine"])
    assert found[1].metrics["ntk_cosine"] == pytest.approx(1.0)
    assert np.isnan(found[-1].metrics["crash_step"])  # Adam has none


def test_no_alarm_while_the_kernel_still_turns():
    monitor = SeemMonitor()
    first = looks(monitor, [(3.0, 10, 1.0)])[0]
    turned = first.memory | {"ntk": np.ones((3, 3))}
    g = first.memory["ntk"]
    found = dict(
        ntk=g, cross=3.0 * g, params=np.ones(4), gradient=np.ones(4), q_mean=np.float64(2.0), q_max=np.float64(3.0),
        updates=np.int64(20), layers=np.int64(2), members=np.int64(2),
    )  # fmt: skip
    judged = monitor.judge(Config(), found, turned)
    assert judged.metrics["normalised"] > 0.02 and judged.metrics["ntk_cosine"] < 0.99 and judged.alarm is None


def test_the_reading_table():
    table = [
        (dict(normalised=1e-3), [], ["ok"], "contracts"),
        (dict(normalised=1e-3, ntk_cosine=0.999), [0.3], ["ok"], "no longer"),
        (dict(normalised=1e-3, ntk_cosine=0.999, q_max=1e4), [0.3], ["bad"], "beyond any return"),
        (dict(normalised=0.3), [], ["warn"], "may pass"),
        (dict(normalised=0.3, ntk_cosine=0.9), [0.3], ["warn"], "may pass"),
        (dict(normalised=0.3, ntk_cosine=0.999), [0.001], ["warn"], "may pass"),
        (dict(normalised=0.3, ntk_cosine=0.999), [0.2], ["bad"], "leave any bound"),
        (dict(normalised=0.3, ntk_cosine=0.999), [0.3, 0.001], ["warn"], "may pass"),  # not two looks in a row
        (dict(normalised=1e-3, q_max=1e4, bound=0.0), [0.3], ["ok"], "no longer"),  # no reward is known
        (dict(normalised=0.01, growth=0.9), [], ["ok", "bad"], "contracts"),
        (dict(normalised=float("nan")), [], ["bad"], "not finite"),
    ]
    for values, before, levels, word in table:
        found = {f"seem/{name}": value for name, value in (dict(q_max=1.0, bound=10.0) | values).items()}
        lines = seem_verdicts(found, before)
        assert [line["level"] for line in lines] == levels and word in lines[0]["text"], values
    assert seem_verdicts({}) == []


def test_the_crash_step_under_sgd():
    judged = looks(SeemMonitor(optimiser="sgd"), [(3.0, 10, 1.0)])[0]
    rate = 2 * 1e-3 / (3 * 2)  # a mean over three rows and two members
    assert judged.metrics["crash_step"] == pytest.approx(10 + 1 / (power(2) * rate * judged.metrics["value"]))


@pytest.mark.thorough
def test_what_the_monitor_measures(spec, batch, getkey):
    agent = Agent.create(getkey(), spec, Config())
    found = jax.device_get(SeemMonitor(index=1).measure(agent, batch, getkey()))
    judged = SeemMonitor(index=1).judge(agent.config, found, {})
    still = jnp.zeros_like(batch.action)
    data = (batch.obs, batch.action, batch.next_obs, still, batch.discount, 0.9)
    assert (judged.metrics["value"], judged.metrics["normalised"]) == pytest.approx(
        seem(agent.critic, *data, index=1, method="dense"), rel=1e-3, abs=1e-5
    )
    mlp = member(agent.critic, 1)
    q = agent.critic(batch.obs, batch.action)[1]
    assert judged.metrics["q_mean"] == pytest.approx(float(q.mean()), rel=1e-5)
    assert judged.metrics["params_norm"] == pytest.approx(
        float(jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(mlp)))), rel=1e-5
    )
    y = batch.reward + 0.9 * batch.discount * agent.critic(batch.next_obs, still)[1]
    grads = jax.grad(lambda c: 0.5 * jnp.square(c(batch.obs, batch.action)[1] - y).sum())(agent.critic)
    flat = np.concatenate([np.asarray(leaf[1]).reshape(-1) for leaf in jax.tree.leaves(grads)])
    np.testing.assert_allclose(found["gradient"], flat, rtol=1e-4, atol=1e-5)
