"""How smooth a motion and its control are, from what was recorded of it (NumPy)."""

import numpy as np

from trimtab.core import UsageError


def high_frequency_ratio(signal: np.ndarray, dt: float, cut: float = 10.0) -> float:
    """Percent of the power of `signal` (t, d) above `cut` hertz, summed over its dimensions; mean removed, Hann window.

    0 of what does not move. Raises `UsageError` unless `dt` is below 1 / (2 cut): else there is nothing above.
    """
    if dt * 2.0 * cut >= 1.0:
        raise UsageError(f"power above {cut:g} Hz needs more than {2.0 * cut:g} samples a second, not {1.0 / dt:g}")
    centred = signal - signal.mean(0)
    power = np.square(np.abs(np.fft.rfft(centred * np.hanning(len(signal))[:, None], axis=0))).sum(1)
    return float(100.0 * power[np.fft.rfftfreq(len(signal), dt) > cut].sum() / max(power.sum(), 1e-300))


def action_smoothness(action: np.ndarray) -> float:
    """Mean squared change |u_t - u_(t-1)|^2 of actions (t, d); less is smoother."""
    return float(np.square(np.diff(action, axis=0)).sum(1).mean())


def jerk(position: np.ndarray, dt: float) -> float:
    """Mean size of the third derivative of positions (t, d), by differences."""
    return float(np.abs(np.diff(position, n=3, axis=0)).mean() / dt**3)


def smoothness_report(action: np.ndarray, position: np.ndarray, dt: float) -> dict[str, float]:
    """All three, of one episode."""
    return {
        "high_frequency_ratio": high_frequency_ratio(action, dt),
        "action_smoothness": action_smoothness(action),
        "jerk": jerk(position, dt),
    }
