"""`trimtab list`."""

from dataclasses import dataclass
from typing import Literal

import tyro

from trimtab.cli.flags import parse


@dataclass(frozen=True)
class Flags:
    """What `trimtab list` takes."""

    what: tyro.conf.Positional[Literal["agents", "envs", "papers", "datasets"]] = "agents"
    """what to list."""


def run(args: list[str]) -> None:
    """One line each."""
    flags = parse(Flags, args, "trimtab list")
    if flags.what == "agents":
        import sys

        from trimtab.agents import AGENTS

        for name, kind in sorted(AGENTS.items()):
            print(f"{name:<20}{(sys.modules[kind.__module__].__doc__ or '').strip().splitlines()[0]}")
    elif flags.what == "envs":
        import gymnasium

        import trimtab.envs.motion  # noqa: F401 (registers its environments)
        from trimtab.envs.register import worlds

        for name in worlds():
            print(f"{name:<32}own world")
        for name, spec in sorted(gymnasium.registry.items()):
            if not name.startswith(("phys2d/", "tabular/", "GymV")):
                limit = f"{spec.max_episode_steps} steps" if spec.max_episode_steps else "no time limit"
                print(f"{name:<32}Gymnasium, {limit}")
    elif flags.what == "papers":
        from trimtab.papers import PAPERS

        for name, (_, text) in PAPERS.items():
            print(f"{name:<20}{text}")
    else:
        from trimtab.data.collect import FOLDER, names

        for name in names():
            print(f"{name:<32}{'in ' + str(FOLDER) + '/' if (FOLDER / f'{name}.npz').exists() else 'to be made'}")
        print("make one with `trimtab data make NAME`; --dataset also takes an .npz file or a folder of .npy files")
