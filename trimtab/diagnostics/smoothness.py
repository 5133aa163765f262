"""How smooth a motion and its control are, from what was recorded of it (NumPy)."""

import numpy as np


def high_frequency_ratio(signal: np.ndarray, dt: float, cut: float = 10.0) -> float:
    """Percent of the power of `signal` (t, d) above `cut` hertz, summed over its dimensions; mean removed, Hann window.

    `dt` must be below 1 / (2 cut), or there is nothing above.
    """
    centred = signal - signal.mean(0)
    power = np.square(np.abs(np.fft.rfft(centred * np.hanning(len(signal))[:, None], axis=0))).sum(1)
    return float(100.0 * power[np.fft.rfftfreq(len(signal), dt) > cut].sum() / power.sum())


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
