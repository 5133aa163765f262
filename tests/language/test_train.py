"""`trimtab language train` from the command line, in this process; and every kind of bad input, one line each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.cli.main import main  # noqa: E402
from trimtab.language import starter  # noqa: E402
from trimtab.language import tasks as t  # noqa: E402
from trimtab.language.hacking import hacking_verdict  # noqa: E402
from trimtab.run.folder import read_rows  # noqa: E402

pytestmark = pytest.mark.language

SMALL = [
    "--batch-size",
    "8",
    "--num-generations",
    "4",
    "--max-completion-length",
    "5",
    "--eval-prompts",
    "4",
    "--checkpoint-freq",
    "2",
    "--log",
    "csv",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model, a task and rewards, as `trimtab language try` makes them."""
    folder = tmp_path_factory.mktemp("start") / "first"
    assert starter.make(folder).startswith("trimtab language train grpo --model")
    return folder


def train(place, *more, trainer="grpo", out=None):
    words = ["language", "train", trainer, "--model", f"{place}/model", "--task", f"{place}/words.jsonl"]
    words += ["--reward", f"{place}/my_rewards.py", *SMALL, "--out", str(out or place / "runs")]
    return main([*words, *more])


def folder_of(capsys):
    out = capsys.readouterr().out
    return Path(next(line for line in out.splitlines() if line.startswith("run ")).split()[1])


def values(run, name):
    return [float(row["value"]) for row in read_rows(run / "metrics.csv") if row["name"] == name]


def interrupted(place, tmp_path, monkeypatch, *flags):
    """A run that a signal ended after two steps of four."""
    from trimtab.language import train as module

    note = module.Logbook.on_step_end

    def interrupt(self, args, state, control, **unused):
        if state.global_step == 2 and not self.stopped:
            self.stopped = 2
        note(self, args, state, control)

    with monkeypatch.context() as patch:
        patch.setattr(module.Logbook, "on_step_end", interrupt)
        assert train(place, *flags, "--name", "half", out=tmp_path) == 130
    (half,) = tmp_path.glob("words/*/half")
    return half


@pytest.fixture(scope="module")
def whole(place):
    """A run of four steps with gradient regularisation, uninterrupted."""
    assert (
        train(
            place,
            *["--algorithm", "gradreg", "--gamma", "2", "--learning-rate", "1e-3", "--steps", "4", "--name", "whole"],
        )
        == 0
    )
    return place / "runs" / "words" / "grpo-gradreg" / "whole"


def test_a_run_leaves_the_usual_folder(whole):
    config = json.loads((whole / "config.json").read_text())
    assert config["agent"] == "grpo-gradreg" and config["env"] == "words" and config["seed"] == 0
    assert (whole / "command.txt").read_text().startswith("trimtab language train grpo --model")
    assert json.loads((whole / "env.json").read_text())["versions"]["trl"] == "1.16.0"
    for name in ("rollout/ep_rew_mean", "rollout/gold", "rollout/ep_len_mean", "train/entropy", "train/grad_norm"):
        assert len(values(whole, name)) == 4, name
    assert values(whole, "train/gr_gamma") == [2.0] * 4 and values(whole, "train/gr_g1_norm")[0] > 0
    assert (whole / "DONE").exists() and (whole / "final" / "tokenizer.json").exists()
    assert "mean" in json.loads((whole / "evaluation.json").read_text())
    (verdict,) = json.loads((whole / "diagnose.json").read_text())["verdicts"]
    assert verdict["name"] == "hacking" and verdict["level"] == "warn"  # four points are too few


def test_the_report_shows_it(whole, tmp_path, capsys):
    assert main(["report", str(whole), "--out", str(tmp_path)]) == 0
    page = json.loads((tmp_path / "report.json").read_text())
    (task,) = page["tasks"]
    assert task["axis"] == "optimiser steps" and task["groups"][0]["agent"] == "grpo-gradreg"
    assert page["runs"][0]["verdicts"][0]["name"] == "hacking"
    assert "words: eval/gold" in (tmp_path / "report.html").read_text()


def test_a_resumed_run_is_the_uninterrupted_one(place, whole, tmp_path, capsys, monkeypatch):
    flags = ["--algorithm", "gradreg", "--gamma", "2", "--learning-rate", "1e-3", "--steps", "4"]
    half = interrupted(place, tmp_path, monkeypatch, *flags)
    assert "go on with `trimtab resume" in capsys.readouterr().err
    assert not (half / "DONE").exists()
    assert main(["resume", str(half)]) == 0
    for name in ("rollout/ep_rew_mean", "train/loss", "train/gr_g2_norm"):
        assert values(half, name) == values(whole, name), name
    load = lambda run: __import__("safetensors.torch").torch.load_file(run / "final" / "model.safetensors")
    a, b = load(whole), load(half)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert main(["resume", str(half)]) == 0
    assert "is finished: nothing to resume" in capsys.readouterr().out


def test_a_resumed_run_has_the_pairs_of_the_batches_before(place, tmp_path, capsys, monkeypatch):
    flags = ["--algorithm", "gcd", "--labels", "w10", "w11", "--template", "{state} w9 {action}", "--steps", "4"]
    flags += ["--learning-rate", "1e-3"]
    assert train(place, *flags, out=tmp_path) == 0
    run, half = folder_of(capsys), interrupted(place, tmp_path, monkeypatch, *flags)
    assert main(["resume", str(half)]) == 0
    # Without them, the third batch has fewer pairs than the second.
    for name in ("train/gcd_good", "train/gcd_bad", "train/gcd_loss", "train/loss"):
        assert values(half, name) == values(run, name), name
    pairs = [good + bad for good, bad in zip(*(values(run, f"train/gcd_{n}") for n in ("good", "bad")), strict=True)]
    assert pairs[2] > pairs[1] > pairs[0]
    (half / "DONE").unlink()
    (half / "checkpoints" / "checkpoint-4" / "gcd_pairs_0.json").unlink()  # killed before it: the one before is taken
    assert main(["resume", str(half)]) == 0
    assert values(half, "train/gcd_loss") == values(run, "train/gcd_loss")
    (half / "DONE").unlink()
    for pairs in half.glob("checkpoints/*/gcd_pairs_0.json"):  # an older run: the newest without
        pairs.unlink()
    (half / "final" / "model.safetensors").unlink()
    assert main(["resume", str(half)]) == 0
    assert values(half, "train/gcd_loss") == values(run, "train/gcd_loss")  # not a step more than was asked for
    final = (half / "final" / "model.safetensors").read_bytes()
    assert final == (run / "final" / "model.safetensors").read_bytes()


def test_a_reset_makes_the_policy_its_own_reference_and_a_resumed_run_has_it(place, tmp_path, capsys):
    # The reference at step 3 is the policy of step 2; TRL would read that of step 0 again from the model's folder.
    flags = ["--beta", "0.1", "--reset-reference", "2", "--steps", "4", "--learning-rate", "1e-2"]
    assert train(place, *flags, "--checkpoint-freq", "1", out=tmp_path) == 0
    run = folder_of(capsys)
    whole, checkpoints = values(run, "train/kl"), run / "checkpoints"
    assert whole[0] == whole[2] == pytest.approx(0.0, abs=1e-6) and whole[1] > 1e-5 and whole[3] > 1e-5
    (run / "DONE").unlink()
    shutil.rmtree(checkpoints / "checkpoint-4")
    assert main(["resume", str(run)]) == 0
    assert values(run, "train/kl") == whole
    (run / "DONE").unlink()
    (checkpoints / "checkpoint-4" / "reference.pt").unlink()  # killed while it was written: the one before is taken
    assert main(["resume", str(run)]) == 0
    assert values(run, "train/kl") == whole and (checkpoints / "checkpoint-4" / "reference.pt").exists()


def test_entropy_is_kept_up(place, tmp_path, capsys):
    flags = ["--steps", "4", "--learning-rate", "1e-2"]
    assert train(place, *flags, "--name", "plain", out=tmp_path) == 0
    plain = values(folder_of(capsys), "train/entropy")
    assert train(place, *flags, "--entropy-coef", "1", "--name", "kept", out=tmp_path) == 0
    kept = values(folder_of(capsys), "train/entropy")
    assert kept[0] == plain[0] and kept[3] > plain[3] + 1e-3, (plain, kept)
    assert train(place, "--entropy-coef", "1", trainer="rloo", out=tmp_path) == 2
    fails(capsys, 2, "--entropy-coef is grpo's, not rloo's")


def test_commands_for_agents_say_what_a_language_run_has(whole, capsys):
    for command in ("eval", "diagnose", "export"):
        assert main([command, str(whole)]) == 2
        fails(capsys, 2, "is a language run", "evaluation.json", "trimtab report")


def test_lora_trains_adapters_alone(place, tmp_path, capsys):
    flags = [*["--algorithm", "gcd", "--labels", "w10", "w11", "--template"], "{state} w9 {action}"]
    assert (
        train(place, *flags, "--steps", "1", "--lora", "2", "--beta", "0.1", "--eval-prompts", "1", out=tmp_path) == 0
    )
    run = folder_of(capsys)
    assert (run / "final" / "adapter_model.safetensors").exists()
    assert values(run, "train/kl") == [0.0] and len(values(run, "train/gcd_loss")) == 1
    assert json.loads((run / "evaluation.json").read_text())["std"] is None  # of one prompt; NaN is no JSON


def test_a_text_environment_and_a_coupling_probe(place, tmp_path, capsys):
    from trimtab.language.envs.door_world import WORDS
    from trimtab.language.tiny import save, tiny_model, word_tokenizer

    words = word_tokenizer(WORDS)
    save(tiny_model(words, width=16, heads=2, positions=256), words, tmp_path / "model")
    probe = tmp_path / "probe.jsonl"
    rows = [dict(state="start open", action="go", good=True), dict(state="start locked", action="go", good=False)]
    probe.write_text("\n".join(map(json.dumps, rows)))
    command = [
        "language",
        "train",
        "grpo",
        "--model",
        f"{tmp_path}/model",
        *["--env", "door-world", "--max-turns", "3"],
    ]
    flags = [
        "--algorithm",
        "gcd",
        "--labeler",
        "oracle",
        "--labels",
        "bad",
        "good",
        "--template",
        "{state} judge {action}",
    ]
    more = ["--probe", str(probe), "--steps", "1", *SMALL, "--out", str(tmp_path / "runs")]
    assert main([*command, *flags, *more]) == 0
    run = folder_of(capsys)
    assert len(values(run, "diagnostics/coupling_gradient_cosine")) == 1
    assert values(run, "rollout/ep_rew_mean") and values(run, "train/gcd_accuracy")
    assert values(run, "rollout/ep_len_mean")[0] <= 5  # --max-completion-length holds for episodes


# Bad input


def fails(capsys, status, *parts):
    err = capsys.readouterr().err.strip()
    assert err.startswith("trimtab: ") and "\n" not in err and "Traceback" not in err, err
    for part in parts:
        assert part in err, err
    return status


@pytest.mark.parametrize(
    "body, parts",
    [
        ("return [float('nan')] * len(completions)", ["reward function paid returned nan", "for the prompt 'w"]),
        ("return [None] * len(completions)", ["reward function paid returned None", "for the prompt 'w"]),
        ("return [0.0 if p == 'w0 w1' else float('inf') for p in prompts]", ["returned inf for the prompt 'w2 w3'"]),
        ("return [1.0]", ["reward function paid returned 1 rewards for 8 completions", "of the prompt 'w"]),
        ("return 3", ["reward function paid returned int: return a list of numbers"]),
        (
            "import torch; return [torch.ones(2)] * 8",
            ["function paid returned tensor([1., 1.]) for the prompt 'w0 w1'"],
        ),
        ("return ['high'] * 8", ["reward function paid returned 'high' for the prompt 'w0 w1'"]),
        ("return [1 / (p != 'w0 w1') for p in prompts]", ["reward function paid raised ZeroDivisionError"]),
    ],
    ids=["nan", "none", "inf", "length", "int", "tensors", "text", "raises"],
)
def test_a_broken_reward_names_the_function_and_the_prompt(place, tmp_path, capsys, body, parts):
    file = tmp_path / "mine.py"
    file.write_text(f"def paid(prompts, completions):\n    {body}\n")
    given = dict(prompts=["w0 w1"] * 4 + ["w2 w3"] * 4, completions=["w0"] * 8, completion_ids=[[4]] * 8)
    (reward,) = t.read_rewards([str(file)])
    with pytest.raises(t.RunError) as found:
        reward(**given, column=[1] * 8)
    assert all(part in str(found.value) for part in parts), found.value
    if "raises" in body or "ZeroDivision" in parts[0]:
        assert "for the prompt 'w0 w1'" in str(found.value)


def test_a_broken_reward_ends_the_command_with_one_line(place, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def paid(completions):\n    return [float('nan')] * len(completions)\n")
    words = ["language", "train", "grpo", "--model", f"{place}/model", "--task", f"{place}/words.jsonl", *SMALL]
    assert main([*words, "--reward", str(file), "--out", str(tmp_path)]) == 1
    fails(capsys, 1, "the reward function paid returned nan for the prompt 'w")


@pytest.mark.parametrize(
    "text, parts",
    [
        ('{"prompt": "a"}\n{"prompt": ', ["line 2 is not JSON"]),
        ('{"prompt": "a"}\n\n{"promt": "b"}', ["line 3 has no 'prompt'; is 'promt' meant?"]),
        ('["a"]', ["line 1 has no 'prompt'"]),
        ('{"prompt": 3}', ["line 1: a prompt is text or a list of messages"]),
        ('{"prompt": " "}', ["line 1: the prompt is empty"]),
        (
            '{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}',
            ["line 2: prompts must be all text or all"],
        ),
        ('{"prompt": "a", "completions": 1}', ["line 1: the column 'completions'"]),
        ("", ["is empty"]),
        (
            '{"prompt": "a", "answer": "x"}\n{"prompt": "b", "answer": 1}',
            ["line 2: 'answer' is 1, and \"x\" in line 1"],
        ),
        (
            '{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": "x"}',
            ["line 2: 'answer' is \"x\", and 1 in line 1"],
        ),
        (
            '{"prompt": "a", "n": null}\n{"prompt": "b", "n": [1]}\n{"prompt": "c", "n": ["x"]}',
            ["line 3: 'n' is [\"x\"]"],
        ),
        ('{"prompt": "a"}\n{"prompt": "b", "answer": "x"}', ["line 2 has 'answer', which the first line has not"]),
        ('{"prompt": "a", "answer": "x"}\n{"prompt": "b"}', ["line 2 has no 'answer', which the first line has"]),
    ],
)
def test_a_bad_task_line_is_named(place, tmp_path, capsys, text, parts):
    (tmp_path / "task.jsonl").write_text(text)
    assert train(place, "--task", str(tmp_path / "task.jsonl"), out=tmp_path) == 2
    fails(capsys, 2, "task.jsonl", *parts)
    assert not list(tmp_path.glob("**/config.json"))


def test_columns_that_arrow_takes_are_taken(tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "n": 1, "o": None, "deep": {"x": []}},
        {"prompt": [{"role": "user", "content": "b", "name": "c"}], "n": 1.5, "o": "y", "deep": {"x": [2]}},
    ]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert t.read_task(tmp_path / "task.jsonl") == rows


def test_chat_needs_a_template(place, tmp_path, capsys):
    (tmp_path / "chat.jsonl").write_text('{"prompt": [{"role": "user", "content": "w1"}]}')
    assert train(place, "--task", str(tmp_path / "chat.jsonl"), out=tmp_path / "runs") == 2
    fails(capsys, 2, "chat.jsonl holds chat messages, and the tokenizer has no chat template")
    assert not (tmp_path / "runs").exists()


def test_a_reward_that_asks_for_a_missing_column_is_refused_for_both_tasks(place, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def paid(completions, answer, weight=1.0):\n    return [1.0] * len(answer)\n")
    for name, key in (("task", "answer"), ("other", "answers")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "w1", key: "x"}))
    both = ["--reward", f"{tmp_path}/mine.py", "--task", f"{tmp_path}/task.jsonl"]
    assert train(place, *both, "--eval-task", f"{tmp_path}/other.jsonl", out=tmp_path / "runs") == 2
    fails(capsys, 2, "paid takes 'answer', no column of", "other.jsonl: did you mean 'answers'?")
    assert train(place, *both[:2], out=tmp_path / "runs") == 2
    fails(capsys, 2, "paid takes 'answer', no column of", "words.jsonl: it has prompt")
    assert not (tmp_path / "runs").exists()
    t.check_columns(t.read_rewards(both[1:2]), ["prompt", "answer"], "here")


def test_no_reward_is_dropped_in_silence(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("def low(completions):\n    return [1.0] * len(completions)\n")
    a, b = f"{tmp_path}/a.py", f"{tmp_path}/b.py"
    with pytest.raises(t.UsageError, match=r"two reward functions are called 'low', in .*a\.py and in .*b\.py"):
        t.read_rewards([f"{a}:low", f"{b}:low"])
    with pytest.raises(t.UsageError, match="no reward function to learn from"):
        t.read_rewards([f"{a}:low"], [a])
    assert [reward.gold for reward in t.read_rewards([f"{a}:low", a])] == [False]


@pytest.mark.parametrize(
    "more, parts",
    [
        (["--model", "{tmp}/nothing"], ["no tokenizer at", "nothing"]),
        (["--model", "{tmp}/bare"], ["holds no tokenizer", "--tokenizer"]),
        (["--task", "{tmp}/none.jsonl"], ["no such task file"]),
        (["--reward", "{tmp}/none.py"], ["no such file"]),
        (["--reward", "{place}/my_rewards.py:low_word"], ["has no function 'low_word': did you mean 'low_words'?"]),
        (["--reward", "{place}/my_rewards.py:gold"], ["only measured"]),
        (["--batch-size", "6"], ["must be a multiple of num_generations (4)"]),
        (["--algorithm", "gradreg"], ["gradreg needs --gamma above 0"]),
        (["--gamma", "1"], ["add --algorithm gradreg"]),
        (["--algorithm", "gcd", "--labels", "w1 w2", "w3"], ["the label 'w1 w2' is 2 tokens"]),
        (["--algorithm", "gcd", "--labels", "w1", "w3", "--labeler", "oracle"], ["needs --env"]),
        (["--reset-reference", "5"], ["needs --beta"]),
        (["--dtype", "bfloat16"], ["half of the last digit", "--lora"]),
        (["--dtype", "bfloat16", "--lora", "2", "--algorithm", "gradreg", "--gamma", "1"], ["needs float32 weights"]),
        (["--reward-weights", "1", "2"], ["2 reward weights for 1 paid"]),
        (["--loss", "best"], ["unknown loss 'best'"]),
        (["--lora", "2", "--lora-targets", "q_proj", "attention"], ["no modules attention", "it has", "q_proj"]),
        (["--lora", "2", "--lora-targets", "mlp"], ["no modules mlp"]),  # a block, not a matrix
        (["--lora", "-1"], ["--lora must be at least 0, got -1"]),
        (["--probe-freq", "0"], ["--probe-freq must be at least 1, got 0"]),
        (["--checkpoint-freq", "-5"], ["--checkpoint-freq must be at least 0, got -5"]),
        (["--reset-reference", "-1", "--beta", "1"], ["--reset-reference must be at least 0, got -1"]),
        (["--entropy-coef", "-0.1"], ["--entropy-coef must be at least 0, got -0.1"]),
        (["--temperature", "0"], ["--temperature must be above 0, got 0.0"]),
        (["--algorithm", "gradreg", "--gamma", "1", "--eps", "0"], ["--eps must be above 0, got 0.0"]),
        (["--algorithm", "gradreg", "--gamma", "inf"], ["--gamma must be at least 0, got inf"]),
        (["--learning-rate", "nan"], ["--learning-rate must be at least 0, got nan"]),
        (["--seed", "4294967296"], ["--seed must be below 2^32"]),
        (["--algorithm", "gcd", "--template", "{{state}} {{action}} {{x}}"], ["--template knows {state} and {action}"]),
        (["--algorithm", "gcd", "--template", "{{state}} {{action}} {{"], ["--template knows {state} and {action}"]),
        (["--coef", "1"], ["--coef is gcd's, not plain's: add --algorithm gcd"]),
        (["--eps", "0.1"], ["--eps is gradreg's, not plain's: add --algorithm gradreg"]),
        (["--algorithm", "best"], ["algorithm", "gradreg"]),
        (["--log", "paper"], ["unknown logger 'paper'"]),
        (["--env", "door-word"], ["give either --task"]),
    ],
)
def test_bad_flags_are_one_line(place, tmp_path, capsys, more, parts):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert train(place, *(word.format(tmp=tmp_path, place=place) for word in more), out=tmp_path / "runs") == 2
    fails(capsys, 2, *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["DeepSpeed", "FSDP"])
def test_a_launcher_that_cuts_gradients_is_refused_before_anything_is_written(
    place, tmp_path, capsys, monkeypatch, name
):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    assert train(place, "--algorithm", "gradreg", "--gamma", "1", out=tmp_path / "runs") == 2
    fails(capsys, 2, "gradreg needs whole gradients", f"which {name} keeps in pieces")
    assert not (tmp_path / "runs").exists()


def test_weights_that_adamw_moves_are_float32_and_gradreg_probes_in_it(place, tmp_path, monkeypatch):
    from trimtab.language import train as module
    from trimtab.language.flags import Flags

    half = module.load_model(Flags(model=f"{place}/model", dtype="bfloat16"))
    half.save_pretrained(tmp_path / "half")  # as nearly every model is saved
    assert module.load_model(Flags(model=f"{tmp_path}/half")).dtype == torch.float32  # on the CPU
    monkeypatch.setattr(module, "device_of", lambda device: "gpu")
    flags = lambda algorithm="plain", **more: Flags(model=f"{tmp_path}/half", algorithm=algorithm, **more)
    dtype = lambda *what, **more: module.load_model(flags(*what, **more)).dtype
    assert dtype() == dtype("gcd") == dtype("gradreg") == dtype("gradreg", lora=2) == torch.float32
    assert dtype(lora=2) == torch.bfloat16  # PEFT keeps the adapters themselves in float32
    asked: list[dict] = []
    monkeypatch.setitem(module.CONFIGS, "grpo", lambda **options: asked.append(options))
    built = module.Built(None, None, [], [{}], [], None, None, None)
    for given in (flags(), flags(dtype="float32"), flags("gradreg", gamma=1.0)):
        module.arguments("grpo", given, built, tmp_path)
    assert [options["bf16"] for options in asked] == [True, False, False]


@pytest.mark.parametrize(
    "words, parts",
    [
        (["language"], ["name a command"]),
        (["language", "fly"], ["unknown command 'fly'"]),
        (["language", "train", "ppo"], ["unknown trainer 'ppo'", "grpo|rloo"]),
        (["language", "train", "--model", "x"], ["the trainer comes first"]),
        (["language", "train", "rloo", "--model", "x", "--algorithm", "gcd"], ["gcd does not run before rloo"]),
        (["language", "train", "grpo", "--model", "x", "--env", "e", "--eval-task", "t"], ["--eval-task goes with"]),
    ],
)
def test_wrong_commands(words, parts, capsys):
    assert main(words) == 2
    fails(capsys, 2, *parts)


def test_help_and_wrong_flags_need_no_pytorch():
    code = """
import contextlib, io, sys
from trimtab.cli.main import main
said = io.StringIO()
with contextlib.redirect_stdout(said):
    status = main(["language", "train", "--help"])
assert status == 0 and said.getvalue().startswith("usage: trimtab language train grpo|rloo"), said.getvalue()
assert main(["language", "train", "grpo", "--model", "x", "--task", "t", "--reward", "r", "--lora", "-1"]) == 2
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main(["language", "train", "grpo", "--help"])
assert "--max-completion-length" in said.getvalue()
assert not {"torch", "transformers", "huggingface_hub"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_told_or_asked_of_the_network_for_a_model_on_disk(tmp_path, there):
    # Hugging Face reads its variables once: what counts is what it has read when our trainers are imported.
    code = """
import sys, types
from trimtab.cli.main import main
class Trainers(types.ModuleType):
    def __getattr__(self, name):
        from huggingface_hub import constants
        print(constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_OFFLINE)
        return lambda trainer, flags, command: "run"
sys.modules["trimtab.language.train"] = Trainers("trimtab.language.train")
assert main(["language", "train", "grpo", "--model", sys.argv[1], "--task", "t", "--reward", "r"]) == 0
"""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRL_", "DISABLE", "DO_NOT"))
    }
    place = tmp_path if there else tmp_path / "on-the-hub"
    told = subprocess.run(
        [sys.executable, "-c", code, str(place)], env=clean, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.startswith(f"True {there}"), told


def test_flags_know_the_trainers_there_are():
    from trimtab.language import flags, train

    assert set(train.TRAINERS) == {(name, algorithm) for name in flags.TRAINERS for algorithm in flags.TRAINERS[name]}
    assert set(train.CONFIGS) == set(flags.TRAINERS)


def test_groups_are_counted_over_all_processes(monkeypatch):
    from trimtab.language.flags import Flags, check

    flags = Flags(model="x", task=Path("t"), reward=("r",), batch_size=1, num_generations=8)
    monkeypatch.setenv("WORLD_SIZE", "8")  # as launchers set it
    check(flags, "grpo")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(t.UsageError, match=r"devices \(1 x 1 x 4\) must be a multiple of num_generations \(8\)"):
        check(flags, "grpo")


def test_without_the_extra_one_line_names_it(capsys, monkeypatch):
    from trimtab import language

    monkeypatch.setattr(language, "NEEDED", ("torch", "no_such_package_of_theirs"))
    assert main(["language", "train", "grpo", "--model", "x", "--task", "t", "--reward", "r"]) == 2
    fails(capsys, 2, "no_such_package_of_theirs", "pip install 'trimtab[language]'")


# The verdict


def series(start, end, n=100, noise=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.linspace(start, end, n) + noise * torch.randn(n, generator=generator)).tolist()


def test_hacking_is_called_by_its_name():
    up, down, flat = series(0, 1), series(1, 0, seed=1), series(0.5, 0.5, seed=2)
    hump = series(0, 1, 50, seed=3) + series(1, 0.5, 50, seed=4)
    assert hacking_verdict(up, down)[0]["level"] == "bad"
    assert hacking_verdict(up, hump)[0]["level"] == "bad"
    assert hacking_verdict(up, flat)[0]["level"] == "warn"
    assert hacking_verdict(up, series(0, 1, seed=5))[0]["level"] == "ok"
    assert hacking_verdict(flat, down)[0]["level"] == "ok"
    assert "no gold reward" in hacking_verdict(up, [])[0]["text"]
    assert "too few" in hacking_verdict(up[:4], up[:4])[0]["text"]
    figures = hacking_verdict(up, down)[1]
    assert figures["hacking/proxy_rise"] == pytest.approx(0.8, abs=0.05)
    assert figures["hacking/gold_rise"] == pytest.approx(-0.8, abs=0.05)


RANKS = """
import json
import sys
import torch
from trimtab.cli.main import main
from trimtab.language import train
def keep(self, args, state, control, model=None, **unused):
    torch.save([p.detach() for p in model.parameters()], f"{sys.argv[1]}/rank{args.process_index}.pt")
train.Logbook.on_train_end = keep
sys.exit(main(json.loads(sys.argv[2])))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_run(place, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    # Accelerate's own launcher starts one process on a CPU, whatever it is told.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += [str(tmp_path / "ranks.py"), str(tmp_path)]
    words = ["language", "train", "grpo", "--model", f"{place}/model", "--task", f"{place}/words.jsonl"]
    words += ["--reward", f"{place}/my_rewards.py", *SMALL, "--out", str(tmp_path), "--steps", "2"]
    words += ["--algorithm", "gradreg", "--gamma", "2", "--learning-rate", "1e-3", "--device", "cpu"]
    # Groups of 4 from 2 x 2 completions a batch: neither process has a whole one.
    words += ["--batch-size", "2", "--accumulation", "1"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([*launch, json.dumps(words)], capture_output=True, text=True, env=variables, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (done,) = tmp_path.glob("**/DONE")
    assert len(values(done.parent, "train/gr_g1_norm")) == 2
    first, second = (torch.load(tmp_path / f"rank{index}.pt", weights_only=True) for index in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    start = __import__("safetensors.torch").torch.load_file(place / "model" / "model.safetensors")
    assert not any(torch.equal(first[0], weight) for weight in start.values())
