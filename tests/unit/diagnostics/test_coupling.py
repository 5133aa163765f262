"""Coupling of a control policy: the first-order prediction, closed forms, and the command."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.agents import BC, PPO, SAC, bc, ppo, sac
from trimtab.core import Spec
from trimtab.diagnostics import coupling as c
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.gaussian import Gaussian, TanhGaussian
from trimtab.policies.polynomial import Family, PolynomialPolicy

DISCRETE = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 4, discrete=True)
POLICIES = {
    "deterministic": lambda spec, key: Deterministic.create(spec, (8,), key),
    "gaussian": lambda spec, key: Gaussian.create(spec, (8,), key),
    "tanh": lambda spec, key: TanhGaussian.create(spec, (8,), key),
    "polynomial": lambda spec, key: PolynomialPolicy.create(spec, Family.create(3, spec.action_size), (8,), key),
    "ppo": lambda spec, key: PPO.create(key, spec, ppo.Config(hidden=(8,), normalise_obs=False)).explorer,
    "discrete": lambda spec, key: PPO.create(key, DISCRETE, ppo.Config(hidden=(8,), normalise_obs=False)).explorer,
}


@pytest.mark.parametrize("name", POLICIES)
def test_kernel_predicts_what_one_step_changes(name, spec: Spec, getkey):
    policy = POLICIES[name](spec, getkey())
    obs, action = jr.normal(getkey(), (30, 3)), jr.uniform(getkey(), (30, 2), minval=-0.8, maxval=0.8)
    action = jr.randint(getkey(), (30,), 0, 4) if name == "discrete" else action
    grads = c.gradients(policy, obs, action)
    size = 1e-3
    flat, rebuild = jax.flatten_util.ravel_pytree(policy)
    moved = rebuild(flat + size * grads[0])
    found = c.log_prob(moved, obs, action) - c.log_prob(policy, obs, action)
    guessed = size * grads @ grads[0]
    slope = float(guessed @ found / (guessed @ guessed))
    assert 0.95 <= slope <= 1.05 and np.corrcoef(guessed, found)[0, 1] > 0.99


def test_what_normalises_observations_is_not_trained(spec: Spec, batch, getkey):
    plain, normal = (
        PPO.create(jr.key(1), spec, ppo.Config(hidden=(8,), normalise_obs=n)).explorer for n in (False, True)
    )
    obs, action = batch.obs, batch.action
    assert jnp.allclose(c.gradients(plain, obs, action), c.gradients(normal, obs, action), atol=1e-6)


def test_a_linear_policy_in_closed_form():
    # a = tanh(w s) near 0, so grad log pi = (a - tanh) (1 - tanh^2) s, with a bias of s = 1: all by hand.
    spec = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, action_low=(-1.0,), action_high=(1.0,))
    policy = Deterministic.create(spec, (), jr.key(0))
    policy = jax.tree.map(jnp.zeros_like, policy)
    good = c.coupling(policy, jnp.array([[2.0]]), jnp.array([[0.5]]), jnp.array([[1.0]]), jnp.array([[0.25]]))
    assert good["kernel"] == pytest.approx(0.5 * 0.25 * (2.0 * 1.0 + 1.0))
    assert good["index"] == pytest.approx(3.0 / np.sqrt(5.0 * 2.0))
    assert good["alike"] == 1.0
    opposite = c.coupling(policy, jnp.array([[2.0]]), jnp.array([[0.5]]), jnp.array([[2.0]]), jnp.array([[-0.5]]))
    assert opposite["index"] == pytest.approx(-1.0) and opposite["alike"] == 0.0


def test_the_probe_measures_an_agent(spec: Spec, batch, getkey):
    agent = SAC.create(getkey(), spec, sac.Config(hidden=(8,)))

    class Source:
        def batch(self, state, key):
            return batch

    found = c.couple(agent, Source(), None, getkey(), 2)
    assert set(found) == {"coupling/index", "coupling/within", "coupling/kernel", "coupling/alike"}
    assert all(np.isfinite(value) for value in found.values()) and -1.0 <= found["coupling/index"] <= 1.0
    cloner = BC.create(getkey(), spec, bc.Config(hidden=(8,)))
    assert c.couple(cloner, Source(), None, getkey(), 2) == {}  # it has no critic to tell good from bad


def test_verdicts():
    say = lambda index: c.coupling_verdicts({"coupling/index": index, "coupling/within": 0.9})[0]
    assert say(0.8)["level"] == "warn" and "raises bad ones" in say(0.8)["text"]
    assert "told apart" in say(0.0)["text"] and "partly" in say(0.3)["text"]
    assert c.coupling_verdicts({}) == []
