"""Exact resume: a run that was killed, interrupted or damaged ends as if nothing had happened."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import (
    ONLINE,
    TINY,
    answer,
    assert_same_run,
    contents,
    edit_config,
    metrics_of,
    spawn,
    wait_for,
)
from trimtab import api, assemble
from trimtab.cli.main import main
from trimtab.run.folder import Run
from trimtab.training import checkpoint, fit
from trimtab.training.fit import _Loop

# What to train for how many steps, and the run folder below --out without its last part. No frequency divides another,
# so that checkpoints lie between log lines.
CASES = {
    "offline": (
        f"iql {TINY} --log-freq 100 --checkpoint-freq 70 --offline-steps",
        3000,
        "random/iql",
    ),
    "world": (
        f"sac --env probe/Delayed {ONLINE} --num-envs 2 --log-freq 100 --eval-freq 500 --checkpoint-freq 70 --steps",
        3000,
        "probe/Delayed/sac",
    ),
    "mujoco": (
        f"td3 --env Hopper-v5 {ONLINE} --num-envs 2 --log-freq 100 --eval-freq 600 --checkpoint-freq 70 --steps",
        1200,
        "Hopper-v5/td3",
    ),
}

Whole = Callable[[str], Path]


def arguments(case: str, out: Path, dataset: Path, steps: int | None = None) -> tuple[list[str], Path]:
    """The command, which lacks a --name, and the folder that holds its runs."""
    args, usual, folder = CASES[case]
    data = ["--dataset", str(dataset)] if case == "offline" else []
    return ["train", *args.split(), str(steps or usual), *data, "--out", str(out)], out / folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, dataset) -> Whole:
    """`whole(case)`: the run of a case which nothing disturbed."""
    made: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in made:
            args, folder = arguments(case, tmp_path_factory.mktemp("whole"), dataset)
            assert main([*args, "--name", "whole"]) == 0
            made[case] = folder / "whole"
        return made[case]

    return run


def has_checkpoint(run: Path) -> Callable[[], object]:
    return lambda: checkpoint.checkpoints(run)


@pytest.mark.parametrize("case", CASES)
def test_killed_run_ends_with_the_same_bits(cli, whole, tmp_path, dataset, case):
    args, folder = arguments(case, tmp_path, dataset)
    run = folder / "killed"
    process = spawn([*args, "--name", "killed"])
    wait_for(has_checkpoint(run), process)
    time.sleep(random.Random(case).uniform(0.0, 0.3))
    process.kill()
    assert answer(process).status == -signal.SIGKILL
    assert not (run / "DONE").exists(), "it was killed too late to show anything"
    found = cli("resume", run)
    assert found.status == 0, found.err
    assert "resumed at step" in found.err
    assert_same_run(run, whole(case))


@pytest.mark.thorough
def test_killed_seeds_end_with_the_same_bits(cli, tmp_path):
    args = f"train sac --env probe/Both {ONLINE} --seeds 3 5 --steps 3000 --log-freq 100 --eval-freq 500".split()
    args += ["--checkpoint-freq", "70", "--out", str(tmp_path)]
    killed = [tmp_path / f"probe/Both/sac/killed_s{seed}" for seed in (3, 5)]
    process = spawn([*args, "--name", "killed"])
    wait_for(has_checkpoint(killed[1]), process)
    time.sleep(0.2)
    process.kill()
    assert answer(process).status == -signal.SIGKILL
    assert not any((run / "DONE").exists() for run in killed)
    found = cli("resume", killed[1])  # any of them brings all to their end
    assert found.status == 0, found.err
    assert cli(*args, "--name", "whole").status == 0
    for seed, run in zip((3, 5), killed, strict=True):
        assert_same_run(run, tmp_path / f"probe/Both/sac/whole_s{seed}")


@pytest.mark.parametrize(
    ("case", "number", "status"), [("world", signal.SIGINT, 130), ("mujoco", signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_interrupted_run_says_how_to_resume_and_ends_with_the_same_bits(
    cli, whole, tmp_path, dataset, case, number, status
):
    args, folder = arguments(case, tmp_path, dataset)
    run = folder / "stopped"
    process = spawn([*args, "--name", "stopped"])
    wait_for(has_checkpoint(run), process)
    before = cli("resume", run)  # two processes on one run folder: the second refuses
    assert before.status == 1
    assert len(before.errors) == 1 and f"another process is writing {run}" in before.errors[0]
    process.send_signal(number)
    said = answer(process)
    assert said.status == status
    assert not (run / "DONE").exists()
    assert "Traceback" not in said.err
    assert f"go on with `trimtab resume {run}`" in said.errors[-1]
    step = int(said.errors[-1].split("at step ")[1].split(":")[0].replace(",", ""))
    newest, _ = checkpoint.newest(run)
    assert newest is not None and newest.name == f"step_{step}"
    assert cli("resume", run).status == 0
    assert_same_run(run, whole(case))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_interrupted_while_it_starts(cli, whole, tmp_path, dataset, number, status):
    args, folder = arguments("world", tmp_path, dataset)
    run = folder / "stopped"
    process = spawn([*args, "--name", "stopped"])
    wait_for((run / "config.json").exists, process)
    process.send_signal(number)
    said = answer(process)
    assert said.status == status
    assert "Traceback" not in said.err and f"`trimtab resume {run}`" in said.errors[-1]
    assert cli("resume", run).status == 0
    assert_same_run(run, whole("world"))


# Where a signal comes before the first step of a run, or while there is nothing to save any more.
PLACES = {
    "the folder is made": (Run, "create"),
    "the agent is made": (assemble.Setup, "agent"),
    "the source is filled": (assemble, "_initial_state"),
    "environments for evaluation are made": (assemble, "_evaluators"),
    "environments are made": (assemble, "_collector"),
    "the update is traced": (fit, "no_totals"),
    "the buffer is filled": (fit, "prefill"),
}


@pytest.mark.parametrize("place", PLACES)
def test_interrupted_before_the_first_step(cli, whole, tmp_path, dataset, monkeypatch, place):
    case, number = ("mujoco", signal.SIGINT) if place == "environments are made" else ("world", signal.SIGTERM)
    args, folder = arguments(case, tmp_path, dataset)
    run = folder / "stopped"
    owner, name = PLACES[place]
    function = getattr(owner, name)

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        said = cli(*args, "--name", "stopped")
    assert said.status == 128 + number
    assert len(said.errors) == 1
    if place == "the buffer is filled":  # noted; the loop then stops with a checkpoint
        assert said.errors[0] == f"trimtab: interrupted at step 20: go on with `trimtab resume {run}`"
    else:
        how = f"before the first checkpoint: start from the beginning with `trimtab resume {run}`"
        assert said.errors[0] == f"trimtab: interrupted {how}"
        assert not checkpoint.checkpoints(run)
    assert cli("resume", run).status == 0
    assert_same_run(run, whole(case))


def test_seeds_interrupted_before_the_first_step(cli, tmp_path, monkeypatch):
    args = f"train sac --env probe/Both {ONLINE} --seeds 3 5 --steps 300 --eval-freq 0 --out {tmp_path} --name".split()
    folder = tmp_path / "probe/Both/sac"
    assert cli(*args, "whole").status == 0
    agent = assemble.Setup.agent

    def interrupted(self, seed):
        os.kill(os.getpid(), signal.SIGINT if seed == 5 else 0)
        return agent(self, seed)

    with monkeypatch.context() as patch:
        patch.setattr(assemble.Setup, "agent", interrupted)
        said = cli(*args, "stopped")
    assert said.status == 130 and f"start from the beginning with `trimtab resume {folder / 'stopped_s3'}`" in said.err
    assert cli("resume", folder / "stopped_s3").status == 0
    for seed in (3, 5):
        assert_same_run(folder / f"stopped_s{seed}", folder / f"whole_s{seed}")


def test_interrupted_while_it_resumes(cli, whole, tmp_path, monkeypatch):
    run = unfinished(whole("world"), tmp_path)

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(assemble, "_initial_state", interrupted)
        said = cli("resume", run)
    assert said.status == 130 and said.errors == [f"trimtab: interrupted: go on with `trimtab resume {run}`"]
    assert cli("resume", run).status == 0
    assert_same_run(run, whole("world"))


@pytest.mark.thorough
def test_interrupted_at_its_last_step_it_ends_but_begins_no_other_seed(cli, tmp_path, monkeypatch):
    args = f"train sac --env Pendulum-v1 {ONLINE} --seeds 3 5 --steps 100 --eval-freq 0 --out {tmp_path} --name x"
    finish = _Loop.finish

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self)

    monkeypatch.setattr(_Loop, "finish", interrupted)
    said = cli(*args.split())
    first, second = (tmp_path / f"Pendulum-v1/sac/x_s{seed}" for seed in (3, 5))
    assert said.status == 143 and f"{first} is finished, the seeds after it have not begun" in said.errors[-1]
    assert (first / "DONE").exists() and not second.exists()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


def test_second_interrupt_acts_at_once(whole, tmp_path):
    run = unfinished(whole("world"), tmp_path)
    edit_config(run, steps=100_000_000, log_freq=100_000_000, checkpoint_freq=0, eval_freq=0)
    process = spawn(["resume", run])
    assert process.stderr is not None and "resumed at step" in process.stderr.readline()  # said just before the loop
    assert handles_sigterm(process.pid)
    began = cpu_seconds(process.pid)
    wait_for(lambda: cpu_seconds(process.pid) > began + 3, process)  # it is in a chunk of hours
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not handles_sigterm(process.pid), process)  # the first signal is noted, the next one acts
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert answer(process, timeout=60).status == -signal.SIGTERM


class Crash(BaseException):
    """The end of a process, so far as the files on disk can tell."""


@pytest.fixture
def crash_at(monkeypatch) -> Callable[[int], None]:
    """`crash_at(step)`: the next training loops die after the events of that step."""
    events = _Loop._events

    def arrange(step: int) -> None:
        def wrapped(self: _Loop, before: int) -> None:
            events(self, before)
            if self.t.step >= step:
                monkeypatch.setattr(_Loop, "_events", events)
                raise Crash

        monkeypatch.setattr(_Loop, "_events", wrapped)

    return arrange


@pytest.mark.parametrize(("agent", "sampling"), [("sac", "merged"), ("cal-ql", "symmetric")])
@pytest.mark.thorough
def test_offline_to_online_is_resumed_in_each_phase(cli, crash_at, tmp_path, dataset, agent, sampling):
    args = f"train {agent} --env InvertedPendulum-v5 --dataset {dataset} --offline-steps 300 --online-steps 200"
    args = f"{args} --sampling {sampling} {ONLINE} --out {tmp_path}"
    args = f"{args} --updates-per-step 2 --log-freq 100 --eval-freq 250 --checkpoint-freq 70".split()
    folder = tmp_path / "InvertedPendulum-v5" / agent
    assert cli(*args, "--name", "whole").status == 0
    # Before the end of the offline phase, at its end, in the online phase, at its end.
    for step in (210, 300, 423, 500):
        crash_at(step)
        with pytest.raises(Crash):
            cli(*args, "--name", f"crashed_{step}")
        phase = checkpoint.meta(checkpoint.checkpoints(folder / f"crashed_{step}")[-1])["phase"]
        assert phase == ("offline" if step <= 300 else "online")
        found = cli("resume", folder / f"crashed_{step}")
        assert found.status == 0, found.err
        assert_same_run(folder / f"crashed_{step}", folder / "whole")
    # And once more in one run: killed twice in either phase.
    crash_at(150)
    with pytest.raises(Crash):
        cli(*args, "--name", "often")
    for step in (250, 400, 450):
        crash_at(step)
        with pytest.raises(Crash):
            cli("resume", folder / "often")
    assert cli("resume", folder / "often").status == 0
    assert_same_run(folder / "often", folder / "whole")


def crash_and_resume(cli, crash_at, args: str, folder: Path, endings: list[str]) -> None:
    """Dies before the switch at step 150, at it, and after it; the last of the runs that train together is resumed, and
    all equal the ones called whole."""
    for step in (110, 150, 230):
        crash_at(step)
        with pytest.raises(Crash):
            cli(*args.split(), "--name", f"crashed_{step}")
        found = cli("resume", folder / f"crashed_{step}{endings[-1]}")
        assert found.status == 0, found.err
        for ending in endings:
            assert_same_run(folder / f"crashed_{step}{ending}", folder / f"whole{ending}")


@pytest.mark.parametrize("agent", ["fino", "qc-fql"])
@pytest.mark.thorough
def test_several_environments_are_resumed_in_each_phase(cli, crash_at, tmp_path, dataset, agent):
    """FINO with its temperature, and plans of several actions, in two environments side by side."""
    args = f"train {agent} --env InvertedPendulum-v5 --dataset {dataset} --offline-steps 150 --online-steps 120"
    args += f" {ONLINE} --num-envs 2 --log-freq 50 --eval-freq 100 --checkpoint-freq 70 --out {tmp_path}"
    args += " --agent.entropy-every 20" if agent == "fino" else ""
    folder = tmp_path / "InvertedPendulum-v5" / agent
    assert cli(*args.split(), "--name", "whole").status == 0
    crash_and_resume(cli, crash_at, args, folder, [""])


@pytest.mark.thorough
def test_seeds_that_train_together_are_resumed_in_each_phase(cli, crash_at, tmp_path):
    assert cli("data", "make", "two-route", "--episodes", "20", "--out", tmp_path).status == 0
    args = f"train fql --env trimtab/TwoRoute-v0 --dataset {tmp_path}/two-route.npz --offline-steps 150 --seeds 3 5"
    args += f" {ONLINE} --online-steps 120 --log-freq 50 --eval-freq 100 --checkpoint-freq 70 --out {tmp_path}"
    folder = tmp_path / "trimtab" / "TwoRoute-v0" / "fql"
    assert cli(*args.split(), "--name", "whole").status == 0
    crash_and_resume(cli, crash_at, args, folder, ["_s3", "_s5"])


@pytest.mark.thorough
def test_data_beside_an_agent_that_has_learnt_nothing_yet(cli, crash_at, tmp_path, dataset):
    """RLPD: no offline updates, random steps first, half of each batch data; killed, it ends with the same bits."""
    args = f"train rlpd --env InvertedPendulum-v5 --dataset {dataset} --online-steps 150 --sampling symmetric {ONLINE}"
    args = f"{args} --agent.utd 2 --num-envs 2 --log-freq 50 --eval-freq 70 --checkpoint-freq 40 --out {tmp_path}"
    folder = tmp_path / "InvertedPendulum-v5" / "rlpd"
    assert cli(*args.split(), "--name", "whole").status == 0
    logged = metrics_of(folder / "whole")
    assert not any("critic_loss" in line and line.endswith(",nan") for line in logged[-20:])
    steps = sorted({int(line.split(",")[0]) for line in (folder / "whole" / "eval.csv").read_text().splitlines()[1:]})
    assert steps == [70, 140, 150]
    for step in (10, 90):
        crash_at(step)
        with pytest.raises(Crash):
            cli(*args.split(), "--name", f"crashed_{step}")
        if step == 10:
            assert not checkpoint.checkpoints(folder / "crashed_10")
        assert cli("resume", folder / f"crashed_{step}").status == 0
        assert_same_run(folder / f"crashed_{step}", folder / "whole")


@pytest.mark.thorough
def test_an_agent_that_scores_its_data_is_resumed_in_each_phase(cli, crash_at, tmp_path, dataset):
    args = f"train fac --env InvertedPendulum-v5 --dataset {dataset} --offline-steps 200 --online-steps 60 {ONLINE}"
    args = f"{args} --agent.proxy-steps 100 --agent.proxy-batch-size 24 --log-freq 50 --eval-freq 150"
    args = f"{args} --checkpoint-freq 70 --out {tmp_path}".split()
    folder = tmp_path / "InvertedPendulum-v5" / "fac"
    assert cli(*args, "--name", "whole").status == 0
    # While the flow is fitted, when it is done, in the offline phase, and online.
    for step, phase in ((70, "proxy"), (100, "proxy"), (210, "offline"), (350, "online")):
        crash_at(step)
        with pytest.raises(Crash):
            cli(*args, "--name", f"crashed_{step}")
        assert checkpoint.meta(checkpoint.checkpoints(folder / f"crashed_{step}")[-1])["phase"] == phase
        found = cli("resume", folder / f"crashed_{step}")
        assert found.status == 0, found.err
        assert_same_run(folder / f"crashed_{step}", folder / "whole")


def test_other_environments_go_on_with_a_new_episode_and_say_so(cli, crash_at, tmp_path):
    args = f"train sac --env Pendulum-v1 --steps 400 {ONLINE} --log-freq 100 --eval-freq 0 --checkpoint-freq 150"
    crash_at(250)
    with pytest.raises(Crash):
        cli(*args.split(), "--out", tmp_path, "--name", "crashed")
    run = tmp_path / "Pendulum-v1/sac/crashed"
    found = cli("resume", run)
    assert found.status == 0
    assert "this environment's state cannot be restored: going on with a new episode" in found.err
    assert "resumed at step 150" in found.err
    assert (run / "DONE").exists()
    steps = [int(line.split(",")[0]) for line in metrics_of(run)[1:]]
    assert sorted(set(steps)) == [100, 200, 300, 400] and steps == sorted(steps)
    arrays = checkpoint.load_arrays(checkpoint.checkpoints(run)[-1])
    assert int(arrays["collector/episode_length"][0]) == 50  # 250 steps since the resume: one episode of 200, and 50
    obs = np.asarray(api.reopen(run)[2].rows.obs)
    assert (obs[150] != obs[0]).any()  # a new episode, not the run's first one again


def unfinished(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of a run as it was before its last steps: no final agent, two checkpoints."""
    run = tmp_path / "copy"
    shutil.copytree(whole_run, run)
    (run / "DONE").unlink()
    shutil.rmtree(run / "final")
    assert len(checkpoint.checkpoints(run)) == checkpoint.KEEP == 2
    return run


def truncate(folder: Path) -> None:
    file = folder / "source.eqx"
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder: Path) -> None:
    data = bytearray((folder / "agent.eqx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "agent.eqx").write_bytes(data)


def remove(folder: Path) -> None:
    (folder / "host.npz").unlink()


def garble(folder: Path) -> None:
    file = folder / "layout.json"
    file.write_text(file.read_text()[:-20])


DAMAGE = {
    truncate: r"source.eqx is truncated",
    flip: r"agent.eqx is damaged (its checksum differs)",
    remove: r"host.npz is missing",
    garble: r"layout.json is missing or damaged",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_falls_back_to_the_one_before(cli, whole, tmp_path, damage):
    run = unfinished(whole("world"), tmp_path)
    before, newest = checkpoint.checkpoints(run)
    damage(newest)
    found = cli("resume", run)
    assert found.status == 0, found.err
    said = f"checkpoint {newest.name} is not usable: {DAMAGE[damage]}"
    assert said in found.out + found.err
    assert "falling back to the one before" in found.out + found.err
    assert f"resumed at step {int(before.name.removeprefix('step_')):,}" in found.err
    assert_same_run(run, whole("world"))
    assert checkpoint.damage(newest) is None  # written anew


def test_without_a_usable_checkpoint_it_starts_again(cli, whole, tmp_path):
    run = unfinished(whole("world"), tmp_path)
    for folder in checkpoint.checkpoints(run):
        truncate(folder)
    found = cli("resume", run)
    assert found.status == 0
    assert "starting from the beginning" in found.out + found.err
    assert_same_run(run, whole("world"))


def test_leftovers_of_an_interrupted_write_are_never_loaded(cli, whole, tmp_path):
    run = unfinished(whole("world"), tmp_path)
    _, newest = checkpoint.checkpoints(run)
    for name in (".step_9999.tmp", f".{newest.name}.tmp", f".{newest.name}.old"):
        shutil.copytree(newest, run / "checkpoints" / name)
        truncate(run / "checkpoints" / name)
    assert cli("resume", run).status == 0
    assert_same_run(run, whole("world"))


@pytest.mark.parametrize("where", ["eqx.tree_serialise_leaves", "np.savez", "os.replace", "_sync"])
def test_a_write_that_dies_half_way_is_never_loaded(cli, whole, tmp_path, dataset, monkeypatch, where):
    args, folder = arguments("world", tmp_path, dataset)
    module, _, name = where.rpartition(".")
    owner = getattr(checkpoint, module) if module else checkpoint
    function, calls = getattr(owner, name), []

    def dies(*args, **kwargs):
        calls.append(args)
        target = args[0] if isinstance(args[0], Path) else args[0].name
        if "step_140" in str(target):
            if where != "os.replace":
                function(*args, **kwargs)
            raise Crash
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Crash):
            cli(*args, "--name", "crashed")
    assert calls
    assert [path.name for path in checkpoint.checkpoints(folder / "crashed")] == ["step_70"]
    found = cli("resume", folder / "crashed")
    assert found.status == 0
    assert "resumed at step 70" in found.err
    assert_same_run(folder / "crashed", whole("world"))


def test_half_written_last_line_of_a_log_is_dropped(cli, whole, tmp_path):
    run = unfinished(whole("world"), tmp_path)
    for name in ("metrics.csv", "eval.csv"):
        with (run / name).open("a") as file:
            file.write("3000,train/cri")
    assert cli("resume", run).status == 0
    assert_same_run(run, whole("world"))


def test_finished_run_is_left_alone(cli, whole):
    before = contents(whole("world"))
    found = cli("resume", whole("world"))
    assert (found.status, found.errors) == (0, [])
    assert "is finished: nothing to resume" in found.out
    assert contents(whole("world")) == before


@pytest.mark.parametrize("case", CASES)
def test_prolonged_run_equals_a_longer_one(cli, whole, tmp_path, dataset, case):
    total = CASES[case][1]
    args, folder = arguments(case, tmp_path, dataset, total // 2)
    assert cli(*args, "--name", "short").status == 0
    assert (folder / "short" / "DONE").exists()
    found = cli("resume", folder / "short", "--steps", total)
    assert found.status == 0, found.err
    assert_same_run(folder / "short", whole(case))
    found = cli("resume", folder / "short", "--steps", 10)
    assert found.status == 2 and len(found.errors) == 1
    assert "--steps 10 is less than" in found.errors[0]


@pytest.mark.thorough
def test_prolonged_seeds_equal_longer_ones(cli, tmp_path):
    args = f"train sac --env probe/Both {ONLINE} --seeds 0 1 --log-freq 100 --eval-freq 200 --out {tmp_path}".split()
    assert cli(*args, "--steps", "400", "--name", "short").status == 0
    assert cli("resume", tmp_path / "probe/Both/sac/short_s0", "--steps", "800").status == 0
    assert cli(*args, "--steps", "800", "--name", "whole").status == 0
    for seed in (0, 1):
        assert_same_run(*(tmp_path / f"probe/Both/sac/{name}_s{seed}" for name in ("short", "whole")))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again(cli, tmp_path, dataset, case):
    args, folder = arguments(case, tmp_path, dataset, 5 * CASES[case][1])
    run, rng, kills = folder / "killed", random.Random(case), 0
    process = spawn([*args, "--name", "killed"])
    wait_for((run / "config.json").exists, process)
    for _ in range(6):
        time.sleep(rng.uniform(0.5, 3.0))  # a start takes about two seconds
        process.kill()
        kills += answer(process).status == -signal.SIGKILL
        if (run / "DONE").exists():
            break
        process = spawn(["resume", run])
    answer(process)
    assert kills >= 2
    assert cli("resume", run).status == 0
    assert cli(*args, "--name", "whole").status == 0
    assert_same_run(run, folder / "whole")
