"""Does PPO learn? Ends of episodes, masks and memory in tiny worlds, then CartPole and Pendulum."""

from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, PRNGKeyArray

import trimtab
from trimtab import api
from trimtab.agents import dqn
from trimtab.agents.ppo import Config
from trimtab.cli.main import main
from trimtab.core import AbstractEnv, Spec, Step
from trimtab.envs.register import register
from trimtab.papers import mepoly
from trimtab.papers.recipe import folder
from trimtab.presets.dqn import PRESETS

pytestmark = pytest.mark.slow

SMALL = dict(n_steps=40, batch_size=80, n_epochs=4, hidden=(32,), learning_rate=3e-3, gamma=0.9)


def train(env: str, out, steps: int, num_envs: int, **config) -> Any:
    shared = dict(eval_freq=0, checkpoint_freq=0, log=("csv",), out=out, quiet=True, config=Config(**config))
    run = api.train("ppo", env=env, steps=steps, num_envs=num_envs, **shared)
    return trimtab.load(run.path)


def test_a_cut_is_bootstrapped_from(tmp_path, monkeypatch):
    # V is 1 / (1 - 0.9) at each of the ten steps; taken for terminations, the cuts would make it 4.1 on the average.
    # The advantages' horizon is all there is of the future: lambda is 1.
    config = dict(SMALL, gae_lambda=1.0, normalise_reward=False)
    value = lambda agent: float(agent.critic.step(jnp.zeros((1, 1)), ())[0][0, 0])
    agent = train("probe/Endless", tmp_path, 40_000, 8, **config).agent
    assert value(agent) == pytest.approx(10.0, abs=0.5)

    import trimtab.agents.ppo as ppo

    original = ppo.gae
    wrong = lambda reward, discount, last, *rest: original(
        reward, discount * (1.0 - last.astype(jnp.float32)), last, *rest
    )
    monkeypatch.setattr(ppo, "gae", wrong)
    jax.clear_caches()
    agent = train("probe/Endless", tmp_path, 40_000, 8, **config).agent
    jax.clear_caches()
    positions = [sum(0.9**k for k in range(left)) for left in range(1, 11)]
    assert value(agent) == pytest.approx(np.mean(positions), abs=0.5)  # 4.1


class Hundred(AbstractEnv):
    """A hundred actions, of which two are allowed in each of ten places; the higher of them goes on, reward 1. Any
    other ends the episode. The mask may be left out."""

    masked: bool = eqx.field(static=True)
    max_steps: ClassVar[int] = 10

    @property
    def spec(self) -> Spec:
        place = jax.ShapeDtypeStruct((10,), jnp.float32)
        mask = {"action_mask": jax.ShapeDtypeStruct((100,), jnp.float32)} if self.masked else {}
        return Spec({"place": place} | mask, 100, True)

    def _obs(self, place: Array) -> dict[str, Array]:
        here = (jnp.arange(10) == place).astype(jnp.float32)
        index = jnp.arange(100)
        allowed = (index == 7 * place) | (index == 7 * place + 30)
        return {"place": here} | ({"action_mask": allowed.astype(jnp.float32)} if self.masked else {})

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Any]:
        place = jr.randint(key, (), 0, 10)
        return place, self._obs(place)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        right = action == 7 * state + 30
        place = (state + 1) % 10
        return place, Step(self._obs(place), right.astype(jnp.float32), ~right, jnp.asarray(False), {})


def test_masks_make_a_hundred_actions_two(tmp_path):
    for masked in (True, False):
        register(f"tests/Hundred{masked}", lambda masked=masked: Hundred(masked))
    config = dict(SMALL, n_steps=32, batch_size=64)
    returns = {
        masked: trimtab.evaluate(
            train(f"tests/Hundred{masked}", tmp_path, 5_000, 8, **config), f"tests/Hundred{masked}", episodes=20
        )[0]
        for masked in (True, False)
    }
    assert returns[True] == 10.0 and returns[False] < 5.0


class Recall(AbstractEnv):
    """A sign is shown at the first of five steps; at the last one, reward 1 for naming it, else -1."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 2, True)
    max_steps: ClassVar[int] = 8

    def _obs(self, state: tuple[Array, Array]) -> Array:
        sign, age = state
        return jnp.stack([jnp.where(age == 0, sign, 0.0), age / 4.0])

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Array]:
        state = (jnp.where(jr.bernoulli(key), 1.0, -1.0), jnp.zeros(()))
        return state, self._obs(state)

    def step(self, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, Step]:
        sign, age = state
        last = age == 4.0
        reward = jnp.where(last, sign * (2.0 * action.astype(jnp.float32) - 1.0), 0.0)
        return (sign, age + 1.0), Step(self._obs((sign, age + 1.0)), reward, last, jnp.asarray(False), {})


def test_memory_recalls_what_a_plain_policy_cannot(tmp_path):
    register("tests/Recall", Recall)
    config = dict(SMALL, n_steps=40, batch_size=160, sequence=10)
    found = {m: train("tests/Recall", tmp_path, 40_000, 16, memory=m, **config) for m in (0, 16)}
    returns = {m: trimtab.evaluate(policy, "tests/Recall", episodes=100)[0] for m, policy in found.items()}
    assert returns[16] == 1.0 and abs(returns[0]) < 0.5


# Agent, environment, steps, and the least mean return of twenty episodes: by the defaults, or the preset.
USUAL = {
    "ppo-cartpole": ("ppo", "CartPole-v1", 100_000, 475.0),
    "ppo-pendulum": ("ppo", "Pendulum-v1", 500_000, -250.0),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", USUAL)
def test_what_users_try_first(tmp_path, case, seed):
    agent, env, steps, least = USUAL[case]
    run = api.train(agent, env=env, steps=steps, seed=seed, out=tmp_path, log=("csv",), quiet=True, eval_freq=0)
    assert trimtab.evaluate(trimtab.load(run.path), env, episodes=20)[0] >= least


def test_dqn_learns_cartpole(tmp_path):
    # The last networks, not the best: 500 each when this was written.
    options = dict(seeds=(0, 1, 2, 3, 4), eval_freq=0, log_freq=12_500, log=("csv",), out=tmp_path, quiet=True)
    runs = api.train("dqn", env="trimtab/CartPole-v1", steps=50_000, **options)
    returns = [trimtab.evaluate(trimtab.load(run.path), "trimtab/CartPole-v1", episodes=50)[0] for run in runs]
    assert min(returns) >= 475.0


def test_a_distribution_of_returns_learns_cartpole(tmp_path):
    # 500 each when this was written.
    fields = dict(PRESETS["trimtab/CartPole-v1"])
    options = dict(num_envs=fields.pop("num_envs"), seeds=(0, 1), eval_freq=0, log=("csv",), out=tmp_path, quiet=True)
    config = dqn.Config(critic="c51", **fields)
    runs = api.train("dqn", env="trimtab/CartPole-v1", steps=50_000, config=config, **options)
    returns = [trimtab.evaluate(trimtab.load(run.path), "trimtab/CartPole-v1", episodes=50)[0] for run in runs]
    assert min(returns) >= 475.0


@pytest.mark.parametrize("seed", [0, 1])
def test_polynomials_cover_a_curve_that_a_normal_cannot(tmp_path, seed):
    # The recipe's runs. Without the entropy's gradient, or with a wrong density, little of the curve is covered.
    found = {}
    for job in (replace(job, seed=seed) for job in mepoly.plan("smoke")):
        assert main(job.command(tmp_path)[1:]) == 0
        found[job.method] = mepoly.judge(folder(job, tmp_path), "lemniscate")
    assert found["degree 14"]["reward"] >= 0.98 and found["degree 14"]["coverage"] >= 0.9
    assert found["normal"]["reward"] <= 0.5
