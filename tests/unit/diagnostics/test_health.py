"""What a diagnosis looks at: networks on the observations as they see them."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from trimtab.agents.iql import IQL, Config
from trimtab.diagnostics.health import units


def test_dead_units_are_counted_on_standardised_observations(spec, batch):
    """Far from zero a relu of the plain networks is never on, or always; standardised they are as in the middle."""
    config = Config(hidden=(32,))
    known = replace(spec, obs_mean=np.full(3, 500.0, np.float32), obs_std=np.full(3, 2.0, np.float32))
    far = replace(batch, obs=500.0 + 2.001 * batch.obs)
    source = lambda rows: SimpleNamespace(batch=lambda state, key: rows)
    of = lambda agent, rows: {k: float(v) for k, v in units(agent, source(rows), None, jax.random.key(0), 1).items()}
    plain = IQL.create(jax.random.key(1), spec, config)
    scaled = IQL.create(jax.random.key(1), known, replace(config, normalize_obs=True))
    wanted, found, blind = of(plain, batch), of(scaled, far), of(plain, far)
    dead = {"dead/actor.net", "dead/critic.mlp", "dead/value.mlp"}
    assert dead <= wanted.keys()
    assert {name: found[name] for name in dead} == pytest.approx({name: wanted[name] for name in dead})
    assert all(blind[name] > wanted[name] + 0.2 for name in dead)
