"""`trimtab export RUN --format onnx|stablehlo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from trimtab import __version__, api
from trimtab.cli.flags import parse


@dataclass(frozen=True)
class Flags:
    """What `trimtab export` takes."""

    run: tyro.conf.Positional[Path]
    """run folder."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """file format."""
    out: Path | None = None
    """file to write; default: policy.onnx or policy.stablehlo in the run folder."""
    checkpoint: Literal["final", "best", "last"] = "final"
    """which agent of the run."""
    noise: Literal["inside", "input"] = "inside"
    """what a policy that draws random numbers (a flow) draws: fixed numbers inside the file, or an input of it."""
    atol: float = 1e-5
    """largest difference from `predict` that passes the check, times the largest action."""


def run(args: list[str]) -> None:
    """Writes the deterministic policy (observation in, action in the environment's units out) and checks it.

    With `--noise input` the file takes standard normal numbers beside the observation, if the policy draws any.
    """
    from trimtab.training.export import check_parity, export_onnx, export_stablehlo

    flags = parse(Flags, args, "trimtab export")
    policy = api.load(flags.run, checkpoint_name=flags.checkpoint)
    path = flags.out or flags.run / f"policy.{flags.format}"
    example = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), policy.spec.obs)
    key_input = flags.noise == "input"
    function = policy.function(key_input=key_input)
    if flags.format == "onnx":
        info = {"agent": policy.info["agent"], "env": str(policy.info["env"]), "trimtab": __version__}
        export_onnx(function, example, path, metadata=info, key_input=key_input)
    else:
        export_stablehlo(function, example, path, key_input=key_input)
    difference = check_parity(function, path, example, key_input=key_input, atol=flags.atol, format=flags.format)
    print(f"wrote   {path} (largest difference from predict: {difference:.1e})")
