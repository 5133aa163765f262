"""`trimtab train AGENT`."""

import itertools
import shlex
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from trimtab import api, presets
from trimtab.agents import AGENTS, config_class
from trimtab.assemble import agent_class, import_all
from trimtab.cli.flags import parse
from trimtab.core import UsageError
from trimtab.envs import ogbench
from trimtab.presets import Preset


@dataclass(frozen=True)
class Flags:
    """What `trimtab train` takes beside the agent's own hyper-parameters."""

    env: str | None = None
    """environment: a Gymnasium id, module:id where a module brings it, an own world's id, one of OGBench's names, or
    module:function of a factory."""
    dataset: str | None = None
    """data set to learn from: a file, a folder, the name of a data set in data/, or an id in Minari's store."""
    dataset_fraction: float = 1.0
    """share of its rows to learn from, drawn uniformly; the same rows for every seed."""
    stream: Literal["auto", "always", "never"] = "auto"
    """whether a data set of .npy files stays on disk; auto: above a quarter of the machine's memory."""
    steps: int | None = None
    """environment steps of online training without a data set; None: 1,000,000."""
    offline_steps: int = 0
    """updates on the data set."""
    online_steps: int = 0
    """environment steps after the offline updates, with the same agent."""
    sampling: Literal["merged", "symmetric"] = "merged"
    """how these use the data set: merged (the replay buffer starts with it) or symmetric (half of each batch is the
    data set's, half replay)."""
    seed: int = 0
    """seed of everything random in the run."""
    seeds: tuple[int, ...] = ()
    """several seeds, one run folder each; trained together where batches stay on the device."""
    num_envs: int | None = None
    """environments stepped side by side; by default 1, or what the preset of the environment says."""
    updates_per_step: float = 1.0
    """gradient updates for each environment step."""
    her: str | None = None
    """relabel goals by hindsight: future, final or episode (what of an episode may become a goal)."""
    her_k: int = 4
    """steps with another goal for each one that keeps its own."""
    eval_freq: int = 10_000
    """steps between evaluations; 0 for none."""
    eval_episodes: int = 10
    """episodes of an evaluation."""
    log_freq: int = 1_000
    """steps between log lines."""
    checkpoint_freq: int = 10_000
    """steps between checkpoints; 0 for none."""
    keep_evaluated: bool = False
    """keep the agent of each evaluation, in evaluated/."""
    log: tuple[str, ...] = ("csv", "tensorboard")
    """loggers: csv, tensorboard, wandb, mlflow."""
    probes: tuple[str, ...] = ()
    """diagnostics to log: rollout-grad (gradients through a flow's rollout), seem (do values feed on themselves?)."""
    probe_freq: int = 0
    """steps between two measurements of the probes; 0: at evaluations."""
    on_diverge: Literal["warn", "stop"] = "warn"
    """what an alarm of the probe seem does: a line, or the end of the run with a checkpoint and exit status 1."""
    video: int = 0
    """episodes of the trained policy to film at the end."""
    out: str = "runs"
    """folder under which the run folder is made."""
    name: str | None = None
    """name of the run folder, in place of the time stamp."""
    device: str = "auto"
    """auto, cpu or gpu."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """modules to import first: they register environments or worlds."""


def flags_for(agent: str, preset: Preset | None = None) -> type[Any]:
    """`Flags` with the agent's config as `--agent.FIELD`; a preset's values are the defaults."""
    kind, changes = config_class(AGENTS[agent]), preset.fields if preset else {}
    config = field(default_factory=lambda: kind(**changes))
    return make_dataclass("TrainFlags", [("agent", kind, config)], bases=(Flags,), frozen=True)


def run(args: list[str]) -> None:
    """Trains and says where the run is."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: trimtab train AGENT --env ID | --dataset PATH [flags]\n")
        print(f"agents: {', '.join(sorted(AGENTS))}\nflags: trimtab train AGENT --help")
        if not args:
            raise UsageError(f"name an agent: {', '.join(sorted(AGENTS))}")
        return
    agent, rest = args[0], args[1:]
    if agent.startswith("-"):
        raise UsageError(f"the agent comes first: trimtab train AGENT {shlex.join(args)}")
    import_all(_imports(rest))  # they may bring the agent
    agent_class(agent)
    preset = presets.find(agent, _value(rest, "--env"))
    flags = parse(flags_for(agent, preset), rest, f"trimtab train {agent}")
    if flags.video < 0:
        raise UsageError(f"video must not be negative, got {flags.video}")
    options = {f.name: getattr(flags, f.name) for f in fields(Flags) if f.name != "video"}
    command = shlex.join(["trimtab", "train", *args])
    if preset is not None:
        print(f"preset  {preset}; flags win over it")
        options["num_envs"] = preset.num_envs if options["num_envs"] is None else options["num_envs"]
    trained = api.train(agent, config=flags.agent, command=command, **options)
    for one in trained if isinstance(trained, list) else [trained]:
        if flags.video:
            from trimtab.cli.evaluate import film

            for path in film(api.load(one.path), one.path, flags.video):
                print(f"video   {path}")
        env = "" if flags.env or ogbench.is_task(flags.dataset or "") else " --env ID"
        print(f"run     {one.path}")
        print(f"next    trimtab eval {one.path}{env}  |  trimtab report {one.path}")


def _value(args: list[str], flag: str) -> str | None:
    """The value of a flag, found before the others are known; `--flag value` or `--flag=value`."""
    for arg, after in zip(args, [*args[1:], None], strict=True):
        if arg == flag:
            return after
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None


def _imports(args: list[str]) -> list[str]:
    """The values of `--import`, found before the agent's own flags are known."""
    if "--import" not in args:
        return []
    after = args[args.index("--import") + 1 :]
    return list(itertools.takewhile(lambda arg: not arg.startswith("--"), after))
