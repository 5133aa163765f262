"""The commands of the README from end to end, what they leave on disk, and what `predict` answers."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

import trimtab
from tests.cli.conftest import ONLINE, ROOT, TINY, USERLAND, answer, contents, environment, metrics_of, spawn
from trimtab.cli.main import COMMANDS, main
from trimtab.core import UsageError
from trimtab.training.fit import _Loop


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What `trimtab train` made, on a MuJoCo task."""
    out = tmp_path_factory.mktemp("runs")
    args = (
        f"train sac --env InvertedPendulum-v5 --steps 500 --num-envs 2 --eval-freq 200 --checkpoint-freq 200 {ONLINE}"
    )
    assert main([*args.split(), "--log-freq", "100", "--log", "csv", "tensorboard", "--out", str(out)]) == 0
    (made,) = (out / "InvertedPendulum-v5" / "sac").iterdir()
    return made


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_run_folder(run):
    assert re.fullmatch(r"\d{8}-\d{6}_s0", run.name)
    names = {path.name for path in run.iterdir() if not path.name.startswith((".", "events."))}
    wanted = {
        "config.json",
        "command.txt",
        "env.json",
        "metrics.csv",
        "eval.csv",
        "checkpoints",
        "best",
        "final",
        "DONE",
    }
    assert wanted <= names
    assert list(run.glob("events.out.tfevents.*"))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_400", "step_500"]
    command = (run / "command.txt").read_text()
    assert command.startswith("trimtab train sac --env InvertedPendulum-v5 --steps 500")
    config = json.loads((run / "config.json").read_text())
    assert (config["agent"], config["env"], config["seed"], config["steps"]) == ("sac", "InvertedPendulum-v5", 0, 500)
    assert config["agent_config"]["hidden"] == [8, 8] and config["agent_config"]["gamma"] == 0.99
    machine = json.loads((run / "env.json").read_text())
    assert {"python", "trimtab", "jax", "equinox", "gymnasium", "mujoco"} <= machine["versions"].keys()
    assert {"trimtab_commit", "working_folder_commit"} <= machine.keys()
    assert machine["device"].split()[0] in ("cpu", "gpu") and machine["cpus"] >= 1


def test_metrics(run):
    assert (run / "metrics.csv").read_text().splitlines()[0] == "step,name,value"
    rows = read(run / "metrics.csv")
    names = {row["name"] for row in rows}
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "eval/mean_reward",
        "eval/mean_ep_length",
        "time/fps",
        "time/total_timesteps",
        "time/updates_per_second",
        "train/actor_loss",
        "train/critic_loss",
        "train/ent_coef",
    } <= names
    assert all(re.fullmatch(r"(rollout|eval|time|train|diagnostics)/[a-z_]+", name) for name in names)
    assert sorted({int(row["step"]) for row in rows}) == [100, 200, 300, 400, 500]
    assert all(np.isfinite(float(row["value"])) for row in rows)
    evaluations = read(run / "eval.csv")
    assert list(evaluations[0]) == ["step", "episode", "return", "length", "success"]
    assert [(row["step"], row["episode"]) for row in evaluations] == [
        (str(step), str(i)) for step in (200, 400, 500) for i in (0, 1)
    ]
    means = {row["step"]: float(row["value"]) for row in rows if row["name"] == "eval/mean_reward"}
    returns = [float(row["return"]) for row in evaluations if row["step"] == "400"]
    assert means["400"] == pytest.approx(np.mean(returns), rel=1e-6)
    # An InvertedPendulum gets 1 a step, but nothing for the step in which it falls.
    assert all(float(row["length"]) - float(row["return"]) in (0.0, 1.0) for row in evaluations)


def test_eval(cli, run):
    found = cli("eval", run, "--episodes", "12", "--seed", "3")
    assert found.status == 0, found.err
    assert re.search(r"return +mean [\d.]+ \+- [\d.]+ +IQM [\d.]+ \[[\d.]+, [\d.]+\]", found.out)
    record = json.loads((run / "evaluation.json").read_text())
    returns = [episode["return"] for episode in record["episodes"]]
    assert len(returns) == 12 and len(set(returns)) > 1
    assert record["mean"] == pytest.approx(np.mean(returns)) and record["std"] == pytest.approx(np.std(returns))
    assert record["iqm_low"] <= record["iqm"] <= record["iqm_high"]
    again = cli("eval", run, "--episodes", "12", "--seed", "3")
    assert again.out == found.out
    mean, std = trimtab.evaluate(trimtab.load(run), "InvertedPendulum-v5", episodes=12, seed=3)
    assert (mean, std) == pytest.approx((record["mean"], record["std"]))


def test_eval_equals_a_plain_loop(run):
    policy = trimtab.load(run)
    env, returns = gymnasium.make("InvertedPendulum-v5"), []
    for i in range(3):
        obs, _ = env.reset(seed=10_000 + i)
        total, over = 0.0, False
        while not over:
            action, _ = policy.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    assert trimtab.evaluate(policy, "InvertedPendulum-v5", episodes=3) == pytest.approx(
        (np.mean(returns), np.std(returns))
    )


def test_video(cli, run):
    found = cli("eval", run, "--episodes", "1", "--video", "1")
    assert (found.status, found.errors) == (0, [])
    film = run / "videos" / "episode_0.mp4"
    assert f"video   {film}" in found.out and film.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("which", ["final", "best", "last"])
def test_every_checkpoint_can_be_loaded(cli, run, which):
    assert cli("eval", run, "--episodes", "2", "--checkpoint", which).status == 0
    assert json.loads((run / "evaluation.json").read_text())["checkpoint"] == which


def test_report(cli, run, tmp_path):
    found = cli("report", run, "--out", tmp_path / "report")
    assert found.status == 0, found.err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "InvertedPendulum-v5" in page and "sac" in page
    assert not re.search(r"""(src|href)=["']https?://""", page)  # self-contained


def test_diagnose(cli, run):
    found = cli("diagnose", run, "--batches", "5")
    assert found.status == 0, found.err
    record = json.loads((run / "diagnose.json").read_text())
    assert record["step"] == 500
    assert {"gradient/actor", "gradient/critic", "q/mean", "dead/actor.net", "dead/critic.mlp"} <= record[
        "values"
    ].keys()
    levels = [line.split()[0] for line in found.out.splitlines()[:-1]]
    assert levels == [line["level"] for line in record["verdicts"]] and set(levels) <= {"ok", "warn", "bad"}
    only = cli("diagnose", run, "--probes", "gradients", "--batches", "2")
    assert only.status == 0 and "dead" not in only.out


@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_export(cli, run, kind, tmp_path):
    path = tmp_path / f"policy.{kind}"
    found = cli("export", run, "--format", kind, "--out", path)
    assert found.status == 0, found.err
    assert path.stat().st_size > 500
    assert float(found.out.split("difference from predict: ")[1].split(")")[0]) < 1e-5
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        obs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
        (action,) = session.run(None, {session.get_inputs()[0].name: obs})
        np.testing.assert_allclose(action, trimtab.load(run).predict(obs, deterministic=True)[0], atol=1e-5)
        assert np.abs(action).max() <= 3.0 and np.abs(action).max() > 1e-3  # in the environment's units


def test_resume_of_a_finished_run(cli, run):
    before = contents(run)
    found = cli("resume", run)
    assert found.status == 0 and "is finished: nothing to resume" in found.out
    assert contents(run) == before


def test_list(cli):
    agents = cli("list", "agents")
    assert [line.split()[0] for line in agents.out.splitlines()] == sorted(trimtab.agents.AGENTS)
    assert cli("list").out == agents.out
    envs = cli("list", "envs").out
    assert "probe/Cut" in envs and "Hopper-v5" in envs
    assert cli("list", "papers").status == cli("list", "datasets").status == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli, command):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(cli(command, "--help").status)
    assert stop.value.code == 0


def test_help_shows_every_field_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "sac", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--env", "--seeds", "--agent.learning-rate", "--agent.target-entropy", "--eval-freq", "--import"):
        assert flag in text
    assert "share of the new critic mixed into the target" in text and "(default: 0.005)" in text


def test_version(cli):
    assert cli("--version").out.strip() == trimtab.__version__


def agent_of(run: Path):
    return jax.tree.leaves(trimtab.load(run).agent)


@pytest.mark.thorough
def test_seeds_together_equal_solo_runs(cli, tmp_path):
    args = f"train sac --env probe/Both --steps 600 --log-freq 100 --eval-freq 200 {ONLINE} --out {tmp_path}".split()
    found = cli(*args, "--seeds", "0", "1", "2", "--name", "joint")
    assert found.status == 0, found.err
    assert "3 seeds run together, by vmap" in found.out
    folder = tmp_path / "probe/Both/sac"
    assert sorted(path.name for path in folder.iterdir()) == ["joint_s0", "joint_s1", "joint_s2"]
    for seed in range(3):
        assert cli(*args, "--seed", str(seed), "--name", f"solo{seed}").status == 0
        joint, solo = folder / f"joint_s{seed}", folder / f"solo{seed}"
        for a, b in zip(agent_of(joint), agent_of(solo), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(metrics_of(joint)[1:], metrics_of(solo)[1:], strict=True):
            assert a.split(",")[:2] == b.split(",")[:2]
            assert float(a.split(",")[2]) == pytest.approx(float(b.split(",")[2]), rel=1e-2, abs=1e-3)
    weights = [agent_of(folder / f"joint_s{seed}")[0] for seed in range(3)]
    assert (weights[0] != weights[1]).any() and (weights[1] != weights[2]).any()


def test_seeds_on_the_host_run_one_after_the_other(cli, tmp_path):
    args = f"train sac --env InvertedPendulum-v5 --steps 60 --eval-freq 0 {ONLINE} --out {tmp_path}"
    found = cli(*args.split(), "--seeds", "0", "1", "--name", "x")
    assert found.status == 0 and "2 seeds run one after the other" in found.out
    runs = [tmp_path / f"InvertedPendulum-v5/sac/x_s{seed}" for seed in (0, 1)]
    assert all((run / "DONE").exists() for run in runs)
    assert (agent_of(runs[0])[0] != agent_of(runs[1])[0]).any()


@pytest.mark.thorough
def test_same_command_same_bits(cli, tmp_path):
    args = f"train td3 --env InvertedPendulum-v5 --steps 120 --eval-freq 60 --log-freq 40 {ONLINE} --out {tmp_path}"
    for name in ("one", "two"):
        assert cli(*args.split(), "--name", name).status == 0
    one, two = (tmp_path / "InvertedPendulum-v5/td3" / name for name in ("one", "two"))
    assert (one / "final/agent.eqx").read_bytes() == (two / "final/agent.eqx").read_bytes()
    assert metrics_of(one) == metrics_of(two)


def test_offline_run(cli, dataset, tmp_path):
    args = f"train iql --dataset {dataset} --offline-steps 200 --log-freq 100 {TINY} --out {tmp_path} --name x"
    assert cli(*args.split()).status == 0
    run = tmp_path / "random/iql/x"
    steps = {int(row["step"]) for row in read(run / "metrics.csv")}
    assert steps == {100, 200}
    assert not any(row["name"].startswith(("rollout/", "eval/", "time/fps")) for row in read(run / "metrics.csv"))
    # Without an environment of its own it is evaluated where the user says.
    found = cli("eval", run, "--episodes", "2")
    assert found.status == 2 and "--env" in found.err
    assert cli("eval", run, "--episodes", "2", "--env", "InvertedPendulum-v5").status == 0
    assert cli("diagnose", run, "--batches", "2").status == 0


@pytest.mark.parametrize(
    ("name", "folder"),
    [("MyReach-v0 --import my_package", "MyReach-v0"), ("my_package:make", "my_package.make")],
    ids=["registered id", "factory"],
)
def test_environments_of_the_user(cli, tmp_path, name, folder):
    args = f"train sac --env {name} --steps 100 --eval-freq 50 {ONLINE} --out {tmp_path} --name x"
    found = cli(*args.split())
    assert found.status == 0, found.err
    run = tmp_path / folder / "sac" / "x"
    names = {row["name"] for row in read(run / "metrics.csv")}
    assert {"rollout/success_rate", "eval/success_rate"} <= names
    # In a process of its own, which has not imported the user's module yet.
    found = answer(spawn(["eval", run, "--episodes", "3"]))
    assert found.status == 0, found.err
    assert "success" in found.out
    policy = trimtab.load(run)
    obs = {"age": np.zeros(1), "at": np.ones(2)}
    action, _ = policy.predict(obs, deterministic=True)
    assert action.shape == (2,) and (action >= -0.5).all() and (action <= 1.0).all()


def test_own_world_of_the_user(cli, tmp_path):
    args = (
        f"train td3 --env my/Point --import my_package --steps 200 --eval-freq 100 {ONLINE} --out {tmp_path} --name x"
    )
    assert cli(*args.split()).status == 0
    run = tmp_path / "my/Point/td3/x"
    assert cli("resume", run, "--steps", "300").status == 0
    found = answer(spawn(["eval", run, "--episodes", "3"]))  # where my_package has not been imported yet
    assert found.status == 0, found.err
    assert "return" in found.out


def test_modules_in_the_working_directory_are_found(tmp_path):
    """As installed, `trimtab` has its own folder on the path and not the user's."""
    (tmp_path / "just_here.py").write_text((USERLAND / "my_package.py").read_text())
    command = [Path(sys.executable).with_name("trimtab"), "train", "sac", "--steps", "30", "--eval-freq", "0"]
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    options = dict(cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    found = subprocess.run([*command, "--env", "just_here:make", *ONLINE.split()], **options)
    assert found.returncode == 0, found.stderr


def test_python_verbs(tmp_path):
    import sys

    sys.path.insert(0, str(USERLAND))
    try:
        import my_package
    finally:
        sys.path.remove(str(USERLAND))
    config = trimtab.agents.sac.Config(hidden=(8, 8), batch_size=16, learning_starts=20, buffer_size=500)
    options = dict(eval_freq=0, log=("csv",), config=config, out=tmp_path, quiet=True)
    one = trimtab.train("sac", env=lambda: my_package.Reach(), steps=50, seed=4, **options)
    assert one.path.parent == tmp_path / "test_commands.lambda" / "sac" and one.path.name.endswith("_s4")
    assert one.policy.predict({"age": np.zeros(1), "at": np.ones(2)})[0].shape == (2,)
    with pytest.raises(UsageError, match=r"use trimtab.resume\(path, env=...\)"):
        trimtab.resume(one.path, steps=80, quiet=True)
    trimtab.resume(one.path, env=lambda: my_package.Reach(), steps=80, quiet=True)
    assert json.loads((one.path / "config.json").read_text())["steps"] == 80
    mean, std = trimtab.evaluate(one.policy, lambda: my_package.Reach(), episodes=3)
    assert mean < 0 and std > 0
    two = trimtab.train("sac", env=my_package.Point(), steps=50, seeds=(0, 1), **options)
    assert [run.path.parent.parent.name for run in two] == ["Point", "Point"]


def test_predict(run):
    policy = trimtab.load(run)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(5, 4))  # float64, as Gymnasium gives them
    many, state = policy.predict(batch, state="kept", episode_start=np.zeros(5, bool), deterministic=True)
    assert many.shape == (5, 1) and many.dtype == np.float32 and isinstance(many, np.ndarray)
    assert state == "kept"
    one, state = policy.predict(batch[2], deterministic=True)
    assert one.shape == (1,) and state is None
    np.testing.assert_allclose(one, many[2], atol=1e-6)
    assert policy.predict(batch[:1])[0].shape == (1, 1)
    assert policy.predict(batch[:0])[0].shape == (0, 1)
    np.testing.assert_array_equal(policy.predict(batch.tolist(), deterministic=True)[0], many)
    np.testing.assert_array_equal(policy.predict(batch, deterministic=True)[0], many)
    noisy = [policy.predict(batch, deterministic=False)[0] for _ in range(2)]
    assert (noisy[0] != noisy[1]).any() and (noisy[0] != many).any()
    assert np.abs(noisy[0]).max() <= 3.0  # the environment's bounds


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        (np.zeros(3), r"obs has shape \(3,\), expected \(4,\) or \(batch, 4\)"),
        (np.zeros((2, 3)), r"obs has shape \(2, 3\), expected \(4,\) or \(batch, 4\)"),
        (np.zeros(()), r"obs has shape \(\), expected \(4,\)"),
        ({"at": np.zeros(4)}, r"obs must be an array of shape \(4,\) or \(batch, 4\)"),
        (["a", "b", "c", "d"], r"obs must be numbers"),
    ],
)
def test_predict_names_a_wrong_shape(run, obs, text):
    with pytest.raises(UsageError, match=text):
        trimtab.load(run).predict(obs)


@pytest.fixture(scope="module")
def dict_policy(tmp_path_factory):
    """A policy that sees a Dict."""
    out, path = tmp_path_factory.mktemp("dicts"), sys.path.copy()
    sys.path.insert(0, str(USERLAND))
    args = f"train sac --env my_package:make --steps 40 --eval-freq 0 {ONLINE} --out {out} --name x"
    assert main(args.split()) == 0
    sys.path[:] = path
    return trimtab.load(out / "my_package.make/sac/x")


def test_predict_with_dicts(dict_policy):
    rng = np.random.default_rng(0)
    batch = {"at": rng.normal(size=(5, 2)), "age": rng.uniform(size=(5, 1))}
    many, _ = dict_policy.predict(batch, deterministic=True)
    assert many.shape == (5, 2) and (many >= -0.5).all() and (many <= 1.0).all()
    one, _ = dict_policy.predict({"age": batch["age"][3], "at": batch["at"][3]}, deterministic=True)
    assert one.shape == (2,)
    np.testing.assert_allclose(one, many[3], atol=1e-6)


@pytest.mark.parametrize(
    ("obs", "text"),
    [
        (np.zeros(3), r"obs must be a dict with the keys age, at"),
        ({"at": np.zeros(2)}, r"obs must be a dict with the keys age, at"),
        ({"at": np.zeros(2), "age": np.zeros(1), "more": np.zeros(1)}, r"obs must be a dict with the keys age, at"),
        ({"at": np.zeros(3), "age": np.zeros(1)}, r"obs has shape \(3,\), expected \(2,\) or \(batch, 2\)"),
        ({"at": np.zeros((5, 2)), "age": np.zeros((4, 1))}, r"parts of obs must all be single"),
        ({"at": np.zeros((5, 2)), "age": np.zeros(1)}, r"parts of obs must all be single"),
        ({"at": np.zeros((1, 2)), "age": np.zeros(1)}, r"parts of obs must all be single"),
    ],
)
def test_predict_names_a_wrong_dict(dict_policy, obs, text):
    with pytest.raises(UsageError, match=text):
        dict_policy.predict(obs)


def seconds(*command: str) -> float:
    """The least wall time of three runs."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        times.append(time.monotonic() - began)
    return min(times)


def test_start_is_quick():
    assert seconds(sys.executable, "-m", "trimtab.cli.main", "--help") < 1.5
    assert seconds(sys.executable, "-c", "import trimtab") < 2.5
    assert seconds(sys.executable, "-c", "import trimtab; trimtab.train") < 6.0  # all of JAX and Gymnasium


# A run that tells how many programs JAX compiled, and how many it found in the persistent cache.
COUNTED = """
import sys, jax
from trimtab.cli.main import main
count = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}
def listen(event, **_):
    if event in count:
        count[event] += 1
jax.monitoring.register_event_listener(listen)
status = main(sys.argv[1:])
print("counted", *count.values())
sys.exit(status)
"""


@pytest.mark.parametrize("env", [pytest.param("probe/Delayed", marks=pytest.mark.slow), "InvertedPendulum-v5"])
def test_second_start_compiles_nothing(tmp_path, env):
    unset = {name for name in os.environ if name.startswith("JAX_")}
    variables = {name: value for name, value in environment().items() if name not in unset}
    variables |= {"TRIMTAB_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    args = f"train sac --env {env} --steps 60 --eval-freq 30 --checkpoint-freq 30 {ONLINE} --out {tmp_path / 'runs'}"

    def start() -> tuple[int, int, set[str]]:
        command = [sys.executable, "-c", COUNTED, *args.split()]
        found = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        hits, misses = map(int, found.stdout.split("counted")[1].split())
        return hits, misses, {path.name for path in (tmp_path / "cache").rglob("*-cache")}

    hits, misses, cached = start()
    assert hits == 0 and misses > 5 and len(cached) == misses
    assert start() == (misses, 0, cached)


@pytest.mark.parametrize("env", ["probe/Delayed --seeds 0 1", "InvertedPendulum-v5"])
def test_checkpoints_while_the_buffer_fills_compile_nothing_new(cli, tmp_path, monkeypatch, caplog, env):
    compiled: dict[int, list[str]] = {}
    checkpoint = _Loop.checkpoint

    def counted(self: _Loop) -> None:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            checkpoint(self)
        messages = [record.getMessage() for record in caplog.records]
        compiled[self.t.step] = [text for text in messages if text.startswith("Compiling")]

    monkeypatch.setattr(_Loop, "checkpoint", counted)
    args = f"train sac --env {env} --steps 121 --eval-freq 0 --checkpoint-freq 30 {ONLINE} --out {tmp_path}"
    assert cli(*args.split()).status == 0
    _, *others = compiled.values()
    assert len(others) >= 3 and others == [[]] * len(others)


def documented_commands() -> list[str]:
    """Every `trimtab ...` line in a code block of the README and the docs."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
            answers = [*lines[1:], ""]
            # A command whose answer is an error is an example of one.
            found += [a for a, b in zip(lines, answers, strict=True) if not b.startswith("trimtab: ")]
    found = [line.removeprefix("$ ").split(" #")[0] for line in found]
    return sorted({line.strip() for line in found if line.strip().startswith("trimtab ")})


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_exist(line, monkeypatch):
    """Their flags are parsed; nothing is run."""
    import importlib
    import shlex

    if re.search(r"\b[A-Z]{3,}\b|…|\.\.\.|\[", line):
        pytest.skip("a pattern, not a command")
    command, *args = shlex.split(line)[1:]
    module = importlib.import_module(COMMANDS[command][0])

    class Parsed(Exception):
        pass

    parse = module.parse

    def stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(module, "parse", stop)
    with pytest.raises(Parsed):
        module.run(args)
