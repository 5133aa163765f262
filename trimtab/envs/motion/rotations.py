"""Rotations as unit quaternions (w, x, y, z) in NumPy, with any leading axes."""

import numpy as np

_LEFT = np.zeros((4, 4, 4))
"""(q _LEFT) is the matrix by which q is multiplied to the left."""
_LEFT[0] = np.eye(4)
for _i, _j, _k in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
    _LEFT[_i, 0, _i], _LEFT[_i, _i, 0], _LEFT[_i, _k, _j], _LEFT[_i, _j, _k] = -1.0, 1.0, 1.0, -1.0
_LEFT = _LEFT.reshape(4, 16)
_BACK = np.array([1.0, -1.0, -1.0, -1.0])


def multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """First q, then p. Leading axes are broadcast."""
    return ((p @ _LEFT).reshape(*p.shape[:-1], 4, 4) @ q[..., None])[..., 0]


def inverse(q: np.ndarray) -> np.ndarray:
    """The rotation back."""
    return q * _BACK


def exponential(vector: np.ndarray) -> np.ndarray:
    """The rotation about `vector` by its length in radians."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # sin(angle / 2) / angle, which np.sinc knows at 0, too.
    return np.concatenate([np.cos(0.5 * angle), 0.5 * np.sinc(angle / (2.0 * np.pi)) * vector], axis=-1)


def logarithm(q: np.ndarray) -> np.ndarray:
    """The inverse of `exponential`, the shorter way round: length at most pi."""
    q = np.where(q[..., :1] < 0.0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, q[..., :1])
    return q[..., 1:] * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0)


def between(q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The rotation vector that leads from q to r, in the frame of q."""
    return logarithm(multiply(inverse(q), r))


def slerp(q: np.ndarray, r: np.ndarray, share: float) -> np.ndarray:
    """From q (share 0) to r (share 1) at constant speed, the shorter way."""
    return multiply(q, exponential(share * between(q, r)))


def rotate(q: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """`vector` turned by q. Leading axes are broadcast."""
    pure = np.zeros((*vector.shape[:-1], 4))
    pure[..., 1:] = vector
    return multiply(multiply(q, pure), inverse(q))[..., 1:]


def heading(q: np.ndarray) -> np.ndarray:
    """The part of a rotation that is about the vertical: where the body's x axis points, seen from above."""
    w, x, y, z = np.moveaxis(q, -1, 0)
    half = 0.5 * np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
    return np.stack([np.cos(half), 0.0 * half, 0.0 * half, np.sin(half)], axis=-1)
