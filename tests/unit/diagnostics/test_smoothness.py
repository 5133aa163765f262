import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.diagnostics.smoothness import (
    action_smoothness,
    high_frequency_ratio,
    jerk,
    measure_smoothness,
    smoothness_report,
    smoothness_verdicts,
)

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


def test_episodes_are_measured_at_the_rate_of_their_steps():
    slow, fast = wave(5), wave(20)
    found = measure_smoothness([(slow, slow), (fast, fast), (slow[:20], None)], DT)  # the last is too short to count
    assert found["smoothness/high_frequency_ratio"] == pytest.approx(50, abs=1)
    assert (found["smoothness/cut"], found["smoothness/rate"]) == (pytest.approx(10.0), pytest.approx(60.0))
    expected = (jerk(slow, DT) + jerk(fast, DT)) / 2
    assert found["smoothness/jerk"] == pytest.approx(expected)
    assert found["smoothness/action_smoothness"] == pytest.approx(
        (action_smoothness(slow) + action_smoothness(fast)) / 2
    )
    assert measure_smoothness([(fast, None)], DT / 4)["smoothness/cut"] == 10.0  # 240 steps a second
    steps = measure_smoothness([(fast, fast)], None)  # a third of a cycle a step
    assert steps["smoothness/high_frequency_ratio"] > 99.5 and "smoothness/rate" not in steps
    assert steps["smoothness/jerk"] == pytest.approx(jerk(fast, 1.0))
    assert measure_smoothness([(fast, None)], 1 / 20)["smoothness/cut"] == pytest.approx(20 / 6)
    with pytest.raises(UsageError, match="no episode lasts 32 steps"):
        measure_smoothness([(fast[:31], None)], DT)


def test_verdicts_on_smoothness():
    lines = lambda wave, dt: smoothness_verdicts(measure_smoothness([(wave, wave)], dt))
    assert [line["level"] for line in lines(wave(5), DT)] == ["ok"] * 3
    shaking = lines(wave(20), DT)[0]
    assert shaking["level"] == "warn" and "above 10 Hz: it shakes" in shaking["text"]
    assert "above a sixth of the rate of steps" in lines(wave(5), None)[0]["text"]
    assert smoothness_verdicts({"q/mean": 1.0}) == []
