"""Generative classification: labels, pairs, their way through TRL, and what the loss sees."""

import os
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from tests.language.conftest import weights  # noqa: E402
from trimtab.errors import UsageError  # noqa: E402
from trimtab.language import gcd as g  # noqa: E402
from trimtab.language import starter  # noqa: E402
from trimtab.language.objectives import IGNORED, last_token  # noqa: E402
from trimtab.language.tiny import character_tokenizer  # noqa: E402
from trimtab.run.folder import read_rows  # noqa: E402

pytestmark = pytest.mark.language

TEMPLATE = "{state} w9 {action}"


def settings(coef: float = 0.5, **more) -> g.GCD:
    judge = g.CriticLabeler(lambda state, action: action.split()[0] in ("w0", "w1") if action else None)
    return g.GCD(judge, coef, TEMPLATE, ("w10", "w11"), **more)


def test_outcomes_label_a_hand_made_group():
    steps = [
        g.Step("s", "go", 1.0),
        g.Step("s", "go", 0.0),
        g.Step("s", "wait", 0.0),
        g.Step("s", "unlock", 0.5),
        g.Step("alone", "go", 1.0, advantage=0.8),
        g.Step("also alone", "go", 1.0, advantage=0.3),
        g.Step("always", "go", 1.0),
        g.Step("always", "go", 1.0),
    ]
    # The mean of s is 0.375: go has 0.5 (good), wait 0 (bad), unlock 0.5 (good); ties and weak evidence stay unknown.
    assert g.OutcomeLabeler().label(steps) == [True, True, False, True, True, None, None, None]
    assert g.OutcomeLabeler(delta=0.5).label(steps)[:4] == [None, None, False, None]
    pairs = g.build_pairs(steps, g.OutcomeLabeler())
    assert pairs == [
        g.Pair("s", "go", True),
        g.Pair("s", "wait", False),
        g.Pair("s", "unlock", True),
        g.Pair("alone", "go", True),
    ]


def test_the_environment_and_a_judge_label():
    steps = [g.Step("s", "go", 0.0, good=True), g.Step("s", "go", 0.0, good=None), g.Step("s", "wait", 1.0, good=False)]
    assert g.OracleLabeler().label(steps) == [True, None, False]
    asked = []
    judge = g.CriticLabeler(lambda state, action: asked.append(action) or action == "go")
    assert judge.label(steps) == [True, True, False]
    assert asked == ["go", "wait"]


def test_replay_keeps_rare_classes_and_prefers_the_newest_label():
    replay = g.Replay(2)
    replay.add([g.Pair("s", "go", True), g.Pair("s", "wait", False)])
    replay.add([g.Pair("s", "go", False)])
    assert replay.pairs() == [g.Pair("s", "go", False), g.Pair("s", "wait", False)]
    replay.add([])
    assert replay.pairs() == [g.Pair("s", "go", False)]


@pytest.mark.parametrize("good, bad, most", [(100, 3, 10), (3, 100, 10), (100, 100, 10), (2, 3, 10), (0, 50, 10)])
def test_the_rarer_class_is_kept(good, bad, most):
    pairs = [g.Pair(f"s{i}", "go", i < good) for i in range(good + bad)]
    random.Random(0).shuffle(pairs)
    chosen = g.balanced(pairs, most, seed=1)
    counts = [sum(p.good == side for p in chosen) for side in (True, False)]
    assert sum(counts) == min(most, good + bad) and len(set(chosen)) == len(chosen)
    assert min(counts) == min(good, bad, most // 2)


def test_pairs_are_spread_over_the_rows_of_a_batch(tokenizer):
    pairs = [g.Pair("w0 w1", f"w{i}", i % 2 == 0) for i in range(5)]
    found = g.spread(pairs, 4, settings(), tokenizer, "cpu")
    assert found["gcd_ids"].shape == (4, 2, 4) and found["gcd_labels"].shape == (4, 2)
    assert found["gcd_labels"].tolist() == [[1, 1], [0, IGNORED], [1, IGNORED], [0, IGNORED]]
    row = found["gcd_ids"][1, 0]
    assert tokenizer.decode(row) == "w0 w1 w9 w1" and found["gcd_mask"][1, 0].tolist() == [1, 1, 1, 1]
    assert found["gcd_mask"][1, 1].sum() == 0
    # Three good, two bad, in whatever rows they came to lie.
    good, bad = pytest.approx(1 / 6), pytest.approx(1 / 4)
    assert found["gcd_weights"].tolist() == [[good, good], [bad, 0.0], [good, 0.0], [bad, 0.0]]
    assert g.spread([], 4, settings(), tokenizer, "cpu")["gcd_labels"].tolist() == [[IGNORED]] * 4


def test_the_question_has_the_acting_prompt_token_by_token():
    # The prompt ends in a blank: as text it would lose it, and the model would be asked about another state.
    letters = character_tokenizer("ab ")
    prompt, action = torch.tensor([letters("ab ").input_ids]), torch.tensor([letters("b").input_ids])
    ones = torch.ones_like
    out = dict(
        prompt_ids=torch.cat([torch.zeros(1, 2, dtype=torch.long), prompt], 1),
        prompt_mask=torch.cat([torch.zeros(1, 2, dtype=torch.long), ones(prompt)], 1),
        completion_ids=action,
        completion_mask=ones(action),
        advantages=torch.tensor([2.0]),
    )
    trainer = type("Stub", (), dict(_tokenizer=letters))()
    (step,) = g.GCDMixin._steps(trainer, [{}], out)
    assert step.action == "b" and step.advantage == step.value == 2.0 and step.prompt == tuple(prompt[0].tolist())
    (pair,) = g.build_pairs([step], g.CriticLabeler(lambda state, action: True))
    asked = g.question(pair, g.GCD(g.OracleLabeler(), template="{state}{action}a"), letters)
    assert asked == letters("ab ba").input_ids


def test_a_decision_is_kept_once_with_what_was_acted_on():
    steps = [g.Step("s", "go", 0.0, good=True, prompt=(1, 2)), g.Step("s", "go", 0.0, good=False, prompt=(1, 2, 3))]
    assert g.build_pairs(steps, g.OracleLabeler()) == [g.Pair("s", "go", True, (1, 2))]


def test_only_answers_are_projected_to_the_vocabulary(model):
    ids = torch.arange(4, 14).view(2, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    found = g.answers(model, model, ids, mask)
    handle.remove()
    assert seen == [(2, 2, len(model.lm_head.weight))]  # two lengths, not five positions
    whole = last_token(model(input_ids=ids, attention_mask=mask).logits, mask)
    assert torch.allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize(
    "labels, message",
    [
        (("w1 w2", "w3"), "'w1 w2' is 2 tokens in this model's vocabulary"),
        (("w1", "splendid"), "'splendid' is unknown to it"),
        (("w1", "w1"), "are the same token"),
    ],
)
def test_labels_are_single_tokens(tokenizer, labels, message):
    with pytest.raises(UsageError, match=message):
        g.label_ids(tokenizer, labels)


def test_the_question_begins_with_the_state():
    with pytest.raises(UsageError, match="must begin with"):
        g.GCD(g.OracleLabeler(), template="Is {action} good in {state}?")


def test_coef_zero_is_plain_grpo_bit_for_bit(make_grpo, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plain = make_grpo(GRPOTrainer, GRPOConfig)
    plain.train()
    after = weights(plain)
    model.load_state_dict(start)
    ours = make_grpo(g.GCDGRPOTrainer, GRPOConfig)
    ours.gcd = settings(coef=0.0)
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(after, weights(ours), strict=True))
    model.load_state_dict(start)
    moved = make_grpo(g.GCDGRPOTrainer, GRPOConfig)
    moved.gcd = settings()
    moved.train()
    assert not all(torch.equal(a, b) for a, b in zip(after, weights(moved), strict=True))
    logged = moved.state.log_history[0]
    assert logged["gcd/good"] + logged["gcd/bad"] > 0 and 0.0 <= logged["gcd/accuracy"] <= 1.0


def test_the_loss_adds_the_classification_of_its_own_rows(make_grpo):
    trainer = make_grpo(g.GCDGRPOTrainer, GRPOConfig, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    trainer.gcd = settings(coef=2.0)
    losses = []
    compute = GRPOTrainer._compute_loss

    def spy(self, model, inputs):
        plain = compute(self, model, inputs)
        losses.append((inputs, plain.item()))
        return plain

    total = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "_compute_loss", spy)
        backward = trainer.accelerator.backward
        patch.setattr(trainer.accelerator, "backward", lambda loss: total.append(loss.item()) or backward(loss))
        patch.setattr(trainer.args, "max_steps", 1)
        trainer.train()
    logged = trainer.state.log_history[0]
    extra = [whole - plain for whole, (_, plain) in zip(total, losses, strict=True)]
    assert len(extra) == 2
    assert sum(extra) == pytest.approx(2.0 * logged["gcd/loss"], rel=1e-4)  # the mean of both, by coef


def lonely(make_grpo, monkeypatch, **options):
    """A trainer whose own loss is 0, so that only the classification counts."""
    trainer = make_grpo(g.GCDGRPOTrainer, GRPOConfig, **options)
    trainer.gcd = settings(coef=1.0)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: torch.zeros(()))
    return trainer


def test_the_classification_loss_does_not_depend_on_accumulation(make_grpo, tokenizer, monkeypatch):
    pairs = [g.Pair(f"w{i}", "w3", i in (0, 1, 2, 5)) for i in range(8)]  # three good in the first half, one after
    rows = g.spread(pairs, 8, settings(), tokenizer, "cpu")
    found = []
    for pieces in (1, 2, 8):  # in the last each piece has one class alone
        with pytest.MonkeyPatch.context() as patch:
            size = dict(per_device_train_batch_size=8 // pieces, gradient_accumulation_steps=pieces)
            trainer = lonely(make_grpo, patch, **size)
            parts = [{key: value[i::pieces] for key, value in rows.items()} for i in range(pieces)]
            loss = sum(trainer._compute_loss(trainer.model, part) for part in parts)
            grads = torch.autograd.grad(loss, list(trainer.model.parameters()), allow_unused=True)
            found.append((loss.item(), torch.cat([g.flatten() for g in grads if g is not None])))
            assert sum(trainer._metrics["train"]["gcd/loss"]) / pieces == pytest.approx(loss.item())
    for loss, grad in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(grad, found[0][1], atol=1e-6)


def test_a_process_without_labels_runs_the_model_all_the_same(make_grpo, tokenizer, monkeypatch):
    trainer = lonely(make_grpo, monkeypatch)
    empty = g.spread([], 4, settings(), tokenizer, "cpu")
    runs = []
    trainer.model.register_forward_hook(lambda *unused: runs.append(1))
    assert trainer._compute_loss(trainer.model, empty) == 0.0 and not runs
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    loss = trainer._compute_loss(trainer.model, empty)
    loss.backward()
    assert loss == 0.0 and len(runs) == 1
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert any(p.grad is not None for p in trainer.model.parameters())


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_labels(tmp_path):
    place = tmp_path / "first"
    starter.make(place)
    judge = "import os\ndef judge(state, action):\n    return None if os.environ['RANK'] == '1' else 'w1' in action\n"
    (tmp_path / "judge.py").write_text(judge)
    words = ["language", "train", "grpo", "--model", f"{place}/model", "--task", f"{place}/words.jsonl"]
    words += ["--reward", f"{place}/my_rewards.py", "--algorithm", "gcd", "--labels", "w10", "w11", "--template"]
    words += ["{state} w9 {action}", "--labeler", f"{tmp_path}/judge.py:judge", "--batch-size", "4", "--accumulation"]
    words += ["2", "--num-generations", "4", "--max-completion-length", "5", "--eval-prompts", "4", "--steps", "3"]
    words += ["--device", "cpu", "--log", "csv", "--out", str(tmp_path)]
    # `accelerate launch --cpu` starts one process, whatever it is asked for, so that torch's own launcher is used.
    script = f"""
import sys, torch
from accelerate import PartialState
assert PartialState(cpu=True).num_processes == 2
from trimtab.cli.main import main
ended = main({words!r})
torch.distributed.destroy_process_group()
sys.exit(ended)
"""
    (tmp_path / "two.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [*command, str(tmp_path / "two.py")], capture_output=True, text=True, env=variables, timeout=200
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    (done,) = tmp_path.glob("**/DONE")
    rows = read_rows(done.parent / "metrics.csv")
    assert [float(row["value"]) > 0.0 for row in rows if row["name"] == "train/gcd_loss"] == [True] * 3
