"""What a data set holds, in a few lines."""

from pathlib import Path

import numpy as np

from trimtab.core import UsageError
from trimtab.data.readers import read_arrays, transitions_of
from trimtab.data.write import read_record
from trimtab.envs import ogbench

BINS, BAR = 10, 40
"""Lines of a histogram, and characters of its longest bar."""


def describe(path: Path) -> list[str]:
    """Lines on shapes, episodes, their lengths, and rewards; for OGBench's files the share of solved states by task.

    Raises `UsageError` if the file is no data set.
    """
    arrays = read_arrays(path)
    lines = [f"file        {path}"]
    lines += [f"{name:<20}{array.dtype!s:<10}{array.shape}" for name, array in arrays.items()]
    if "rewards" in arrays:
        recorded, _ = transitions_of(path, arrays)
        last, reward = np.asarray(recorded.ended), np.asarray(recorded.transition.reward)
        discount = np.asarray(recorded.transition.discount)
        starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
        returns = np.add.reduceat(reward.astype(np.float64), starts)
        lines += _lengths(last)
        lines.append(f"rewards     {_spread(reward)}")
        lines.append(f"returns     {_spread(returns)}")
        lines.append(f"terminated  {np.mean(discount[last] == 0.0):.1%} of the episodes")
        lines += _histogram("returns", returns) + _histogram("lengths", _steps(last))
        return lines + _known(path)
    return lines + _lengths(arrays["terminals"].astype(bool)) + _tasks(path, arrays)


def _steps(last: np.ndarray) -> np.ndarray:
    """The length of each episode."""
    ends = np.flatnonzero(last)
    ends = ends if len(ends) and ends[-1] == len(last) - 1 else np.append(ends, len(last) - 1)
    return np.diff(np.concatenate([[-1], ends]))


def _lengths(last: np.ndarray) -> list[str]:
    lengths = _steps(last)
    return [f"rows        {len(last):,}", f"episodes    {len(lengths):,}", f"lengths     {_spread(lengths)}"]


def _spread(x: np.ndarray) -> str:
    return f"mean {x.mean():.4g}, from {x.min():.4g} to {x.max():.4g}"


def _histogram(name: str, values: np.ndarray) -> list[str]:
    """A line a bin: its range, its count, and a bar. Nothing where all values are the same."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return []
    counts, edges = np.histogram(values, min(BINS, len(np.unique(values))))
    width = max(len(f"{edge:.4g}") for edge in edges)
    bars = [("#" * round(BAR * count / counts.max())) or ("." if count else "") for count in counts]
    return [f"{name} of the episodes"] + [
        f"  {edges[i]:>{width}.4g} to {edges[i + 1]:>{width}.4g}  {count:>6,} {bar}".rstrip()
        for i, (count, bar) in enumerate(zip(counts, bars, strict=True))
    ]


def _known(path: Path) -> list[str]:
    """What the record of a data set says of its environment, its behaviour and its references."""
    record, lines = read_record(path), []
    if record.get("env"):
        lines.append(f"env         {record['env']}")
    behaviour, references = record.get("behaviour"), record.get("references")
    if behaviour:
        lines.append(f"behaviour   {behaviour['agent']}, mean return {behaviour['mean_return']:.4g}")
    if references:
        low, high = references["random"], references["expert"]
        lines.append(f"references  random {low:.4g} (score 0), expert {high:.4g} (score 100)")
    return lines


def _tasks(path: Path, arrays: dict[str, np.ndarray]) -> list[str]:
    name = path.stem.removesuffix("-val")
    if not ogbench.is_name(name):
        return ["tasks       unknown: the file has no rewards, and its name is none of OGBench's"]
    lines = []
    episode = np.concatenate([[0], np.cumsum(arrays["terminals"])[:-1]])
    for task in range(1, ogbench.TASKS + 1):
        try:
            _, masks = ogbench.task_rewards(ogbench.task_name(name, task), arrays)
        except UsageError as error:
            return [*lines, f"tasks       {error}"]
        solved = masks == 0.0
        share = len(np.unique(episode[solved])) / (episode[-1] + 1)
        lines.append(f"task {task}      solved in {solved.mean():.2%} of the rows, {share:.0%} of the episodes")
    return lines
