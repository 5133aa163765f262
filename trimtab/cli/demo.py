"""`make demo`: train a real agent on a real MuJoCo task, evaluate it, film it, and write one page about it."""

import os
import sys
import time

from trimtab.core import RunError

AGENT, ENV, STEPS, SOLVED = "sac-flow", "InvertedDoublePendulum-v5", 15_000, 9_100.0
"""The task: balance two poles on a cart for 1,000 steps. 9,100 is the threshold that Gymnasium registers for it."""

NAIVE_SHARE = 2 / 3
"""Share of the steps that a flow without the gate trains for, so that the report has its gradients beside."""


def run(args: list[str]) -> None:
    """Trains, evaluates, films and reports. Raises `RunError` if the trained policy does not solve the task."""
    from trimtab import api
    from trimtab.agents.sac_flow import Config
    from trimtab.cli import diagnose, evaluate
    from trimtab.run.report import write_report

    steps = int(os.environ.get("TRIMTAB_DEMO_STEPS", STEPS))
    print(f"training {AGENT} on {ENV} for {steps:,} steps (solved from a return of {SOLVED:,.0f})")
    began = time.monotonic()
    trained = api.train(AGENT, ENV, steps=steps, eval_freq=2_500, command="make demo")
    few = max(1, int(NAIVE_SHARE * steps))
    print(f"\nfor comparison, {few:,} steps of a naive flow: the same agent with --agent.velocity mlp")
    naive = api.train(AGENT, ENV, steps=few, eval_freq=2_500, config=Config(velocity="mlp"), command="make demo")
    minutes = (time.monotonic() - began) / 60
    evaluate.run([str(trained.path), "--episodes", "10", "--video", "1"])
    for label, run in (("gated", trained), ("naive", naive)):
        print(f"\nthe gradient through the {label} flow's rollout:")
        diagnose.run([str(run.path), "--probes", "rollout-grad"])
    page = write_report([trained.path, naive.path], trained.path / "report")
    mean = evaluate.mean_of(trained.path)
    verdict = "solved" if mean >= SOLVED else "NOT solved"
    print(f"\n{verdict}: mean return {mean:,.0f} over 10 episodes after {minutes:.1f} minutes of training")
    print(f"run     {trained.path}\nreport  {page}")
    if mean < SOLVED:
        raise RunError(
            f"the policy reached {mean:,.0f}, below {SOLVED:,.0f}: please report it with {trained.path / 'env.json'}"
        )


def main() -> int:
    """The demo with the command line's error handling."""
    from trimtab.cli.main import guarded

    return guarded(run, sys.argv[1:], "--debug" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
