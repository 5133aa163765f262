"""Arm-track's mechanics and reward, the curve bandits, and SmoothWorld."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.spatial import cKDTree

from trimtab.envs.arm_track import ArmTrack, ChangePenalty, acceleration, energy, reference
from trimtab.envs.bandits import CurveBandit, coverage, lemniscate, two_moons
from trimtab.envs.make import find
from trimtab.envs.smooth_world import SmoothWorld, layout


def swing(start: tuple[float, float], rate_of_steps: int, *, fourth_order: bool) -> tuple[float, float]:
    """How far energy is at the end of two seconds of free swing from where it was, and its largest change, in units of
    what there is of it above the lowest state."""
    h = 1.0 / rate_of_steps
    slope = lambda now: (now[1], acceleration(now[0], now[1], jnp.zeros(2), 0.0))
    ahead = lambda now, rates, h: jax.tree.map(lambda x, d: x + h * d, now, rates)

    def world(now):  # semi-implicit, as the world has it
        rate = now[1] + h * slope(now)[1]
        return now[0] + h * rate, rate

    def runge_kutta(now):
        k1 = slope(now)
        k2 = slope(ahead(now, k1, h / 2.0))
        k3 = slope(ahead(now, k2, h / 2.0))
        k4 = slope(ahead(now, k3, h))
        mean = jax.tree.map(lambda a, b, c, d: (a + 2.0 * b + 2.0 * c + d) / 6.0, k1, k2, k3, k4)
        return ahead(now, mean, h)

    def step(now, _):
        now = runge_kutta(now) if fourth_order else world(now)
        return now, energy(*now)

    first = (jnp.array(start), jnp.zeros(2))
    _, found = jax.jit(lambda now: jax.lax.scan(step, now, None, 2 * rate_of_steps))(first)
    whole = energy(*first) - energy(jnp.zeros(2), jnp.zeros(2))
    change = jnp.abs(found - energy(*first)) / whole
    return float(change[-1]), float(change.max())


def test_energy_is_kept_without_torque_and_damping():
    with jax.enable_x64(True):
        for start in ((0.3, 0.2), (1.0, -0.5), (1.5, -1.5)):  # the mechanics alone, at the world's 240 Hz
            assert swing(start, 240, fourth_order=True)[1] < 1e-5
        # The world's integrator is of first order: below 1 % in a small swing, not in a large one.
        end, largest = swing((0.3, 0.2), 240, fourth_order=False)
        assert end < 0.005 and largest < 0.01
        end, largest = swing((1.0, -0.5), 240, fourth_order=False)
        assert 0.01 < end < 0.012 and largest < 0.025
        assert 3.5 < end / swing((1.0, -0.5), 960, fourth_order=False)[0] < 4.5


def test_the_power_of_the_torque_is_the_change_of_energy():
    with jax.enable_x64(True):
        q, rate, torque = jnp.array([0.4, -1.1]), jnp.array([1.3, -2.0]), jnp.array([3.0, -1.0])
        flow = (rate, acceleration(q, rate, torque, 0.0))
        _, change = jax.jvp(energy, (q, rate), flow)
        np.testing.assert_allclose(change, rate @ torque, rtol=1e-10)


def test_the_reference_is_its_own_derivative_and_pays_all():
    with jax.enable_x64(True):
        angles, rates = reference(jnp.asarray(0.3))
        _, slope = jax.jvp(lambda t: reference(t)[0], (jnp.asarray(0.3),), (jnp.asarray(1.0),))
        np.testing.assert_allclose(rates, slope, rtol=1e-10)
        np.testing.assert_allclose(angles, [0.6 * np.sin(np.pi * 0.3), -0.8 + 0.6 * np.cos(2 * np.pi * 0.3)])
    world = ArmTrack.create(0.0, 0.0)
    (t, q, rate), obs = world.reset(jr.key(0))
    np.testing.assert_allclose(obs["state"], np.concatenate([q, 0.2 * rate]), rtol=1e-6)
    state, out = world.step((t, *reference(t)), jnp.zeros(2), jr.key(1))
    assert 0.9 < out.reward < 1.0 and not out.terminated
    _, out = world.step((t, reference(t)[0] + 1.0, rate), jnp.zeros(2), jr.key(1))
    assert out.terminated
    _, out = world.step(state, jnp.array([0.1, 5.0]), jr.key(1))
    np.testing.assert_allclose(out.info["target"], reference(state[0] + 1 / 60)[0] + jnp.array([0.1, 1.0]), rtol=1e-5)


def test_changes_of_the_control_cost_what_they_should():
    world, taxed = ArmTrack.create(), ChangePenalty.create(0.5)
    plain, (inner, last) = world.reset(jr.key(3))[0], taxed.reset(jr.key(3))[0]
    np.testing.assert_array_equal(last, reference(plain[0])[0])  # nothing was done before
    np.testing.assert_array_equal(inner[1], plain[1])
    now = (inner, last)
    for i, action in enumerate((jnp.array([0.4, -0.2]), jnp.array([-0.1, 0.3]))):
        plain, out = world.step(plain, action, jr.key(i))
        now, paid = taxed.step(now, action, jr.key(i))
        change = reference(plain[0])[0] + action - last
        np.testing.assert_allclose(out.reward - paid.reward, 0.5 * float(change @ change), rtol=1e-4)
        np.testing.assert_array_equal(out.obs["state"], paid.obs["state"])
        last = out.info["target"]
    assert [find(f"trimtab/ArmTrackChange{w}-v0").own.weight for w in ("0.01", "0.1", "1")] == pytest.approx(
        [0.01, 0.1, 1.0]
    )


@pytest.mark.parametrize("curve", ["lemniscate", "two_moons"])
def test_bandits_pay_near_their_curve(curve):
    world = CurveBandit.create(curve)
    a = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    distance, _ = cKDTree(np.asarray(world.cloud)).query(a)
    pay = jax.vmap(lambda a: world.step(jnp.zeros(1), a, jr.key(0))[1].reward)(jnp.asarray(a))
    np.testing.assert_allclose(pay, np.exp(-(distance**2) / 0.02), atol=1e-5)
    on = (two_moons if curve == "two_moons" else lemniscate)(np.linspace(0, 2 * np.pi, 4000, endpoint=False))
    assert coverage(on, curve) == 1.0
    assert 0.02 <= coverage(np.repeat(on[:1], 100, 0), curve) <= 0.05
    assert coverage(np.full((100, 2), 0.99), curve) == 0.0


def test_smooth_world_moves_stops_and_pays():
    world = SmoothWorld.create("two_slits")
    step = jax.jit(lambda p, a: world.step(jnp.array(p), jnp.array(a), jr.key(0)))
    place, out = step([3.0, 3.0], [1.0, -5.0])  # actions are clipped
    np.testing.assert_allclose(place, [3.25, 2.75])
    np.testing.assert_allclose(out.obs, (np.array([3.25, 2.75]) - 12.5) / 12.5, rtol=1e-6)
    assert out.reward == 0.0 and not out.terminated
    place, _ = step([14.9, 10.0], [1.0, 1.0])  # the wall stops both directions
    np.testing.assert_allclose(place, [14.9, 10.0])
    place, _ = step([14.9, 5.0], [1.0, 0.0])  # but not in the slit
    np.testing.assert_allclose(place, [15.15, 5.0], rtol=1e-6)
    _, out = step([23.9, 5.0], [1.0, 0.0])
    assert out.reward == 20.0 and out.terminated and out.info["success"]
    place, _ = step([0.1, 24.9], [-1.0, 1.0])
    assert place[0] == 0.0 and 24.9 < place[1] < 25.0
    tree = SmoothWorld.create("tree")
    _, out = tree.step(jnp.array([12.9, 12.5]), jnp.array([1.0, 0.0]), jr.key(0))
    assert out.reward == -10.0 and out.terminated and not out.info["success"]


@pytest.mark.parametrize(
    ("name", "goals", "walls", "deaths"),
    [
        ("two_walls", 100, 0, 0),
        ("four_walls", 36, 0, 0),
        ("three_goals", 27, 0, 9),
        ("tree", 10, 0, 25),
        ("two_slits", 25, 17, 0),
        ("cshape", 25, 31, 0),
    ],
)
def test_maps_of_smooth_world(name, goals, walls, deaths):
    cells = layout(name)
    assert [(cells == kind).sum() for kind in (2, 1, 3)] == [goals, walls, deaths]
    world = SmoothWorld.create(name)
    starts, _ = jax.vmap(world.reset)(jr.split(jr.key(0), 300))
    assert (np.asarray(jax.vmap(world.at)(starts)) == 0).all()
    assert starts.min() < 3.0 and starts.max() > 22.0
