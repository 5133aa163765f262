"""Own worlds by id. Users add theirs with `register`, from a module named by `--import`."""

from collections.abc import Callable
from functools import partial

from trimtab.core import AbstractEnv, UsageError
from trimtab.envs import probes
from trimtab.envs.arm_track import ArmTrack, ChangePenalty
from trimtab.envs.bandits import CurveBandit
from trimtab.envs.classic import CartPole, Pendulum
from trimtab.envs.rotation import DelayedRotation, Rotation
from trimtab.envs.seek import ContinuousSeek, DriveSeek, NoisySeek
from trimtab.envs.smooth_world import SmoothWorld
from trimtab.envs.two_route import TwoRoute

_WORLDS: dict[str, Callable[[], AbstractEnv]] = {
    "probe/Constant": probes.Constant,
    "probe/ObsDependent": probes.ObsDependent,
    "probe/Delayed": probes.Delayed,
    "probe/ActionDependent": probes.ActionDependent,
    "probe/Both": probes.Both,
    "probe/Cut": probes.Cut,
    "probe/Endless": probes.Endless,
    "trimtab/ArmTrack-v0": ArmTrack.create,
    "trimtab/ArmTrackChange0.01-v0": partial(ChangePenalty.create, 0.01),
    "trimtab/ArmTrackChange0.1-v0": partial(ChangePenalty.create, 0.1),
    "trimtab/ArmTrackChange1-v0": partial(ChangePenalty.create, 1.0),
    "trimtab/CartPole-v1": CartPole,
    "trimtab/Pendulum-v1": Pendulum,
    "trimtab/Lemniscate-v0": partial(CurveBandit.create, "lemniscate"),
    "trimtab/SmoothWorldTwoWalls-v0": partial(SmoothWorld.create, "two_walls"),
    "trimtab/SmoothWorldFourWalls-v0": partial(SmoothWorld.create, "four_walls"),
    "trimtab/SmoothWorldThreeGoals-v0": partial(SmoothWorld.create, "three_goals"),
    "trimtab/SmoothWorldTree-v0": partial(SmoothWorld.create, "tree"),
    "trimtab/SmoothWorldTwoSlits-v0": partial(SmoothWorld.create, "two_slits"),
    "trimtab/SmoothWorldCShape-v0": partial(SmoothWorld.create, "cshape"),
    "trimtab/TwoMoons-v0": partial(CurveBandit.create, "two_moons"),
    "trimtab/TwoRoute-v0": TwoRoute.create,
    "trimtab/ContinuousSeek5-v0": partial(ContinuousSeek.create, 5),
    "trimtab/ContinuousSeek10-v0": partial(ContinuousSeek.create, 10),
    "trimtab/ContinuousSeek20-v0": partial(ContinuousSeek.create, 20),
    "trimtab/DriveSeek-v0": DriveSeek.create,
    "trimtab/DriveSeekSmall-v0": partial(DriveSeek.create, half=5, max_goals=40, max_steps=30),
    "trimtab/NoisySeek-v0": NoisySeek.create,
    "trimtab/Rotation10-v0": partial(Rotation.create, 10),
    "trimtab/DelayedRotation10-v0": partial(DelayedRotation.create, 10),
}


def register(name: str, make: Callable[[], AbstractEnv]) -> None:
    """Makes `trimtab train AGENT --env NAME` build the own world that `make()` returns.

    Raises `UsageError` if the name is taken. Gymnasium environments are registered with `gymnasium.register` instead.
    """
    if name in _WORLDS and _WORLDS[name] is not make:
        raise UsageError(f"the world {name!r} is registered already: choose another name")
    _WORLDS[name] = make


def worlds() -> dict[str, Callable[[], AbstractEnv]]:
    """All registered own worlds by id."""
    return dict(_WORLDS)
