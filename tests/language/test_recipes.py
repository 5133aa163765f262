"""The recipes of the language wing: their test beds run in processes of their own, and are kept."""

import json
import os
from dataclasses import dataclass
from queue import SimpleQueue

import pytest

from trimtab.core import RunError
from trimtab.papers.recipe import Results, _one_thread, plot_panels, run_beds


@dataclass(frozen=True)
class Setting:
    """Of a test bed that only counts."""

    seed: int = 0
    gain: float = 1.0


def counts(setting: Setting) -> dict[str, list[float]]:
    """Three steps; no curve for a gain below 0."""
    if setting.gain < 0:
        raise ValueError("no gain")
    return {"step": [0.0, 1.0, 2.0], "sum": [0.0, setting.gain, 2 * setting.gain + setting.seed]}


def settings(**gains: float) -> dict[tuple[str, int], Setting]:
    """Two seeds a method."""
    return {(name, seed): Setting(seed, gain) for name, gain in gains.items() for seed in (0, 1)}


def test_curves_are_kept_and_made_again_only_for_another_setting(tmp_path):
    lines: list[str] = []
    found = run_beds("bed", counts, settings(one=1.0, two=2.0), tmp_path, lines.append)
    assert list(found) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert found["two", 1]["sum"] == [0.0, 2.0, 5.0] and len(lines) == 4
    kept = tmp_path / "runs" / "bed" / "two" / "s1.json"
    assert json.loads(kept.read_text())["setting"] == {"seed": 1, "gain": 2.0}
    again = run_beds("bed", counts, settings(one=1.0, two=3.0), tmp_path, lines.append)
    assert {line.split("  ")[1].split(":")[0] for line in lines[4:]} == {"bed, two, seed 0", "bed, two, seed 1"}
    assert again["one", 0] == found["one", 0] and again["two", 1]["sum"] == [0.0, 3.0, 7.0]
    plot_panels(again, ("sum",), tmp_path / "sums.png")
    assert (tmp_path / "sums.png").stat().st_size > 1_000


def test_a_failure_is_named_and_the_others_are_kept(tmp_path):
    with pytest.raises(RunError, match=r"bed, bad, seed 0 failed: ValueError: no gain"):
        run_beds("bed", counts, {("good", 0): Setting(), ("bad", 0): Setting(gain=-1.0)}, tmp_path, print)
    run_beds("bed", counts, {("good", 0): Setting()}, tmp_path, print)
    assert (tmp_path / "runs" / "bed" / "good" / "s0.json").exists()
    assert not (tmp_path / "runs" / "bed" / "bad").exists()


def test_workers_ask_nothing_of_the_network(monkeypatch):
    found = {"HF_HUB_OFFLINE": "0"}  # what the user has set stays
    monkeypatch.setattr(os, "environ", found)
    share: SimpleQueue[set[int]] = SimpleQueue()
    share.put(os.sched_getaffinity(0))  # all that this process has
    _one_thread(share)
    assert found["HF_HUB_OFFLINE"] == "0" and found["HF_HUB_DISABLE_TELEMETRY"] == found["OMP_NUM_THREADS"] == "1"


def test_verdicts_are_printed_and_stored(tmp_path):
    results = Results("paper", "test")
    results.add("T1", "none", None, "gold", 0.6)
    results.anchor("T1", "none", "gold", 0.624, "a prototype of ours")
    results.verdict("T1", "none", None, dict(name="hacking", level="bad", text="the reward is being exploited"))
    table, path = results.save(tmp_path)
    assert "bad     T1, none: the reward is being exploited" in table
    assert "0.624  (a prototype of ours)" in table
    assert json.loads(path.read_text())["verdicts"][0]["level"] == "bad"
