"""ScienceWorld and TextWorld, against modules of the same interface; and what is said where they are not installed."""

import sys
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="needs the extra language")

from trimtab.errors import UsageError
from trimtab.language.envs import games
from trimtab.language.train import text_env

pytestmark = pytest.mark.language


def install(monkeypatch, name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    find = games.importlib.util.find_spec
    monkeypatch.setattr(games.importlib.util, "find_spec", lambda asked: module if asked == name else find(asked))


class Simulator:
    """ScienceWorldEnv, of one task that is done by `open door` and `go out`."""

    def __init__(self, taskName=None, serverPath=None, envStepLimit=100):
        self.limit, self.loaded = envStepLimit, []

    def get_task_names(self):
        return ["boil", "melt"]

    def get_variations_train(self):
        return [10, 11, 12]

    def load(self, taskName, variationIdx=0, simplificationStr="", generateGoldPath=False):
        self.loaded.append((taskName, variationIdx, simplificationStr))

    def reset(self):
        self.score = 0
        return "A hallway.", {"taskDesc": "Task: leave.", "score": 0, "valid": ["open door"]}

    def step(self, action):
        gains = {"open door": 40, "go out": 60, "drink acid": -100 - self.score, "look around": 0}
        if action not in gains:
            return "No known action matches that input.", 0, False, {}
        self.score += gains[action]
        return f"You {action}.", gains[action], self.score >= 100 or self.score < 0, {}


def test_science_world(monkeypatch):
    install(monkeypatch, "scienceworld", ScienceWorldEnv=Simulator)
    env = text_env("science-world:boil")()
    assert env.reset(4) == "Task: leave.\nA hallway.\n"
    assert env._inner.loaded[-1] == ("boil", 11, "easy")  # variation 4 mod 3
    turns = [env.step(action) for action in ("open door", "look around", "sing", "go out")]
    assert [turn.reward for turn in turns] == [0.4, 0.0, 0.0, 0.6] and sum(turn.reward for turn in turns) == 1.0
    assert [turn.good for turn in turns] == [True, None, False, True]
    assert [turn.done for turn in turns] == [False, False, False, True]
    env.reset(0)
    env.step("open door")
    fatal = env.step("drink acid")
    assert fatal.done and fatal.good is False and fatal.reward == pytest.approx(-1.4)  # to -1 in all


def test_a_wrong_task_is_named(monkeypatch):
    install(monkeypatch, "scienceworld", ScienceWorldEnv=Simulator)
    with pytest.raises(UsageError, match="no task 'bol': did you mean 'boil'"):
        text_env("science-world:bol")


def test_without_java_it_is_said(monkeypatch):
    def broken(**options):
        raise FileNotFoundError("java")

    install(monkeypatch, "scienceworld", ScienceWorldEnv=broken)
    with pytest.raises(UsageError, match="needs Java"):
        text_env("science-world:boil")


class Game:
    """A TextWorld environment: `take key`, then `open door`; dropping the key makes the way longer."""

    def state(self, feedback):
        policy = {0: ["take key", "open door"], 1: ["open door"], 2: []}[self.at]
        commands = {0: ["take key", "look"], 1: ["open door", "look", "drop key"], 2: []}[self.at]
        wanted = dict(feedback=feedback, score=5 * (self.at == 2), max_score=5)
        return wanted | dict(admissible_commands=commands, policy_commands=policy)

    def reset(self):
        self.at = 0
        return self.state("  Find a way out.\n\n")

    def step(self, command):
        if command in self.state("")["admissible_commands"]:
            self.at += {"look": 0, "drop key": -1}.get(command, 1)
        state = self.state(f"You {command}.")
        return state, state["score"], self.at == 2


def test_text_world(monkeypatch, tmp_path):
    opened = []
    start = lambda path, request_infos: opened.append((path, request_infos)) or Game()
    install(monkeypatch, "textworld", start=start, EnvInfos=dict)
    for name in ("a.z8", "b.z8", "b.json"):
        (tmp_path / name).touch()
    env = text_env(f"text-world:{tmp_path}")()
    assert env.reset(3) == "Find a way out.\n" and env.reset(1) == "Find a way out.\n"
    assert [path for path, _ in opened[1:]] == [str(tmp_path / "b.z8")]  # 3 mod 2 and 1: opened once
    assert opened[0][1]["policy_commands"] and opened[0][1]["admissible_commands"]
    turns = [env.step(command) for command in ("look", "take key", "sing", "drop key", "take key", "open door")]
    assert [turn.good for turn in turns] == [None, True, False, False, True, True]
    assert [turn.reward for turn in turns] == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0] and turns[-1].done
    assert turns[0].observation == "\nYou look.\n" and env.kind() == ""


def test_a_folder_without_games_is_named(monkeypatch, tmp_path):
    install(monkeypatch, "textworld", start=None, EnvInfos=dict)
    with pytest.raises(UsageError, match="holds no games"):
        text_env(f"text-world:{tmp_path}")


@pytest.mark.parametrize("name, package", [("science-world:boil", "scienceworld"), ("text-world:games", "textworld")])
def test_what_is_not_installed_is_named_with_its_line(monkeypatch, name, package):
    monkeypatch.setattr(games.importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(UsageError, match=f"{name} needs the package {package}: pip install {package}"):
        text_env(name)


def test_an_unknown_environment_is_named():
    with pytest.raises(UsageError, match="choose door-world, science-world:TASK or text-world:FOLDER"):
        text_env("door-word")
