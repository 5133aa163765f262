"""What a run is put together from: configs from JSON, the batches an agent asks for, and the moments of its data."""

import json
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab
from trimtab import api, assemble
from trimtab.agents import AGENTS, config_class
from trimtab.core import UsageError

ROWS = 40


@pytest.fixture
def dataset(tmp_path):
    """Forty rows of a world with four observations and two actions; episodes of ten."""
    rng = np.random.default_rng(0)
    obs = rng.normal([3.0, -1.0, 0.0, 100.0], [2.0, 0.5, 0.0, 10.0], (ROWS, 4)).astype(np.float32)
    path = tmp_path / "rows.npz"
    np.savez(
        path,
        observations=obs,
        actions=rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        rewards=rng.normal(size=ROWS).astype(np.float32),
        terminals=np.arange(ROWS) % 20 == 19,
        timeouts=np.arange(ROWS) % 20 == 9,
        next_observations=np.roll(obs, -1, axis=0),
    )
    return path, obs


def record(name: str, dataset, **config):
    """A run's record as `config.json` holds it."""
    kind = config_class(AGENTS[name])
    fields = dict(agent=name, agent_config=asdict(kind(**config)), dataset=str(dataset), online_steps=0, num_envs=1)
    return json.loads(json.dumps(fields))


@pytest.mark.parametrize("layers", [None, (0,), (0, 1)])
@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "iql", "td3-bc", "cql"])
def test_where_norms_stand_survives_json(name, layers, dataset, spec):
    config = config_class(AGENTS[name])(hidden=(8, 8), critic_norm="layer_after", norm_layers=layers)
    path, _ = dataset
    again = assemble._agent_config(record(name, path, hidden=(8, 8), critic_norm="layer_after", norm_layers=layers))
    assert again == config and hash(again) == hash(config)
    critic = jax.eval_shape(lambda key: AGENTS[name].create(key, spec, again), jax.random.key(0)).critic
    where = [i for i, norm in enumerate(critic.mlp.norms) if norm is not None]
    assert where == list(range(2) if layers is None else layers) and critic.mlp.norm_after


def test_moments_are_those_of_the_rows(dataset):
    path, obs = dataset
    setup = assemble.Setup.create(record("td3-bc", path, hidden=(8,)), None)
    np.testing.assert_allclose(setup.spec.obs_mean, obs.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(setup.spec.obs_std, obs.astype(np.float64).std(0), rtol=1e-5)
    agent = setup.agent(0)
    for net in (agent.actor, agent.critic, agent.target_actor, agent.target_critic):
        np.testing.assert_array_equal(net.inputs.mean, setup.spec.obs_mean)
        np.testing.assert_allclose(net.inputs.scale, setup.spec.obs_std + 1e-3)


def test_moments_of_many_rows_are_summed_in_blocks(monkeypatch):
    rows = np.random.default_rng(1).normal(1e4, 1.0, (2**16 + 100, 2)).astype(np.float32)
    mean, std = assemble.moments({"a": rows, "b": rows[:, :1]})
    np.testing.assert_allclose(mean["a"], rows.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(std["a"], rows.astype(np.float64).std(0), rtol=1e-5)
    np.testing.assert_array_equal(std["b"], std["a"][:1])


def test_a_loaded_policy_standardises_as_the_trained_one(dataset, tmp_path):
    path, obs = dataset
    config = config_class(AGENTS["td3-bc"])(hidden=(8,), batch_size=8)
    options = dict(dataset=str(path), offline_steps=4, log=("csv",), quiet=True, out=tmp_path / "runs", config=config)
    run = trimtab.train("td3-bc", **options)
    loaded = trimtab.load(run.path)
    np.testing.assert_allclose(loaded.agent.actor.inputs.mean, obs.mean(0), rtol=1e-5)
    wanted, _ = run.policy.predict(obs, deterministic=True)
    found, _ = loaded.predict(obs, deterministic=True)
    np.testing.assert_array_equal(found, wanted)
    raw = loaded.agent.actor.net(jnp.asarray((obs - obs.mean(0)) / (obs.std(0) + 1e-3)))
    np.testing.assert_allclose(found, np.tanh(raw), atol=1e-4)


def test_bc_learns_from_data_only(dataset):
    path, _ = dataset
    whole = record("bc", path)
    assemble.Setup.create(whole, None)
    for wrong in (whole | {"online_steps": 10}, whole | {"dataset": None}):
        with pytest.raises(UsageError, match="bc learns from a data set only: give --dataset"):
            assemble.Setup.create(wrong, "probe/Both")


def test_the_annotation_of_update_says_what_is_read(dataset):
    path, _ = dataset
    chunked = assemble.Setup.create(record("sac-flow-chunked", path), None)
    assert assemble.Reading.of("sac-flow-chunked", chunked.config) == assemble.Reading(5, False, False, False)
    assert assemble.Reading.of("iql", None) == assemble.Reading(None, False, False, False)
    assert assemble.Reading.of("rebrac", None) == assemble.Reading(None, True, False, False)
    assert assemble.Reading.of("fac", None) == assemble.Reading(None, False, True, False)
    assert assemble.Reading.of("ppo", None) == assemble.Reading(None, False, False, True)
    assert assemble.Reading.of("cal-ql", None) == assemble.Reading(None, False, False, False, to_go=True)
    assert (
        assemble.Reading(None, True, False, False).recorded and not assemble.Reading(None, False, True, False).recorded
    )


def test_returns_after_a_cut_are_the_least_reward_for_ever_or_what_is_said(dataset, tmp_path):
    path, _ = dataset
    least = float(np.load(path)["rewards"].min())
    asked = lambda **config: assemble.Setup.create(record("cal-ql", path, **config), None).returns
    found = asked(gamma=0.9)
    assert found is not None and found.gamma == 0.9 and float(found.after_cut) == pytest.approx(10.0 * least)
    assert least < 0.0 and float(asked(gamma=0.9, cut_value=-3.0).after_cut) == -3.0
    arrays = dict(np.load(path))
    np.savez(tmp_path / "paid.npz", **(arrays | {"rewards": arrays["rewards"] - least + 1.0}))
    paid = assemble.Setup.create(record("cal-ql", tmp_path / "paid.npz", gamma=0.9), None).returns
    assert float(paid.after_cut) == 0.0  # an episode of rewards of at least 1 may end at once
    with pytest.raises(UsageError, match="gamma 1 bounds no value"):
        asked(gamma=1.0)
    assert float(asked(gamma=1.0, cut_value=-3.0).after_cut) == -3.0
    online = assemble.Setup.create(record("cal-ql", path) | {"dataset": None}, "probe/Both").returns
    assert online is not None and float(online.after_cut) == -np.inf
    assert assemble.Setup.create(record("cql", path), None).returns is None


def test_what_is_said_of_rlpd_without_half_of_it(dataset, capsys):
    path, _ = dataset
    setup = assemble.Setup.create(record("rlpd", path), None)
    setup.record["online_steps"] = 30
    api._say_dropped(setup)
    assert "note    half of rlpd" in capsys.readouterr().out
    setup.record["sampling"] = "symmetric"
    api._say_dropped(setup)
    assert not capsys.readouterr().out


def test_only_the_phase_before_the_scores_has_batches_of_its_own_size(dataset):
    path, _ = dataset
    fields = dict(proxy_steps=5, batch_size=4, hidden=(8,))
    rows = lambda phase, **own: (
        assemble.Setup.create(record("fac", path, **fields, **own), None).source(phase).batch_size
    )
    assert [rows(phase) for phase in ("proxy", "offline")] == [4, 4]
    assert [rows(phase, proxy_batch_size=12) for phase in ("proxy", "offline")] == [12, 4]
    with pytest.raises(UsageError, match="proxy_batch_size must be at least 1, got 0"):
        assemble.Setup.create(record("fac", path, proxy_batch_size=0, **fields), None).agent(0)
