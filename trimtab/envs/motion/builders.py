"""Motions that are made and not recorded: gaits of the quadruped and a walk of the humanoid, by forward kinematics.

A leg of two links whose thigh leans forward by h, and whose knee is bent by k (less than 0), has its foot at
(L1 sin h + L2 sin(h + k)) before its hip and (L1 cos h + L2 cos(h + k)) below it. In a gait of phase p with offsets o
of the legs,

    h = h0 + A sin 2 pi (p + o),  k = k0 - A_k max(0, cos 2 pi (p + o)):

a leg swings forward with a bent knee and goes back with a straight one. The root goes forward at the mean speed of the
feet that go back, and is as high as the lowest foot lets it.
"""

import numpy as np

from trimtab.envs.motion.clip import MotionClip
from trimtab.envs.motion.rotations import exponential

LEGS = ("front_left", "front_right", "rear_left", "rear_right")
THIGH = SHANK = 0.32
FOOT = 0.03
"""Radius of the quadruped's feet."""
HIP = 0.6
"""The quadruped's thigh in its middle position; the shank leans back as much."""

HUMAN_THIGH, HUMAN_SHANK, SOLE = 0.4215, 0.4099, 0.05
"""Of the humanoid; its sole lies so far below its ankle."""

FRAMES = 60
"""Frames a cycle."""

GRAVITY = 9.81

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


def trot(period: float = 0.5, swing: float = 0.25, lift: float = 0.5) -> MotionClip:
    """A trot of the quadruped: front left and rear right together, the other two half a period later. `swing` is A and
    `lift` is A_k, in radians."""
    phase = np.linspace(0.0, 1.0, FRAMES + 1)
    offsets = np.array([0.0, 0.5, 0.5, 0.0])
    h, k = _gait(phase, offsets, HIP, -2.0 * HIP, swing, lift)
    height = _drop(h, k, THIGH, SHANK).max(1) + FOOT
    speed = 2.0 * (THIGH + SHANK) * np.cos(HIP) * np.sin(swing) / (0.5 * period)
    return _quadruped(period * phase, period * speed * phase, height, h, k, cyclic=True)


def hop(stance: float = 0.35, flight: float = 0.25) -> MotionClip:
    """Hops of the quadruped on the spot, all legs alike: down and up within `stance` seconds, then a free flight of
    `flight` seconds, in which the legs keep their length."""
    time, reach, height, _ = _leap(stance, flight)
    h = np.repeat(np.arccos(reach / (THIGH + SHANK))[:, None], 4, axis=1)
    return _quadruped(time, np.zeros_like(time), height, h, -2.0 * h, cyclic=True)


def flip(stance: float = 0.35, flight: float = 0.6) -> MotionClip:
    """A hop in whose flight the quadruped turns over backwards: its pitch is a cubic that rests at both ends."""
    time, reach, height, share = _leap(stance, flight)
    h = np.repeat(np.arccos(reach / (THIGH + SHANK))[:, None], 4, axis=1)
    pitch = 2.0 * np.pi * share**2 * (3.0 - 2.0 * share)
    return _quadruped(time, np.zeros_like(time), height, h, -2.0 * h, cyclic=False, pitch=pitch)


def walk(period: float = 1.0, swing: float = 0.35, lift: float = 0.8) -> MotionClip:
    """A walk of the humanoid, with level feet and arms that swing against the legs."""
    phase = np.linspace(0.0, 1.0, FRAMES + 1)
    lean, bend = 0.15, -0.3
    h, k = _gait(phase, np.array([0.0, 0.5]), lean, bend, swing, lift)
    height = _drop(h, k, HUMAN_THIGH, HUMAN_SHANK).max(1) + SOLE
    ahead = lambda way: HUMAN_THIGH * np.sin(lean + way) + HUMAN_SHANK * np.sin(lean + bend + way)
    speed = (ahead(swing) - ahead(-swing)) / (0.5 * period)
    arms = -0.8 * (h - lean)
    forward = lambda angle: exponential(-angle[:, None] * np.array([0.0, 1.0, 0.0]))
    still = np.broadcast_to(UPRIGHT, (len(phase), 4))
    balls = dict(chest=still, neck=still)
    hinges = {}
    for side, name in enumerate(("right", "left")):
        balls[f"{name}_hip"] = forward(h[:, side])
        balls[f"{name}_ankle"] = forward(-h[:, side] - k[:, side])
        balls[f"{name}_shoulder"] = forward(arms[:, side])
        hinges[f"{name}_knee"] = k[:, side]
        hinges[f"{name}_elbow"] = np.full(len(phase), 0.3)
    position = np.stack([period * speed * phase, np.zeros_like(phase), height], axis=1)
    rotations = np.stack([still, *balls.values()], axis=1)
    angles = np.stack(list(hinges.values()), axis=1)
    return MotionClip.create(period * phase, position, rotations, angles, [*balls], [*hinges], cyclic=True)


def _gait(
    phase: np.ndarray, offsets: np.ndarray, hip: float, knee: float, swing: float, lift: float
) -> tuple[np.ndarray, np.ndarray]:
    """h and k of all legs, (f, legs)."""
    angle = 2.0 * np.pi * (phase[:, None] + offsets[None])
    return hip + swing * np.sin(angle), knee - lift * np.maximum(0.0, np.cos(angle))


def _drop(h: np.ndarray, k: np.ndarray, thigh: float, shank: float) -> np.ndarray:
    """How far the feet are below the hips."""
    return thigh * np.cos(h) + shank * np.cos(h + k)


def _leap(stance: float, flight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Times, lengths of the legs, heights of the root, and the share of the flight that is over.

    In flight the root falls freely; on the ground it is slowed down and sped up evenly between the same speeds.
    """
    share = np.linspace(0.0, 1.0, FRAMES // 2 + 1)
    longest = (THIGH + SHANK) * np.cos(HIP)
    speed = 0.5 * GRAVITY * flight
    squat = longest - speed * stance * share * (1.0 - share)
    rise = 0.5 * GRAVITY * flight**2 * share * (1.0 - share)
    time = np.concatenate([stance * share, stance + flight * share[1:]])
    reach = np.concatenate([squat, np.full(len(share) - 1, longest)])
    height = FOOT + np.concatenate([squat, longest + rise[1:]])
    return time, reach, height, np.concatenate([np.zeros(len(share)), share[1:]])


def _quadruped(
    time: np.ndarray,
    ahead: np.ndarray,
    height: np.ndarray,
    h: np.ndarray,
    k: np.ndarray,
    *,
    cyclic: bool,
    pitch: np.ndarray | None = None,
) -> MotionClip:
    hinges = [f"{leg}_{joint}" for leg in LEGS for joint in ("abduction", "hip", "knee")]
    angles = np.stack([np.zeros_like(h), h, k], axis=-1).reshape(len(time), -1)
    pitch = np.zeros_like(time) if pitch is None else pitch
    rotations = exponential(-pitch[:, None] * np.array([0.0, 1.0, 0.0]))[:, None]
    position = np.stack([ahead, np.zeros_like(ahead), height], axis=1)
    return MotionClip.create(time, position, rotations, angles, (), hinges, cyclic=cyclic)
