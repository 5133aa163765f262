"""Do the agents learn? Six tiny worlds whose values are known, versions broken on purpose, then short learning runs."""

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import brentq

import trimtab
from trimtab import api
from trimtab.agents import AGENTS, config_class
from trimtab.data.sources import WorldSource
from trimtab.envs import probes
from trimtab.envs.wrappers import TimeLimit
from trimtab.policies.compose import Uniform

pytestmark = pytest.mark.slow

GAMMA = 0.9
STEPS = 4_000
ACTIONS = np.linspace(-0.8, 0.8, 9, dtype=np.float32)
SIZES = dict(gamma=GAMMA, hidden=(32, 32), learning_rate=1e-3, batch_size=64, tau=0.05)
REPLAY = dict(learning_starts=1_000, buffer_size=10_000)


@dataclass(frozen=True)
class Known:
    """What is known of a probe: its states, the value of each, Q(s, a), and the best action where it matters."""

    value: dict[float, float]
    q: dict[float, object]
    best: dict[float, float]


constant = lambda number: lambda a: np.full_like(a, number)
PROBES = {
    "Constant": Known({0.0: 1.0}, {0.0: constant(1.0)}, {}),
    "ObsDependent": Known({-1.0: -1.0, 1.0: 1.0}, {-1.0: constant(-1.0), 1.0: constant(1.0)}, {}),
    "Delayed": Known({0.0: GAMMA, 1.0: 1.0}, {0.0: constant(GAMMA), 1.0: constant(1.0)}, {}),
    "ActionDependent": Known({0.0: 1.0}, {0.0: lambda a: 1 - (a - 0.5) ** 2}, {0.0: 0.5}),
    "Both": Known(
        {-1.0: 1.0, 1.0: 1.0},
        {-1.0: lambda a: 1 - (a + 0.5) ** 2, 1.0: lambda a: 1 - (a - 0.5) ** 2},
        {-1.0: -0.5, 1.0: 0.5},
    ),
    "Cut": Known({0.0: 1 / (1 - GAMMA), 1.0: 1.0}, {0.0: constant(1 / (1 - GAMMA)), 1.0: constant(1.0)}, {}),
}


def train(agent: str, probe: str, out: Path, **options):
    """A trained agent: online for SAC, TD3 and DDPG; IQL from 3,000 random steps."""
    replay = {} if agent == "iql" else REPLAY
    config = config_class(AGENTS[agent])(**SIZES, **replay, **options.pop("config", {}))
    shared = dict(eval_freq=0, checkpoint_freq=0, log=("csv",), out=out, quiet=True, config=config)
    if agent == "iql":
        run = api.train(agent, dataset=random_data(probe, out), offline_steps=STEPS, **shared)
    else:
        run = api.train(agent, env=f"probe/{probe}", steps=STEPS, **shared)
    return trimtab.load(run.path).agent


def random_data(probe: str, out: Path) -> Path:
    """A data set of uniform actions."""
    source = WorldSource.create(getattr(probes, probe)(), 10, 3_000, 1)
    state = source.init(jr.key(5))
    step = jax.jit(lambda state, key: source.advance(Uniform.create(source.env.spec), state, key))
    for i in range(300):
        state = step(state, jr.fold_in(jr.key(6), i))
    rows = jax.tree.map(np.asarray, state.buffer.rows)
    path = out / f"{probe}.npz"
    np.savez(
        path,
        observations=rows.obs,
        actions=rows.action,
        rewards=rows.reward,
        terminals=rows.discount == 0.0,
        next_observations=rows.next_obs,
    )
    return path


def q_of(agent, x: float) -> np.ndarray:
    """(members, actions): Q(x, a) over the grid of actions."""
    obs = jnp.full((len(ACTIONS), 1), x)
    return np.asarray(agent.critic(obs, jnp.asarray(ACTIONS)[:, None]))


def entropy_bonus(agent, x: float) -> float:
    """alpha times the policy's entropy at x: what SAC adds to the value of a state."""
    _, log_prob = agent.actor.sample_and_log_prob(jnp.full((4096, 1), x), jr.key(0))
    return float(-jnp.exp(agent.log_alpha) * log_prob.mean())


def check(agent, name: str) -> None:
    """Q is what is known, for all actions and members of the ensemble, and the policy takes the best action."""
    known = PROBES[name]
    for x, q in known.q.items():
        expected = q(ACTIONS)
        if hasattr(agent, "log_alpha"):  # SAC's Q counts the entropy of all later actions
            if (name, x) == ("Delayed", 0.0):
                expected = expected + GAMMA * entropy_bonus(agent, 1.0)
            if (name, x) == ("Cut", 0.0):
                expected = expected + GAMMA * entropy_bonus(agent, 0.0) / (1 - GAMMA)
        # Ten percent for the sum of a geometric series, else a tenth of a reward.
        tolerance = 1.0 if (name, x) == ("Cut", 0.0) else 0.1
        np.testing.assert_allclose(q_of(agent, x), np.broadcast_to(expected, (len(q_of(agent, x)), 9)), atol=tolerance)
    for x, best in known.best.items():
        assert float(agent.policy(jnp.array([x]), jr.key(0))[0]) == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("agent", ["sac", "td3", "ddpg"])
def test_online_agents_solve_the_probes(agent, name, tmp_path):
    check(train(agent, name, tmp_path), name)


def iql_answers(q, expectile: float, beta: float) -> tuple[float, float]:
    """V and the policy's mean that IQL converges to on uniform actions: the expectile, and the weighted mean action."""
    a = np.linspace(-1, 1, 20_001)
    values = q(a)
    weight = lambda v: np.where(values < v, 1 - expectile, expectile)
    v = brentq(lambda v: (weight(v) * (values - v)).mean(), values.min() - 1, values.max() + 1)
    w = np.minimum(np.exp(beta * (values - v)), 100.0)
    return float(v), float((w * a).sum() / w.sum())


@pytest.mark.parametrize("name", PROBES)
def test_iql_solves_the_probes_from_random_data(name, tmp_path):
    agent = train("iql", name, tmp_path, config=dict(expectile=0.9, beta=5.0))
    known = PROBES[name]
    for x, q in known.q.items():
        v, mean = iql_answers(q, 0.9, 5.0)
        tolerance = 1.0 if (name, x) == ("Cut", 0.0) else 0.1
        np.testing.assert_allclose(q_of(agent, x), np.broadcast_to(q(ACTIONS), (2, 9)), atol=tolerance)
        assert float(agent.value(jnp.array([x]))) == pytest.approx(v, abs=tolerance)
        assert v == pytest.approx(known.value[x], abs=0.2)  # the expectile is near the maximum
        action = float(agent.policy(jnp.array([x]), jr.key(0))[0])
        assert action == pytest.approx(mean, abs=0.1)
        if x in known.best:
            assert action == pytest.approx(known.best[x], abs=0.2)


@pytest.fixture
def broken(monkeypatch):
    """`broken(module, name, new)`: replaces a part of the library, with all that was compiled from it."""
    jax.clear_caches()

    def replace(target, name, new):
        monkeypatch.setattr(target, name, new)

    yield replace
    monkeypatch.undo()
    jax.clear_caches()


def test_a_time_limit_taken_for_a_termination_is_found(broken, tmp_path):
    step = TimeLimit.step

    def terminates(self, state, action, key):
        state, out = step(self, state, action, key)
        return state, type(out)(out.obs, out.reward, out.terminated | out.truncated, out.truncated, out.info)

    broken(TimeLimit, "step", terminates)
    agent = train("sac", "Cut", tmp_path)
    np.testing.assert_allclose(q_of(agent, 0.0), 1.0, atol=0.1)  # an episode of one step is worth its one reward
    with pytest.raises(AssertionError):
        check(agent, "Cut")


def test_a_bootstrap_through_terminations_is_found(broken, tmp_path):
    module = sys.modules["trimtab.agents.td3"]
    broken(module, "td_target", lambda reward, discount, value, gamma: reward + gamma * value)
    with pytest.raises(AssertionError):
        check(train("td3", "Constant", tmp_path), "Constant")


def test_a_target_that_never_moves_is_found(broken, tmp_path):
    broken(sys.modules["trimtab.agents.sac"], "polyak", lambda online, target, rate: target)
    with pytest.raises(AssertionError):
        check(train("sac", "Cut", tmp_path), "Cut")


def test_a_critic_that_does_not_see_the_observation_is_found(broken, tmp_path):
    critic = sys.modules["trimtab.nets.critic"]
    concat = critic.concat
    broken(critic, "concat", lambda obs, *rest: concat(jnp.zeros_like(obs), *rest))
    with pytest.raises(AssertionError):
        check(train("ddpg", "Both", tmp_path), "Both")


def test_an_actor_that_climbs_down_is_found(broken, tmp_path):
    module = sys.modules["trimtab.agents.td3"]
    loss = module.TD3._actor_loss

    def wrong(self, actor, critic, batch):
        value, metrics = loss(self, actor, critic, batch)
        return -value, metrics

    broken(module.TD3, "_actor_loss", wrong)
    with pytest.raises(AssertionError):
        check(train("td3", "ActionDependent", tmp_path), "ActionDependent")


# Short learning runs on real tasks, with thresholds that a broken version misses.

LEARNING = dict(eval_freq=0, checkpoint_freq=0, log=("csv",), quiet=True)


def returns_of(run, env: str) -> float:
    return trimtab.evaluate(run.policy, env, episodes=20)[0]


def test_sac_learns_pendulum(tmp_path):
    runs = trimtab.train("sac", env="Pendulum-v1", steps=10_000, seeds=(0, 1, 2), out=tmp_path, **LEARNING)
    returns = [returns_of(run, "Pendulum-v1") for run in runs]
    print(f"SAC on Pendulum-v1, 10,000 steps, seeds 0 1 2: {returns}")
    assert min(returns) >= -250, returns


def test_td3_learns_pendulum(tmp_path):
    config = config_class(AGENTS["td3"])(learning_starts=1_000)
    options = dict(env="Pendulum-v1", steps=15_000, seeds=(0, 1, 2), config=config, out=tmp_path, **LEARNING)
    returns = [returns_of(run, "Pendulum-v1") for run in trimtab.train("td3", **options)]
    print(f"TD3 on Pendulum-v1, 15,000 steps, seeds 0 1 2: {returns}")
    assert min(returns) >= -250, returns


def test_iql_reaches_the_return_of_its_data(tmp_path):
    half = LEARNING | dict(checkpoint_freq=4_000)
    run = trimtab.train("sac", env="Pendulum-v1", steps=4_000, out=tmp_path, **half)
    rows = jax.tree.map(np.asarray, api.reopen(run.path)[2].trimmed().rows)
    behaviour = rows.reward[: len(rows.reward) // 200 * 200].reshape(-1, 200).sum(1).mean()
    np.savez(
        tmp_path / "half.npz",
        observations=rows.obs,
        actions=rows.action,
        rewards=rows.reward,
        terminals=rows.discount == 0.0,
        next_observations=rows.next_obs,
    )
    options = dict(env="Pendulum-v1", offline_steps=8_000, out=tmp_path, **LEARNING)
    offline = trimtab.train("iql", dataset=tmp_path / "half.npz", **options)
    # The data set's actions are in [-1, 1], the agent's spec is the environment's: +-2.
    mean = returns_of(offline, "Pendulum-v1")
    print(f"IQL on {len(rows.reward)} steps of SAC that returned {behaviour:.0f} on average: {mean:.0f}")
    assert mean >= behaviour
