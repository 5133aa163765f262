"""How smooth a motion and its control are, from what was recorded of it (NumPy)."""

from collections.abc import Sequence

import numpy as np

from trimtab.core import UsageError

SHORTEST = 32
"""Steps below which an episode has too few frequencies to tell them apart. Ours."""

SHAKES = 5.0
"""Percent of the power from which control is said to shake. Ours."""


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


def measure_smoothness(
    episodes: Sequence[tuple[np.ndarray, np.ndarray | None]], seconds: float | None
) -> dict[str, float]:
    """smoothness/NAME of episodes of control (t, d) and positions (t, k) or None, means over those of `SHORTEST` steps.

    `seconds` are those of a step. Frequencies are cut at 10 Hz, and at a sixth of the steps' rate where that is lower,
    as it is the power near the highest frequency that can be told, half the rate, which says that control shakes. Where
    `seconds` is None all is by the step. Raises `UsageError` if all episodes are shorter.
    """
    long = [(control, position) for control, position in episodes if len(control) >= SHORTEST]
    if not long:
        raise UsageError(f"no episode lasts {SHORTEST} steps: too few to tell how smooth its control is")
    dt = 1.0 if seconds is None else seconds
    cut = 1.0 / (6.0 * dt) if seconds is None else min(10.0, 1.0 / (6.0 * dt))
    found = {
        "smoothness/high_frequency_ratio": np.mean([high_frequency_ratio(control, dt, cut) for control, _ in long]),
        "smoothness/action_smoothness": np.mean([action_smoothness(control) for control, _ in long]),
        "smoothness/cut": cut,
    }
    jerks = [jerk(position, dt) for _, position in long if position is not None]
    if jerks:
        found["smoothness/jerk"] = np.mean(jerks)
    if seconds is not None:
        found["smoothness/rate"] = 1.0 / seconds
    return {name: float(value) for name, value in found.items()}


def smoothness_verdicts(found: dict[str, float]) -> list[dict[str, str]]:
    """What the numbers of `measure_smoothness` mean, if they are there: {"name", "level": ok|warn, "text"}."""
    name = "smoothness/high_frequency_ratio"
    if name not in found:
        return []
    above = f"{found['smoothness/cut']:.3g} Hz" if "smoothness/rate" in found else "a sixth of the rate of steps"
    text = f"{name} {found[name]:.3g} % of the control's power above {above}"
    shakes = found[name] > SHAKES
    text += ": it shakes; try --agent.jacobian-weight (ppo, sac)" if shakes else ""
    lines = [{"name": name, "level": "warn" if shakes else "ok", "text": text}]
    for name in ("smoothness/action_smoothness", "smoothness/jerk"):
        if name in found:
            lines.append({"name": name, "level": "ok", "text": f"{name} {found[name]:.3g}"})
    return lines
