"""The test beds: what they start from, and (slow) what must come of them."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.language import exploit  # noqa: E402
from trimtab.language import testbeds as t  # noqa: E402
from trimtab.language.envs import door_world as doors  # noqa: E402
from trimtab.language.hacking import hacking_verdict  # noqa: E402
from trimtab.language.objectives import group_advantages  # noqa: E402
from trimtab.language.tiny import tiny_gpt2, tiny_model, word_tokenizer  # noqa: E402
from trimtab.papers.gradient_coupling import DOORS, LEARNT, TEN, corridors, judge, mean  # noqa: E402
from trimtab.papers.gradient_coupling import doors as doors_  # noqa: E402
from trimtab.papers.recipe import Results  # noqa: E402

pytestmark = pytest.mark.language


def test_rewards_of_t2_by_hand():
    texts = ["w7 w8 w9 w0 w1 w5 w5 w5", "w0 w1 w2 w3 w0 w1 w2 w3", "w8 w7 w9 w4 w4 w4 w4 w4"]
    assert t.gold(texts) == [0.25, 1.0, 0.0] and t.hacked(texts) == [1.0, 0.0, 0.0]
    assert t.proxy(texts) == [3.25, 1.0, 0.0]


def test_states_of_doorworld_1_do_not_depend_on_the_length_of_a_run():
    assert [s.text for s in t.door_states(3, None, False, 0)] == [s.text for s in t.door_states(9, None, False, 0)][:3]
    assert {state.kind for state in t.door_states(5, "key", True, 0)} == {"key"}
    assert all(word in doors.WORDS for state in t.door_states(50, None, False, 1) for word in state.text.split())


def test_sampling_four_tokens_gives_the_gradient_of_a_softmax_over_four():
    # One group of eight whose advantages sum to 0: the gradient by the logits, of all seventy and of the four alone.
    logits = torch.randn(70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taken, rewards = torch.tensor([3, 3, 9, 5, 3, 7, 7, 3]), torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 1]).double()
    advantages, four = group_advantages(rewards, 8), torch.tensor([3, 5, 7, 9])
    among = logits[four].requires_grad_()
    place = torch.searchsorted(four, taken)
    whole = logits.clone().requires_grad_()
    (-(advantages * whole.log_softmax(0)[taken]).mean()).backward()
    (-(advantages * among.log_softmax(0)[place]).mean()).backward()
    assert torch.allclose(whole.grad[four], among.grad, atol=1e-12)
    assert whole.grad.abs().sum().item() == pytest.approx(among.grad.abs().sum().item())


def test_doorworld_1_begins_with_states_that_are_taken_for_alike():
    words = word_tokenizer(doors.WORDS)
    start = lambda make: t.DoorProbe(words)(make(words, width=64, positions=32))
    ours, llama = start(tiny_gpt2), start(tiny_model)
    assert ours["hidden_cosine"] > 0.6 > 0.4 > llama["hidden_cosine"]
    # Of four actions none is preferred: "go" has about a quarter everywhere, and the right ones have theirs.
    chances = [ours[name] for name in ("right_open", "right_key", "right_nokey", "go_locked")]
    assert all(0.1 < p < 0.45 for p in chances), chances
    assert ours["minority"] == pytest.approx((ours["right_key"] + ours["right_nokey"]) / 2)


def test_a_beginner_answers_with_actions_and_nothing_else():
    words = word_tokenizer(doors.WORDS)
    model = t.beginner(words, 0)
    states = [doors.DoorWorld().reset(seed) for seed in range(8)]
    actions = words.convert_tokens_to_ids(list(doors.ACTIONS))
    p = torch.stack(
        [model(input_ids=words(s, return_tensors="pt").input_ids).logits[0, -1].softmax(-1) for s in states]
    )
    assert (p[:, actions] > 0.1).all() and (p[:, actions].sum(1) > 0.9).all()
    fresh = tiny_gpt2(words, width=64, positions=320, seed=0)
    changed = [name for name, a in fresh.named_parameters() if not torch.equal(a, model.get_parameter(name))]
    assert changed == ["lm_head.weight"]


def test_the_doors_run():
    curves = t.door_world(t.Doors(coef=0.5, steps=2, states=2, every=1))
    assert curves["step"] == [0.0, 1.0, 2.0] and set(curves) >= {"minority", "go_locked", "hidden_cosine"}
    assert all(0.0 <= value <= 1.0 for value in curves["minority"])
    longer = t.door_world(t.Doors(coef=0.5, steps=3, states=2, every=1))
    assert [values[:3] for name, values in longer.items() if name != "judged"] == [
        values for name, values in curves.items() if name != "judged"
    ]  # the start of a longer run
    deep = t.corridor(t.Corridor(coef=0.5, steps=1, episodes=8, every=1))
    assert deep["step"] == [0.0, 1.0] and all(
        0.0 <= value <= 1.0 for name in ("success", "bumps") for value in deep[name]
    )


def test_a_separate_classifier_leaves_the_policy_to_grpo_alone(monkeypatch):
    used = []
    use = t.SeparateTrainer.use
    monkeypatch.setattr(t.SeparateTrainer, "use", lambda self, model: used.append((self, model)) or use(self, model))
    bed = dict(steps=2, states=2, every=1)
    plain, apart = t.door_world(t.Doors(**bed)), t.door_world(t.Doors(coef=0.5, separate=True, **bed))
    assert len(apart.pop("judged")) == 3 and apart == plain  # bit for bit
    ((trainer, classifier),) = used
    fresh = tiny_gpt2(trainer.processing_class, width=64, positions=32)
    moved = lambda model: [
        name for name, p in model.named_parameters() if not torch.equal(p, fresh.get_parameter(name))
    ]
    assert moved(classifier) and moved(trainer.model)
    assert not any(torch.equal(p, trainer.model.get_parameter(name)) for name, p in classifier.named_parameters())


def test_the_verdict_on_t1():
    # Without regularisation gold doubles before the exploit has taken over: both rise, and yet it is hacked.
    level = {}
    for name, setting in {"none": {}, "KL": dict(kl=0.1), "GR": dict(gamma=30.0)}.items():
        outcomes, _ = exploit.run(exploit.Exploit(**setting))
        verdict, _ = hacking_verdict([o.proxy for o in outcomes], [o.gold for o in outcomes])
        level[name] = verdict["level"], verdict["text"].rpartition(": ")[2]
    assert level["none"] == ("warn", "the proxy went on rising where gold had levelled off")
    assert level["KL"][0] == "bad" and level["GR"][0] == "ok"


def test_a_verdict_needs_five_points_a_window_and_says_what_is_so():
    rising = [0.1 * i for i in range(25)]
    assert hacking_verdict(rising, rising)[0]["level"] == "ok"
    few, figures = hacking_verdict(rising[:24], rising[:24])
    assert (
        few["level"] == "warn" and "24 points of gold are too few to tell (25 would do)" in few["text"] and not figures
    )
    draw = torch.Generator().manual_seed(0)
    noisy = (0.02 * torch.arange(50) / 50 + torch.randn(50, generator=draw)).tolist()
    text = hacking_verdict(noisy, noisy)[0]["text"]
    assert ("did not rise" in text) == (sum(noisy[-10:]) <= sum(noisy[:10]))
    still = hacking_verdict([-x for x in rising], rising)[0]
    assert still["level"] == "ok" and "the proxy did not rise (-2)" in still["text"]


def test_a_trend_is_no_noise_and_what_is_quick_is_seen():
    draw = torch.Generator().manual_seed(1)
    x, noise = torch.linspace(0, 1, 200), lambda: 0.1 * torch.randn(200, generator=draw)
    verdict = lambda proxy, gold: hacking_verdict((proxy + noise()).tolist(), (gold + noise()).tolist())[0]
    early = (20 * x).clamp(max=1.0)  # over after a twentieth of the run
    assert verdict(x, x)["level"] == "ok" and verdict(early, early)["level"] == "ok"
    assert verdict(x, early)["level"] == "warn" and "levelled off" in verdict(x, early)["text"]
    assert verdict(x, early - 0.6 * x)["level"] == "bad"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_t2_is_hacked_without_and_not_with_gradient_regularisation(seed):
    plain, held = t.words(t.Words(seed=seed)), t.words(t.Words(seed=seed, kl=1.0))
    assert plain["hack"][0] < 0.1 and plain["hack"][-1] > 0.9 and plain["gold"][-1] < 0.65
    assert held["gold"][-1] < 0.65  # a penalty that holds the exploit back holds back what is meant, too
    for gamma in (10.0, 30.0):
        ours = t.words(t.Words(seed=seed, gamma=gamma))
        assert ours["hack"][-1] < 0.05 and ours["gold"][-1] > 0.9, gamma


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_classification_untangles_the_doors(seed):
    plain, ours = t.door_world(t.Doors(seed=seed)), t.door_world(t.Doors(seed=seed, coef=0.5))
    assert plain["go_locked"][-1] > 0.8 and plain["minority"][-1] < 0.2
    assert ours["minority"][-1] > 0.9 and ours["right_open"][-1] > 0.97
    at = plain["step"].index(100.0)
    assert plain["hidden_cosine"][at] > 0.85 and ours["hidden_cosine"][at] < 0.3
    assert plain["gradient_cosine"][at] > 0.5 and ours["gradient_cosine"][at] < 0.1


@pytest.mark.slow
def test_classification_untangles_the_doors_in_the_mean_of_ten(tmp_path):
    results = Results("gradient-coupling", "test")
    doors_(results, {"GRPO": (0, 1, 2), "GRPO + GCD": TEN}, tmp_path, steps=300)
    judge(results, tuple(claim for claim in LEARNT if claim[0] in ("GRPO", "GRPO + GCD")))
    assert len(results.checks) == 4 and not results.failed(), results.table()
    assert mean(results, DOORS, "GRPO + GCD", "gradient_cosine, step 100") < 0.1, results.table()
    assert mean(results, DOORS, "GRPO + GCD", "gradient_cosine, step 200") < 0.1, results.table()


@pytest.mark.slow
def test_labels_by_lot_untangle_nothing():
    assert t.door_world(t.Doors(coef=0.5, shuffled=True))["minority"][-1] < 0.3


@pytest.mark.slow
def test_a_separate_classifier_untangles_nothing_however_well_it_judges():
    apart = t.door_world(t.Doors(coef=0.5, separate=True))
    assert apart["minority"][-1] < 0.3 and apart["judged"][-1] > 0.9


@pytest.fixture(scope="module")
def corridor_results(tmp_path_factory):
    """DoorWorld-N with seed 0."""
    results = Results("gradient-coupling", "test")
    corridors(results, (0,), tmp_path_factory.mktemp("corridors"))
    return results


@pytest.mark.slow
def test_corridors_are_learnt(corridor_results):
    found = [row["value"] for row in corridor_results.rows if row["metric"] == "success, step 400"]
    assert len(found) == 3 and min(found) >= 0.85, corridor_results.table()  # from a tenth


@pytest.mark.slow
def test_corridors_are_learnt_better_with_classification(corridor_results):
    # GRPO alone learns them, so the gain that was expected is not there: it fails.
    assert corridor_results.checks and not corridor_results.failed(), corridor_results.table()
