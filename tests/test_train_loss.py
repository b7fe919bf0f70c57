"""The chunked loss against F.cross_entropy on full logits, in value and in every gradient; what reaches the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.train import engine, evaluate, run
from deltaw.train.chunked import LEAST, chunk_rows, chunked_cross_entropy
from deltaw.train.encode import IGNORE
from deltaw.train.loss import label_loss


def ordinary_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's own loss over full logits, as a sum."""
    rest = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**rest, use_cache=False).logits[:, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    return F.cross_entropy(wide, batch["labels"][:, 1:].flatten(), reduction="sum", ignore_index=IGNORE)


def batch_of(vocabulary: int = 260, seed: int = 0, rows: int = 3, tokens: int = 21) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=g)
    keep = torch.rand(rows, tokens, generator=g) < 0.4
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(~keep, IGNORE)}


def gradients(model: Any, f: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and its gradient by everything that is trained."""
    model.zero_grad()
    total = f(model, batch)
    total = total[0] if isinstance(total, tuple) else total
    total.backward()
    return total.detach(), {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def stir(model: nn.Module) -> None:
    """Move every trained tensor off its start, where half of the gradients are zero."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype), alpha=0.05)


def same(model: Any, batch: dict[str, torch.Tensor], rows: int, tolerance: float) -> dict[str, torch.Tensor]:
    value, grads = gradients(model, lambda m, b: label_loss(m, b, rows=rows), batch)
    expected, reference = gradients(model, ordinary_loss, batch)
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0)
    assert grads.keys() == reference.keys() and grads
    for name, grad in reference.items():
        error, size = (grads[name] - grad).abs().max(), grad.abs().max()
        assert error <= tolerance * size and size > 0, (name, float(error), float(size))
    return grads


HEADS: dict[str, tuple[Any, bool, dict[str, Any]]] = {  # plan, tied, what has to get a gradient besides
    "frozen": (deltaw.Plan("lora", targets=["q_proj", "down_proj"]), False, {}),
    "frozen tied": (deltaw.Plan("lora", targets=["q_proj", "down_proj"]), True, {}),
    "lora": (deltaw.Plan("lora", targets=["q_proj", "lm_head"]), False, {"lm_head": 2}),
    "dora": (deltaw.Plan("dora", targets=["q_proj", "lm_head"]), False, {"lm_head": 3}),
    "not low rank": (deltaw.Plan("hra", targets=["q_proj", "lm_head"]), False, {"lm_head": 1}),
    "sparse": (deltaw.Plan({"key": "shira", "r": 2}, targets=["q_proj", "lm_head"]), False, {"lm_head": 1}),
    "gates of the output": (deltaw.Plan("ia3", targets=["q_proj", "lm_head"]), False, {"lm_head": 1}),
    "random bases": (deltaw.Plan("vera", targets=["q_proj", "lm_head"]), False, {"lm_head": 2}),
    "only the head": (deltaw.Plan("lora", targets=["lm_head"]), False, {"lm_head": 2}),
    "tied, adapted at both ends": (deltaw.Plan("lora", targets=["q_proj", "embed_tokens", "lm_head"]), True, {"embed_tokens": 2}),
    "tied, embedding adapted": (deltaw.Plan("lora", targets=["q_proj", "embed_tokens"]), True, {"embed_tokens": 2}),
    "trained": (deltaw.Plan("lora", targets=["q_proj"], train_modules=["lm_head"]), False, {"lm_head": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_cross_entropy_on_full_logits(case, dtype):
    plan, tied, more = HEADS[case]
    model = tiny_model(tie_word_embeddings=tied).to(dtype)
    deltaw.attach(model, plan)
    stir(model)
    for rows in (4, 10**6):  # several chunks, the last one shorter; and a single one
        grads = same(model, batch_of(), rows, 1e-12 if dtype == torch.float64 else 1e-5)
    for part, count in more.items():
        assert sum(part in name for name in grads) == count, list(grads)


def test_a_bias_and_a_head_that_is_no_linear_layer():
    torch.manual_seed(0)
    h, t = torch.randn(13, 6, dtype=torch.float64, requires_grad=True), torch.randint(0, 11, (13,))
    shared = nn.Parameter(torch.randn(6, dtype=torch.float64))  # of another layer: no parameter of the head's
    layers = [
        nn.Linear(6, 11),
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 11)),
        nn.Linear(6, 11),
    ]
    bodies = [lambda x: x, lambda x: x, lambda x: torch.tanh(x) * shared]
    for head, body in zip(layers, bodies):
        head.double()
        wanted = [h, *head.parameters()] + ([shared] if head is layers[2] else [])

        def call(x, head=head, body=body):
            return head(body(x))

        reference = F.cross_entropy(call(h), t, reduction="sum")
        expected = torch.autograd.grad(3 * reference, wanted)
        for rows in (1, 5, 13, 99):
            total = chunked_cross_entropy(call, h, t, rows)
            found = torch.autograd.grad(3 * total, wanted)  # times what comes in from above
            torch.testing.assert_close(total, reference, rtol=1e-12, atol=0)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_leaves_with_one_gradient_between_them_are_not_added_twice():
    """The gradients of a and b in x W + a + b are one tensor, so summing chunks in place would count both in both."""
    a, b = nn.Parameter(torch.zeros(4, 7).double()), nn.Parameter(torch.zeros(4, 7).double())
    h, t = torch.randn(8, 7).double(), torch.arange(8) % 7

    def head(x):
        return x + a + b

    chunked_cross_entropy(head, h, t, 4).backward()
    found = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    F.cross_entropy(torch.cat([head(h[:4]), head(h[4:])]), t, reduction="sum").backward()
    torch.testing.assert_close(found, (a.grad, b.grad), rtol=1e-12, atol=1e-12)


def test_an_older_graph_behind_the_head_is_differentiated_once():
    """Learned weights of adapters are computed before the head runs: no chunk may free what the others need."""
    model = tiny_model(tie_word_embeddings=False).double()
    for name in ("a", "b"):
        deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj", "lm_head"], seed=len(name)), name=name)
    stir(model)
    mix = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = []
    for f in (lambda: label_loss(model, batch_of(), rows=4)[0], lambda: ordinary_loss(model, batch_of())):
        with deltaw.activate(model, ["a", "b"], list(mix.softmax(0).unbind())):
            found.append(torch.autograd.grad(f(), mix)[0])
    torch.testing.assert_close(*found, rtol=1e-11, atol=0)
    assert found[0].abs().max() > 0


def test_low_precision_is_softmaxed_in_float32():
    model = tiny_model(tie_word_embeddings=False).to(torch.bfloat16)
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj", "lm_head"]))
    stir(model)
    same(model, batch_of(), 4, 0.02)
    value = label_loss(model, batch_of(), rows=4)[0]
    torch.testing.assert_close(value, ordinary_loss(model, batch_of()), rtol=1e-5, atol=0)  # one product, one rounding
    assert value.dtype == torch.float32
    model = tiny_model()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj", "lm_head"]))
    stir(model)
    with torch.autocast("cpu", torch.bfloat16):
        same(model, batch_of(), 4, 0.02)


def test_autocast_around_the_model_alone_holds_for_the_chunks_too():
    model, batch = tiny_model(), batch_of()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    stir(model)

    def call(**kw):  # as accelerate wraps it
        with torch.autocast("cpu", torch.bfloat16):
            return model(**kw)

    with torch.autocast("cpu", torch.bfloat16):
        expected = ordinary_loss(model, batch)
    torch.testing.assert_close(label_loss(model, batch, call, rows=4)[0], expected, rtol=1e-5, atol=0)


# ---- models whose logits are not what their head gives


def gemma(cap: float | None) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, final_logit_softcapping=cap, initializer_range=0.5, attn_implementation="eager",
    )).double().eval()  # fmt: skip


def cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, logit_scale=0.3,
        initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )).double().eval()  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: gemma(2.0), lambda: gemma(None), cohere], ids=["capped", "uncapped", "scaled"]
)
def test_what_a_model_does_to_its_logits_is_honoured(make):
    model, batch = make(), batch_of(60)
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    stir(model)
    same(model, batch, 4, 1e-12)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda m, a, y: seen.append(tuple(y.shape)))
    count = int(label_loss(model, batch, rows=4)[1])
    hook.remove()
    if getattr(model.config, "final_logit_softcapping", 0.3) is None:  # nothing is done to them: in chunks
        assert sum(s[0] for s in seen[1:]) == count and max(s[0] for s in seen) <= 4 and seen[0] == (1, 0, 60)
    else:
        assert seen == [(1, count, 60)]
        logits = model(input_ids=batch["input_ids"]).logits  # the cap or scale is felt
        assert not torch.allclose(model.lm_head(model.model(batch["input_ids"])[0]), logits, rtol=1e-3)


def test_a_model_that_changes_its_mind_is_noticed():
    model, batch = gemma(None), batch_of(60)
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    stir(model)
    same(model, batch, 4, 1e-12)
    model.config.final_logit_softcapping = 2.0
    same(model, batch, 4, 1e-12)


def test_the_question_spends_no_random_numbers():
    model = tiny_model(attention_dropout=0.5).train()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    losses = []
    for _ in range(2):  # asked in the first pass only
        torch.manual_seed(1)
        losses.append(label_loss(model, batch_of())[0].detach())
    assert torch.equal(*losses)


# ---- around it


def test_no_gradient_work_without_gradients_and_none_for_what_is_frozen(monkeypatch):
    model, batch = tiny_model(), batch_of()
    asked = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda y, xs, *a, **k: asked.append(len(xs)) or real(y, xs, *a, **k))
    for p in model.parameters():
        p.requires_grad_(False)
    expected = ordinary_loss(model, batch)
    total = label_loss(model, batch, rows=8)[0]
    assert not total.requires_grad
    torch.testing.assert_close(total, expected)
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    with torch.no_grad():
        torch.testing.assert_close(label_loss(model, batch, rows=8)[0], expected)
    assert asked == []
    assert label_loss(model, batch, rows=8)[0].requires_grad
    count = int((batch["labels"][:, 1:] != IGNORE).sum())
    assert asked == [1] * -(-count // 8)  # the hidden states alone: the head is frozen


def test_no_label_at_all_is_zero_and_has_a_gradient():
    model, batch = tiny_model(), batch_of()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    batch["labels"] = torch.full_like(batch["labels"], IGNORE)
    total, count = label_loss(model, batch)
    total.backward()
    assert total == 0 and count == 0
    with torch.no_grad():
        assert label_loss(model, batch)[0] == 0


def test_accumulated_and_checkpointed_gradients():
    model = tiny_model(tie_word_embeddings=False).double().train()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj", "lm_head"]))
    stir(model)
    parts = [batch_of(seed=s) for s in (1, 2)]

    def both(f):
        return lambda m, _: sum((f(m, b) for b in parts[1:]), f(m, parts[0]))

    _, expected = gradients(model, both(ordinary_loss), {})
    model.activation_checkpointing_enable() if hasattr(model, "activation_checkpointing_enable") else (
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    )
    _, found = gradients(model, both(lambda m, b: label_loss(m, b, rows=4)[0]), {})
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12)


def test_rows_under_adapters_of_their_own_stay_rows_at_the_head():
    model = tiny_model(tie_word_embeddings=False).double()
    for name in ("a", "b"):
        deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj", "lm_head"], seed=len(name)), name=name)
    stir(model)
    batch = batch_of(rows=2)
    with deltaw.rows(model, ["a", "b"]):
        same(model, batch, 4, 1e-12)


def test_a_compiled_model_is_left_as_it_is():
    model, batch = tiny_model().double(), batch_of()
    deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"]))
    stir(model)
    expected = ordinary_loss(model, batch)
    fast = torch.compile(model, backend="eager")
    before = fast(input_ids=batch["input_ids"], use_cache=False).logits
    for call in (fast, None):
        torch.testing.assert_close(label_loss(fast if call is None else model, batch, call)[0], expected)
    assert torch.equal(fast(input_ids=batch["input_ids"], use_cache=False).logits, before)
    assert before.shape == (3, 21, 260)


def test_ddp_sees_every_gradient(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        for unused in (False, True):
            model = tiny_model(tie_word_embeddings=False).double()
            deltaw.attach(model, deltaw.Plan("lora", targets=["q_proj"], train_modules=["lm_head"]))
            stir(model)
            _, expected = gradients(model, ordinary_loss, batch_of())
            wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
            reduced = []
            wrapped.register_comm_hook(reduced, lambda seen, bucket: _count(seen, bucket))  # it may have no annotations
            for _ in range(2):  # a second step fails if the first one left a bucket waiting
                _, found = gradients(model, lambda m, b, w=wrapped: label_loss(m, b, w, rows=4), batch_of())
            assert sum(reduced) == 2 * sum(g.numel() for g in expected.values())
            for name, grad in expected.items():
                torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12)
    finally:
        dist.destroy_process_group()


def _count(reduced: list[int], bucket: Any) -> torch.futures.Future[torch.Tensor]:
    reduced.append(bucket.buffer().numel())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def test_a_chunk_is_bounded_in_bytes():
    assert chunk_rows(49152, 128 << 20) == 682 and chunk_rows(49152, 64 << 20) == 341
    assert chunk_rows(10**7) == LEAST == 64
    sizes = []
    h, t = torch.randn(101, 4, requires_grad=True), torch.zeros(101, dtype=torch.int64)
    layer = nn.Linear(4, 9)
    chunked_cross_entropy(lambda x: sizes.append(len(x)) or layer(x), h, t, 30)
    assert sizes == [26, 26, 26, 23]


def test_a_run_computes_logits_of_labels_and_of_nothing_else(tmp_path, monkeypatch):
    """Training, evaluation in between, evaluation at the end: every row that reaches the head predicts a label."""
    model, rows, labels = tiny_model(), [], []
    hook = model.lm_head.register_forward_hook(lambda m, a, y: rows.append(y.shape[:-1].numel()))
    real = engine.label_loss

    def counted(*args: Any, **kw: Any) -> Any:
        total, count = real(*args, **kw)
        labels.append((int(count), torch.is_grad_enabled()))
        return total, count

    monkeypatch.setattr(engine, "label_loss", counted)
    recipe = {
        "data": {"path": jsonl(tmp_path / "rows.jsonl", pairs()), "eval_share": 0.2},
        "plan": {"method": {"key": "lora", "r": 2}, "targets": ["q_proj"]},
        "train": {
            "steps": 4,
            "batch_size": 2,
            "grad_accum": 2,
            "eval_every": 2,
            "max_length": 64,
            "tune_allocator": False,
        },
        "out": str(tmp_path / "run"),
    }
    run(recipe, model=model, tokenizer=tiny_tokenizer(), progress=False)
    assert sum(rows) == sum(n for n, _ in labels)
    assert sum(grad for _, grad in labels) == 8 and sum(not grad for _, grad in labels) == 3 * 2  # 4 rows held out
    rows.clear(), labels.clear()
    scores = evaluate(model, tiny_tokenizer(), pairs(4), exact=False)
    assert sum(rows) == scores["labels"]
    rows.clear()
    evaluate(
        model, tiny_tokenizer(), pairs(4), max_new_tokens=3, batch_size=2
    )  # generation: the last position of a row
    assert max(rows[4:]) <= 4
    hook.remove()
