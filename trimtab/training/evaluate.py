"""Evaluation on environments of its own, with seeds of its own."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from trimtab.core import AbstractEnv, AbstractPolicy, RunError, Spec
from trimtab.envs.gym import ActionScale, to_vector
from trimtab.envs.wrappers import TimeLimit
from trimtab.training.compile import act

Episode = dict[str, float]
"""return, length, success (NaN if the environment reports none)."""

EVALUATION_SEED = 10_000
"""Added to a run's seed, so that evaluation episodes are not the training episodes."""

PARALLEL = 10
"""Environments stepped side by side: one call of the policy serves all."""


class GymEvaluator:
    """Evaluates policies on Gymnasium environments, which it makes once and keeps."""

    def __init__(self, make: Callable[[], gymnasium.Env], spec: Spec, seed: int) -> None:
        self._make, self._spec, self._seed = make, spec, seed
        self._envs: list[gymnasium.Env] = []

    def __call__(self, policy: AbstractPolicy, episodes: int) -> list[Episode]:
        """One dict an episode; episode i starts from seed + i, at every call."""
        found: list[Episode] = []
        for first in range(0, episodes, PARALLEL):
            found += self._batch(policy, first, min(PARALLEL, episodes - first))
        return found

    def _batch(self, policy: AbstractPolicy, first: int, n: int) -> list[Episode]:
        while len(self._envs) < n:
            self._envs.append(self._make())
        envs = self._envs[:n]
        scale = ActionScale(self._spec, envs[0].action_space.shape)
        results: list[Episode] = [{"return": 0.0, "length": 0, "success": float("nan")} for _ in envs]
        running, timestep = set(range(n)), 0
        key = jr.key(self._seed + first)
        try:
            obs = [to_vector(env.reset(seed=self._seed + first + i)[0]) for i, env in enumerate(envs)]
            while running:
                stacked = jax.tree.map(lambda *xs: np.stack(xs), *obs)
                actions = np.asarray(act(policy, stacked, key, np.int32(timestep)))
                for i in sorted(running):
                    next_obs, reward, terminated, truncated, info = envs[i].step(scale(actions[i]))
                    obs[i], result = to_vector(next_obs), results[i]
                    result["return"] += float(reward)
                    result["length"] += 1
                    if "is_success" in info or "success" in info:
                        now = float(info.get("is_success", info.get("success", 0.0)))
                        result["success"] = max(now, 0.0 if np.isnan(result["success"]) else result["success"])
                    if terminated or truncated:
                        running.remove(i)
                timestep += 1
        except Exception as error:  # a third party's code: any exception ends the evaluation with its reason
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(f"the environment raised in evaluation at step {timestep}: {reason}") from error
        if not all(np.isfinite(result["return"]) for result in results):
            raise RunError("the environment gave a non-finite reward in evaluation")
        return results

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()
        self._envs = []


class WorldEvaluator:
    """Evaluates policies on an own world: all episodes in one compiled call."""

    def __init__(self, env: AbstractEnv, seed: int) -> None:
        self._env, self._seed = TimeLimit(env), seed

    def __call__(self, policy: AbstractPolicy, episodes: int) -> list[Episode]:
        """One dict an episode."""
        returns, lengths = _world_episodes(self._env, policy, jr.split(jr.key(self._seed), episodes))
        return [
            {"return": float(r), "length": int(n), "success": float("nan")}
            for r, n in zip(np.asarray(returns), np.asarray(lengths), strict=True)
        ]

    def close(self) -> None:
        """Nothing to close."""


@eqx.filter_jit
def _world_episodes(env: TimeLimit, policy: AbstractPolicy, keys: Key[Array, " n"]) -> tuple[Array, Array]:
    def episode(key: PRNGKeyArray) -> tuple[Array, Array]:
        k_reset, k_run = jr.split(key)
        state, obs = env.reset(k_reset)

        def body(carry: Any, k: PRNGKeyArray) -> tuple[Any, None]:
            state, obs, total, length, over = carry
            k_act, k_step = jr.split(k)
            state, out = env.step(state, policy(obs, k_act), k_step)
            total = total + jnp.where(over, 0.0, out.reward)
            length = length + jnp.where(over, 0, 1)
            return (state, out.obs, total, length, over | out.terminated | out.truncated), None

        start = (state, obs, jnp.zeros(()), jnp.int32(0), jnp.asarray(False))
        (_, _, total, length, _), _ = jax.lax.scan(body, start, jr.split(k_run, env.env.max_steps))
        return total, length

    return jax.vmap(episode)(keys)
