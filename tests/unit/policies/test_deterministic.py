"""The deterministic policy."""

import jax
import numpy as np
import pytest

from trimtab.nets import concat
from trimtab.policies import Deterministic


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_is_tanh_of_its_network(lead, dict_spec, make_obs, getkey):
    policy, obs = Deterministic.create(dict_spec, (8, 8), getkey()), make_obs(dict_spec, getkey(), lead)
    action = policy(obs, getkey())
    assert action.shape == (*lead, 2)
    np.testing.assert_allclose(action, np.tanh(policy.net(concat(obs))), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(action, policy(obs))  # no key is needed


def test_stays_in_range_far_out(spec, make_obs, getkey):
    policy = Deterministic.create(spec, (), getkey())
    action = np.asarray(policy(jax.tree.map(lambda x: 1e4 * x, make_obs(spec, getkey(), (50,)))))
    assert action.min() == -1.0 and action.max() == 1.0
