"""Gradient regularisation: the core against closed forms, T1, and the double pass inside TRL's trainers."""

import math
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra language")

from accelerate.utils import DistributedType  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402
from trl import DPOTrainer, GRPOConfig, GRPOTrainer, RLOOTrainer, SFTTrainer  # noqa: E402

from tests.language.conftest import weights  # noqa: E402
from trimtab.errors import UsageError  # noqa: E402
from trimtab.language import exploit  # noqa: E402
from trimtab.language import gradreg as gr  # noqa: E402
from trimtab.language.tiny import save  # noqa: E402

pytestmark = pytest.mark.language

# The core


def quadratic(seed: int = 0, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n))
    return a + a.T, rng.normal(size=n)


@pytest.mark.parametrize("eps", [1e-3, 0.1, 3.0])
def test_quadratic_is_exact_for_every_eps(eps):
    a, x = quadratic()
    (mixed,), info = gr.gradient_regularized_grad(lambda p: [a @ p[0]], [x], gamma=0.7, eps=eps)
    assert np.allclose(mixed, (a + 0.7 * a @ a) @ x, rtol=1e-6)
    assert info["curvature"] == pytest.approx(np.linalg.norm(a @ a @ x), rel=1e-6)


def test_mask_restricts_the_second_derivative_to_the_perturbed_block():
    a, x = quadratic()
    grad = lambda p: [(a @ np.concatenate(p))[:2], (a @ np.concatenate(p))[2:]]
    mixed, _ = gr.gradient_regularized_grad(grad, [x[:2], x[2:]], 0.7, 0.1, mask=[True, False])
    g = a @ x
    assert np.allclose(mixed[0], g[:2] + 0.7 * a[:2, :2] @ g[:2])
    assert np.array_equal(mixed[1], g[2:])


def test_gamma_zero_and_gamma_eps():
    a, x = quadratic()
    grad = lambda p: [np.tanh(a @ p[0])]
    assert np.array_equal(gr.gradient_regularized_grad(grad, [x], 0.0, 0.1)[0][0], grad([x])[0])
    sharp = gr.gradient_regularized_grad(grad, [x], 0.1, 0.1)[0][0]
    assert np.allclose(sharp, grad([x + 0.1 * grad([x])[0]])[0])


def test_clip_bounds_the_probe():
    asked = []
    grad = lambda p: asked.append(p[0]) or [np.full(4, 50.0)]
    _, info = gr.gradient_regularized_grad(grad, [np.zeros(4)], 1.0, 1e-2, g1_clip=10.0)
    assert info["g1_norm"] == pytest.approx(100.0)
    assert np.linalg.norm(asked[1]) == pytest.approx(1e-2 * 10.0, rel=1e-6)


def mlp_loss(params, x, y):
    hidden = torch.tanh(x @ params[0] + params[1])
    return ((hidden @ params[2]).squeeze(1) - y).square().mean()


def test_finite_difference_converges_to_double_backward_at_first_order():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    params, x, y, gamma = [draw(3, 6), draw(6), draw(6, 1)], draw(16, 3), draw(16), 0.5

    def grad(at):
        at = [p.detach().requires_grad_() for p in at]
        return torch.autograd.grad(mlp_loss(at, x, y), at)

    leaves = [p.clone().requires_grad_() for p in params]
    first = torch.autograd.grad(mlp_loss(leaves, x, y), leaves, create_graph=True)
    penalty = 0.5 * gamma * sum(g.square().sum() for g in first)
    exact = [a.detach() + b for a, b in zip(first, torch.autograd.grad(penalty, leaves), strict=True)]
    errors = []
    for eps in (1e-1, 1e-2, 1e-3, 1e-4):
        mixed, _ = gr.gradient_regularized_grad(grad, params, gamma, eps)
        errors.append(gr.norm_of([a - b for a, b in zip(mixed, exact, strict=True)]) / gr.norm_of(exact))
    assert errors[2] < 0.01
    slopes = np.diff(np.log(errors)) / np.log(0.1)
    assert np.allclose(slopes[1:], 1.0, atol=0.05), slopes


def test_surrogate_gives_the_hessian_of_the_expected_reward_and_reuse_does_not():
    # Two actions with rewards 1 and 0, all samples at once: J = p, by logits z; dJ/dz known in closed form.
    z, reward = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    fixed = z.log_softmax(0)

    def grad(surrogate):
        def at(params):
            logits = params[0].detach().requires_grad_()
            log_probs = logits.log_softmax(0)
            old = fixed if surrogate else log_probs.detach()
            advantage = reward - (fixed.exp() * reward).sum()
            loss = -(fixed.exp() * advantage * torch.exp(log_probs - old)).sum()
            return [torch.autograd.grad(loss, logits)[0]]

        return at

    expected = lambda logits: -(logits.softmax(0) * reward).sum()
    g = torch.autograd.functional.jacobian(expected, z)
    exact = g + 2.0 * torch.autograd.functional.hessian(expected, z) @ g
    surrogate = gr.gradient_regularized_grad(grad(True), [z], 2.0, 1e-6)[0][0]
    reuse = gr.gradient_regularized_grad(grad(False), [z], 2.0, 1e-6)[0][0]
    assert torch.allclose(surrogate, exact, rtol=1e-5)
    assert (reuse - exact).norm() > 0.02 * exact.norm()


def test_schedules():
    at = lambda step, schedule: gr.scheduled(8.0, step, 110, 10, schedule)
    assert [at(9, "constant"), at(10, "constant"), at(110, "constant")] == [0.0, 8.0, 8.0]
    assert [at(10, "linear"), at(60, "linear"), at(110, "linear")] == [8.0, 4.0, 0.0]
    assert [at(10, "cosine"), at(60, "cosine"), at(110, "cosine")] == pytest.approx([8.0, 4.0, 0.0])


# T1


@pytest.mark.parametrize(
    "setting, low, high",
    [
        (exploit.Exploit(), dict(hack=0.95), dict(gold=0.65)),
        (exploit.Exploit(gamma=30.0), dict(gold=0.95), dict(hack=0.05)),
        (exploit.Exploit(gamma=10.0), dict(gold=0.85), dict(hack=0.05)),
        (exploit.Exploit(kl=0.1), dict(hack=0.95), dict(gold=0.65)),
        (exploit.Exploit(kl=1.0), {}, dict(gold=0.40)),
    ],
    ids=["none", "gamma 30", "gamma 10", "kl 0.1", "kl 1"],
)
def test_t1(setting, low, high):
    last = exploit.run(setting)[0][-1]
    assert all(getattr(last, name) > value for name, value in low.items()), last
    assert all(getattr(last, name) < value for name, value in high.items()), last


def test_t1_starts_as_told():
    proxy, gold, hack = (float(v) for v in exploit.rewards(exploit.initial(0.25), 3.0))
    assert hack == pytest.approx(0.25**3)
    assert gold == pytest.approx((3 * 4 * 0.75 / 11 + 5 * 4 / 12) / 8)
    assert proxy == pytest.approx(gold + 3 * hack)


# Inside TRL


def grpo(make_grpo, **options):
    return make_grpo(gr.GradRegGRPOTrainer, gr.GradRegGRPOConfig, **options)


def test_gamma_zero_is_plain_grpo_bit_for_bit(make_grpo, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plain = make_grpo(GRPOTrainer, GRPOConfig)
    plain.train()
    after = weights(plain)
    model.load_state_dict(start)
    ours = grpo(make_grpo, gr_gamma=0.0)
    ours.train()
    assert all(torch.equal(a, b) for a, b in zip(after, weights(ours), strict=True))
    assert not torch.equal(after[0], start["model.embed_tokens.weight"])


class Watched(gr.GradRegGRPOTrainer):
    """Keeps parameters and gradients around the double pass."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        before = weights(self)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.same = all(torch.equal(a, b) for a, b in zip(before, weights(self), strict=True))
        self.grads = [p.grad.clone() for p in model.parameters()]
        return loss


def test_double_pass_puts_parameters_back_and_counts_metrics_once(make_grpo):
    trainer = make_grpo(Watched, gr.GradRegGRPOConfig, gr_gamma=5.0, max_steps=1)
    trainer.train()
    assert trainer.same
    logged = trainer.state.log_history[0]
    assert logged["gr/gamma"] == 5.0
    assert logged["gr/change"] > gr.LOST
    assert logged["gr/ratio"] != 1.0 and logged["gr/ratio"] == pytest.approx(1.0, abs=1e-2)
    assert trainer._step == 1 and trainer._gr_window is None and trainer._gr_replayed is None


def test_double_pass_equals_the_core_on_the_same_loss(make_grpo):
    # The trainer's combination against `gradient_regularized_grad` with a surrogate written here.
    trainer = make_grpo(Watched, gr.GradRegGRPOConfig, gr_gamma=5.0, gr_eps=1e-2, max_steps=1, loss_type="grpo")
    kept = []
    prepare = trainer._prepare_inputs
    trainer._prepare_inputs = lambda batch: kept.append(prepare(batch)) or kept[-1]
    names, start = [n for n, _ in trainer.model.named_parameters()], weights(trainer)
    trainer.train()
    batch = kept[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]

    def log_probs(at):
        logits = torch.func.functional_call(
            trainer.model, dict(zip(names, at, strict=True)), (), dict(input_ids=ids, attention_mask=mask)
        ).logits
        return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)[:, -length:]

    fixed = log_probs(start).detach()

    def grad(at):
        at = [p.detach().requires_grad_() for p in at]
        ratio = torch.exp(log_probs(at) - fixed)
        a, m = batch["advantages"][:, None], batch["completion_mask"]
        per_token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        return torch.autograd.grad(((per_token * m).sum(1) / m.sum(1)).mean(), at)

    masked = [not any(part in name for part in trainer.args.gr_exclude) for name in names]
    expected, _ = gr.gradient_regularized_grad(grad, start, 5.0, 1e-2, masked, 10.0, 10.0)
    for name, a, b in zip(names, expected, trainer.grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-5), name


def test_reuse_keeps_the_ratio_at_one(make_grpo):
    trainer = grpo(make_grpo, gr_gamma=5.0, gr_importance="reuse", max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["gr/ratio"] == 1.0


def test_accumulation_does_not_change_the_combined_gradient(make_grpo, model):
    model.double()  # gamma / eps multiplies the rounding of g2 - g1 by 5,000
    start = {name: value.clone() for name, value in model.state_dict().items()}
    options = dict(gr_gamma=5.0, max_steps=1, loss_type="dr_grpo", scale_rewards="none", generation_batch_size=8)
    found = []
    for size, steps in ((8, 1), (2, 4)):
        model.load_state_dict(start)
        trainer = make_grpo(
            Watched,
            gr.GradRegGRPOConfig,
            **options,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        found.append(trainer.grads)
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


def test_dropout_falls_alike_in_both_passes(make_grpo, model):
    # With gamma tiny and dropout on, g2 would differ from g1 by the noise of dropout if the masks were drawn anew.
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = grpo(make_grpo, gr_gamma=1e-6, gr_eps=1e-5, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["gr/cosine"] > 0.9999


def test_rloo_dpo_and_sft_take_the_mix_in(make_grpo, model, tokenizer, tmp_path):
    rloo = make_grpo(gr.GradRegRLOOTrainer, gr.GradRegRLOOConfig, gr_gamma=5.0, max_steps=1)
    rloo.train()
    assert rloo.state.log_history[0]["gr/change"] > gr.LOST
    assert isinstance(rloo, RLOOTrainer)
    settings = dict(
        output_dir=str(tmp_path / "other"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1.0,
        gradient_checkpointing=False,
        disable_tqdm=True,
        gr_gamma=0.1,
    )
    texts = [{"prompt": f"w{i}", "completion": f" w{i + 1} w{i + 2}"} for i in range(4)]
    sft = gr.GradRegSFTTrainer(
        model, gr.GradRegSFTConfig(**settings), train_dataset=Dataset.from_list(texts), processing_class=tokenizer
    )
    sft.train()
    pairs = [{"prompt": f"w{i}", "chosen": f" w{i + 1}", "rejected": f" w{i + 2}"} for i in range(4)]
    dpo = gr.GradRegDPOTrainer(
        str(save(model, tokenizer, tmp_path / "model")),  # the reference is read from there
        args=gr.GradRegDPOConfig(**settings),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    dpo.train()
    assert sft.state.log_history[0]["num_tokens"] == 4 * 4  # three words and the end, counted in one pass only
    for trainer, parent in ((sft, SFTTrainer), (dpo, DPOTrainer)):
        logged = trainer.state.log_history[0]
        assert isinstance(trainer, parent) and logged["gr/change"] > gr.LOST and "gr/ratio" not in logged


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(gr_eps=0.0), "gr_eps must be positive"),
        (dict(gr_gamma=-1.0), "gr_gamma must be 0 or positive"),
        (dict(gr_gamma=math.nan), "gr_gamma must be 0 or positive"),
        (dict(gr_schedule="sudden"), "gr_schedule must be one of constant, linear, cosine"),
        (dict(gr_gamma=1.0, fsdp="full_shard"), "DeepSpeed and FSDP"),
        (dict(gr_gamma=1.0, deepspeed={"zero_optimization": {"stage": 2}}), "DeepSpeed and FSDP"),
        (dict(gr_gamma=1.0, fp16=True), "set bf16=False and fp16=False"),
        (dict(gr_gamma=1.0, bf16=True), "set bf16=False and fp16=False"),
        (dict(gr_gamma=1.0, use_adaptive_entropy=True), "changes the loss between the two passes"),
    ],
)
def test_wrong_settings_are_one_line(wrong, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        gr.GradRegGRPOConfig(**(dict(output_dir=str(tmp_path), use_cpu=True, bf16=False) | wrong))


def test_half_precision_is_refused_wherever_it_comes_from(make_grpo, model, monkeypatch):
    at_default = gr.GradRegGRPOConfig(output_dir="unused", use_cpu=True, gr_gamma=1.0)
    assert at_default.bf16 is False  # TRL's own default is True
    trainer = grpo(make_grpo, gr_gamma=0.0)
    trainer.gr_scheduler = lambda step: 1.0
    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda self: "bf16"))
        with pytest.raises(UsageError, match="launch with --mixed_precision no"):
            trainer.training_step(model, {})
    with pytest.raises(UsageError, match=r"dtype=torch\.float32"):
        trainer.training_step(model.bfloat16(), {})


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_what_the_launcher_chose_is_refused_too(make_grpo, kind, monkeypatch):
    trainer = grpo(make_grpo, gr_gamma=1.0)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", property(lambda self: kind))
    with pytest.raises(UsageError, match="does not run under DeepSpeed or FSDP"):
        trainer.training_step(trainer.model, {})


def test_embeddings_of_gpt_2_are_not_perturbed():
    config = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    names = [name for name, _ in GPT2LMHeadModel(config).named_parameters()]
    exclude = gr.GradRegArguments.__dataclass_fields__["gr_exclude"].default
    moved = [name for name in names if not any(part in name for part in exclude)]
    assert moved and all(".h." in name or ".ln_f." in name for name in moved)
    assert len(names) - len(moved) == 2  # words and positions; the head is tied


class Branching(torch.nn.Module):
    """A loss that reaches its second parameter only where the first has moved."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.tensor([1.0]))
        self.second = torch.nn.Parameter(torch.tensor([2.0]))
        self.third = torch.nn.Parameter(torch.tensor([3.0]))

    def forward(self):
        return (self.first * (self.second if self.first > 1.0 else 1.0)).sum()


def test_a_parameter_reached_in_the_second_pass_alone_counts_as_zero_in_the_first(make_grpo, monkeypatch):
    trainer, model = grpo(make_grpo, gr_gamma=2.0, gr_eps=0.5), Branching()
    monkeypatch.setattr(trainer, "_replay", lambda model, window, items: model().backward() or math.nan)
    model().backward()
    trainer._second_pass(model, [], None, 2.0)
    # g1 = (1, 0), g2 = (2, 1.5) at (1.5, 2): g1 + (2 / 0.5) (g2 - g1) = (5, 6); the third is reached in neither.
    assert model.first.grad.item() == pytest.approx(5.0) and model.second.grad.item() == pytest.approx(6.0)
    assert model.third.grad is None and model.first.item() == 1.0


def test_a_loss_whose_old_log_probabilities_are_not_found_is_refused(make_grpo, monkeypatch):
    monkeypatch.setattr(gr._LogProbs, "_keep", lambda self, module, inputs, output: None)
    with pytest.raises(UsageError, match='gr_importance="reuse"'):
        grpo(make_grpo, gr_gamma=1.0, max_steps=1).train()


def test_nothing_left_to_perturb_is_said(make_grpo):
    trainer = grpo(make_grpo, gr_gamma=1.0, gr_exclude=("model", "lm_head"), max_steps=1)
    with pytest.raises(UsageError, match="leaves nothing to perturb"):
        trainer.train()


def test_gradient_lost_in_rounding_is_said_once(make_grpo):
    trainer = grpo(make_grpo, gr_gamma=1.0, gr_eps=1e-12, max_steps=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        trainer.train()
    assert ["lost in rounding" in str(warning.message) for warning in said].count(True) == 1
