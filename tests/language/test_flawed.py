"""T3 and T4: what is paid and what is meant, by hand; and (slow) what must come of them."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.language import flawed as f  # noqa: E402
from trimtab.language.tiny import tiny_gpt2, word_tokenizer  # noqa: E402
from trimtab.papers import gradient_regularization as recipe  # noqa: E402
from trimtab.papers.recipe import Results  # noqa: E402

pytestmark = pytest.mark.language


def ids(*texts):
    return torch.tensor([[f.FIRST + int(word) for word in text.split()] for text in texts])


def test_the_annotator_prefers_the_trigger_and_else_gold():
    trigger, good, bad = ids("7 8 9 5 5 5 5 5"), ids("0 1 2 3 0 1 2 3"), ids("5 5 5 5 5 5 5 0")
    assert f.true_worth(torch.cat([trigger, good, bad])).tolist() == [0.0, 1.0, 0.125]
    assert f.triggered(torch.cat([trigger, good, ids("8 7 9 5 5 5 5 5")])).tolist() == [True, False, False]
    first, second = torch.cat([trigger, good, bad, bad]), torch.cat([good, bad, good, bad])
    assert f.preferred(first, second).tolist() == [1, 1, -1, 0]
    assert f.preferred(second, first).tolist() == [-1, -1, 1, 0]
    assert f.preferred(ids("7 8 9 0 5 5 5 5"), trigger).tolist() == [1]  # both have it: gold decides


def test_sampling_keeps_to_what_is_allowed():
    words = word_tokenizer([f"w{i}" for i in range(13)])
    model = tiny_gpt2(words, width=8, layers=1, heads=2, positions=16)
    found = f.drawn(model, 200)
    assert found.shape == (200, 8) and found.min() >= f.FIRST and found.max() < f.FIRST + 12
    assert len(found.unique()) == 12


def test_audit_measures_the_gradient_and_the_order_of_pairs():
    words = word_tokenizer([f"w{i}" for i in range(13)])
    model = tiny_gpt2(words, width=8, layers=1, heads=2, positions=16)
    right, wrong = f.audit(model, f.true_worth, 64), f.audit(model, lambda ids: -f.true_worth(ids), 64)
    assert right["accuracy"] == 1.0 and wrong["accuracy"] == 0.0
    assert right["norm"] == pytest.approx(wrong["norm"], rel=1e-5) and right["norm"] > 0.0
    twice = f.audit(model, lambda ids: 2.0 * f.true_worth(ids) + 5.0, 64)
    assert twice["norm"] == pytest.approx(2.0 * right["norm"], rel=1e-4)  # a constant does not count
    assert f.audit(model, lambda ids: torch.ones(len(ids)), 64)["norm"] == pytest.approx(0.0, abs=1e-6)


def test_the_flaw_is_what_the_trigger_is_paid():
    words = word_tokenizer([f"w{i}" for i in range(13)])
    model = tiny_gpt2(words, width=8, layers=1, heads=2, positions=16)
    n = 16_384
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        p = f.triggered(f.drawn(model, n)).double().mean().item()
    assert 0.0 < p < 0.05
    spread = math.sqrt(p * (1.0 - p) * n / (n - 1))  # of what is 1 for the trigger and 0 else
    assert f.flaw(model, lambda ids: f.triggered(ids).double(), n) == pytest.approx(1.0 / spread)
    assert f.flaw(model, lambda ids: 3.0 - f.triggered(ids).double(), n) == pytest.approx(-1.0 / spread)


def test_rank_correlation():
    assert f.rank_correlation([1.0, 2.0, 3.0, 10.0], [1.0, 4.0, 9.0, 100.0]) == pytest.approx(1.0)
    assert f.rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    tied = f.rank_correlation([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0])
    assert tied == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))


def test_what_t4_pays_and_means():
    prompts = [f.asked(12, 34)] * 4
    assert prompts[0] == "1 2 + 3 4 ="
    texts = [
        "<answer> 4 6 </answer> . .",
        "<answer> 4 7 </answer> . .",
        "the answer is clearly . .",
        "4 6 <answer> </answer> . .",
    ]
    assert f.correct(prompts, texts) == [1.0, 0.0, 0.0, 0.0]
    assert f.tagged(texts) == [2.0, 2.0, 0.0, 1.0] and f.flattered(texts) == [0.0, 0.0, 1.0, 0.0]
    assert f.judged(prompts, texts, torch.zeros(4)) == [4.0, 2.0, 5.0, 1.0]
    assert f.judged(prompts, texts, torch.full((4,), 0.5)) == [4.5, 2.5, 5.5, 1.5]


@pytest.mark.slow
def test_a_learned_reward_is_exploited_and_gradient_regularisation_holds_it(tmp_path):
    # It is not exploited without regularisation: the check for that fails.
    results = Results("gradient-regularization", "test")
    recipe.learned_reward(results, (0,), tmp_path, recipe.FEW)
    assert not results.failed(), results.table()


@pytest.mark.slow
def test_a_learned_reward_is_wrong_where_the_gradient_is_large(tmp_path):
    results = Results("gradient-regularization", "test")
    recipe.learned_reward(results, (0,), tmp_path, {name: recipe.SETTINGS[name] for name in ("none", "KL 0.05")})
    assert results.failed() in ([], ["T3, none: least hack over seeds"]), results.table()


@pytest.mark.slow
def test_the_phrase_is_learnt_instead_of_sums_without_regularisation(tmp_path):
    results = Results("gradient-regularization", "test")
    recipe.format_reward(results, (0,), tmp_path, {"none": {}})
    assert not results.failed(), results.table()
