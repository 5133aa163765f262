"""`trimtab language train`: a language model, a task, a reward; the run folder and the report of every other run.

The trainer is TRL's, with gradient regularisation or generative classification before it. What it logs is renamed to
the names of `metrics.csv`; the step is the optimiser step.
"""

# pyright: reportPrivateImportUsage=false

import inspect
import itertools
import logging
import math
import re
import signal
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
from transformers.utils import logging as hf_logging
from trl import GRPOTrainer, RLOOTrainer

from trimtab.errors import Interrupted, RunError, UsageError
from trimtab.language.coupling import CouplingCallback, CouplingProbe, read_probe
from trimtab.language.envs.door_world import DoorWorld
from trimtab.language.envs.games import ScienceWorld, TextWorld
from trimtab.language.envs.text import AbstractTextEnv, outcome, rollout
from trimtab.language.flags import Flags, check
from trimtab.language.gcd import (
    GCD,
    AbstractLabeler,
    CriticLabeler,
    GCDGRPOTrainer,
    OracleLabeler,
    OutcomeLabeler,
    label_ids,
)
from trimtab.language.gradreg import (
    GradRegGRPOConfig,
    GradRegGRPOTrainer,
    GradRegRLOOConfig,
    GradRegRLOOTrainer,
)
from trimtab.language.hacking import hacking_verdict
from trimtab.language.tasks import Reward, check_columns, load_file, read_rewards, read_task
from trimtab.run.folder import Run, environment, read_config, read_rows, replace_text, write_json
from trimtab.run.logging import make_loggers

FORMAT = 1
PLAYED = ("outcome", "turns", "cut", "steps")
"""Columns that `rollout` hands to reward functions."""
PACKAGES = ("trimtab", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")

TRAINERS: dict[tuple[str, str], type[Any]] = {
    ("grpo", "plain"): GRPOTrainer,
    ("grpo", "gradreg"): GradRegGRPOTrainer,
    ("grpo", "gcd"): GCDGRPOTrainer,
    ("rloo", "plain"): RLOOTrainer,
    ("rloo", "gradreg"): GradRegRLOOTrainer,
}

CONFIGS: dict[str, type[Any]] = {"grpo": GradRegGRPOConfig, "rloo": GradRegRLOOConfig}


def train(trainer: str, flags: Flags, command: str) -> Path:
    """Trains and returns the run folder. Raises `UsageError` before anything is written, `RunError` if it fails."""
    quieten()
    check(flags, trainer)
    built = build(trainer, flags)
    state = PartialState()
    config: dict[str, Any] = dict(
        format=FORMAT,
        wing="language",
        agent=f"{trainer}-{flags.algorithm}",
        env=flags.env or str(flags.task.stem if flags.task else ""),
        axis="optimiser steps",
        seed=flags.seed,
        steps=flags.steps,
        agent_config=_plain(
            {k: v for k, v in asdict(flags).items() if k not in ("seed", "steps", "out", "name", "log")}
        ),
        trainer=trainer,
        flags=_plain(asdict(flags)),
    )
    run: Run | None = None
    place: list[Any] = [None]
    if state.is_main_process:
        env = re.sub(r"[^\w.-]", "_", Path(config["env"]).name)
        machine = environment(PACKAGES, device=device_name(flags.device))
        run = Run.create(flags.out, env, config["agent"], flags.seed, flags.name, config, machine)
        replace_text(run.path / "command.txt", command + "\n")
        place = [str(run.path)]
    broadcast_object_list(place)
    return _run(run, Path(place[0]), trainer, flags, built, None)


def resume(path: Path) -> Path:
    """Goes on from the newest checkpoint of a run of this wing."""
    record = read_config(path)
    saved: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record["flags"].items()}
    for name in ("task", "probe", "eval_task", "out"):
        saved[name] = Path(saved[name]) if saved[name] is not None else None
    flags = Flags(**saved)
    if (path / "DONE").exists():
        print(f"{path} is finished: nothing to resume")
        return path
    quieten()
    checkpoint = newest(path / "checkpoints", flags)
    built = build(record["trainer"], flags)
    run = None
    if PartialState().is_main_process:
        run = Run.open(path)
        run.rewind(_step(checkpoint) if checkpoint is not None else 0)
    return _run(run, path, record["trainer"], flags, built, checkpoint)


def newest(folder: Path, flags: Flags) -> Path | None:
    """The newest checkpoint that is whole. A kill can leave one without what is written last."""
    last = ["trainer_state.json", *([REFERENCE] if flags.reset_reference else [])]
    whole = [path for path in folder.glob("checkpoint-*") if all((path / name).exists() for name in last)]
    if flags.algorithm == "gcd":  # runs that began before pairs were kept have none
        whole = [path for path in whole if (path / pairs_name(0)).exists()] or whole
    return max(whole, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@dataclass(frozen=True)
class Built:
    """What is made of the flags before a run folder is."""

    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    eval_rows: list[dict[str, Any]]
    rewards: list[Reward]
    play: Any
    gcd: GCD | None
    probe: CouplingProbe | None


def build(trainer: str, flags: Flags) -> Built:
    """Reads everything that a run needs. Raises `UsageError` for what is not there or does not fit."""
    rows = read_task(flags.task) if flags.task is not None else []
    eval_rows = read_task(flags.eval_task) if flags.eval_task is not None else rows
    rewards = read_rewards(flags.reward, flags.gold) if flags.reward or flags.gold else []
    play = None
    if flags.env is not None:
        if trainer != "grpo":
            raise UsageError(f"a text environment needs grpo: {trainer} has no rollout function")
        play = rollout(text_env(flags.env), flags.max_turns, flags.max_action_tokens, limit=flags.max_completion_length)
        rows = [{"prompt": str(seed)} for seed in range(10_000)]
        eval_rows = [{"prompt": str(seed)} for seed in range(10_000, 10_000 + flags.eval_prompts)]
        rewards = rewards or [Reward(outcome, "outcome")]
    if flags.task is not None:
        check_columns(rewards, rows[0], str(flags.task))
        check_columns(rewards, eval_rows[0], str(flags.eval_task or flags.task))
    else:
        check_columns(rewards, PLAYED, "an environment")
    paid = sum(not reward.gold for reward in rewards)
    if flags.reward_weights and len(flags.reward_weights) != paid:
        raise UsageError(f"{len(flags.reward_weights)} reward weights for {paid} paid reward functions")
    tokenizer = load_tokenizer(flags.tokenizer or flags.model)
    for place, some in ((flags.task, rows[:1]), (flags.eval_task, eval_rows[:1])):
        if some and not isinstance(some[0]["prompt"], str) and not tokenizer.chat_template:
            raise UsageError(f"{place} holds chat messages, and the tokenizer has no chat template: write text prompts")
    model = load_model(flags)
    if flags.algorithm == "gcd":
        label_ids(tokenizer, flags.labels)
    gcd = GCD(labeler(flags), flags.coef, flags.template, flags.labels) if flags.algorithm == "gcd" else None
    probe = read_probe(flags.probe, tokenizer) if flags.probe is not None else None
    if flags.lora:
        check_targets(model, flags.lora_targets)
    built = Built(model, tokenizer, rows, eval_rows[: flags.eval_prompts], rewards, play, gcd, probe)
    arguments(trainer, flags, built, flags.out)  # what TRL refuses, it refuses here
    return built


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raises `UsageError` for a target of adapters that is the name of no matrix of the model."""
    weights = ((name, getattr(module, "weight", None)) for name, module in model.named_modules())
    matrices = [name for name, weight in weights if isinstance(weight, torch.Tensor) and weight.ndim > 1]
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in matrices)]
    if missing or not targets:
        ends = sorted({name.rpartition(".")[2] for name in matrices})
        raise UsageError(
            f"the model has no modules {' '.join(missing)} for --lora-targets; it has {', '.join(ends)}: name some"
        )


def text_env(name: str) -> Any:
    """The factory of a text environment: door-world, science-world:TASK, text-world:FOLDER, or my_env.py:Class."""
    if name == "door-world":
        return DoorWorld
    path, _, kind = name.partition(":")
    if not kind:
        raise UsageError(
            f"unknown text environment {name!r}: choose door-world, science-world:TASK or text-world:FOLDER, or name "
            "my_env.py:Class"
        )
    if path in ("science-world", "text-world"):
        factory = (lambda: ScienceWorld(kind)) if path == "science-world" else (lambda: TextWorld(Path(kind)))
        factory().reset(0)  # what is not installed or not there is said before a run begins
        return factory
    found = getattr(load_file(Path(path)), kind, None)
    if not (isinstance(found, type) and issubclass(found, AbstractTextEnv)):
        raise UsageError(f"{path} has no class {kind} that extends trimtab.language.envs.text.AbstractTextEnv")
    return found


def labeler(flags: Flags) -> AbstractLabeler:
    """gcd's source of labels."""
    if flags.labeler == "outcome":
        return OutcomeLabeler()
    if flags.labeler == "oracle":
        if flags.env is None:
            raise UsageError("the labeler oracle needs --env: a task file has no environment that knows")
        return OracleLabeler()
    path, _, function = flags.labeler.partition(":")
    if not function:
        raise UsageError(f"unknown labeler {flags.labeler!r}: choose outcome, oracle, or my_judge.py:function")
    judge: Any = getattr(load_file(Path(path)), function, None)
    if not inspect.isroutine(judge):
        raise UsageError(f"{path} has no function {function!r} of (state, action)")
    return CriticLabeler(judge)


def load_tokenizer(place: str) -> Any:
    """The tokenizer of a model. Raises `UsageError` where there is none."""
    folder = Path(place)
    if folder.is_dir() and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UsageError(f"{place} holds no tokenizer: save one there (tokenizer.save_pretrained), or give --tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, padding_side="left")
    except Exception as error:
        raise UsageError(f"no tokenizer at {place} ({_first(error)}): give a model folder, or --tokenizer") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UsageError(f"the tokenizer of {place} has neither a pad nor an end token: set one and save it again")
    return tokenizer


def load_model(flags: Flags) -> Any:
    """The model. Raises `UsageError` if there is none."""
    folder = Path(flags.model)
    if not folder.exists() and flags.model.startswith((".", "/", "~")):
        raise UsageError(f"no such model folder: {flags.model}")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UsageError(f"{flags.model} is no model folder: it has no config.json")
    try:
        return AutoModelForCausalLM.from_pretrained(flags.model, dtype=dtype_of(flags))
    except Exception as error:
        raise UsageError(f"cannot load a causal language model from {flags.model}: {_first(error)}") from error


def dtype_of(flags: Flags) -> str:
    """What weights are read in. Those that AdamW moves are float32 unless they are asked for otherwise: most models
    are saved in bfloat16, where a step of the usual size is less than half of the last digit, and is lost."""
    if flags.dtype != "auto":
        return flags.dtype
    fine = device_of(flags.device) == "cpu" or flags.algorithm == "gradreg" or not flags.lora
    return "float32" if fine else "auto"


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def device_of(device: str) -> str:
    """cpu or gpu. Raises `UsageError` where a GPU is asked for and there is none."""
    found = "gpu" if torch.cuda.is_available() else "cpu"
    if device == "gpu" and found == "cpu":
        raise UsageError("no GPU is visible to PyTorch: use --device cpu, or install PyTorch for your GPU")
    return found if device == "auto" else device


def device_name(device: str) -> str:
    """What `env.json` says."""
    return torch.cuda.get_device_name(0) if device_of(device) == "gpu" else "cpu (PyTorch)"


def quieten() -> None:
    """None of their log lines between ours."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bar()
    for name in ("transformers", "trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def arguments(trainer: str, flags: Flags, built: Built, folder: Path) -> Any:
    """The config of TRL's trainer."""
    cpu = device_of(flags.device) == "cpu"
    weights = iter(flags.reward_weights)
    paid = lambda reward: 0.0 if reward.gold else float(next(weights, 1.0))
    shared: dict[str, Any] = dict(
        output_dir=str(folder / "checkpoints"),
        max_steps=flags.steps,
        per_device_train_batch_size=flags.batch_size,
        gradient_accumulation_steps=flags.accumulation,
        num_generations=flags.num_generations,
        num_generations_eval=1,
        per_device_eval_batch_size=max(1, min(flags.batch_size, len(built.eval_rows))),
        max_completion_length=flags.max_completion_length,
        temperature=flags.temperature,
        learning_rate=flags.learning_rate,
        lr_scheduler_type=flags.learning_rate_schedule,
        max_grad_norm=flags.max_grad_norm,
        beta=flags.beta,
        sync_ref_model=flags.reset_reference > 0,
        ref_model_sync_steps=max(1, flags.reset_reference),
        ref_model_mixup_alpha=1.0,
        reward_weights=[paid(reward) for reward in built.rewards],
        seed=flags.seed,
        use_cpu=cpu,
        # The probe of gradreg is a difference of two gradients: in bfloat16 it is noise.
        bf16=not cpu and flags.dtype != "float32" and flags.algorithm != "gradreg",
        gradient_checkpointing=not cpu,
        logging_steps=float(flags.log_freq),
        logging_nan_inf_filter=False,
        save_strategy="steps" if flags.checkpoint_freq else "no",
        save_steps=float(max(1, flags.checkpoint_freq)),
        save_total_limit=2,
        eval_strategy="steps" if flags.eval_freq else "no",
        eval_steps=float(max(1, flags.eval_freq)),
        report_to=[],
        disable_tqdm=True,
        gr_gamma=flags.gamma,
        gr_eps=flags.eps,
        gr_warmup=flags.gamma_warmup,
        gr_schedule=flags.gamma_schedule,
        gr_exclude=flags.gr_exclude,
    )
    if trainer == "grpo":
        shared |= dict(loss_type=flags.loss, scale_rewards=flags.scale_rewards, entropy_coef=flags.entropy_coef)
    else:
        shared |= dict(normalize_advantages=flags.scale_rewards != "none")
    try:
        return CONFIGS[trainer](**shared)
    except (ValueError, TypeError) as error:
        raise UsageError(f"TRL refuses these settings: {_first(error)}") from error


def _run(run: Run | None, folder: Path, name: str, flags: Flags, built: Built, checkpoint: Path | None) -> Path:
    logbook = Logbook(run, flags, [reward.name for reward in built.rewards if reward.gold])
    try:
        if run is not None:
            config = read_config(folder)
            at = None if checkpoint is None else _step(checkpoint)
            run.attach(make_loggers(tuple(n for n in flags.log if n != "csv"), folder, config, at))
        trainer = assemble(name, flags, built, folder, [logbook])
        if flags.reset_reference:
            reference = trainer.accelerator.unwrap_model(trainer.ref_model)
            if checkpoint is not None:
                reference.load_state_dict(torch.load(checkpoint / REFERENCE, weights_only=True))
            trainer.add_callback(ReferenceKeeper(reference))
        if isinstance(trainer, GCDGRPOTrainer):
            # Each process has its own; with more processes than before, the others begin with none.
            pairs = None if checkpoint is None else checkpoint / pairs_name(trainer.accelerator.process_index)
            if pairs is not None and pairs.exists():
                trainer.gcd_replay.read(pairs)
            trainer.add_callback(PairsKeeper(trainer))
        with logbook.watch():
            if checkpoint is not None and _step(checkpoint) >= flags.steps:
                # Ended between the last checkpoint and the end: transformers would take one step more.
                trainer._load_from_checkpoint(str(checkpoint))
                trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            else:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if logbook.stopped:
            what = "interrupted: a checkpoint is written" if flags.checkpoint_freq else "interrupted"
            raise Interrupted(f"{what}; go on with `trimtab resume {folder}`", 128 + logbook.stopped)
        metrics = trainer.evaluate()
        trainer.save_model(str(folder / "final"))
        if run is not None:
            built.tokenizer.save_pretrained(str(folder / "final"))
            finish(run, metrics, logbook)
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the device is out of memory: lower --batch-size or --max-completion-length, or use --lora 16"
        ) from error
    finally:
        if run is not None:
            run.close()
    return folder


def assemble(name: str, flags: Flags, built: Built, folder: Path, callbacks: list[Any]) -> Any:
    """TRL's trainer with what stands before it."""
    args = arguments(name, flags, built, folder)
    if built.probe is not None:
        callbacks = [*callbacks, CouplingCallback(built.probe, flags.probe_freq)]
    lora = None
    if flags.lora:
        targets = list(flags.lora_targets)
        lora = LoraConfig(r=flags.lora, lora_alpha=flags.lora_alpha or 2 * flags.lora, target_modules=targets)
    needed = -(-flags.batch_size * flags.accumulation * PartialState().num_processes // flags.num_generations)
    rows = list(itertools.islice(itertools.cycle(built.rows), max(len(built.rows), needed)))
    options: dict[str, Any] = dict(rollout_func=built.play) if built.play is not None else {}
    try:
        trainer = TRAINERS[name, flags.algorithm](
            model=built.model,
            reward_funcs=list(built.rewards),
            args=args,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(built.eval_rows),
            processing_class=built.tokenizer,
            callbacks=callbacks,
            peft_config=lora,
            **options,
        )
    except ValueError as error:
        raise UsageError(f"TRL refuses these settings: {_first(error)}") from error
    if isinstance(trainer, GCDGRPOTrainer):
        trainer.gcd = built.gcd
    for callback in callbacks:
        if isinstance(callback, CouplingCallback):
            callback.trainer = trainer
    return trainer


RENAMED = {
    "reward": "rollout/ep_rew_mean",
    "reward_std": "rollout/ep_rew_std",
    "frac_reward_zero_std": "rollout/groups_without_spread",
    "completions/mean_length": "rollout/ep_len_mean",
    "completions/clipped_ratio": "rollout/truncated",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "clip_ratio/region_mean": "train/clip_fraction",
    "step_time": "time/step_time",
}
"""TRL's names -> ours. Rewards become rollout/reward_NAME; gr/ and gcd/ go under train/, coupling/ to diagnostics/."""


def renamed(logs: dict[str, Any], gold: list[str]) -> dict[str, float]:
    """One log line of TRL under the names of `metrics.csv`; the first gold reward is rollout/gold."""
    found: dict[str, float] = {}
    for key, value in logs.items():
        if not isinstance(value, int | float):
            continue
        part = key.split("/")
        if key in RENAMED:
            found[RENAMED[key]] = float(value)
        elif part[0] == "rewards" and part[-1] == "mean":
            label = "gold" if gold and part[1] == gold[0] else f"reward_{part[1]}"
            found[f"rollout/{label}"] = float(value)
        elif part[0] in ("gr", "gcd"):
            found[f"train/{part[0]}_{part[1]}"] = float(value)
        elif part[0] == "coupling":
            found[f"diagnostics/coupling_{part[1]}"] = float(value)
    return found


class Logbook(TrainerCallback):
    """Writes what the trainer logs into the run folder, and ends the run on Ctrl-C, SIGTERM and losses that are no
    numbers."""

    def __init__(self, run: Run | None, flags: Flags, gold: list[str]) -> None:
        self._run, self._flags, self._gold = run, flags, gold
        self.stopped = 0
        """number of the signal that ended the run."""

    def watch(self) -> Any:
        """A context in which signals end the run after the present step."""
        return _Signals(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Saves and stops when asked to."""
        if self.stopped:
            control.should_training_stop = True
            control.should_save = self._flags.checkpoint_freq > 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **unused: Any) -> None:
        """One log line."""
        logs = logs or {}
        if "loss" in logs and not math.isfinite(float(logs["loss"])):
            raise RunError(f"the loss is {logs['loss']} at step {state.global_step}: lower --learning-rate, or --gamma")
        metrics = renamed(logs, self._gold)
        if self._run is not None and metrics:
            self._run.log(state.global_step, metrics)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **unused: Any
    ) -> None:
        """One row of `eval.csv`: the mean over the evaluation's prompts."""
        if self._run is None or not metrics:
            return
        reward, length = float(metrics["eval_reward"]), float(metrics["eval_completions/mean_length"])
        found = {"eval/mean_reward": reward, "eval/mean_ep_length": length}
        if self._gold:
            found["eval/gold"] = float(metrics[f"eval_rewards/{self._gold[0]}/mean"])
        self._run.log(state.global_step, found)
        self._run.log_eval(state.global_step, [{"return": reward, "length": length, "success": math.nan}])
        print(f"step {state.global_step:,}: evaluation reward {reward:.4g}", flush=True)


REFERENCE = "reference.pt"


class ReferenceKeeper(TrainerCallback):
    """Writes the reference into each checkpoint where resets move it: TRL reads it anew from the model's folder."""

    def __init__(self, reference: torch.nn.Module) -> None:
        self._reference = reference

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """After the checkpoint's other files, and whole or not at all."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self._reference.state_dict(), folder / f".{REFERENCE}")
            (folder / f".{REFERENCE}").replace(folder / REFERENCE)


def pairs_name(process: int) -> str:
    """The file of a checkpoint that holds a process's pairs of the last batches."""
    return f"gcd_pairs_{process}.json"


class PairsKeeper(TrainerCallback):
    """Writes the pairs that gcd keeps of the last batches into each checkpoint."""

    def __init__(self, trainer: GCDGRPOTrainer) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """Every process its own; the first makes the folder, and may come after the others."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self._trainer.gcd_replay.write(folder / pairs_name(self._trainer.accelerator.process_index))


class _Signals:
    """While open, Ctrl-C and SIGTERM are remembered; a second Ctrl-C ends the command at once."""

    def __init__(self, logbook: Logbook) -> None:
        self._logbook = logbook

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        if self._logbook.stopped:
            raise KeyboardInterrupt
        self._logbook.stopped = number

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def finish(run: Run, metrics: dict[str, Any], logbook: Logbook) -> None:
    """evaluation.json, the verdict on hacking in diagnose.json, and DONE."""
    mean, std = float(metrics["eval_reward"]), metrics["eval_reward_std"]
    std = float(std) if std is not None and math.isfinite(std) else None  # where a batch holds one prompt
    write_json(run.path / "evaluation.json", {"mean": mean, "std": std})
    rows = read_rows(run.path / "metrics.csv")
    series = lambda name: {int(row["step"]): float(row["value"]) for row in rows if row["name"] == name}
    proxy, gold = series("rollout/ep_rew_mean"), series("rollout/gold")
    steps = sorted(proxy.keys() & gold.keys()) if gold else sorted(proxy)
    verdict, figures = hacking_verdict([proxy[step] for step in steps], [gold[step] for step in steps if gold])
    print(f"{verdict['level']:<5} {verdict['text']}")
    write_json(run.path / "diagnose.json", {"step": max(steps, default=0), "verdicts": [verdict], "values": figures})
    run.finish()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
