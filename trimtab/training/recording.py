"""What a policy does to an environment: the control and the motion of episodes, step by step."""

from dataclasses import dataclass, replace

import gymnasium
import numpy as np

from trimtab.core import RunError, TrimtabError, UsageError
from trimtab.envs import arm_track, classic
from trimtab.envs.hosted import Hosted
from trimtab.envs.make import World
from trimtab.training.evaluate import EVALUATION_SEED
from trimtab.training.predict import Policy

SECONDS = {
    arm_track.ArmTrack: 1.0 / arm_track.RATE,
    arm_track.ChangePenalty: 1.0 / arm_track.RATE,
    classic.Pendulum: 0.05,
}
"""Of a step, of the own worlds that have a clock."""


@dataclass(frozen=True)
class Recording:
    """One episode."""

    control: np.ndarray
    """(t, d): `info["target"]` where there is one, else the action, in own worlds between -1 and 1."""
    position: np.ndarray | None
    """(t, k): `info["position"]`, the joints; None where the environment does not say."""


def record(policy: Policy, world: World, episodes: int) -> tuple[list[Recording], float | None]:
    """Deterministic episodes, and the seconds of a step, None where they are unknown.

    Raises `UsageError` if the actions are discrete, `RunError` if the environment raises.
    """
    if world.spec.discrete:
        raise UsageError(f"{world.label} has discrete actions, of which there is no smoothness")
    if world.own is not None:
        ones = (1.0,) * world.spec.action_size  # what `Hosted` takes
        spec = replace(policy.spec, action_low=tuple(-x for x in ones), action_high=ones)
        env, policy = Hosted(world.own), Policy(policy.agent, spec, policy.info)
    else:
        assert world.make is not None
        env = world.make(None)
    try:
        return [_episode(policy, env, EVALUATION_SEED + i) for i in range(episodes)], seconds_of(env)
    except TrimtabError:
        raise
    except Exception as error:  # a third party's code: any exception ends the recording with its reason
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RunError(f"the environment raised while it was recorded: {reason}") from error
    finally:
        env.close()


def _episode(policy: Policy, env: gymnasium.Env, seed: int) -> Recording:
    controls, positions, state, over = [], [], None, False
    obs, _ = env.reset(seed=seed)
    while not over:
        action, state = policy.predict(obs, state, deterministic=True)
        obs, _, terminated, truncated, info = env.step(action)
        controls.append(np.array(info.get("target", action), float).ravel())
        positions += [np.array(info["position"], float).ravel()] if "position" in info else []
        over = terminated or truncated
    return Recording(np.array(controls), np.array(positions) if len(positions) == len(controls) else None)


def seconds_of(env: gymnasium.Env) -> float | None:
    """Seconds of a step: of an own world its own, else `dt`, as MuJoCo's environments have it, or one over the frames a
    second that the environment is filmed with; None where nothing is known."""
    base = env.unwrapped
    if isinstance(base, Hosted):
        return SECONDS.get(type(base.world))
    dt, rate = getattr(base, "dt", None), base.metadata.get("render_fps")
    if isinstance(dt, int | float) and dt > 0:
        return float(dt)
    return 1.0 / rate if rate else None
