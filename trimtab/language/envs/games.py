"""ScienceWorld and TextWorld as text environments. Both are installed apart, and only where they are asked for.

    --env science-world:TASK     pip install scienceworld; its simulator runs in Java 17
    --env text-world:FOLDER      pip install textworld; FOLDER holds games made by `tw-make`

The seed of an episode chooses the variation or the game. A decision is good if it scored or brought the end nearer, bad
if the game does not know it or the end is farther away, and else unknown.
"""

import difflib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.language.envs.text import AbstractTextEnv, Turn


def need(package: str, name: str) -> Any:
    """The module `package`. Raises `UsageError` with the line that installs it."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{name} needs the package {package}: pip install {package}")
    return importlib.import_module(package)


class ScienceWorld(AbstractTextEnv):
    """One task of ScienceWorld (Wang et al. 2022), over its training variations. The sum of an episode's rewards is its
    score, of 1; a fatal mistake ends it at -1."""

    def __init__(self, task: str, simplification: str = "easy", limit: int = 100) -> None:
        self._task, self._simplification = task, simplification
        package = need("scienceworld", f"science-world:{task}")
        try:
            self._inner = package.ScienceWorldEnv(envStepLimit=limit)
        except FileNotFoundError as error:
            raise UsageError("ScienceWorld's simulator needs Java: install Java 17, such as openjdk-17-jre") from error
        names = self._inner.get_task_names()
        if task not in names:
            near = difflib.get_close_matches(task, names, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
            raise UsageError(f"ScienceWorld has no task {task!r}: {hint}")
        self._inner.load(task, 0, simplification)
        self._variations = self._inner.get_variations_train()

    def reset(self, seed: int) -> str:
        """The task, and what is seen first."""
        self._inner.load(self._task, self._variations[seed % len(self._variations)], self._simplification)
        observation, info = self._inner.reset()
        return f"{info['taskDesc']}\n{observation}\n"

    def step(self, action: str) -> Turn:
        """The simulator's answer; rewards are its changes of score, of 1."""
        observation, reward, done, _ = self._inner.step(action)
        known = not observation.startswith("No known action matches")
        good = None if known and not reward else bool(known and reward > 0)
        return Turn(f"\n{observation}\n", reward / 100.0, done, good)

    def kind(self) -> str:
        """The simulator does not say what type a state has."""
        return ""


class TextWorld(AbstractTextEnv):
    """The games of a folder (Côté et al. 2018). The sum of an episode's rewards is the share of the highest score."""

    def __init__(self, folder: Path) -> None:
        self._package = need("textworld", f"text-world:{folder}")
        self._games = sorted(path for path in folder.glob("*") if path.suffix in (".z8", ".ulx"))
        if not self._games:
            command = f"tw-make tw-simple --rewards dense --goal detailed --output {folder}/1.z8"
            raise UsageError(f"{folder} holds no games (*.z8): make some, such as by `{command}`")
        self._open: dict[Path, Any] = {}

    def reset(self, seed: int) -> str:
        """The game's first words, its objective among them."""
        game = self._games[seed % len(self._games)]
        if game not in self._open:
            wanted = dict.fromkeys(("feedback", "score", "max_score", "admissible_commands", "policy_commands"), True)
            self._open[game] = self._package.start(str(game), self._package.EnvInfos(**wanted))
        self._inner = self._open[game]
        self._state, self._score = self._inner.reset(), 0.0
        return f"{self._state['feedback'].strip()}\n"

    def step(self, action: str) -> Turn:
        """The game's answer; rewards are changes of score, of the highest."""
        before = self._state
        self._state, score, done = self._inner.step(action)
        reward = (score - self._score) / max(1.0, float(self._state["max_score"]))
        self._score = score
        left, was_left = len(self._state["policy_commands"]), len(before["policy_commands"])
        if reward > 0.0 or left < was_left:
            good = True
        elif action not in before["admissible_commands"] or left > was_left:
            good = False
        else:
            good = None
        return Turn(f"\n{self._state['feedback'].strip()}\n", reward, done, good)

    def kind(self) -> str:
        """Games do not say what type a state has."""
        return ""
