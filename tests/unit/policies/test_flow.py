"""Flow policies against closed forms: SciPy's densities, Gaussian recursions, products of Jacobians, differences."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from trimtab.core import Spec, UsageError
from trimtab.diagnostics.rollout_grad import call_grad_norms, rollout_grad_norms
from trimtab.policies.flow import (
    ConstStd,
    DecoderVelocity,
    FlowPolicy,
    GatedVelocity,
    LearnedStd,
    MLPVelocity,
    Ode,
    OneStep,
    corrected_drift,
    flow_matching_loss,
)
from trimtab.policies.velocity import GATE_BIAS, AbstractVelocity

G = 1.0 / (1.0 + np.exp(-GATE_BIAS))


class Linear(AbstractVelocity):
    """v = x W + u, whatever t and s."""

    weight: jax.Array
    offset: jax.Array
    action_size: int = eqx.field(static=True)

    def encode(self, obs, times):
        return ()

    def forward(self, x, i, memory, train):
        v = x @ self.weight
        return v + jnp.broadcast_to(self.offset, v.shape), jnp.zeros_like(v), self


class Transport(AbstractVelocity):
    """The rectified flow from N(0, 1) to N(mu, s^2): v = mu + c(t) (x - t mu)."""

    mu: jax.Array
    std: jax.Array
    action_size: int = eqx.field(static=True, default=1)

    def encode(self, obs, times):
        return times

    def forward(self, x, i, memory, train):
        t = memory[i]
        c = (t * self.std**2 - (1 - t)) / (t**2 * self.std**2 + (1 - t) ** 2)
        return self.mu + c * (x - t * self.mu), None, self


def box(act: int, high: float = 1.0, obs: int = 3) -> Spec:
    return Spec(jax.ShapeDtypeStruct((obs,), jnp.float32), act, False, (-high,) * act, (high,) * act)


def linear(w, u, noise, steps, high=1.0):
    w = jnp.atleast_2d(jnp.asarray(w, jnp.float32))
    offset = jnp.full(w.shape[:1], u, jnp.float32)
    return FlowPolicy.create(box(len(w), high), Linear(w, offset, len(w)), noise, steps)


def make(kind: str, spec: Spec, key=None, **options) -> FlowPolicy:
    velocity = {"mlp": MLPVelocity, "gated": GatedVelocity, "decoder": DecoderVelocity}[kind]
    return FlowPolicy.create(spec, velocity.create(spec, jr.key(0) if key is None else key, **options), LearnedStd(), 4)


KINDS = ("mlp", "gated", "decoder")


# Densities


@pytest.mark.parametrize(
    ("noise", "std", "drift"),
    [
        (ConstStd(0.5, drift_corrected=False), 0.25, 0.0),
        (ConstStd(0.5, drift_corrected=True), 0.25, 0.5),
        (LearnedStd(), float(np.exp(-1.5)), 0.0),
        (LearnedStd(on_velocity=True), float(np.exp(-1.5)) / 4, 0.0),
    ],
)
def test_the_path_density_is_the_product_of_scipys_normals(noise, std, drift):
    w, u, high, steps = 0.3, -0.2, 2.0, 4
    policy = linear(w, u, noise, steps, high)
    rollout = policy.sample(jnp.zeros((50, 3)), jr.key(1))
    path = np.asarray(rollout.path, np.float64)[..., 0]
    expected = stats.norm.logpdf(path[0])
    for i in range(steps):
        t, x = i / steps, path[i]
        v = w * x + u
        b = v + drift**2 / 2 * (t * v - x) / (1 - t)
        expected += stats.norm.logpdf(path[i + 1], x + b / steps, std)
    expected -= np.log(high * (1 - np.tanh(path[-1]) ** 2))
    np.testing.assert_allclose(rollout.log_prob, expected, rtol=1e-5, atol=2e-5)


def test_the_change_of_variables_is_the_derivative_of_the_action_in_its_units():
    high = 0.4
    policy = linear(np.eye(3) * 0.5, 0.1, LearnedStd(), 2, high)
    flat = linear(np.eye(3) * 0.5, 0.1, LearnedStd(), 2, 1.0)
    obs = jnp.zeros((20, 3))
    rollout, same = policy.sample(obs, jr.key(3)), flat.sample(obs, jr.key(3))
    x = np.asarray(rollout.path[-1], np.float64)
    slope = high * (np.tanh(x + 1e-6) - np.tanh(x - 1e-6)) / 2e-6  # d action / d x by differences
    before = np.asarray(rollout.log_prob, np.float64) + np.log(slope).sum(-1)
    gaussian = np.asarray(same.log_prob, np.float64) + np.log(1.0 - np.tanh(x) ** 2).sum(-1)
    np.testing.assert_allclose(before, gaussian, rtol=1e-5, atol=1e-4)


def test_the_official_decoder_density_leaves_the_std_out():
    obs = jnp.zeros((20, 3))
    true = linear(0.3, 0.1, LearnedStd(on_velocity=True), 4).sample(obs, jr.key(1))
    official = linear(0.3, 0.1, LearnedStd(official_logp=True), 4).sample(obs, jr.key(1))
    np.testing.assert_array_equal(true.action, official.action)
    np.testing.assert_allclose(true.log_prob - official.log_prob, 4 * (1.5 + np.log(4.0)), rtol=1e-5)


def test_linear_velocity_ends_gaussian():
    w, u, sigma, steps = -0.8, 0.5, 0.6, 5
    mean, variance, dt = 0.0, 1.0, 1 / 5
    for _ in range(steps):
        mean, variance = mean * (1 + w * dt) + u * dt, variance * (1 + w * dt) ** 2 + sigma**2 * dt
    policy = linear(w, u, ConstStd(sigma, drift_corrected=False), steps)
    end = policy.sample(jnp.zeros((200_000, 3)), jr.key(0)).path[-1]
    assert abs(end.mean() - mean) < 5 * np.sqrt(variance / 200_000)
    assert abs(end.var() / variance - 1) < 5 * np.sqrt(2 / 200_000)


def test_with_constant_std_the_density_moves_through_tanh_alone():
    spec = box(2)
    policy = FlowPolicy.create(spec, GatedVelocity.create(spec, jr.key(0), std_head=False), ConstStd(0.3), 4)
    obs, key = jr.normal(jr.key(1), (16, 3)), jr.key(2)
    whole = jax.grad(lambda p: p.sample(obs, key).log_prob.sum())(policy)
    tanh = jax.grad(lambda p: -jnp.log1p(-jnp.square(p.sample(obs, key).action)).sum())(policy)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tanh), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 0.1


# Marginals


@pytest.mark.parametrize(
    ("steps", "sigma", "std"),
    [(10, None, 0.4308), (10, 0.1, 0.4321), (10, 0.5, 0.4571), (1000, None, 0.4993), (1000, 0.5, 0.4995)],
)
def test_the_drift_correction_keeps_the_marginals(steps, sigma, std):
    """The terminal std, carried exactly: all maps are affine in x, so that x_0 = 1 against 0 gives the slope."""
    assert abs(_terminal_std(steps, sigma, True) - std) < 2e-4


def test_without_the_correction_noise_spreads_the_marginals():
    assert _terminal_std(1000, 0.5, True) < 0.51
    assert abs(_terminal_std(1000, 0.5, False) - 0.6674) < 2e-3


def _terminal_std(steps, sigma, corrected):
    velocity = Transport(jnp.float32(0.7), jnp.float32(0.5))
    dt, variance = 1 / steps, 1.0

    def slope(t):
        def step(x):
            v, _, _ = velocity.forward(x, 0, t[None], False)
            return x + dt * (corrected_drift(v, x, t, sigma) if corrected and sigma else v)

        return step(jnp.ones(1)) - step(jnp.zeros(1))

    for s in np.asarray(jax.vmap(slope)(jnp.arange(steps, dtype=jnp.float32) * jnp.float32(dt)), np.float64)[:, 0]:
        variance = variance * s**2 + (0.0 if sigma is None else sigma**2 * dt)
    return variance**0.5


# Gradients through the rollout


@pytest.mark.parametrize(("steps", "product"), [(4, 0.3192), (7, 0.3426), (10, 0.3513), (20, 0.3610)])
@pytest.mark.thorough
def test_the_gate_at_the_start_contracts_as_its_closed_form(steps, product):
    spec = box(2)
    velocity = GatedVelocity.create(spec, jr.key(0))
    zeroed = jax.tree.map(jnp.zeros_like, velocity.candidate)
    policy = FlowPolicy.create(spec, replace(velocity, candidate=zeroed), LearnedStd(), steps)
    end = lambda x: policy.rollout(jnp.ones(3), x, None)[0].path[-1]
    jacobian = jax.jacobian(end)(jnp.array([0.3, -0.2]))
    np.testing.assert_allclose(jacobian, (1 - G / steps) ** steps * np.eye(2), atol=1e-4)
    assert abs((1 - G / steps) ** steps - product) < 1e-4
    norms = rollout_grad_norms(policy, lambda r: r.path[-1].sum(-1), jnp.ones((5, 3)), jr.key(0))
    expected = [np.sqrt(2.0) * (1 - G / steps) ** (steps - i) for i in range(steps)]
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_a_linear_flow_has_the_gradient_of_its_matrix_power(steps):
    w = np.array([[0.9, 0.4], [-0.3, 1.2]])
    policy, u = linear(w, 0.1, LearnedStd(), steps), np.array([1.0, -2.0])
    norms = rollout_grad_norms(policy, lambda r: r.path[-1] @ jnp.asarray(u, jnp.float32), jnp.ones((6, 3)), jr.key(0))
    step = np.eye(2) + w / steps
    expected = [np.linalg.norm(np.linalg.matrix_power(step, steps - i) @ u) for i in range(steps)]
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


@pytest.mark.thorough
def test_call_gradients_add_up_to_the_gradient():
    spec = box(2)
    policy = make("decoder", spec)
    obs, key = jr.normal(jr.key(1), (8, 3)), jr.key(2)
    norms = call_grad_norms(policy, lambda r: r.action.sum(-1), obs, key)
    assert norms.shape == (4,) and (norms > 0).all()
    whole = jax.grad(lambda v: replace(policy, velocity=v).sample(obs, key).action.sum(-1).mean())(policy.velocity)
    total = jnp.sqrt(jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(whole)]).sum())
    assert total <= norms.sum() * 1.0001


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.thorough
def test_gradients_are_those_of_finite_differences(kind):
    with jax.enable_x64(True):
        spec, key = box(2), jr.key(0)
        policy = jax.tree.map(lambda x: x.astype(jnp.float64), make(kind, spec))
        obs = jr.normal(jr.key(1), (5, 3), jnp.float64)
        start, noise = jr.normal(key, (5, 2), jnp.float64), jr.normal(key, (4, 5, 2), jnp.float64)

        def loss(policy):
            with jax.numpy_dtype_promotion("standard"):
                rollout = policy.rollout(obs, start, noise)[0]
                return (0.2 * rollout.log_prob - jnp.sin(3 * rollout.action).sum(-1)).mean()

        leaves, tree = jax.tree.flatten(policy)
        direction = [jr.normal(jr.fold_in(key, i), leaf.shape, jnp.float64) for i, leaf in enumerate(leaves)]
        along = lambda h: loss(jax.tree.unflatten(tree, [x + h * d for x, d in zip(leaves, direction, strict=True)]))
        numeric = (along(1e-7) - along(-1e-7)) / 2e-7  # so small a step that no relu turns on or off in it
        exact = sum((g * d).sum() for g, d in zip(jax.tree.leaves(jax.grad(loss)(policy)), direction, strict=True))
        np.testing.assert_allclose(numeric, exact, rtol=1e-5)


# The networks


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_of_a_call_does_not_know_its_rollout(kind):
    policy = make(kind, box(2))
    obs = jr.normal(jr.key(1), (4, 3))
    path = Ode(policy).inner.rollout(obs, jr.normal(jr.key(2), (4, 2)), None)[0].path
    for i, (x, following) in enumerate(itertools.pairwise(path)):
        np.testing.assert_allclose(x + policy.velocity(x, jnp.float32(i / 4), obs) / 4, following, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_are_free_and_steps_may_change(kind):
    policy = make(kind, box(2))
    for lead in ((), (5,), (2, 5)):
        action = policy(jnp.ones((*lead, 3)), jr.key(0))
        assert action.shape == (*lead, 2) and (jnp.abs(action) <= 1).all()
    longer = replace(policy, steps=8)
    assert len(longer.sample(jnp.ones((5, 3)), jr.key(0)).path) == 9


def test_a_new_decoder_norm_is_batch_statistics_in_training():
    policy = make("decoder", box(2), norm="post_brn")
    _, after = policy.sample_train(jr.normal(jr.key(1), (64, 3)), jr.key(2))
    calls = [norm.calls for layer in after.velocity.layers for norm in layer.norms]
    assert calls == [4.0] * 6  # K updates of the statistics a rollout
    assert jax.tree.structure(after) == jax.tree.structure(policy)


def test_the_gate_starts_at_sigmoid_five_and_sigma_in_the_middle():
    policy = make("gated", box(2))
    assert float(jnp.abs(policy.velocity.gate.layers[-1].weight).max()) == 0.0
    assert linear(0.1, 0.0, LearnedStd(), 3).sample(jnp.ones((2, 3)), jr.key(0)).log_std == -1.5


def test_flow_matching_has_zero_loss_for_the_straight_line_to_a_constant():
    """To one action a, v = (a - x) / (1 - t) is the exact velocity."""

    class Straight(AbstractVelocity):
        action_size: int = eqx.field(static=True, default=2)

        def encode(self, obs, times):
            return times

        def forward(self, x, i, memory, train):
            t = memory[i]
            return (jnp.broadcast_to(jnp.array([0.3, -0.6]), x.shape) - x) / (1.0 - t), None, self

    action = jnp.broadcast_to(jnp.array([0.3, -0.6]), (256, 2))
    loss = flow_matching_loss(Straight(), jnp.ones((256, 3)), action, jr.key(0))
    assert loss.shape == (256, 2) and float(loss.max()) < 1e-3
    policy = FlowPolicy.create(box(2), Straight(), ConstStd(0.1), 7)
    end = policy.rollout(jnp.ones((4, 3)), jr.normal(jr.key(0), (4, 2)), None)[0].path[-1]
    np.testing.assert_allclose(end, jnp.broadcast_to(jnp.array([0.3, -0.6]), (4, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda s: DecoderVelocity.create(s, jr.key(0), norm="rms"), "pre_ln"),
        (lambda s: DecoderVelocity.create(s, jr.key(0), d_model=2), "d_model"),
        (lambda s: FlowPolicy.create(s, MLPVelocity.create(s, jr.key(0)), LearnedStd(), 0), "flow_steps"),
        (lambda s: FlowPolicy.create(s, MLPVelocity.create(s, jr.key(0)), ConstStd(0.0), 4), "positive"),
    ],
)
def test_bad_choices_give_one_clear_line(build, word):
    with pytest.raises(UsageError) as error:
        build(box(2))
    assert word in str(error.value) and "\n" not in str(error.value)


def test_a_clipped_flow_ends_at_its_own_values(getkey):
    # v = W x + u is linear: ten steps are (1 + W/10)^10 x_0 + ..., then clipped; nothing is drawn beside the start.
    velocity = Linear(0.5 * jnp.eye(2), jnp.array([0.4, -0.2]), 2)
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))
    policy, obs, key = FlowPolicy.create(spec, velocity, None, 10, clipped=True), jnp.zeros((500, 3)), getkey()
    x = np.asarray(jr.normal(key, (500, 2)), np.float64)
    for _ in range(10):
        x = x + (0.5 * x + np.array([0.4, -0.2])) / 10
    action = policy(obs, key)
    assert 0.1 < (np.abs(x) > 1).mean() < 0.9
    np.testing.assert_allclose(action, np.clip(x, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(Ode(policy)(obs, key), action)
    rollout = policy.sample(obs, key)
    start = np.asarray(jr.normal(key, (500, 2)))
    np.testing.assert_allclose(rollout.log_prob, stats.norm.logpdf(start).sum(1), rtol=1e-4)  # of x_0 alone


def test_the_flow_to_one_point_reaches_it(getkey):
    # v = (x_1 - x)/(1 - t) leads to x_1 exactly in any number of steps.
    class ToPoint(AbstractVelocity):
        action_size: int = eqx.field(static=True, default=1)

        def encode(self, obs, times):
            return times

        def forward(self, x, i, memory, train):
            return (0.3 - x) / (1.0 - memory[i]), None, self

    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 1, False, (-1.0,), (1.0,))
    for steps in (1, 3, 10):
        policy = FlowPolicy.create(spec, ToPoint(), None, steps, clipped=True)
        np.testing.assert_allclose(policy(jnp.zeros((50, 3)), getkey()), 0.3, atol=1e-5)


def test_one_step_is_its_network_clipped(spec, make_obs, getkey):
    policy, key = OneStep.create(spec, (8,), getkey()), getkey()
    policy = jax.tree.map(lambda x: 3.0 * x, policy)
    obs = make_obs(spec, getkey(), (64,))
    out = policy.net(jnp.concatenate([obs, jr.normal(key, (64, 2))], axis=1))
    assert 0.02 < (np.abs(out) > 1).mean() < 0.98
    np.testing.assert_allclose(policy(obs, key), np.clip(out, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(policy.mu(obs, jr.normal(key, (64, 2))), out)
