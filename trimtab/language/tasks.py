"""Tasks and reward functions as users write them, checked before and while they are used."""

import difflib
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import RunError, UsageError

RESERVED = ("prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Columns that TRL itself hands to reward functions."""


def read_task(path: Path) -> list[dict[str, Any]]:
    """The rows of a task file: JSON objects, one a line, with a `prompt` (text, or a list of chat messages) and
    whatever else the reward functions ask for; the same columns, of the same kinds, in each line. Raises `UsageError`
    with the line that is wrong."""
    if not path.is_file():
        raise UsageError(f"no such task file: {path}; it holds one JSON object a line, each with a prompt")
    rows: list[dict[str, Any]] = []
    seen: dict[str, tuple[Any, int]] = {}  # column -> its first value that is not null, and the line of it
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is not JSON ({error.msg} at column {error.colno}): mend or remove it") from error
        if not isinstance(row, dict) or "prompt" not in row:
            near = difflib.get_close_matches("prompt", row, n=1) if isinstance(row, dict) else []
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise UsageError(f'{where} has no \'prompt\'{hint}: each line is an object such as {{"prompt": "2 + 2 ="}}')
        _check_prompt(row["prompt"], where)
        if rows and isinstance(row["prompt"], str) != isinstance(rows[0]["prompt"], str):
            raise UsageError(f"{where}: prompts must be all text or all chat messages, as in the first line")
        if rows and (odd := [*(name for name in rows[0] if name not in row), *(n for n in row if n not in rows[0])]):
            lacks, which = ("has no", "has") if odd[0] in rows[0] else ("has", "has not")
            raise UsageError(
                f"{where} {lacks} {odd[0]!r}, which the first line {which}: give each line the same columns"
            )
        for name, value in row.items():
            first, line_of_first = seen.setdefault(name, (value, number)) if value is not None else (None, 0)
            if name != "prompt" and not _alike(first, value):
                raise UsageError(
                    f"{where}: {name!r} is {json.dumps(value)[:40]}, and {json.dumps(first)[:40]} in line "
                    f"{line_of_first}: a column holds values of one kind"
                )
        if wrong := [name for name in row if name in RESERVED]:
            raise UsageError(
                f"{where}: the column {wrong[0]!r} would hide what TRL hands to reward functions: rename it"
            )
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} is empty: write one JSON object a line, each with a prompt")
    return rows


def _alike(first: Any, value: Any) -> bool:
    """Whether both are of one kind, inside and out; null goes with all."""
    if first is None or value is None:
        return True
    if isinstance(first, dict) and isinstance(value, dict):
        return first.keys() == value.keys() and all(_alike(first[name], value[name]) for name in first)
    if isinstance(first, list) and isinstance(value, list):
        items = [item for item in (*first, *value) if item is not None]
        return all(_alike(items[0], item) for item in items)
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
    return type(first) is type(value) or (number(first) and number(value))


def check_columns(rewards: Sequence["Reward"], columns: Collection[str], where: str) -> None:
    """Raises `UsageError` for a reward function that cannot do without what `where` has no column of."""
    for reward in rewards:
        given = {*columns, *RESERVED} - {"prompt", "completion"}
        for name, parameter in inspect.signature(reward.function).parameters.items():
            by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if by_name and parameter.default is parameter.empty and name not in given:
                near = difflib.get_close_matches(name, sorted(given), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(columns)}"
                raise UsageError(f"the reward function {reward.name} takes {name!r}, no column of {where}: {hint}")


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError(f"{where}: the prompt is empty")
        return
    messages = prompt if isinstance(prompt, list) and prompt else None
    if messages is None or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages):
        raise UsageError(f"{where}: a prompt is text or a list of messages with role and content")


@dataclass(frozen=True)
class Reward:
    """A reward function that is checked at each call: it must return one finite number a completion.

    `gold` marks what is measured and never paid for.
    """

    function: Callable[..., Any]
    name: str
    gold: bool = False

    @property
    def __name__(self) -> str:  # TRL names its metrics by it
        return self.name

    def __call__(self, prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
        """TRL's signature. Raises `RunError` that names the function and the first prompt for which it is wrong."""
        given = dict(prompts=prompts, completions=completions, completion_ids=completion_ids) | columns
        call = lambda rows: self.function(**_wanted(self.function, _rows(given, rows, len(prompts))))
        everyone = list(range(len(prompts)))
        try:
            rewards = call(everyone)
        except Exception as error:
            raise self._broken(prompts, call, error) from error
        as_list = getattr(rewards, "tolist", None)  # arrays and tensors will do
        if callable(as_list):
            rewards: Any = as_list()
        if not isinstance(rewards, list | tuple):
            raise RunError(
                f"the reward function {self.name} returned {type(rewards).__name__}: return a list of numbers"
            )
        if len(rewards) != len(prompts):
            raise RunError(
                f"the reward function {self.name} returned {len(rewards)} rewards for {len(prompts)} completions, the "
                f"first of them of the prompt {_short(prompts[0])}: return one a completion"
            )
        numbers = [_number(reward) for reward in rewards]
        for prompt, reward, number in zip(prompts, rewards, numbers, strict=True):
            if not math.isfinite(number):
                raise RunError(
                    f"the reward function {self.name} returned {reward!r} for the prompt {_short(prompt)}: "
                    "return a finite number"
                )
        return numbers

    def _broken(self, prompts: list, call: Callable[[list[int]], Any], error: Exception) -> RunError:
        """What was raised, and the first prompt that raises it by itself."""
        guilty = ""
        for index, prompt in enumerate(prompts):
            try:
                call([index])
            except Exception as alone:
                guilty, error = f" for the prompt {_short(prompt)}", alone
                break
        text = " ".join(str(error).split())
        return RunError(f"the reward function {self.name} raised {type(error).__name__}{guilty}: {text}")


def _number(reward: Any) -> float:
    """A reward as a number; NaN for what is none, such as text or a tensor of several numbers."""
    if not (isinstance(reward, int | float) or callable(getattr(reward, "__float__", None))):
        return math.nan
    try:
        return float(reward)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def _rows(given: dict[str, Any], rows: list[int], total: int) -> dict[str, Any]:
    """The columns cut to `rows`; what is no column stays."""
    cut = lambda value: [value[i] for i in rows] if isinstance(value, list) and len(value) == total else value
    return {name: cut(value) for name, value in given.items()}


def _wanted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """What of `given` the function takes: it need not swallow columns that it has no use for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def _short(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return repr(text if len(text) <= 80 else text[:77] + "...")


def read_rewards(names: Sequence[str], gold: Sequence[str] = ()) -> list[Reward]:
    """Reward functions from `file.py` (all public functions that stand in it) or `file.py:function`.

    Functions called `gold` or `gold_...`, and those named by `gold`, are measured and not paid for.
    """
    found: dict[str, tuple[Path, Reward]] = {}
    for name, unpaid in [*((name, False) for name in names), *((name, True) for name in gold)]:
        path, _, function = name.partition(":")
        here = _functions(Path(path))
        if function and function not in here:
            near = difflib.get_close_matches(function, here, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(here) or 'none'}"
            raise UsageError(f"{path} has no function {function!r}: {hint}")
        if not here:
            raise UsageError(f"{path} has no public function: write one such as `def reward(completions, **columns)`")
        for key in [function] if function else here:
            before, first = found.get(key, (Path(path), None))
            if before.resolve() != Path(path).resolve():
                raise UsageError(f"two reward functions are called {key!r}, in {before} and in {path}: rename one")
            called_gold = key == "gold" or key.startswith("gold_")
            named_gold = unpaid or (first is not None and first.gold)  # named both ways: gold
            found[key] = (before, Reward(here[key], key, called_gold or named_gold))
    rewards = sorted((reward for _, reward in found.values()), key=lambda reward: reward.gold)
    if not rewards or rewards[0].gold:
        raise UsageError("no reward function to learn from: gold, gold_... and those of --gold are only measured")
    return rewards


def _functions(path: Path) -> dict[str, Callable[..., Any]]:
    module = load_file(path)
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def load_file(path: Path) -> Any:
    """A Python file of the user as a module; its folder may be imported from. Raises `UsageError` if it cannot run."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}; name a Python file, or FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return module
