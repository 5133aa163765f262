"""Motion files of DeepMimic (Peng et al. 2018, arXiv:1804.02717), as the package pybullet brings them.

A file is JSON: `Loop` ("wrap" or "none") and `Frames`, 44 numbers each: seconds until the next frame, the root's
position, and quaternions (w, x, y, z) or hinge angles in the order of `JOINTS`. There y is up; here z is.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np

from trimtab.core import UsageError
from trimtab.envs.motion.clip import MotionClip

JOINTS: tuple[tuple[str, int], ...] = (
    ("root", 4),
    ("chest", 4),
    ("neck", 4),
    ("right_hip", 4),
    ("right_knee", 1),
    ("right_ankle", 4),
    ("right_shoulder", 4),
    ("right_elbow", 1),
    ("left_hip", 4),
    ("left_knee", 1),
    ("left_ankle", 4),
    ("left_shoulder", 4),
    ("left_elbow", 1),
)
"""What the numbers after the root's position are, and how many each has."""

NUMBERS = 4 + sum(size for _, size in JOINTS)

NAMES = (
    "backflip",
    "cartwheel",
    "crawl",
    "dance_a",
    "dance_b",
    "getup_facedown",
    "getup_faceup",
    "jump",
    "kick",
    "punch",
    "roll",
    "run",
    "spin",
    "spinkick",
    "walk",
)
"""Motions of the humanoid that pybullet brings."""


def read_deepmimic(path: str | Path) -> MotionClip:
    """The motion in a file. Raises `UsageError` if it cannot be read or is not of that format."""
    path = Path(path)
    try:
        record = json.loads(path.read_text())
        frames = np.array(record["Frames"], np.float64)
        loop = record["Loop"]
    except OSError as error:
        raise UsageError(f"cannot read the motion {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no motion file of DeepMimic: it needs JSON with Loop and Frames") from error
    if frames.ndim != 2 or frames.shape[1] != NUMBERS or loop not in ("wrap", "none"):
        raise UsageError(f"{path} is no motion file of DeepMimic: a frame has {NUMBERS} numbers, Loop is wrap or none")
    ends = np.cumsum([size for _, size in JOINTS])[:-1]
    parts = dict(zip((name for name, _ in JOINTS), np.split(frames[:, 4:], ends, axis=1), strict=True))
    balls = [name for name, size in JOINTS if size == 4]
    hinges = [name for name, size in JOINTS if size == 1]
    turned = np.stack([parts[name] for name in balls], axis=1)
    # Recordings were edited number by number, which left lengths from 0.6 to 1.2: the direction is what counts.
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    if length.min() < 0.1:
        raise UsageError(f"{path} is no motion file of DeepMimic: it has quaternions of length 0")
    turned = turned / length
    return MotionClip.create(
        np.concatenate([[0.0], np.cumsum(frames[:-1, 0])]),
        _upright(frames[:, 1:4]),
        np.concatenate([turned[..., :1], _upright(turned[..., 1:])], axis=-1),
        np.concatenate([parts[name] for name in hinges], axis=1),
        balls[1:],
        hinges,
        cyclic=loop == "wrap",
    )


def _upright(vector: np.ndarray) -> np.ndarray:
    """From y up to z up, by a quarter turn about x."""
    return np.stack([vector[..., 0], -vector[..., 2], vector[..., 1]], axis=-1)


def pybullet_motion(name: str) -> Path:
    """The file of one of `NAMES` in an installed pybullet. Raises `UsageError` if there is none."""
    found = importlib.util.find_spec("pybullet_data")
    if found is None or found.origin is None:
        raise UsageError(f"the motion {name!r} is one of pybullet's files: pip install pybullet")
    return Path(found.origin).parent / "data" / "motions" / f"humanoid3d_{name}.txt"
