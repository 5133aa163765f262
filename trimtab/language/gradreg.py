"""Gradient regularisation against reward hacking (Ackermann et al. 2026, arXiv:2602.18037).

    L_GR = L + (gamma/2) |grad L|^2,   grad L_GR = g + gamma H g                                                (1)
    g1   = grad L(phi),  g2 = grad L(phi + eps g1)                                                              (2)
    g_GR = g1 + (gamma/eps) (g2 - g1)                                                                           (3)

g1 is the gradient of the loss that is minimised, so the probe goes up the loss; it is not normalised. gamma = eps gives
g2 (sharpness-aware minimisation without its norm), gamma = 0 plain training. Nothing is differentiated twice.

Order in one optimiser step: g1 over all micro-batches; g1 is clipped (the clipped one is used in (2) and (3)); blocks
of the network are moved by eps g1; the same micro-batches, with the same dropout, give g2, which is clipped; the
parameters are put back bit for bit; (3); then the trainer's own clipping and optimiser step.

In (2) the loss is the surrogate whose old log-probabilities are those of phi: the ratio is not 1 at phi + eps g1, and
H holds its whole second derivative. Where TRL does not keep them, those of the first pass are kept: no further forward.

| metric | formula |
|---|---|
| gr/gamma | gamma of this step, after warm-up and schedule |
| gr/g1_norm, gr/g2_norm | norms of g1 and g2 over all trained parameters, before clipping |
| gr/curvature | norm of (g2 - g1) / eps, about that of H g |
| gr/change | norm of g2 - g1 over that of g1: below 1e-6 the probe is lost in rounding |
| gr/cosine | cosine between g1 and g2 |
| gr/ratio | mean importance ratio at phi + eps g1; 1 with `reuse` where TRL keeps no old ones (GRPO only) |

Differences from the official code: parameters that are not perturbed keep g1, where the code leaves g2
(`gr_excluded="g2"`); the names that exclude a parameter do not contain "output", which also meets the blocks of BERT
and GPT-J, and contain those of GPT-2's embeddings, wte and wpe; dropout is the same in both passes.
"""

# pyright: reportPrivateImportUsage=false
# TRL loads its trainers late, so none of them counts as exported.

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import DistributedType
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from trimtab.errors import UsageError

SCHEDULES = ("constant", "linear", "cosine")
LOST = 1e-6
"""Relative change of the gradient below which the probe is lost in rounding."""

# The core. It knows no framework: arrays need only +, -, *, and sum().

Arrays = Sequence[Any]


def norm_of(arrays: Arrays) -> float:
    """The norm over all arrays together."""
    return math.sqrt(sum(float((array * array).sum()) for array in arrays))


def clipped(arrays: Arrays, limit: float) -> list[Any]:
    """The arrays, scaled down together so that their norm is at most `limit`."""
    factor = min(1.0, limit / (norm_of(arrays) + 1e-6))
    return [array * factor for array in arrays] if factor < 1.0 else list(arrays)


def combined(g1: Arrays, g2: Arrays, gamma: float, eps: float) -> list[Any]:
    """(3), array by array."""
    return [a + (gamma / eps) * (b - a) for a, b in zip(g1, g2, strict=True)]


def gradient_regularized_grad(
    grad: Callable[[list[Any]], Arrays],
    params: Arrays,
    gamma: float,
    eps: float,
    mask: Sequence[bool] | None = None,
    g1_clip: float = math.inf,
    g2_clip: float = math.inf,
) -> tuple[list[Any], dict[str, float]]:
    """(2) and (3) for any `grad` of a list of arrays (NumPy, PyTorch or JAX), with the metrics of this file.

    `mask` says which arrays are perturbed; the others keep g1.
    """
    moved = [True] * len(params) if mask is None else list(mask)
    first = list(grad(list(params)))
    g1 = clipped(first, g1_clip)
    probe = [p + eps * g if move else p for p, g, move in zip(params, g1, moved, strict=True)]
    second = list(grad(probe))
    g2 = clipped(second, g2_clip)
    mixed = [new if move else old for new, old, move in zip(combined(g1, g2, gamma, eps), g1, moved, strict=True)]
    return mixed, compare(first, second, g1, g2, eps)


def compare(first: Arrays, second: Arrays, g1: Arrays, g2: Arrays, eps: float) -> dict[str, float]:
    """The metrics of two passes: `first`, `second` as they came, `g1`, `g2` clipped."""
    n1, n2 = norm_of(g1), norm_of(g2)
    difference = norm_of([b - a for a, b in zip(g1, g2, strict=True)])
    product = sum(float((a * b).sum()) for a, b in zip(g1, g2, strict=True))
    return {
        "g1_norm": norm_of(first),
        "g2_norm": norm_of(second),
        "curvature": difference / eps,
        "change": difference / n1 if n1 else 0.0,
        "cosine": product / (n1 * n2) if n1 and n2 else 1.0,
    }


def scheduled(gamma: float, step: int, total: int, warmup: int, schedule: str) -> float:
    """gamma at optimiser step `step` of `total`: 0 during the warm-up, then constant, or down to 0 at the end."""
    if step < warmup:
        return 0.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return gamma * factor[schedule]


# The trainers


@dataclass
class GradRegArguments:
    """What a trainer's config gains. The useful gamma depends on the scale of the loss: see the page on its choice."""

    gr_gamma: float = field(default=0.0, metadata={"help": "gamma in (3); 0 is plain training"})
    gr_eps: float = field(default=1e-3, metadata={"help": "eps in (2)"})
    gr_warmup: int = field(default=0, metadata={"help": "optimiser steps before gamma sets in"})
    gr_schedule: str = field(default="constant", metadata={"help": "constant, linear or cosine decay of gamma"})
    gr_g1_clip: float = field(default=10.0, metadata={"help": "largest norm of g1"})
    gr_g2_clip: float = field(default=10.0, metadata={"help": "largest norm of g2"})
    gr_exclude: tuple[str, ...] = field(
        default=("embed", "wte", "wpe", "lm_head", "classifier", "score"),
        metadata={"help": "parameters whose names contain one of these are not perturbed"},
    )
    gr_excluded: str = field(default="g1", metadata={"help": "gradient of those: g1, or g2 as in the official code"})
    gr_importance: str = field(
        default="surrogate",
        metadata={
            "help": "surrogate: ratio to the policy before the probe; reuse: ratio 1, which it cannot be where TRL "
            "keeps log-probabilities itself (RLOO, vLLM, several steps on the same completions)"
        },
    )

    def __post_init__(self) -> None:
        for name in ("gr_eps", "gr_g1_clip", "gr_g2_clip"):
            if not getattr(self, name) > 0.0:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)}")
        if not (math.isfinite(self.gr_gamma) and self.gr_gamma >= 0.0):
            raise UsageError(f"gr_gamma must be 0 or positive, got {self.gr_gamma}")
        if self.gr_warmup < 0:
            raise UsageError(f"gr_warmup must not be negative, got {self.gr_warmup}")
        for name, choices in (
            ("gr_schedule", SCHEDULES),
            ("gr_excluded", ("g1", "g2")),
            ("gr_importance", ("surrogate", "reuse")),
        ):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.gr_gamma and self.bf16 is None:  # type: ignore[has-type]  # TRL would take it
            self.bf16 = False
        _refuse(self)  # before transformers looks for DeepSpeed, which may not even be installed
        super().__post_init__()  # type: ignore[misc]  # the config of the trainer that stands behind this in the MRO


_COARSE = "gradient regularisation takes the difference of two gradients, which half precision drowns in rounding"


def _refuse(args: Any) -> None:
    """Raises `UsageError` for what the double pass cannot do."""
    if not args.gr_gamma:
        return
    if args.fp16 or args.bf16:
        raise UsageError(f"{_COARSE}: set bf16=False and fp16=False")
    if args.deepspeed or args.fsdp:
        raise UsageError(
            "gradient regularisation needs whole gradients between two backward passes, which DeepSpeed and FSDP keep "
            "in pieces: launch on several devices without them (accelerate launch --multi_gpu), or train plainly"
        )
    if isinstance(args, GRPOConfig) and args.use_adaptive_entropy:
        raise UsageError(
            "use_adaptive_entropy changes the loss between the two passes of gradient regularisation: set entropy_coef"
        )


def _refuse_launch(accelerator: Any, model: torch.nn.Module) -> None:
    """The same for what only shows when a trainer runs: a launcher can choose it, and a schedule can set gamma."""
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise UsageError("gradient regularisation does not run under DeepSpeed or FSDP: launch without them")
    if accelerator.mixed_precision != "no":
        raise UsageError(f"{_COARSE}: launch with --mixed_precision no, and set bf16=False and fp16=False")
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        raise UsageError(f"{_COARSE}: read the model with dtype=torch.float32")


class GradRegMixin:
    """Gradient regularisation for a trainer of TRL: `class X(GradRegMixin, GRPOTrainer)`, with a config made of
    `GradRegArguments` and the trainer's own. Beside what transformers' trainer has, it needs `_metrics`, lists of
    numbers by mode and name, which GRPO, RLOO, DPO and SFT have.

    It overrides `_prepare_inputs`, to keep the micro-batches of an optimiser step, and `training_step`, which after the
    last of them runs the trainer's own `training_step` on each once more at the perturbed parameters.
    """

    gr_scheduler: Callable[[int], float] | None = None
    """gamma as a function of the optimiser step, in place of `gr_schedule`."""

    _gr_window: "list[_Kept] | None" = None
    _gr_replayed: "_Kept | None" = None
    _gr_old: "_LogProbs | None" = None

    def gr_gamma_now(self) -> float:
        """gamma of this optimiser step."""
        trainer: Any = self
        args, step = trainer.args, trainer.state.global_step
        if self.gr_scheduler is not None:
            return self.gr_scheduler(step) if step >= args.gr_warmup else 0.0
        return scheduled(args.gr_gamma, step, trainer.state.max_steps, args.gr_warmup, args.gr_schedule)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self._gr_replayed is not None:
            return self._gr_replayed.replay()
        prepared = super()._prepare_inputs(inputs)  # type: ignore[misc]
        if self._gr_window is not None and self._gr_old is not None:
            self._gr_window.append(_Kept(dict(prepared)))
            # From here to the end of the step only the loss runs the model: what it computes are the old ones.
            wants = "advantages" in prepared and not {"old_per_token_logps", "old_logps"} & prepared.keys()
            self._gr_old.listen(wants and self.args.gr_importance == "surrogate")  # type: ignore[attr-defined]
        return prepared

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """The trainer's step; after the last micro-batch the gradients are those of (3)."""
        trainer: Any = self
        gamma = self.gr_gamma_now()
        if gamma == 0.0:
            return super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        _refuse_launch(trainer.accelerator, model)
        self._gr_window = [] if self._gr_window is None else self._gr_window
        self._gr_old = _LogProbs(model)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        finally:
            self._gr_old.close()
        if self._gr_old.listens and self._gr_old.found is None:
            raise UsageError(
                "the old log-probabilities of gradient regularisation are not to be had: the loss does not run TRL's "
                'own head on this model; set gr_importance="reuse"'
            )
        if self._gr_old.found is not None:
            kept = self._gr_window[-1].inputs
            kept["old_per_token_logps"] = self._gr_old.found[:, -kept["completion_ids"].shape[1] :]
        if trainer.accelerator.sync_gradients:
            metrics = self._second_pass(model, self._gr_window, num_items_in_batch, gamma)
            self._gr_window = None
            for name, value in metrics.items():
                trainer._metrics["train"][f"gr/{name}"].append(value)
        return loss

    def _second_pass(self, model: Any, window: "list[_Kept]", num_items: Any, gamma: float) -> dict[str, float]:
        """Steps 2 to 7: replaces the gradients in `.grad` by (3)."""
        trainer: Any = self
        args = trainer.args
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        params = [p for _, p in named]
        moved = [not any(part in name for part in args.gr_exclude) for name, _ in named]
        if not any(moved):
            raise UsageError(f"gr_exclude {' '.join(args.gr_exclude)} leaves nothing to perturb: name fewer parameters")
        # A parameter that a pass does not reach, such as an expert's, has the gradient 0 in it.
        reached = [p.grad is not None for p in params]
        first = [_gradient(p).clone() for p in params]
        g1 = clipped(first, args.gr_g1_clip)
        kept = [p.detach().clone() for p in params]
        ratio = math.nan
        with torch.no_grad():
            for p, g, move in zip(params, g1, moved, strict=True):
                p.grad = None
                if move:
                    p.add_(args.gr_eps * g)
        try:
            ratio = self._replay(model, window, num_items)
        finally:
            with torch.no_grad():
                for p, before in zip(params, kept, strict=True):
                    p.copy_(before)
        reached = [before or p.grad is not None for p, before in zip(params, reached, strict=True)]
        second = [_gradient(p) for p in params]
        g2 = clipped(second, args.gr_g2_clip)
        rest = g1 if args.gr_excluded == "g1" else g2
        mixed = combined(g1, g2, gamma, args.gr_eps)
        for p, new, old, move, seen in zip(params, mixed, rest, moved, reached, strict=True):
            p.grad = (new if move else old) if seen else None
        metrics = compare(first, second, g1, g2, args.gr_eps)
        if metrics["g1_norm"] > 0.0 and metrics["change"] < LOST:
            _say_lost()
        return metrics | {"gamma": gamma} | ({} if math.isnan(ratio) else {"ratio": ratio})

    def _replay(self, model: Any, window: "list[_Kept]", num_items: Any) -> float:
        """The trainer's own step on each kept micro-batch; what it notes down meanwhile is forgotten.

        Returns the mean importance ratio, NaN where the loss has none.
        """
        trainer: Any = self
        before = dict(vars(trainer))
        trainer._metrics = {mode: defaultdict(list) for mode in trainer._metrics}
        ratios: list[torch.Tensor] = []
        try:
            with torch.random.fork_rng(devices=_devices(trainer)):
                for index, kept in enumerate(window):
                    trainer._gr_replayed = kept
                    listener = _LogProbs(model)
                    listener.listen("advantages" in kept.inputs and "old_logps" not in kept.inputs)
                    last = index == len(window) - 1
                    quiet = contextlib.nullcontext() if last else trainer.accelerator.no_sync(model=model)
                    try:
                        with quiet:
                            super().training_step(model, {}, num_items)  # type: ignore[misc]
                    finally:
                        listener.close()
                    ratios += kept.ratios(listener.found)
        finally:
            vars(trainer).update(before)
            self._gr_replayed = None
        return float(torch.cat(ratios).mean()) if ratios else math.nan


@dataclass
class _Kept:
    """A micro-batch as the loss took it, and the state of the random numbers before that."""

    inputs: dict[str, Any]

    def __post_init__(self) -> None:
        self.random = torch.get_rng_state()
        self.device_random = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def replay(self) -> dict[str, Any]:
        """The micro-batch, with dropout about to fall as it fell before."""
        torch.set_rng_state(self.random)
        if self.device_random:
            torch.cuda.set_rng_state_all(self.device_random)
        return dict(self.inputs)

    def ratios(self, log_probs: torch.Tensor | None) -> list[torch.Tensor]:
        """pi(phi + eps g1) / pi(phi) of the completions' tokens."""
        old = self.inputs.get("old_per_token_logps")
        if log_probs is None:
            return []
        log_probs = log_probs[:, -self.inputs["completion_ids"].shape[1] :]
        mask = self.inputs["completion_mask"] * self.inputs.get("tool_mask", 1)
        return [torch.exp(log_probs - (log_probs if old is None else old))[mask.bool()]]


class _LogProbs:
    """Listens to a model's forward calls and keeps the log-probabilities of the last that computed any."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._handle: Any = None
        self.found: torch.Tensor | None = None

    @property
    def listens(self) -> bool:
        """Whether it was asked to."""
        return self._handle is not None

    def listen(self, wanted: bool) -> None:
        """Begins, if it is `wanted`."""
        if wanted and self._handle is None:
            self._handle = self._model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found = getattr(output, "log_probs", None)
        if found is not None:
            self.found = found.detach()

    def close(self) -> None:
        """Ends."""
        if self._handle is not None:
            self._handle.remove()


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def _devices(trainer: Any) -> list[int]:
    return list(range(torch.cuda.device_count())) if trainer.accelerator.device.type == "cuda" else []


def _say_lost() -> None:
    # No figure in the text: Python says the same warning once, and gr/change holds the figures.
    warnings.warn(
        f"the gradient changed by less than {LOST:g} of its norm: the probe is lost in rounding; raise gr_eps",
        stacklevel=3,
    )


@dataclass
class GradRegGRPOConfig(GradRegArguments, GRPOConfig):
    """`GRPOConfig` with `gr_` fields."""


class GradRegGRPOTrainer(GradRegMixin, GRPOTrainer):
    """GRPO with gradient regularisation."""


@dataclass
class GradRegRLOOConfig(GradRegArguments, RLOOConfig):
    """`RLOOConfig` with `gr_` fields."""


class GradRegRLOOTrainer(GradRegMixin, RLOOTrainer):
    """RLOO with gradient regularisation."""


@dataclass
class GradRegDPOConfig(GradRegArguments, DPOConfig):
    """`DPOConfig` with `gr_` fields."""


class GradRegDPOTrainer(GradRegMixin, DPOTrainer):
    """DPO with gradient regularisation."""


@dataclass
class GradRegSFTConfig(GradRegArguments, SFTConfig):
    """`SFTConfig` with `gr_` fields."""


class GradRegSFTTrainer(GradRegMixin, SFTTrainer):
    """Supervised fine-tuning with gradient regularisation."""
