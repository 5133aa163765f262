"""A body follows a reference motion (DeepMimic, Peng et al. 2018, arXiv:1804.02717): reward for being like it, episodes
that begin anywhere in it, and that end with a fall.

The actions are added to the reference's next joint positions, the targets of proportional-derivative control: doing
nothing is tracking open loop. Differences theta of rotations are angles, and w are weights that sum to 1:

    reward = 0.5 exp(-2 sum_j w_j theta_j^2) + 0.05 exp(-0.1 sum_j w_j |omega_j - omega'_j|^2)
           + 0.15 exp(-40 mean_e |p_e - p'_e|^2)
           + 0.2 exp(-5 (|p - p'|^2 + 0.1 theta^2 + 0.01 |v - v'|^2 + 0.001 |omega - omega'|^2))
           + 0.1 exp(-|c - c'|^2)

j are the root and the joints, e the ends of the limbs (seen from the root, in the direction it is heading), p, theta, v
and omega are of the root, and c is the velocity of the centre of mass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mujoco as library
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

from trimtab.core import UsageError
from trimtab.envs.motion import builders
from trimtab.envs.motion.clip import MotionClip, Pose, Rate
from trimtab.envs.motion.readers import pybullet_motion, read_deepmimic
from trimtab.envs.motion.rotations import between, heading, inverse, logarithm, multiply, rotate

mujoco: Any = library  # its type stubs lack most of it

BUILT = {"trot": builders.trot, "hop": builders.hop, "flip": builders.flip, "walk": builders.walk}
"""Motions that are made."""

REACH = 0.5
"""Radians (of a hinge, or about each axis of a ball joint) that an action of 1 adds to the reference."""

FARTHEST = 0.7
"""Metres between root and reference beyond which an episode ends."""

HARMONICS = 3
"""Sines and cosines of the phase."""


@dataclass(frozen=True)
class Body:
    """What the reward and the ends of episodes need to know of a model in `bodies/`."""

    frame_skip: int
    """steps of the simulation in a sixtieth of a second."""
    feet: tuple[str, ...]
    """bodies that may touch the ground in any motion."""
    ends: tuple[str, ...]
    """bodies at the ends of the limbs."""
    weights: dict[str, float]
    """w_j by the last word of a joint's name; "root" is the root's. Divided by their sum."""


_SHARES = {"root": 3.0, "abduction": 1.0, "hip": 1.0, "knee": 1.0}
_FEET = tuple(f"{leg}_foot" for leg in builders.LEGS)

BODIES = {
    "quadruped": Body(4, _FEET, _FEET, _SHARES),
    "humanoid": Body(
        8,
        ("right_foot", "left_foot"),
        ("right_foot", "left_foot", "right_wrist", "left_wrist"),
        dict(root=0.208, chest=0.104, neck=0.0625, hip=0.104, knee=0.0625, ankle=0.0417, shoulder=0.0625, elbow=0.0417),
    ),
}


def find_clip(clip: str | MotionClip) -> MotionClip:
    """A clip by the name of a builder, by `humanoid3d_NAME` of pybullet's, or from a file of DeepMimic's format.

    Raises `UsageError` if there is none.
    """
    if isinstance(clip, MotionClip):
        return clip
    if clip in BUILT:
        return BUILT[clip]()
    if clip.startswith("humanoid3d_") and not clip.endswith(".txt"):
        return read_deepmimic(pybullet_motion(clip.removeprefix("humanoid3d_")))
    return read_deepmimic(clip)


class Imitation(MujocoEnv):
    """One of `BODIES` in a clip.

    Observations are dicts: `phase`, sines and cosines of the clip's phase and its multiples; `state`; and `reference`,
    what `state` would be in the reference. Both are seen in the direction in which the reference is heading: the root's
    height, how far it is from the reference on the ground, two axes of its rotation (6), its velocity and a tenth of
    its angular velocity, joint positions (rotation vectors of ball joints), and a tenth of their rates.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 60}

    def __init__(
        self,
        body: str = "quadruped",
        clip: str | MotionClip = "trot",
        *,
        anywhere: bool = True,
        noise: float = 0.02,
        may_touch: Sequence[str] | None = (),
        render_mode: str | None = None,
    ) -> None:
        """`anywhere` begins episodes at any time of the clip, else at its first frame; `noise` is the spread of joints
        (radians) and, fivefold, of rates around the reference. `may_touch` are parts of the body, by their names in the
        model, that may touch the ground beside its feet; None: all of them, so that only the distance to the reference
        ends episodes. Raises `UsageError` for an unknown body, part or clip, or a clip of another body's joints."""
        if body not in BODIES:
            raise UsageError(f"unknown body {body!r}: choose {' or '.join(BODIES)}")
        self.body, self.clip, self.anywhere, self.noise = BODIES[body], find_clip(clip), anywhere, noise
        path = Path(__file__).parent / "bodies" / f"{body}.xml"
        super().__init__(str(path), self.body.frame_skip, None, render_mode=render_mode)
        self._ghost = mujoco.MjData(self.model)
        self._time = 0.0
        self._index(body)
        self._may_touch = self._parts(body, may_touch)
        size = 15 + 2 * (self.model.nv - 6)
        box = lambda n: spaces.Box(-np.inf, np.inf, (n,), np.float64)
        self.observation_space = spaces.Dict(
            {"phase": box(2 * HARMONICS), "reference": box(size), "state": box(size)},
        )

    def _set_action_space(self) -> Any:
        self.action_space = spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        return self.action_space

    def _index(self, body: str) -> None:
        """Where the clip's joints lie in the model, and their weights."""
        model = self.model
        joints = [model.joint(i) for i in range(1, model.njnt)]
        balls = [j for j in joints if j.type[0] == mujoco.mjtJoint.mjJNT_BALL]
        hinges = [j for j in joints if j.type[0] == mujoco.mjtJoint.mjJNT_HINGE]
        for ours, theirs in ((balls, self.clip.balls), (hinges, self.clip.hinges)):
            if {j.name for j in ours} != set(theirs):
                raise UsageError(f"the clip is not of the joints of the {body}: it lacks or adds some")
        assert [model.actuator(i).trnid[0] for i in range(model.nu)] == list(model.dof_jntid[6:])
        self._ball_order = [0] + [1 + self.clip.balls.index(j.name) for j in balls]
        self._hinge_order = [self.clip.hinges.index(j.name) for j in hinges]
        block = lambda first, n: np.arange(first, first + n)
        quaternions = [block(3, 4), *(block(j.qposadr[0], 4) for j in balls)]
        self._quaternions = np.stack(quaternions)
        self._turns = np.stack([block(3, 3), *(block(j.dofadr[0], 3) for j in balls)])
        self._angles = np.array([j.qposadr[0] for j in hinges], int)
        self._speeds = np.array([j.dofadr[0] for j in hinges], int)
        weight = lambda name: self.body.weights[name.split("_")[-1]]
        weights = np.array([weight(name) for name in ["root", *(j.name for j in balls + hinges)]])
        self._weights = weights / weights.sum()
        self._ends = np.array([model.body(name).id for name in self.body.ends])

    def _parts(self, body: str, may_touch: Sequence[str] | None) -> set[int]:
        """Numbers of the ground and of what may touch it."""
        names = [self.model.body(i).name for i in range(self.model.nbody)]
        for name in may_touch or ():
            if name not in names[1:]:
                raise UsageError(f"the {body} has no part {name!r}: choose from {', '.join(names[1:])}")
        return set(range(len(names))) if may_touch is None else {0, *map(names.index, (*self.body.feet, *may_touch))}

    # Poses in the order of the model

    def _reference(self, t: float) -> tuple[Pose, Rate]:
        pose, rate = self.clip.at(t)
        return (
            Pose(pose.position, pose.rotations[self._ball_order], pose.angles[self._hinge_order]),
            Rate(rate.position, rate.turning[self._ball_order], rate.angles[self._hinge_order]),
        )

    def _own(self) -> tuple[Pose, Rate]:
        qpos, qvel = self.data.qpos, self.data.qvel
        return (
            Pose(qpos[:3].copy(), qpos[self._quaternions], qpos[self._angles]),
            Rate(qvel[:3].copy(), qvel[self._turns], qvel[self._speeds]),
        )

    def _numbers(self, pose: Pose, rate: Rate) -> tuple[np.ndarray, np.ndarray]:
        qpos, qvel = np.zeros(self.model.nq), np.zeros(self.model.nv)
        qpos[:3], qpos[self._quaternions], qpos[self._angles] = pose.position, pose.rotations, pose.angles
        qvel[:3], qvel[self._turns], qvel[self._speeds] = rate.position, rate.turning, rate.angles
        return qpos, qvel

    def _joints(self, pose: Pose) -> np.ndarray:
        """Positions of all joints in the order of the degrees of freedom."""
        found = np.zeros(self.model.nv)
        found[self._turns[1:]], found[self._speeds] = logarithm(pose.rotations[1:]), pose.angles
        return found[6:]

    # What Gymnasium asks for

    def reset_model(self) -> dict[str, np.ndarray]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Somewhere in the clip, nearly as it is there."""
        self._time = float(self.np_random.uniform(0.0, self.clip.duration)) if self.anywhere else 0.0
        qpos, qvel = self._numbers(*self._reference(self._time))
        shift, faster = self.np_random.normal(size=(2, self.model.nv)) * (np.arange(self.model.nv) >= 6)
        mujoco.mj_integratePos(self.model, qpos, self.noise * shift, 1.0)
        qvel += 5.0 * self.noise * faster
        self.set_state(qpos, qvel)
        return self._observe(*self._own(), *self._reference(self._time))

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """A sixtieth of a second. `info` has the targets of the control and the joint positions."""
        self._time += self.dt
        wanted, wanted_rate = self._reference(self._time)
        target = self._joints(wanted) + REACH * np.clip(action, -1.0, 1.0)
        self.do_simulation(target, self.frame_skip)
        pose, rate = self._own()
        parts = self.reward_parts(pose, rate, wanted, wanted_rate)
        touching = {int(self.model.geom_bodyid[geom]) for geom in self.data.contact.geom.ravel()}
        away = float(np.linalg.norm(pose.position - wanted.position))
        fallen = bool(touching - self._may_touch) or away > FARTHEST
        over = not self.clip.cyclic and self._time >= self.clip.duration
        info = {"target": target, "position": self._joints(pose), "distance": away, **parts}
        return (
            self._observe(pose, rate, wanted, wanted_rate),
            float(sum(parts.values())),
            fallen,
            over and not fallen,
            info,
        )

    def reward_parts(self, pose: Pose, rate: Rate, wanted: Pose, wanted_rate: Rate) -> dict[str, float]:
        """The five terms of the reward, by name."""
        apart = np.linalg.norm(between(wanted.rotations, pose.rotations), axis=-1)
        angles = np.concatenate([apart, np.abs(pose.angles - wanted.angles)])
        turning = np.square(rate.turning - wanted_rate.turning).sum(-1)
        rates = np.concatenate([turning, np.square(rate.angles - wanted_rate.angles)])
        ends, centre = self._places(pose, rate)
        wanted_ends, wanted_centre = self._places(wanted, wanted_rate)
        away = np.square(pose.position - wanted.position).sum()
        speed = np.square(rate.position - wanted_rate.position).sum()
        root = away + 0.1 * apart[0] ** 2 + 0.01 * speed + 0.001 * turning[0]
        return {
            "reward_pose": float(0.5 * np.exp(-2.0 * self._weights @ np.square(angles))),
            "reward_velocity": float(0.05 * np.exp(-0.1 * self._weights @ rates)),
            "reward_ends": float(0.15 * np.exp(-40.0 * np.square(ends - wanted_ends).sum(-1).mean())),
            "reward_root": float(0.2 * np.exp(-5.0 * root)),
            "reward_centre": float(0.1 * np.exp(-np.square(centre - wanted_centre).sum())),
        }

    def _places(self, pose: Pose, rate: Rate) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the limbs as seen from the root, and the velocity of the centre of mass."""
        ghost = self._ghost
        ghost.qpos[:], ghost.qvel[:] = self._numbers(pose, rate)
        for compute in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel, mujoco.mj_subtreeVel):
            compute(self.model, ghost)
        back = inverse(heading(pose.rotations[0]))
        ends = rotate(back, ghost.xpos[self._ends] - pose.position)
        return ends, ghost.subtree_linvel[1].copy()

    def _observe(self, pose: Pose, rate: Rate, wanted: Pose, wanted_rate: Rate) -> dict[str, np.ndarray]:
        angle = (2.0 if self.clip.cyclic else 1.0) * np.pi * self.clip.phase(self._time) * np.arange(1, HARMONICS + 1)
        back = inverse(heading(wanted.rotations[0]))
        return {
            "phase": np.concatenate([np.sin(angle), np.cos(angle)]),
            "reference": self._features(wanted, wanted_rate, wanted.position, back),
            "state": self._features(pose, rate, wanted.position, back),
        }

    def _features(self, pose: Pose, rate: Rate, origin: np.ndarray, back: np.ndarray) -> np.ndarray:
        """A part of the observation, seen from `origin` and turned by `back`."""
        rates = np.zeros(self.model.nv)
        rates[self._turns], rates[self._speeds] = 0.1 * rate.turning, 0.1 * rate.angles
        axes = rotate(multiply(back, pose.rotations[0]), np.eye(3)[:2])
        apart, velocity = rotate(back, np.stack([pose.position - origin, rate.position]))
        joints = self._joints(pose)
        return np.concatenate([pose.position[2:], apart[:2], axes.ravel(), velocity, rates[3:6], joints, rates[6:]])
