"""Doors: the smallest world in which learning one decision spoils another.

DoorWorld-1 is one decision. A state is ten words: start, room, weather, door (open or locked), weather, object, colour,
key or nokey, weather, weather; only door and key matter. 85 % of the doors are open. `go` through an open door,
`unlock` a locked one with the key, `search` without it. Rooms and objects with (room + object) mod 4 = 0 are kept for
testing.

DoorWorld-N is a corridor of such rooms: `go` at a locked door is a bump and changes nothing, `search` finds the key,
`unlock` needs it. Success is the exit within three steps a room. A room keeps its words but for the weather, which is
that of the time: the same room at the same time reads the same, whatever was done before.
"""

import random
from dataclasses import dataclass

from trimtab.language.envs.text import AbstractTextEnv, Turn

ROOMS, OBJECTS, COLOURS, WEATHERS = (
    tuple(f"room{i}" for i in range(12)),
    tuple(f"object{i}" for i in range(12)),
    tuple(f"colour{i}" for i in range(8)),
    tuple(f"weather{i}" for i in range(8)),
)
ACTIONS = ("go", "unlock", "search", "wait")
KINDS = {"open": "go", "key": "unlock", "nokey": "search"}
"""Kind of state -> the right action in it: an open door, a locked one with the key, a locked one without."""

WORDS = (
    *ROOMS,
    *OBJECTS,
    *COLOURS,
    *WEATHERS,
    *("start", "open", "locked", "key", "nokey"),
    *ACTIONS,
    *("act", "judge", "good", "bad", "step"),
    *("do", "not", "when", "the", "door", "is", "and", "no"),
    *(f"t{i}" for i in range(24)),
)
"""The vocabulary of both worlds."""

MAJORITY = 0.85


@dataclass(frozen=True)
class State:
    """One decision of DoorWorld-1."""

    text: str
    kind: str

    @property
    def right(self) -> str:
        return KINDS[self.kind]


def draw_kind(draw: random.Random, majority: float) -> str:
    """open with probability `majority`, else key or nokey."""
    return "open" if draw.random() < majority else draw.choice(("key", "nokey"))


@dataclass(frozen=True)
class Room:
    """What stays as it is in a room."""

    name: str
    thing: str
    colour: str
    key: str
    """what is said of the key where the door is open."""

    def describe(self, kind: str, weather: list[str]) -> str:
        """The ten words of a state."""
        door, key = ("open", self.key) if kind == "open" else ("locked", kind)
        words = ("start", self.name, weather[0], door, weather[1], self.thing, self.colour, key, *weather[2:])
        return " ".join(words)


def draw_room(draw: random.Random, held_out: bool) -> Room:
    """A room; `held_out` draws from the rooms and objects that training never shows together."""
    while True:
        room, thing = draw.randrange(len(ROOMS)), draw.randrange(len(OBJECTS))
        if ((room + thing) % 4 == 0) == held_out:
            return Room(ROOMS[room], OBJECTS[thing], draw.choice(COLOURS), draw.choice(("key", "nokey")))


def draw_weather(draw: random.Random) -> list[str]:
    """The four weathers of a state, which mean nothing."""
    return [draw.choice(WEATHERS) for _ in range(4)]


def draw_state(
    draw: random.Random, held_out: bool = False, majority: float = MAJORITY, kind: str | None = None
) -> State:
    """A state of DoorWorld-1."""
    room = draw_room(draw, held_out)
    kind = draw_kind(draw, majority) if kind is None else kind
    return State(room.describe(kind, draw_weather(draw)) + " act", kind)


def kind_of(text: str) -> str:
    """The kind of the state that `text` ends with."""
    words = text.split()
    locked = max((i for i, word in enumerate(words) if word in ("open", "locked")), default=0)
    if words[locked] == "open":
        return "open"
    return next(word for word in words[locked:] if word in ("key", "nokey"))


def right_action(state: str, action: str) -> bool | None:
    """The judge of DoorWorld-1: whether the action is the right one; None for what is no action."""
    return KINDS[kind_of(state)] == action if action in ACTIONS else False


class DoorWorld(AbstractTextEnv):
    """DoorWorld-N. `rooms` is the least and the most number of rooms."""

    def __init__(self, rooms: tuple[int, int] = (3, 5), held_out: bool = False, majority: float = MAJORITY) -> None:
        self._sizes, self._held_out, self._majority = rooms, held_out, majority
        self.bumps = 0
        self.locked_visits = 0

    def reset(self, seed: int) -> str:
        """The corridor of this seed, seen from its first room."""
        draw = random.Random(seed * 2 + self._held_out)
        self._doors = [draw_kind(draw, self._majority) for _ in range(draw.randint(*self._sizes))]
        self._rooms = [draw_room(draw, self._held_out) for _ in self._doors]
        self._weather = [draw_weather(draw) for _ in range(self.limit)]
        self._room, self._time = 0, 0
        self.bumps = self.locked_visits = 0
        return self._look()

    @property
    def limit(self) -> int:
        """Steps until the episode ends without success."""
        return 3 * len(self._doors)

    def step(self, action: str) -> Turn:
        """Reward 1 at the exit; good is whether the distance to the exit became smaller."""
        kind = self._doors[self._room]
        good = KINDS[kind] == action
        self.locked_visits += kind != "open"
        self.bumps += kind != "open" and action == "go"
        if good and kind == "open":
            self._room += 1
        elif good:  # nokey -> key -> open
            self._doors[self._room] = "key" if kind == "nokey" else "open"
        self._time += 1
        out = self._room == len(self._doors)
        done = out or self._time == self.limit
        return Turn("" if done else self._look(), float(out), done, good)

    def kind(self) -> str:
        """open, key or nokey."""
        return self._doors[min(self._room, len(self._doors) - 1)]

    def _look(self) -> str:
        words = self._rooms[self._room].describe(self._doors[self._room], self._weather[self._time])
        return f"{words} step t{self._time} act"


def hint(kind: str, action: str) -> str:
    """The line of the corrective prompt."""
    when = "the door is locked and key" if kind == "key" else "the door is locked and no key"
    return f"do not {action} when {when if kind != 'open' else 'the door is open'}"
