"""DoorWorld, and its way through TRL's trainer as a text environment of several turns."""

import random

import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from trimtab.errors import UsageError  # noqa: E402
from trimtab.language import gcd  # noqa: E402
from trimtab.language.envs import door_world as d  # noqa: E402
from trimtab.language.envs.text import Correction, Turn, act, outcome, rollout  # noqa: E402
from trimtab.language.tiny import tiny_gpt2, tiny_model, word_tokenizer  # noqa: E402

pytestmark = pytest.mark.language


def numbers(text):
    return [int(next(w for w in text.split() if w.startswith(name)).removeprefix(name)) for name in ("room", "object")]


def test_states_are_split_by_room_and_object_and_mostly_open():
    draw = random.Random(0)
    train, test = [d.draw_state(draw) for _ in range(2_000)], [d.draw_state(draw, held_out=True) for _ in range(200)]
    assert all(sum(numbers(state.text)) % 4 for state in train)
    assert not any(sum(numbers(state.text)) % 4 for state in test)
    shares = {kind: sum(state.kind == kind for state in train) / len(train) for kind in d.KINDS}
    assert shares["open"] == pytest.approx(0.85, abs=0.02) and shares["key"] == pytest.approx(0.075, abs=0.015)
    assert {len(state.text.split()) for state in train} == {11}
    for state in train[:50]:
        assert d.kind_of(state.text) == state.kind
        assert [d.right_action(state.text, action) for action in d.ACTIONS].count(True) == 1
        assert d.right_action(state.text, state.right) and d.right_action(state.text, "sing") is False


def test_the_oracle_always_leaves_in_the_least_number_of_steps():
    for seed in range(30):
        env = d.DoorWorld()
        text, total, steps = env.reset(seed), 0.0, 0
        needed = sum({"open": 1, "key": 2, "nokey": 3}[kind] for kind in env._doors)
        while True:
            turn = env.step(d.KINDS[d.kind_of(text)])
            text, total, steps = turn.observation, total + turn.reward, steps + 1
            assert turn.good
            if turn.done:
                break
        assert total == 1.0 and steps == needed <= env.limit
        assert env.bumps == 0


def test_bumping_changes_nothing_and_time_runs_out():
    env = d.DoorWorld(rooms=(3, 3), majority=0.0)
    env.reset(1)
    kind = env.kind()
    turns = [env.step("go") for _ in range(9)]
    assert [turn.done for turn in turns] == [False] * 8 + [True]
    assert env.kind() == kind and env.bumps == env.locked_visits == 9
    assert not any(turn.reward or turn.good for turn in turns)


def test_a_bump_leaves_the_room_as_it_was():
    env, waited = d.DoorWorld(rooms=(3, 3), majority=0.0), d.DoorWorld(rooms=(3, 3), majority=0.0)
    first, _ = env.reset(1), waited.reset(1)
    bumped = env.step("go").observation
    lasting = lambda text: [word for word in text.split() if not word.startswith(("weather", "t0", "t1"))]
    assert lasting(bumped) == lasting(first) and bumped != first
    assert waited.step("wait").observation == bumped  # the same room at the same time reads the same


def test_episodes_are_a_function_of_the_seed():
    play = lambda seed: [d.DoorWorld().reset(seed), d.DoorWorld().reset(seed)]
    assert play(3)[0] == play(3)[1] != play(4)[0]
    assert d.DoorWorld(held_out=True).reset(3) != d.DoorWorld().reset(3)


def test_correction_appears_and_disappears_with_the_flaw():
    correction = Correction(d.hint, every=1, chance=1.0)
    draw = random.Random(0)
    assert correction.line("key", draw) == ""
    for _ in range(3):
        correction.observe("key", "go", flawed=True)
    correction.observe("key", "unlock", flawed=False)
    correction.batch_done()
    assert correction.line("key", draw) == "do not go when the door is locked and key"
    assert correction.line("nokey", draw) == ""
    for _ in range(10):
        correction.observe("key", "unlock", flawed=False)
    correction.batch_done()
    assert correction.line("key", draw) == ""
    assert Correction(d.hint, active={"key": "x"}, chance=0.0).line("key", draw) == ""


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(d.WORDS)


def door_trainer(words, tmp_path, trainer=GRPOTrainer, max_turns=4, make=tiny_model, **options):
    model = make(words, width=16, heads=2, positions=256)
    settings = dict(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=128,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1.0,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    return trainer(
        model=model,
        reward_funcs=[lambda outcome, **columns: outcome],
        args=GRPOConfig(**(settings | options)),
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(8)]),
        processing_class=words,
        rollout_func=rollout(d.DoorWorld, max_turns),
    )


def test_rollouts_mask_what_the_environment_says(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    found = trainer.rollout_func(["5", "5", "6"], trainer)
    assert found["prompt_ids"][0] == found["prompt_ids"][1] != found["prompt_ids"][2]
    for row in range(3):
        ids, mask, steps = (found[key][row] for key in ("completion_ids", "env_mask", "steps"))
        assert len(ids) == len(mask) and sum(mask) == len(steps) == found["turns"][row] == 4
        own = [token for token, policy in zip(ids, mask, strict=True) if policy]
        assert [words.decode([token], skip_special_tokens=True) for token in own] == [step.action for step in steps]
        assert steps[0].state == words.decode(found["prompt_ids"][row])
        assert steps[0].good == d.right_action(steps[0].state, steps[0].action)


def test_rollouts_keep_what_each_decision_was_made_on(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    found = trainer.rollout_func(["5"], trainer)
    (prompt,), (ids,), (mask,), (steps,) = (found[k] for k in ("prompt_ids", "completion_ids", "env_mask", "steps"))
    starts = [index for index, own in enumerate(mask) if own]
    assert [step.prompt for step in steps] == [(*prompt, *ids[:start]) for start in starts]
    assert all(words.decode(step.prompt).endswith(step.state) for step in steps)


def test_environments_are_made_once(words, tmp_path):
    trainer, made = door_trainer(words, tmp_path), []
    play = rollout(lambda: made.append(d.DoorWorld()) or made[-1], 2)
    first, _ = play(["5", "6"], trainer), play(["6"], trainer)
    again = play(["5", "6", "7"], trainer)
    assert len(made) == 3 and again["prompt_ids"][:2] == first["prompt_ids"]


def test_a_hint_stands_before_the_first_state_too_and_never_in_evaluation(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    correction = Correction(d.hint, every=99, chance=1.0, active={kind: "do not wait" for kind in d.KINDS})
    play = rollout(d.DoorWorld, 2, correction=correction)
    trainer.model.train()
    found = play(["5"], trainer)
    assert words.decode(found["prompt_ids"][0]).startswith("do not wait start")
    (steps,) = found["steps"]
    assert steps[0].state.startswith("start") and words.decode(steps[0].prompt).startswith("do not wait")
    trainer.model.eval()
    assert words.decode(play(["5"], trainer)["prompt_ids"][0]).startswith("start")


def test_several_tokens_are_sampled_as_the_trainer_says_and_not_as_the_model_does(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    trainer.model.generation_config.top_k = 1  # a model that comes with greedy settings
    sequences = [words("start act").input_ids] * 32
    assert len({tuple(answer) for answer in act(trainer, sequences, 2)}) > 8


def test_environment_tokens_get_no_gradient(words, tmp_path):
    trainer = door_trainer(words, tmp_path, beta=0.0)
    trainer.train()
    batch = dict(trainer._buffered_inputs[0], advantages=torch.randn(8))
    length, kept = batch["completion_ids"].shape[1], []

    def keep(module, inputs, output):
        if getattr(output, "log_probs", None) is not None:
            output.log_probs.retain_grad()
            kept.append(output.log_probs)

    def largest(batch, chosen):
        trainer._compute_loss(trainer.model, batch).backward()
        return kept.pop().grad[:, -length:].abs()[chosen]

    handle = trainer.model.register_forward_hook(keep)
    own = batch["tool_mask"].bool() & batch["completion_mask"].bool()
    theirs = ~batch["tool_mask"].bool()
    assert theirs.sum() > own.sum() > 0
    assert largest(batch, theirs).max() == 0.0 < largest(batch, own).min()
    unmasked = {name: value for name, value in batch.items() if name != "tool_mask"}
    assert largest(unmasked, theirs & batch["completion_mask"].bool()).min() > 0.0  # and so it is the mask's doing
    handle.remove()


def test_gcd_takes_the_decisions_of_a_rollout(words, tmp_path):
    trainer = door_trainer(words, tmp_path, gcd.GCDGRPOTrainer)
    trainer.gcd = gcd.GCD(gcd.OracleLabeler(), template="{state} judge {action}", labels=("bad", "good"))
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["gcd/good"] + logged["gcd/bad"] > 8
    pair = trainer._gcd_replay.pairs()[0]
    assert pair.good == d.right_action(pair.state, pair.action)


def test_act_samples_by_the_policy(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    go = words("go").input_ids[0]
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
        trainer.model.lm_head.weight[go] = trainer.model.model.norm.weight * 0 + 50.0
    sequences = [words("start act").input_ids, words("start room1 room2 act").input_ids]
    with torch.no_grad():
        hidden = [
            trainer.model(torch.tensor([s]), output_hidden_states=True).hidden_states[-1][0, -1] for s in sequences
        ]
    expected = [bool(h.sum() > 0) for h in hidden]
    assert [answer == [go] for answer in act(trainer, sequences, 1)] == expected


def test_one_token_is_drawn_from_the_policy_whatever_the_padding(words, tmp_path, monkeypatch):
    trainer = door_trainer(words, tmp_path, make=tiny_gpt2)  # GPT-2 learns positions: it would see the padding
    sequences = [words(text).input_ids for text in ("start act", "start room1 weather2 open weather3 key act")]
    drawn = []
    monkeypatch.setattr(torch, "multinomial", lambda p, n: drawn.append(p) or p.argmax(-1, keepdim=True))
    act(trainer, sequences, 1)
    for p, sequence in zip(drawn[0], sequences, strict=True):
        with torch.no_grad():
            alone = trainer.model(input_ids=torch.tensor([sequence])).logits[0, -1].softmax(-1)
        assert torch.allclose(p, alone, atol=1e-6)


@pytest.mark.parametrize("setting", [dict(top_k=1), dict(top_p=1e-6), dict(min_p=1.0)], ids=str)
def test_one_token_is_sampled_as_the_trainer_says(words, tmp_path, setting):
    trainer = door_trainer(words, tmp_path, **setting)
    assert len({tuple(answer) for answer in act(trainer, [words("start act").input_ids] * 32, 1)}) == 1


def test_a_completion_keeps_to_its_limit(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    free = rollout(d.DoorWorld, 15)(["5", "6"], trainer)
    observation = len(words("start " * 11 + "step t1").input_ids)
    limit = 3 * (1 + observation) - 1  # the second observation fits with an action and the end, the third does not
    found = rollout(d.DoorWorld, 15, limit=limit)(["5", "6"], trainer)
    assert found["turns"] == [3.0, 3.0] and found["cut"] == [1.0, 1.0]
    assert [len(ids) for ids in found["completion_ids"]] == [3 + 2 * observation] * 2
    assert all(len(ids) + observation + 2 > limit for ids in found["completion_ids"])
    wide = rollout(d.DoorWorld, 15, limit=15 * (1 + observation))(["5", "6"], trainer)
    assert wide["cut"] == free["cut"] == [0.0, 0.0]  # at the environment's own limit
    assert rollout(d.DoorWorld, 2)(["5"], trainer)["cut"] == [1.0]
    with pytest.raises(UsageError, match="a completion of 4 tokens has no room for an action of 4"):
        rollout(d.DoorWorld, 15, max_action_tokens=4, limit=4)


def test_only_an_episode_that_came_to_its_end_has_the_end_token(words, tmp_path):
    trainer = door_trainer(words, tmp_path)
    for turns, ended in ((15, True), (2, False)):
        found = rollout(d.DoorWorld, turns)(["5"], trainer)
        (ids,), (mask,) = found["completion_ids"], found["env_mask"]
        assert (ids[-1] == words.eos_token_id) == ended and len(ids) == len(mask)
        assert not ended or mask[-1] == 0


def test_parameters_in_pieces_are_refused(words, tmp_path):
    stub = lambda kind, stage: type(
        "Accelerator",
        (),
        dict(distributed_type=kind, state=type("", (), dict(deepspeed_plugin=type("", (), dict(zero_stage=stage))))),
    )
    for kind, stage, name in (("DEEPSPEED", 3, "ZeRO-3"), ("FSDP", 0, "FSDP")):
        trainer = type("Trainer", (), dict(accelerator=stub(gcd.DistributedType(kind), stage)))
        with pytest.raises(UsageError, match=f"a text environment needs whole parameters.* {name}"):
            rollout(d.DoorWorld, 2)(["5"], trainer)
    gcd.refuse_pieces(stub(gcd.DistributedType("DEEPSPEED"), 2), "gcd")


def test_outcome_is_the_reward():
    assert outcome([0.0, 1.0]) == [0.0, 1.0] and Turn("", 0.0, True).good is None
