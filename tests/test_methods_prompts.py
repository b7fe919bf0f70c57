"""What the specifications of position rules, aLoRA, ReFT's relatives, bottleneck adapters and prompts say beyond the laws."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import NotMergeable, SpecError, TargetError
from deltaw.methods import (
    CPT,
    MPT,
    AdaptionPrompt,
    ALoRA,
    At,
    Bottleneck,
    Cartridge,
    Compacter,
    DiReFT,
    DoRA,
    LoRA,
    NoReFT,
    ParallelAdapter,
    PrefixTuning,
    PromptTuning,
    ReFT,
    SHiRA,
)  # fmt: skip
from deltaw.methods.gating import rule
from deltaw.signals import produce
from deltaw.testing.tiny import Tiny, settle, values

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

QKV = ["q_proj", "k_proj", "v_proj"]
IDS = torch.tensor([[7, 8, 3, 4, 5, 7, 8, 9, 2, 6], [3, 4, 5, 6, 9, 9, 2, 3, 3, 5]])


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).double().eval()


def shake(adapted, size=0.5):
    with torch.no_grad():
        for name, p in adapted.trainable().items():
            p.add_(values(*p.shape, name=name, std=size).to(p.dtype))
    return adapted


def logits(model, ids=IDS, **kw):
    with torch.no_grad():
        return model(input_ids=ids, **kw).logits


def generate(model, ids=IDS, **kw):
    return model.generate(input_ids=ids, max_new_tokens=7, do_sample=False, **({"attention_mask": torch.ones_like(ids)} | kw))


# ---- position rules


def where(text, ids=IDS, **kw):
    model = llama()
    deltaw.attach(model, Plan(LoRA(r=1), targets=["q_proj"]))
    found = produce(f"positions {text}", model, (), {"input_ids": ids, **kw})
    return ["".join("#" if t else "." for t in row) for row in found.tolist()]


def test_rules_are_read_strictly():
    assert (rule("f7+l2").first, rule("f7+l2").last, rule("l3").last, rule("after 4 12").after) == (7, 2, 3, (4, 12))
    for wrong in ("", "f", "f1l1", "+l1", "f1+", "l1+f1", "after", "after x", "last 3"):
        with pytest.raises(SpecError, match="positions are"):
            rule(wrong)


def test_first_and_last_are_counted_without_padding_and_capped_at_half():
    left = torch.ones_like(IDS)
    left[0, :4] = 0
    assert where("f2+l3") == ["##.....###"] * 2
    assert where("f2+l3", attention_mask=left) == ["....##.###", "##.....###"]
    assert where("f2+l3", attention_mask=left.flip(1)) == ["##.###....", "##.....###"]
    assert where("f7+l7", IDS[:, :5]) == ["##.##"] * 2 and where("f1", IDS[:, :1]) == ["."] * 2
    labels = IDS.clone()
    labels[0, :6], labels[1, :] = -100, -100
    assert where("f1+l2", labels=labels) == ["#...##....", "#.......##"]


def test_an_invocation_is_the_last_one_and_padding_is_none():
    assert where("after 7 8") == [".....#####", ".........."]
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    assert where("after 7 8", attention_mask=mask)[0] == "##########"  # the one that is padded does not count


def test_prompts_say_where_they_end_and_packed_rows_are_refused():
    model = llama()
    adapted = shake(deltaw.attach(model, Plan(At(ReFT(r=2), positions="l2"))))
    plain = logits(model)
    with deltaw.prompts(model, [4, 10]):
        told = logits(model)
    assert torch.equal(told[1], plain[1]) and not torch.equal(told[0, 3], plain[0, 3])
    with deltaw.prompts(model, [4]), pytest.raises(SpecError, match="1 rows"):
        model(input_ids=IDS)
    with pytest.raises(SpecError, match="packed"):
        model(input_ids=IDS, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]] * 2), use_cache=False)
    adapted.detach()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_unpicked_tokens_keep_their_bits_and_two_ends_add_up():
    model, x = settle(Tiny(), torch.float64), values(2, 9, 16, name="x")
    base = model(x)
    for method in (ReFT(r=3), NoReFT(r=3), DiReFT(r=3), Bottleneck(r=3)):
        both = shake(deltaw.attach(model, Plan(At(method, positions="f2+l2"))))
        y = model(x)
        assert torch.equal(y[:, 2:7], base[:, 2:7]) and all(not torch.equal(y[:, t], base[:, t]) for t in (0, 1, 7, 8))
        for name in ("f2", "l2"):
            half = deltaw.attach(model, Plan(At(method, positions=name)), name)
            with torch.no_grad():
                for k, t in half.state().items():
                    t.copy_(both.state()[k])
        with deltaw.activate(model, ["f2", "l2"]):
            assert (model(x) - y).abs().max() < 1e-12
        for adapted in list(deltaw.adapters(model)):
            adapted.detach()


def test_the_prompt_is_edited_once_and_decoding_goes_on_over_the_cache():
    model = llama()
    shake(deltaw.attach(model, Plan(At(ReFT(r=2), positions="f2+l2"))))
    cached = generate(model)
    ids = IDS
    for _ in range(7):  # without a cache, told where the prompt ends
        with deltaw.prompts(model, [10, 10]):
            ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, ids)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    assert torch.equal(generate(model, attention_mask=mask)[0, 3:], generate(model, IDS[:1, 3:])[0])
    with torch.no_grad():
        step = model(input_ids=IDS, use_cache=True)  # made by the model itself
    twin = copy.deepcopy(step.past_key_values)  # a copy remembers what was noted
    more = [logits(model, ids[:, 10:11], past_key_values=c) for c in (step.past_key_values, twin)]
    with deltaw.prompts(model, [10, 10]):
        whole = logits(model, ids[:, :11])
    assert all((m[:, 0] - whole[:, 10]).abs().max() < 1e-9 for m in more)


def test_the_trainer_tells_where_prompts_end():
    from deltaw.train.loss import label_loss

    labels = IDS.clone()
    labels[0, :4], labels[1, :6] = -100, -100
    for method in (At(ReFT(r=2), positions="f1+l2"), PromptTuning(v=3), Cartridge(v=3)):
        model = llama()
        shake(deltaw.attach(model, Plan(method)))
        total, count = label_loss(model, {"input_ids": IDS, "labels": labels})
        want = model(input_ids=IDS, labels=labels, use_cache=False).loss
        assert abs(total / count - want) < 1e-6
        with deltaw.disabled(model):
            assert abs(model(input_ids=IDS, labels=labels).loss - want) > 1e-3


def test_rows_with_different_rules():
    model = llama()
    shake(deltaw.attach(model, Plan(At(ReFT(r=2), positions="f2+l2")), "a"))
    shake(deltaw.attach(model, Plan(At(DiReFT(r=2), positions="after 4 5")), "b"))
    ids = IDS[[0, 1, 1]]
    alone = []
    for k, name in enumerate(("a", "b")):
        with deltaw.activate(model, name):
            alone.append(generate(model, ids[k : k + 1]))
    with deltaw.disabled(model):
        alone.append(generate(model, ids[2:]))
    with deltaw.rows(model, ["a", "b", None]):
        assert torch.equal(generate(model, ids), torch.cat(alone))


def test_reft_keeps_its_promises():
    model, h = settle(Tiny(), torch.float64), values(4, 16, name="h")
    adapted = deltaw.attach(model, Plan(NoReFT(r=3), layers=[0]))
    entry = adapted.entries()["blocks.0"]
    with torch.no_grad():
        entry.get("W2").copy_(entry.get("W1"))
        entry.get("c").zero_()
    with deltaw.disabled(model):
        base = model(h)
    assert (model(h) - base).abs().max() < 1e-12


# ---- aLoRA


def test_alora_leaves_the_base_cache_alone_and_takes_it_over():
    model = llama()
    adapted = shake(deltaw.attach(model, Plan(ALoRA(r=4, invocation=(7, 8)), targets=QKV)))
    with deltaw.disabled(model):
        base = model(input_ids=IDS, use_cache=True)
        before = model(input_ids=IDS[:1, :5], use_cache=True).past_key_values
    ours = model(input_ids=IDS, use_cache=True)
    for layer, own in zip(base.past_key_values.layers, ours.past_key_values.layers):
        for word in ("keys", "values"):
            a, b = getattr(layer, word), getattr(own, word)
            assert torch.equal(a[:, :, :5], b[:, :, :5]) and torch.equal(a[1], b[1])  # row 1 has no invocation
            assert not torch.equal(a[0, :, 5:], b[0, :, 5:])
    assert torch.equal(base.logits[:, :5], ours.logits[:, :5]) and torch.equal(base.logits[1], ours.logits[1])
    rest = logits(model, IDS[:1, 5:], past_key_values=copy.deepcopy(before))
    assert (rest - ours.logits[:1, 5:]).abs().max() < 1e-9
    once = model(input_ids=IDS[:1, 5:8], past_key_values=before, use_cache=True)  # in parts: it stays active
    twice = logits(model, IDS[:1, 8:], past_key_values=once.past_key_values)
    assert (twice - ours.logits[:1, 8:]).abs().max() < 1e-9
    with pytest.raises(NotMergeable):
        adapted.merge()


def test_alora_is_lora_where_it_is_invoked_and_learns_nothing_elsewhere():
    model = llama()
    lora = shake(deltaw.attach(model, Plan(LoRA(r=4, alpha=4.0), targets=QKV), "lora"))
    alora = deltaw.attach(model, Plan(ALoRA(r=4, alpha=4.0, invocation=(7, 8)), targets=QKV), "alora")
    with torch.no_grad():
        for k, t in alora.state().items():
            t.copy_(lora.state()[k])
    whole = IDS[:1, 5:]  # the invocation comes first
    y = logits(model, whole)
    with deltaw.activate(model, "lora"):
        assert (logits(model, whole) - y).abs().max() < 1e-10
    model(input_ids=IDS[1:]).logits.sum().backward()
    assert all(not p.grad.any() for p in alora.trainable().values())
    with pytest.raises(SpecError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 32, dtype=torch.float64))


def test_alora_decodes_beams_and_mixed_rows():
    model = llama()
    shake(deltaw.attach(model, Plan(ALoRA(r=4, invocation=(7, 8)), targets=QKV), "a"))
    for options in ({}, {"num_beams": 3}):
        assert torch.equal(generate(model, **options), generate(model, use_cache=False, **options))
    shake(deltaw.attach(model, Plan(LoRA(r=2), targets=QKV), "b"))
    want = []
    for k, name in ((0, "a"), (1, "b")):
        with deltaw.activate(model, name):
            want.append(generate(model, IDS[k : k + 1]))
    with deltaw.rows(model, ["a", "b"]):
        assert torch.equal(generate(model), torch.cat(want))


# ---- bottleneck adapters


def test_houlsby_and_pfeiffer_are_places():
    for method, targets, sites in (
        (Bottleneck(r=4), ["o_proj", "down_proj"], 6), (Bottleneck(r=4, act="relu"), ["mlp"], 3),
        (Compacter(r=8, n=4), ["self_attn", "mlp"], 6), (ParallelAdapter(r=4), ["mlp"], 3),
    ):  # fmt: skip
        model = llama()
        base = logits(model)
        adapted = deltaw.attach(model, Plan(method, targets=targets))
        assert len(adapted.assignments) == sites
        off = (logits(model) - base).abs().max()
        assert off == 0 if method.start == "identity" else 0 < off < 1
        shake(adapted, 0.05)
        assert torch.equal(generate(model), generate(model, use_cache=False))
        adapted.detach()
        assert torch.equal(logits(model), base)


def test_compacter_counts_and_shares():
    adapted = deltaw.attach(llama(), Plan(Compacter(r=8, n=4), targets=["mlp", "self_attn"]))
    per_site = 2 * (8 + 32) + 8 + 32
    assert sum(p.numel() for p in adapted.trainable().values()) == 6 * per_site + 4**3
    assert [k for k in adapted.state() if k.startswith("model.A")] == ["model.A"]


def test_a_parallel_adapter_sees_the_input_of_its_layer():
    model = llama()
    adapted = shake(deltaw.attach(model, Plan(ParallelAdapter(r=4, act="tanh"), targets=["1.mlp"])))
    mlp, p = model.model.layers[1].mlp, next(iter(adapted.entries().values()))
    x = values(2, 3, 32, name="x")
    with deltaw.disabled(model):
        base = mlp(x)
    want = base + 4.0 * (torch.tanh(x @ p.get("D").mT + p.get("c")) @ p.get("U").mT + p.get("b"))
    assert (mlp(x) - want).abs().max() < 1e-10


# ---- a language part and a task part (arXiv:2204.02292)


def test_masks_of_language_and_task_add_up_and_languages_are_exchanged():
    model = llama()
    base = {k: v.clone() for k, v in model.state_dict().items()}
    for seed, name in enumerate(("english", "swahili", "task")):
        shake(deltaw.attach(model, Plan(SHiRA(r=2), targets=["q_proj"], seed=seed), name))
    with deltaw.activate(model, ["english", "task"]):
        both = logits(model)
    weights = {}
    for name in ("english", "swahili", "task"):
        adapted = next(a for a in deltaw.adapters(model) if a.name == name)
        weights[name] = dict(adapted.merge().changed())
    assert all(k in base for k in weights["task"])
    for names in (["english", "task"], ["swahili", "task"], ["swahili", "english", "task"]):
        summed = llama()
        with torch.no_grad():
            for name in names:
                for k, v in weights[name].items():
                    summed.get_parameter(k).add_(v - base[k])
        with deltaw.activate(model, names):
            assert (logits(model) - logits(summed)).abs().max() < 1e-9
    with deltaw.activate(model, ["task", "english"]):
        assert (logits(model) - both).abs().max() < 1e-9


def test_a_task_adapter_is_stacked_on_a_language_adapter():
    model, x = settle(Tiny(), torch.float64), values(2, 5, 16, name="x")
    made = {n: shake(deltaw.attach(model, Plan(Bottleneck(r=3, act="relu"), layers=[1], seed=k), n)) for k, n in enumerate(("en", "sw", "task"))}
    with deltaw.disabled(model):
        h = model(x)

    def change(name, z):
        p = made[name].entries()["blocks.1"]
        return (z @ p.get("D").mT + p.get("c")).relu() @ p.get("U").mT + p.get("b")

    for language in ("en", "sw"):
        with deltaw.stack(model, [language, "task"]):
            assert (model(x) - (h + change("task", h + change(language, h)))).abs().max() < 1e-12
    with deltaw.stack(model, ["task", "en"]):
        turned = model(x)
    with deltaw.stack(model, ["en", "task"]):
        assert (model(x) - turned).abs().max() > 1e-3
        optimizer = made["task"].optimizer(lr=0.1)  # only the upper one is trained
        before = {k: t.clone() for k, t in made["en"].state().items()}
        model(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(t, before[k]) for k, t in made["en"].state().items())
    with deltaw.activate(model, ["en", "task"]):
        assert (model(x) - (h + change("en", h) + change("task", h))).abs().max() < 1e-12
    with pytest.raises(SpecError, match="different adapters"):
        deltaw.stack(model, ["en", "en"])
    deltaw.attach(model, Plan(LoRA(r=2), targets=["sq"]), "l1")
    deltaw.attach(model, Plan(LoRA(r=2), targets=["sq"]), "l2")
    with deltaw.stack(model, ["l1", "l2"]), pytest.raises(SpecError, match="hidden states only"):
        model(x)


# ---- prompts

PROMPTS = [PromptTuning(v=4), PrefixTuning(v=3, h=6), Cartridge(v=5), MPT(v=3), CPT(ids=(3, 4, 5)), AdaptionPrompt(v=3)]


@pytest.mark.parametrize("method", PROMPTS, ids=lambda m: m.key)
def test_prompts_come_and_go_and_generate_alike_with_and_without_a_cache(method):
    model = llama()
    keys, base, flags = list(model.state_dict()), logits(model), {n: p.requires_grad for n, p in model.named_parameters()}
    adapted = shake(deltaw.attach(model, method))
    assert [k for k in model.state_dict() if "deltaw" not in k] == keys and isinstance(model.model, transformers.LlamaModel)
    assert logits(model).shape == base.shape and (logits(model) - base).abs().max() > 1e-4
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    for options in ({}, {"num_beams": 3}, {"attention_mask": mask}):
        assert torch.equal(generate(model, **options), generate(model, use_cache=False, **options))
    assert torch.equal(generate(model, attention_mask=mask)[0, 3:], generate(model, IDS[:1, 3:])[0])
    out = model(input_ids=IDS, labels=IDS, output_hidden_states=True, use_cache=False)
    assert out.loss.isfinite() and out.past_key_values is None and all(h.shape[1] == 10 for h in out.hidden_states)
    with pytest.raises(NotMergeable):
        adapted.merge()
    with pytest.raises(NotMergeable):
        adapted.to_lora(rank=2)
    adapted.detach()
    assert list(model.state_dict()) == keys and torch.equal(logits(model), base)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_rows_with_prompts_of_several_lengths_generate_as_alone():
    model = llama()
    for k, method in enumerate((PromptTuning(v=4), PromptTuning(v=2), Cartridge(v=5), AdaptionPrompt(v=3))):
        shake(deltaw.attach(model, method, f"p{k}"))
    names, ids = ["p1", None, "p0", "p2", "p3"], IDS[[0, 1, 1, 0, 0]]
    want = []
    for k, name in enumerate(names):
        with deltaw.activate(model, name) if name else deltaw.disabled(model):
            want.append(generate(model, ids[k : k + 1]))
    with deltaw.rows(model, names):
        assert torch.equal(generate(model, ids), torch.cat(want))
    with deltaw.activate(model, ["p0", "p2"]):  # a cache and soft tokens in front of one text
        assert torch.equal(generate(model), generate(model, use_cache=False))


def test_a_cartridge_of_a_text_is_the_text():
    text = torch.tensor([[9, 2, 3, 8, 4, 4, 5]])
    model = llama()
    want = logits(model, torch.cat([text, IDS[:1]], 1))[:, 7:]
    for method in (Cartridge(v=7), PrefixTuning(v=7, h=0)):
        adapted = deltaw.attach(model, method)
        deltaw.prefill(adapted, text)
        assert (logits(model, IDS[:1]) - want).abs().max() < 1e-9
        with pytest.raises(SpecError, match="at least 7"):
            deltaw.prefill(adapted, text[:, :6])
        adapted.detach()
    adapted = deltaw.attach(model, PromptTuning(v=7, text=(9, 2, 3, 8, 4, 4, 5)))
    assert (logits(model, IDS[:1]) - want).abs().max() < 1e-9
    with pytest.raises(SpecError, match="no keys and values"):
        deltaw.prefill(adapted, text)


def test_caches_of_another_prompt_and_lost_prefixes_are_refused():
    model = llama()
    base = model(input_ids=IDS, use_cache=True).past_key_values
    deltaw.attach(model, Cartridge(v=3))
    with pytest.raises(SpecError, match="another prompt"):
        model(input_ids=IDS[:, :1], past_key_values=base)
    model.gradient_checkpointing_enable()
    with pytest.raises(SpecError, match="gradient checkpointing"):
        model.train()(input_ids=IDS)
    with pytest.raises(SpecError, match="lengthened"):
        model.eval()(input_ids=IDS, attention_mask=torch.ones(2, 1, 10, 10))
    with pytest.raises(SpecError, match="packed"):
        model(input_ids=IDS, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]] * 2), use_cache=False)
    with pytest.raises(TargetError, match="with its head"):
        deltaw.attach(llama().model, PromptTuning(v=2))
    with pytest.raises(TargetError, match="queries"):
        config = transformers.Qwen3Config(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
        deltaw.attach(transformers.Qwen3ForCausalLM(config), AdaptionPrompt(v=2))


def test_gpt2_is_prompted_too():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None)
    for method in (PromptTuning(v=4), Cartridge(v=5)):
        model = transformers.GPT2LMHeadModel(config).double().eval()
        shake(deltaw.attach(model, method))
        assert torch.equal(generate(model, pad_token_id=0), generate(model, pad_token_id=0, use_cache=False))


def test_tasks_have_prompts_of_their_own():
    model = llama()
    shake(deltaw.attach(model, MPT(v=3, tasks=3)))
    alone = []
    for k in (0, 2):
        with deltaw.tasks(model, [k]):
            alone.append(logits(model))
    with deltaw.tasks(model, [2, 0]):
        assert (logits(model) - torch.stack([alone[1][0], alone[0][1]])).abs().max() < 1e-10
        assert torch.equal(generate(model, num_beams=2), generate(model, num_beams=2, use_cache=False))
    assert (logits(model) - alone[0]).abs().max() < 1e-10


def test_a_context_stays_within_its_bounds_and_its_answers_are_learned():
    model = llama()
    adapted = deltaw.attach(model, CPT(ids=(3, 4, 5, 6, 7), types=(1, 2, 3, 4, 0), eps=0.4, eps_format=0.2))
    optimizer = adapted.optimizer(lr=1.0)
    labels = IDS.clone()
    labels[:, :8] = -100
    for _ in range(2):
        optimizer.zero_grad()
        deltaw.context_loss(adapted, {"input_ids": IDS, "labels": labels}, decay=0.5).backward()
        optimizer.step()
    entry = next(iter(adapted.entries().values()))
    norms, scale = entry.get("D").norm(dim=1), (32 / 2048) ** 0.5
    assert torch.allclose(norms, scale * torch.tensor([0.2, 0.4, 0.2, 0.0, 0.0], dtype=norms.dtype), atol=1e-9)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_loss_over_a_context_is_that_of_peft(decay):
    peft = pytest.importorskip("peft")
    ids, types = [3, 4, 5, 6, 2, 4, 5, 8], [1, 2, 3, 4, 5, 6, 7, 8]
    model = llama().float()
    adapted = deltaw.attach(model, CPT(ids=tuple(ids), types=tuple(types)))
    config = peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=ids, cpt_tokens_type_mask=types, opt_weighted_loss_type="decay", opt_loss_decay_factor=decay)
    judge = peft.get_peft_model(llama().float(), config)
    kinds = torch.tensor([[1, 2, 2, 2, 2, 2, 2, 3, 4, 4]] * 2)
    want = judge(input_ids=IDS, labels=IDS, input_type_mask=kinds.clone()).loss
    labels = torch.where(kinds == 4, IDS, -100)
    assert (deltaw.context_loss(adapted, {"input_ids": IDS, "labels": labels}, decay) - want).abs() < 1e-5


def test_what_at_cannot_be_put_on_is_refused():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1))
    with pytest.raises(SpecError, match="single tokens"):
        deltaw.attach(model, Plan(At(LoRA(r=1)), targets=["0"]))
    assert not deltaw.catalogue.facts_of(At(DoRA(), positions="f1"))["mergeable"]
