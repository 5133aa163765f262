import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.diagnostics.smoothness import action_smoothness, high_frequency_ratio, jerk, smoothness_report

DT = 1 / 60
T = np.arange(600) * DT


def wave(*hertz: float) -> np.ndarray:
    return np.stack([sum(np.sin(2 * np.pi * f * T) for f in hertz)], axis=-1)


def test_power_above_ten_hertz():
    assert high_frequency_ratio(wave(5), DT) < 0.5
    assert high_frequency_ratio(wave(20), DT) > 99.5
    assert high_frequency_ratio(wave(5, 20), DT) == pytest.approx(50, abs=1)
    assert high_frequency_ratio(wave(5) + 7.0, DT) < 0.5  # the mean is no frequency
    assert high_frequency_ratio(np.full((60, 2), 3.0), DT) == 0.0
    with pytest.raises(UsageError, match="power above 10 Hz needs more than 20 samples a second, not 20"):
        high_frequency_ratio(wave(5), 1 / 20)


def test_changes_and_jerk_by_hand():
    u = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 0.0]])
    assert action_smoothness(u) == pytest.approx((5 + 4) / 2)
    cubic = np.stack([2.0 * T**3], axis=-1)
    assert jerk(cubic, DT) == pytest.approx(12.0)
    report = smoothness_report(u, cubic, DT)
    assert set(report) == {"high_frequency_ratio", "action_smoothness", "jerk"}
