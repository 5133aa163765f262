"""The coupling probe: what it predicts of a step, and that it leaves the model as it was."""

import json
from collections import defaultdict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.errors import UsageError  # noqa: E402
from trimtab.language import coupling as c  # noqa: E402
from trimtab.language.objectives import output_kernel  # noqa: E402

pytestmark = pytest.mark.language


def decisions(tokenizer, n):
    generator = np.random.default_rng(0)
    words = lambda k: " ".join(f"w{i}" for i in generator.integers(0, 12, k))
    return [c.encode(tokenizer, (words(4), words(1))) for _ in range(n)]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_first_order_predicts_what_one_step_changes(model, tokenizer, advantage):
    step, *others = decisions(tokenizer, 51)
    guessed = c.predicted(model, step, others, 1e-3 * advantage).numpy()
    found = c.measured(model, step, others, 1e-3 * advantage).numpy()
    slope, r = float(guessed @ found / (guessed @ guessed)), np.corrcoef(guessed, found)[0, 1]
    assert 0.95 <= slope <= 1.05 and r > 0.99, (slope, r)


def test_measuring_puts_the_parameters_back(model, tokenizer):
    step, *others = decisions(tokenizer, 3)
    before = [p.detach().clone() for p in model.parameters()]
    c.measured(model, step, others, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_log_prob_is_that_of_all_tokens_of_the_action(model, tokenizer):
    ids, start = c.encode(tokenizer, ("w0 w1", "w2 w3"))
    logits = model(input_ids=ids).logits[0].log_softmax(-1)
    expected = logits[1, ids[0, 2]] + logits[2, ids[0, 3]]
    assert c.log_prob(model, ids, start).item() == pytest.approx(expected.item(), rel=1e-6)


def test_log_prob_among_choices(model, tokenizer):
    ids, start = c.encode(tokenizer, ("w0 w1", "w2"))
    choices = torch.tensor(tokenizer("w2 w5").input_ids)
    expected = model(input_ids=ids).logits[0, 1, choices].log_softmax(-1)[0]
    assert c.log_prob(model, ids, start, choices).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_head_s_kernel_is_the_closed_form(model, tokenizer):
    pair = [c.encode(tokenizer, ("w0 w1 w2", "w3")), c.encode(tokenizer, ("w0 w5 w2", "w4"))]
    found = c.gradient(model, *pair[0], layers="head") @ c.gradient(model, *pair[1], layers="head")
    sides = []
    for ids, start in pair:
        out = model(input_ids=ids[:, :start], output_hidden_states=True)
        sides += [out.logits[0, -1].detach(), out.hidden_states[-1][0, -1].detach(), int(ids[0, start])]
    assert found.item() == pytest.approx(output_kernel(*sides).item(), rel=1e-4)


def test_probe_of_a_decision_with_itself_and_with_another_action(model, tokenizer):
    same = c.CouplingProbe(tokenizer, (("w0 w1", "w2"),), (("w0 w1", "w2"),))(model)
    assert same["gradient_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert same["hidden_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert same["kernel"] > 0
    # Two actions of one state: raising one lowers the other, though the hidden states are the same.
    other = c.CouplingProbe(tokenizer, (("w0 w1", "w2"),), (("w0 w1", "w3"),), layers="head")(model)
    assert other["gradient_cosine"] < 0 and other["hidden_cosine"] == pytest.approx(1.0, abs=1e-5)
    model.train()
    c.CouplingProbe(tokenizer, (("w0", "w1"),), (("w2", "w3"),))(model)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_probe_is_the_mean_over_pairs(model, tokenizer):
    good, bad = (("w0 w1", "w2"), ("w3", "w4 w5")), (("w6 w7 w8", "w9"), ("w1", "w2"), ("w3 w3", "w0"))
    found = c.CouplingProbe(tokenizer, good, bad)(model)
    grads = [[c.gradient(model, *c.encode(tokenizer, decision)) for decision in side] for side in (good, bad)]
    products = torch.tensor([[a @ b for b in grads[1]] for a in grads[0]])
    cosines = torch.tensor([[torch.cosine_similarity(a, b, dim=0) for b in grads[1]] for a in grads[0]])
    assert found["kernel"] == pytest.approx(products.mean().item(), rel=1e-4)
    assert found["gradient_cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)


def test_gradients_of_half_precision_are_summed_in_single(model, tokenizer):
    grad = c.gradient(model.bfloat16(), *c.encode(tokenizer, ("w0 w1", "w2")))
    assert grad.dtype == torch.float32


def test_wrong_probes_are_one_line(model, tokenizer):
    with pytest.raises(UsageError, match="at least one good and one bad"):
        c.CouplingProbe(tokenizer, (), (("w0", "w1"),))
    with pytest.raises(UsageError, match="at least one token each"):
        c.encode(tokenizer, ("w0", ""))
    with pytest.raises(UsageError, match="at least one token each"):
        c.CouplingProbe(tokenizer, (("w0", "w1"),), (("w0", ""),))
    with pytest.raises(UsageError, match="choose layers"):
        model.requires_grad_(False)
        c.trained(model, "all")


def probe_file(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


GOOD, BAD = dict(state="w0 w1", action="w2", good=True), dict(state="w0 w3", action="w2", good=False)


def test_a_probe_file_is_read(tokenizer, tmp_path):
    probe = c.read_probe(probe_file(tmp_path / "probe.jsonl", GOOD, "", *[BAD] * 16), tokenizer)
    assert probe.good == (("w0 w1", "w2"),) and len(probe.bad) == 16


@pytest.mark.parametrize(
    "rows, message",
    [
        ([GOOD, BAD | dict(good="false")], "line 2: good is true or false, without quotes, got 'false'"),
        ([GOOD, BAD | dict(good=0)], "line 2: good is true or false"),
        ([GOOD, BAD | dict(action="")], "line 2: the action must be text with at least one token, got ''"),
        ([GOOD | dict(state=None), BAD], "line 1: the state must be text"),
        ([GOOD, *[BAD] * 17], "line 18: a probe takes 16 bad decisions"),
        ([GOOD, dict(state="w0")], "line 2 needs state, action and good .KeyError."),
        (["{"], "line 1 needs state, action and good .JSONDecodeError."),
        ([GOOD], "needs at least one good and one bad decision"),
    ],
)
def test_a_bad_line_of_a_probe_file_is_named(tokenizer, tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        c.read_probe(probe_file(tmp_path / "probe.jsonl", *rows), tokenizer)


def test_a_callback_without_its_trainer_says_so_before_the_first_step(model, tokenizer):
    probe = c.CouplingProbe(tokenizer, (("w0 w1", "w2"),), (("w0", "w3"),))
    callback = c.CouplingCallback(probe)
    with pytest.raises(UsageError, match="does not know its trainer"):
        callback.on_train_begin(None, None, None)
    callback.trainer = type("Trainer", (), dict(_metrics={"train": defaultdict(list)}))()
    callback.on_train_begin(None, None, None)
    callback.on_step_end(None, type("State", (), dict(global_step=1)), None, model=model)
    assert set(callback.trainer._metrics["train"]) == {f"coupling/{name}" for name in probe(model)}
