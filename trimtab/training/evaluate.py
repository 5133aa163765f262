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

from trimtab.core import AbstractActor, AbstractEnv, AbstractPolicy, RunError, Spec, stuck
from trimtab.envs.gym import ActionScale, to_vector
from trimtab.envs.plans import HostPlans, plan_length
from trimtab.envs.wrappers import TimeLimit
from trimtab.training.compile import act, act_on

Episode = dict[str, float]
"""return, length, success (NaN if the environment reports none), discounted (the return with the evaluator's gamma) and
cut (1 if a time limit ended it, whose discounted return lacks the rest)."""

EVALUATION_SEED = 10_000
"""Added to a run's seed, so that evaluation episodes are not the training episodes."""

PARALLEL = 10
"""Environments stepped side by side: one call of the policy serves all."""


def normalized_score(mean: float, references: tuple[float, float]) -> float:
    """0 at the return of the random policy, 100 at the expert's; `references` are those two returns."""
    random, expert = references
    return 100.0 * (mean - random) / (expert - random)


class GymEvaluator:
    """Evaluates policies on Gymnasium environments, which it makes once and keeps.

    Evaluators that share a list `envs` use the same environments in turn: one with meshes takes 200 MB.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        spec: Spec,
        seed: int,
        gamma: float = 1.0,
        envs: list[gymnasium.Env] | None = None,
    ) -> None:
        self._make, self._spec, self._seed, self._gamma = make, spec, seed, gamma
        self._envs: list[gymnasium.Env] = [] if envs is None else envs

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
        nothing: Episode = {"return": 0.0, "length": 0, "success": float("nan"), "discounted": 0.0, "cut": 0.0}
        results: list[Episode] = [dict(nothing) for _ in envs]
        running, timestep, plans = set(range(n)), 0, HostPlans(n, self._spec)
        key, memory = jr.key(self._seed + first), policy.memory((n,)) if isinstance(policy, AbstractActor) else ()
        try:
            obs = [to_vector(env.reset(seed=self._seed + first + i)[0]) for i, env in enumerate(envs)]
            while running:
                if any(stuck(obs[i], self._spec) for i in running):
                    raise RunError(f"the environment gave an action_mask without a valid action at step {timestep}")
                if isinstance(policy, AbstractActor):  # all episodes begin at once, so nothing is forgotten
                    _, actions, memory = act_on(policy, _stack(obs), memory, key, np.int32(timestep))
                    actions = np.asarray(actions)
                else:
                    actions = plans(lambda: self._ask(policy, obs, key, timestep))  # noqa: B023  called at once
                for i in sorted(running):
                    next_obs, reward, terminated, truncated, info = envs[i].step(scale(actions[i]))
                    obs[i], result = to_vector(next_obs), results[i]
                    result["return"] += float(reward)
                    result["discounted"] += self._gamma**timestep * float(reward)
                    result["length"] += 1
                    if "is_success" in info or "success" in info:
                        now = float(info.get("is_success", info.get("success", 0.0)))
                        result["success"] = max(now, 0.0 if np.isnan(result["success"]) else result["success"])
                    if terminated or truncated:
                        result["cut"] = float(not terminated)
                        running.remove(i)
                timestep += 1
        except RunError:
            raise
        except Exception as error:  # a third party's code: any exception ends the evaluation with its reason
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(f"the environment raised in evaluation at step {timestep}: {reason}") from error
        if not all(np.isfinite(result["return"]) for result in results):
            raise RunError("the environment gave a non-finite reward in evaluation")
        return results

    def _ask(self, policy: AbstractPolicy, obs: list[Any], key: PRNGKeyArray, timestep: int) -> np.ndarray:
        return np.asarray(act(policy, _stack(obs), key, np.int32(timestep)))

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs:
            env.close()
        self._envs.clear()


def _stack(obs: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.stack(xs), *obs)


class WorldEvaluator:
    """Evaluates policies on an own world: all episodes in one compiled call."""

    def __init__(self, env: AbstractEnv, seed: int, gamma: float = 1.0) -> None:
        self._env, self._seed, self._gamma = TimeLimit(env), seed, gamma

    def __call__(self, policy: AbstractPolicy, episodes: int) -> list[Episode]:
        """One dict an episode. It was a success if `Step.info["success"]` was set at any of its steps."""
        found = _world_episodes(self._env, policy, jr.split(jr.key(self._seed), episodes), jnp.float32(self._gamma))
        return [
            {"return": float(r), "length": int(n), "success": float(s), "discounted": float(d), "cut": float(c)}
            for r, n, s, d, c in zip(*map(np.asarray, found), strict=True)
        ]

    def close(self) -> None:
        """Nothing to close."""


@eqx.filter_jit
def _world_episodes(
    env: TimeLimit, policy: AbstractPolicy, keys: Key[Array, " n"], gamma: Array
) -> tuple[Array, Array, Array, Array, Array]:
    def episode(key: PRNGKeyArray) -> tuple[Array, Array, Array, Array, Array]:
        k_reset, k_run = jr.split(key)
        state, obs = env.reset(k_reset)
        answer, actor = jax.eval_shape(policy, obs, key), policy if isinstance(policy, AbstractActor) else None
        h = plan_length(answer.shape, env.spec)
        shape = answer.shape if h == 1 else (h, env.spec.action_size)

        def body(carry: Any, step: tuple[Array, PRNGKeyArray]) -> tuple[Any, None]:
            state, obs, memory, plan, total, length, success, discounted, cut, over = carry
            t, k = step
            k_act, k_step = jr.split(k)
            if actor is not None:
                drawn, memory = actor.draw(obs, memory, k_act)
                action = plan = actor.applied(drawn)
            elif h == 1:
                action = plan = policy(obs, k_act)
            else:  # all episodes begin at once, so all ask for a plan at once
                ask = lambda: policy(obs, k_act).reshape(shape)
                plan = jax.lax.cond(t % h == 0, ask, lambda: plan)
                action = plan[t % h]
            state, out = env.step(state, action, k_step)
            total = total + jnp.where(over, 0.0, out.reward)
            discounted = discounted + jnp.where(over, 0.0, gamma ** t.astype(jnp.float32) * out.reward)
            cut = cut | (~over & out.truncated & ~out.terminated)
            length = length + jnp.where(over, 0, 1)
            if "success" in out.info:
                now = out.info["success"].astype(jnp.float32)
                success = jnp.fmax(success, jnp.where(over, 0.0, now))  # fmax: the first number replaces the NaN
            over = over | out.terminated | out.truncated
            return (state, out.obs, memory, plan, total, length, success, discounted, cut, over), None

        nothing = jnp.zeros(shape, answer.dtype)
        none, no = jnp.zeros(()), jnp.asarray(False)
        memory = () if actor is None else actor.memory(())
        start = (state, obs, memory, nothing, none, jnp.int32(0), jnp.asarray(jnp.nan), none, no, no)
        steps = (jnp.arange(env.env.max_steps), jr.split(k_run, env.env.max_steps))
        (_, _, _, _, total, length, success, discounted, cut, _), _ = jax.lax.scan(body, start, steps)
        return total, length, success, discounted, cut

    return jax.vmap(episode)(keys)
