"""Arm-track's mechanics and reward, the curve bandits, and SmoothWorld."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.spatial import cKDTree

from trimtab.envs.arm_track import ArmTrack, acceleration, energy, reference
from trimtab.envs.bandits import CurveBandit, coverage, lemniscate, two_moons
from trimtab.envs.smooth_world import SmoothWorld, layout


def drift(rate_of_steps: int) -> float:
    """The largest change of energy in two seconds of free swing, in units of what there is of it."""
    h = 1.0 / rate_of_steps

    def step(now, _):  # semi-implicit, as the world has it
        q, rate = now
        rate = rate + h * acceleration(q, rate, jnp.zeros(2), 0.0)
        return (q + h * rate, rate), energy(q + h * rate, rate)

    start = (jnp.array([1.0, -0.5]), jnp.zeros(2))
    _, found = jax.jit(lambda start: jax.lax.scan(step, start, None, 2 * rate_of_steps))(start)
    first, lowest = energy(*start), energy(jnp.zeros(2), jnp.zeros(2))
    return float(jnp.abs(found - first).max() / (first - lowest))


def test_energy_is_kept_without_torque_and_damping():
    with jax.enable_x64(True):
        coarse, fine = drift(240), drift(960)
    assert coarse < 0.03 and fine < 0.01
    assert 3.0 < coarse / fine < 5.0  # what is left of it is the integrator's, of first order


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
