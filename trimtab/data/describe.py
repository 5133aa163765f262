"""What a data set holds, in a few lines."""

from pathlib import Path

import numpy as np

from trimtab.core import UsageError
from trimtab.data.readers import read_arrays, read_recorded
from trimtab.envs import ogbench


def describe(path: Path) -> list[str]:
    """Lines on shapes, episodes, their lengths, and rewards; for OGBench's files the share of solved states by task.

    Raises `UsageError` if the file is no data set.
    """
    arrays = read_arrays(path)
    lines = [f"file        {path}"]
    lines += [f"{name:<20}{array.dtype!s:<10}{array.shape}" for name, array in arrays.items()]
    if "rewards" in arrays:
        recorded, _ = read_recorded(path)
        last, reward = np.asarray(recorded.last), np.asarray(recorded.transition.reward)
        discount = np.asarray(recorded.transition.discount)
        lines += _lengths(last)
        starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
        returns = np.add.reduceat(reward, starts)
        lines.append(f"rewards     {_spread(reward)}")
        lines.append(f"returns     {_spread(returns)}")
        lines.append(f"terminated  {np.mean(discount[last] == 0.0):.1%} of the episodes")
        return lines
    return lines + _lengths(arrays["terminals"].astype(bool)) + _tasks(path, arrays)


def _lengths(last: np.ndarray) -> list[str]:
    ends = np.flatnonzero(last)
    ends = ends if len(ends) and ends[-1] == len(last) - 1 else np.append(ends, len(last) - 1)
    lengths = np.diff(np.concatenate([[-1], ends]))
    return [f"rows        {len(last):,}", f"episodes    {len(lengths):,}", f"lengths     {_spread(lengths)}"]


def _spread(x: np.ndarray) -> str:
    return f"mean {x.mean():.4g}, from {x.min():.4g} to {x.max():.4g}"


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
