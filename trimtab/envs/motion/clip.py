"""Reference motions: frames of a body's pose, and what lies between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.core import UsageError
from trimtab.envs.motion.rotations import between, slerp


@dataclass(frozen=True)
class Pose:
    """A body at a time: where its root is, how root and ball joints are turned, and the angles of its hinges."""

    position: np.ndarray
    """of the root, (3,), z up."""
    rotations: np.ndarray
    """quaternions w, x, y, z of the root and of the ball joints, (1 + balls, 4); those of joints against the parent."""
    angles: np.ndarray
    """of the hinges, (hinges,)."""


@dataclass(frozen=True)
class Rate:
    """How fast a pose changes: `turning` are angular velocities, each in the frame of what turns."""

    position: np.ndarray
    turning: np.ndarray
    angles: np.ndarray


@dataclass(frozen=True)
class MotionClip:
    """Frames of a motion. Positions and angles are interpolated linearly, rotations at constant speed; rates are those
    of the interpolation.

    A cyclic clip begins again at its end, which should be its beginning but for where the root is on the ground: each
    cycle goes on from where the last one ended.
    """

    times: np.ndarray
    """of the frames, from 0, (f,)."""
    position: np.ndarray
    """(f, 3)."""
    rotations: np.ndarray
    """(f, 1 + balls, 4)."""
    angles: np.ndarray
    """(f, hinges)."""
    balls: tuple[str, ...]
    """names of the ball joints."""
    hinges: tuple[str, ...]
    """names of the hinges."""
    cyclic: bool

    @classmethod
    def create(
        cls,
        times: np.ndarray,
        position: np.ndarray,
        rotations: np.ndarray,
        angles: np.ndarray,
        balls: Sequence[str] = (),
        hinges: Sequence[str] = (),
        *,
        cyclic: bool,
    ) -> "MotionClip":
        """Raises `UsageError` for fewer than two frames, times that do not rise from 0, arrays that do not fit each
        other, numbers that are not finite, or quaternions that are not of length 1 (to a hundredth)."""
        times, position, rotations, angles = (np.asarray(x, np.float64) for x in (times, position, rotations, angles))
        frames = len(times)
        shapes = ((frames, 3), (frames, 1 + len(balls), 4), (frames, len(hinges)))
        if frames < 2 or times[0] != 0.0 or not (np.diff(times) > 0.0).all():
            raise UsageError("a motion needs at least two frames, whose times rise from 0")
        if (position.shape, rotations.shape, angles.shape) != shapes:
            raise UsageError(f"a motion of {frames} frames needs arrays of shapes {shapes}")
        if not all(np.isfinite(x).all() for x in (position, rotations, angles)):
            raise UsageError("a motion has numbers that are not finite")
        length = np.linalg.norm(rotations, axis=-1, keepdims=True)
        if np.abs(length - 1.0).max() > 0.01:
            raise UsageError("a motion has quaternions that are not of length 1")
        return cls(times, position, rotations / length, angles, tuple(balls), tuple(hinges), cyclic)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return float(self.times[-1])

    def at(self, t: float) -> tuple[Pose, Rate]:
        """The pose at a time, and how fast it changes. A clip that is not cyclic rests before its beginning and after
        its end."""
        cycle = np.floor(t / self.duration) if self.cyclic else 0.0
        within = t - cycle * self.duration
        moves = self.cyclic or 0.0 <= within <= self.duration
        within = min(max(within, 0.0), self.duration)
        i = min(max(int(np.searchsorted(self.times, within, side="right")) - 1, 0), len(self.times) - 2)
        span = self.times[i + 1] - self.times[i]
        share = (within - self.times[i]) / span
        mix = lambda x: (1.0 - share) * x[i] + share * x[i + 1]
        on = self.position[-1] - self.position[0]
        on[2] = 0.0
        first, second = self.rotations[i], self.rotations[i + 1]
        pose = Pose(mix(self.position) + cycle * on, slerp(first, second, share), mix(self.angles))
        speed = 1.0 / span if moves else 0.0
        difference = lambda x: speed * (x[i + 1] - x[i])
        return pose, Rate(difference(self.position), speed * between(first, second), difference(self.angles))

    def phase(self, t: float) -> float:
        """The share of the clip, or of its present cycle, that is over."""
        share = t / self.duration
        return float(share - np.floor(share)) if self.cyclic else float(min(max(share, 0.0), 1.0))
