"""The test beds: what they start from, and (slow) what must come of them."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from trimtab.language import testbeds as t  # noqa: E402
from trimtab.language.envs import door_world as doors  # noqa: E402

pytestmark = pytest.mark.language


def test_rewards_of_t2_by_hand():
    texts = ["w7 w8 w9 w0 w1 w5 w5 w5", "w0 w1 w2 w3 w0 w1 w2 w3", "w8 w7 w9 w4 w4 w4 w4 w4"]
    assert t.gold(texts) == [0.25, 1.0, 0.0] and t.hacked(texts) == [1.0, 0.0, 0.0]
    assert t.proxy(texts) == [3.25, 1.0, 0.0]


def test_states_of_doorworld_1_do_not_depend_on_the_length_of_a_run():
    assert [s.text for s in t.door_states(3, None, False, 0)] == [s.text for s in t.door_states(9, None, False, 0)][:3]
    assert {state.kind for state in t.door_states(5, "key", True, 0)} == {"key"}
    assert all(word in doors.WORDS for state in t.door_states(50, None, False, 1) for word in state.text.split())


def test_both_beds_run(tmp_path):
    curves = t.door_world(t.Doors(coef=0.5, steps=2, states=2, every=1))
    assert curves["step"] == [0.0, 1.0, 2.0] and set(curves) >= {"minority", "go_locked", "hidden_cosine"}
    assert all(0.0 <= value <= 1.0 for value in curves["minority"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_t2_is_hacked_without_and_not_with_gradient_regularisation(seed):
    plain = t.words(t.Words(seed=seed))
    assert plain["hack"][0] < 0.1 and plain["hack"][-1] > 0.9 and plain["gold"][-1] < 0.65
    for gamma in (10.0, 30.0):
        ours = t.words(t.Words(seed=seed, gamma=gamma))
        assert ours["hack"][-1] < 0.05 and ours["gold"][-1] > 0.9, gamma
