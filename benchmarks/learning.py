"""SAC's return after equal steps on Hopper-v5 and HalfCheetah-v5, against Stable-Baselines3's SAC, over seeds.

Both train with Stable-Baselines3's hyper-parameters and one update a step, and are judged by their last policy: the
mean of 20 deterministic episodes. `--chunk LIBRARY ENV SEED` trains one of the runs; without it, all are trained, as
many at once as `--jobs` says: what a policy returns does not depend on the time it took. Runs that the file of `--json`
holds already, of as many steps, are kept.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from pairs import arguments, machine, versions

ENVS, SEEDS, STEPS, EPISODES, STARTS = ("Hopper-v5", "HalfCheetah-v5"), (0, 1, 2), 50_000, 20, 1_000


def ours(env: str, seed: int, steps: int) -> list[float]:
    """Trimtab."""
    import tempfile

    import trimtab
    from trimtab.agents.sac import Config

    with tempfile.TemporaryDirectory() as folder:
        run = trimtab.train(
            "sac", env, steps=steps, seed=seed, eval_freq=0, checkpoint_freq=0, out=folder, log=("csv",), quiet=True,
            config=Config(learning_starts=STARTS), device="cpu",
        )  # fmt: skip
        from trimtab.api import evaluate_episodes

        return [episode["return"] for episode in evaluate_episodes(run.policy, env, episodes=EPISODES, seed=seed)]


def sb3(env: str, seed: int, steps: int) -> list[float]:
    """Stable-Baselines3."""
    import gymnasium
    from stable_baselines3 import SAC

    model = SAC("MlpPolicy", env, learning_starts=STARTS, seed=seed, device="cpu").learn(steps)
    world, returns = gymnasium.make(env), []
    for i in range(EPISODES):
        obs, _ = world.reset(seed=10_000 + seed + i)
        total, over = 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = world.step(model.predict(obs, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def main() -> int:
    """Trains all runs, or one."""
    parser = arguments(__doc__)
    parser.add_argument("--chunk", nargs=3, metavar=("LIBRARY", "ENV", "SEED"), help="train one run")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each if more than one")
    flags = parser.parse_args()
    if flags.chunk:
        library, env, seed = flags.chunk
        began = time.perf_counter()
        returns = (ours if library == "trimtab" else sb3)(env, int(seed), flags.steps)
        print("@" + json.dumps({"returns": returns, "seconds": time.perf_counter() - began}))
        return 0
    steps, seeds = (2_000, SEEDS[:1]) if flags.quick else (flags.steps, SEEDS)
    runs = kept(flags.json, steps)
    there = {(run["library"], run["env"], run["seed"]) for run in runs}
    todo = [(library, env, seed) for seed in seeds for env in ENVS for library in ("trimtab", "sb3")]
    todo = [run for run in todo if run not in there]
    with ThreadPoolExecutor(flags.jobs) as pool:
        for future in as_completed([pool.submit(train, *run, steps, flags.jobs) for run in todo]):
            runs.append(run := future.result())
            print(
                f"{run['library']:<10}{run['env']:<18}seed {run['seed']}  return {run['mean']:8.1f}  "
                f"{run['seconds']:.0f} s",
                flush=True,
            )
            save(flags.json, runs, steps)
    table = summarise(runs)
    for r in table:
        print(r["text"])
    return 0


def train(library: str, env: str, seed: int, steps: int, jobs: int) -> dict:
    """One run in a process of its own, on one thread if it is not alone."""
    command = [sys.executable, "-W", "ignore", __file__, "--chunk", library, env, str(seed), "--steps", str(steps)]
    single = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if jobs > 1 else {}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | single).stdout
    found = json.loads(output.rsplit("@", 1)[1])
    return dict(library=library, env=env, seed=seed, mean=float(np.mean(found["returns"])), **found)


def kept(path: Path | None, steps: int) -> list[dict]:
    """The runs of an earlier call that was stopped."""
    if path is None or not path.exists():
        return []
    record = json.loads(path.read_text())
    return record["runs"] if record["steps"] == steps else []


def summarise(runs: list[dict]) -> list[dict]:
    """IQM over seeds with 95 % bootstrap intervals, and P(ours > SB3)."""
    from trimtab.run.statistics import aggregate, probability_of_improvement

    table = []
    for env in dict.fromkeys(r["env"] for r in runs):
        scores = {
            library: np.array([r["mean"] for r in runs if r["env"] == env and r["library"] == library])
            for library in ("trimtab", "sb3")
        }
        if min(map(len, scores.values())) == 0:
            continue
        ours_, peer = aggregate(scores["trimtab"]).iqm, aggregate(scores["sb3"]).iqm
        better = probability_of_improvement(scores["trimtab"], scores["sb3"]).value
        text = (
            f"{env:<18}trimtab {ours_.value:.0f} [{ours_.low:.0f}, {ours_.high:.0f}]   "
            f"sb3 {peer.value:.0f} [{peer.low:.0f}, {peer.high:.0f}]   P(trimtab > sb3) {better:.2f}"
        )
        table.append(
            dict(
                case=f"sac {env}",
                ours=ours_.value,
                peer=peer.value,
                peer_name="sb3",
                unit="return (IQM over seeds)",
                ratio=ours_.value / peer.value,
                ratio_min=ours_.low / peer.high,
                ratio_max=ours_.high / peer.low,
                ours_interval=[ours_.low, ours_.high],
                peer_interval=[peer.low, peer.high],
                better=better,
                text=text,
            )
        )
    return table


def save(path: Path | None, runs: list[dict], steps: int) -> None:
    """Writes what is there so far: these runs are long."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "versions": versions(), "command": " ".join(sys.argv), "steps": steps}
        path.write_text(json.dumps(record | {"rows": summarise(runs), "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
