"""What the specifications of LoRA-XS, HRA, (IA)³, RoAd, LoReFT and X-LoRA say beyond the laws that hold for every method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw.errors import NotMergeable, ShapeError, SpecError
from deltaw.methods import HRA, IA3, LoRA, LoRAXS, ReFT, RoAd, XLoRA
from deltaw.methods.stream.reft import columns
from deltaw.route import route
from deltaw.testing.oracles.reft import closed as loreft

F64 = torch.float64


def net(m: int = 12, n: int = 8, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, m, bias=bias)).double()


def llama(layers: int = 2) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def randomise(adapted: Any, std: float = 0.3, seed: int = 1) -> Any:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in adapted.trainable().values():
            t.add_(torch.randn(t.shape, generator=g).to(t.dtype), alpha=std)
    return adapted


def ids(rows: int = 3, tokens: int = 7) -> Tensor:
    return torch.arange(rows * tokens).reshape(rows, tokens) * 7 % 50


# ---- LoRA-XS


def test_lora_xs_frame_and_gradient() -> None:
    model = net()
    adapted = deltaw.attach(model, LoRAXS(r=3, alpha=6.0))
    p = {k.split(".")[-1]: v for k, v in adapted.state().items()}
    assert list(adapted.trainable()) == ["0.R"] and p["R"].numel() == 9
    S = torch.linalg.svdvals(model[0].weight)[:3]
    torch.testing.assert_close(p["A"] @ p["A"].mT, torch.diag(S**2))
    torch.testing.assert_close(p["B"].mT @ p["B"], torch.eye(3, dtype=F64))
    x = torch.randn(5, 8, dtype=F64)
    y = model(x)
    y.retain_grad()
    y.pow(3).sum().backward()
    torch.testing.assert_close(p["R"].grad, 2.0 * p["B"].mT @ (y.grad.mT @ x) @ p["A"].mT)
    randomise(adapted)
    merged = adapted.merge().model()[0].weight
    assert torch.linalg.matrix_rank(merged - model[0].weight) == 3
    (B, A) = adapted.to_lora().factors["0"]
    assert B.shape == (12, 3)
    torch.testing.assert_close(B @ A, merged - model[0].weight)


def test_lora_xs_noise_and_refusals() -> None:
    model, x = net(), torch.randn(4, 8, dtype=F64)
    y = model(x)
    deltaw.attach(model, LoRAXS(r=2, std=1e-5))
    assert 0 < (model(x) - y).abs().max() < 1e-2
    with pytest.raises(ShapeError, match="r = 9"):
        deltaw.attach(net(), LoRAXS(r=9))
    with pytest.raises(SpecError, match="no such A and B"):
        deltaw.attach(net(), deltaw.Plan(LoRAXS(r=2), init="pissa"))


# ---- HRA


@pytest.mark.parametrize("r", [1, 3, 4])
def test_hra_is_orthogonal(r: int) -> None:
    model = net(8, 8)
    adapted = deltaw.attach(model, HRA(r=r), empty=True)  # an odd number can be loaded, not started
    with torch.no_grad():
        adapted.trainable()["0.U"].copy_(torch.randn(8, r, generator=torch.Generator().manual_seed(3)))
    W = model[0].weight.detach()
    merged = adapted.merge().model()[0].weight.detach()
    R = torch.linalg.solve(W, merged)
    torch.testing.assert_close(R @ R.mT, torch.eye(8, dtype=F64), atol=1e-6, rtol=0)
    assert round(float(torch.linalg.det(R))) == (-1) ** r
    torch.testing.assert_close(torch.linalg.svdvals(merged), torch.linalg.svdvals(W))
    torch.testing.assert_close(merged @ R.mT, W)  # unmerge
    B, A = adapted.to_lora().factors["0"]
    assert B.shape[1] == r
    torch.testing.assert_close(W + B @ A, merged)


def test_hra_odd_start_is_refused() -> None:
    model = net()
    with pytest.raises(ShapeError, match="even"):
        deltaw.attach(model, HRA(r=3))
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize("method", [HRA(r=2), LoRAXS(r=3), IA3(), RoAd(group_size=4)])
def test_on_a_convolution(method: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1)).double()
    x = torch.randn(2, 3, 9, 9, dtype=F64)
    adapted = randomise(deltaw.attach(model, deltaw.Plan(method, targets=["0"])))
    torch.testing.assert_close(adapted.merge().model()(x), model(x))


def test_convolutions_as_in_peft() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Conv2d(3, 8, 3)), torch.randn(2, 3, 9, 9)
    for method, config, theirs in (
        (HRA(r=2), peft.HRAConfig(r=2, target_modules=["0"]), "hra_u"),
        (IA3(), peft.IA3Config(target_modules=["0"], feedforward_modules=[]), "ia3_l"),
    ):
        model = copy.deepcopy(base)
        adapted = randomise(deltaw.attach(model, deltaw.Plan(method, targets=["0"])))
        other = peft.get_peft_model(copy.deepcopy(base), config)
        put = getattr(other.base_model.model[0], theirs)["default"]
        with torch.no_grad():
            put.copy_(next(iter(adapted.trainable().values())).reshape(put.shape))
        torch.testing.assert_close(model(x), other(x), atol=1e-5, rtol=1e-5)


# ---- (IA)³ and RoAd


def test_ia3_side_by_pattern() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k_proj, self.down_proj = nn.Linear(8, 6), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.k_proj(x).tanh())

    model = Net().double()
    plan = deltaw.Plan(IA3(), targets=["k_proj", "down_proj"], overrides={"down_proj": {"side": "in"}})
    adapted = randomise(deltaw.attach(model, plan))
    l1, l2 = adapted.trainable()["k_proj.l"], adapted.trainable()["down_proj.l"]
    assert l1.shape == (6,) and l2.shape == (6,)
    x, h = torch.randn(3, 8, dtype=F64), torch.randn(3, 6, dtype=F64)
    k, d = model.k_proj, model.down_proj
    torch.testing.assert_close(k(x), l1 * (x @ k.weight.mT + k.bias))
    torch.testing.assert_close(d(h), (l2 * h) @ d.weight.mT + d.bias)
    new = dict(adapted.merge(probe=x).changed())
    assert set(new) == {"k_proj.weight", "k_proj.bias", "down_proj.weight"}  # the bias moves on the output side only
    with pytest.raises(SpecError, match="side"):
        deltaw.Plan(IA3(), targets=["k_proj"], overrides={"k_proj": {"side": "both"}}).resolve(model)


def test_ia3_at_zero_still_merges() -> None:
    """PEFT divides by l to unmerge; here the base is never written to."""
    model, x = net(), torch.randn(3, 8, dtype=F64)
    base = model(x)
    adapted = deltaw.attach(model, IA3())
    with torch.no_grad():
        adapted.trainable()["0.l"][:3] = 0
    merged = adapted.merge().model()
    assert torch.equal(merged(x)[:, :3], torch.zeros(3, 3, dtype=F64))
    adapted.detach()
    assert torch.equal(model(x), base)


def test_road_rotates() -> None:
    model = net(8, 8)
    adapted = deltaw.attach(model, RoAd(group_size=8))
    with torch.no_grad():
        adapted.trainable()["0.theta"].copy_(torch.tensor([0.3, -1.0, 2.0, 0.1]))
    W, b = model[0].weight.detach(), model[0].bias.detach()
    new = adapted.merge().model()[0]
    R = torch.linalg.solve(W.mT, new.weight.detach().mT).mT
    torch.testing.assert_close(R @ R.mT, torch.eye(8, dtype=F64))
    torch.testing.assert_close(new.bias.detach(), R @ b)
    assert R[0, 0] == pytest.approx(0.9553, abs=1e-3) and R[0, 4] == pytest.approx(-0.2955, abs=1e-3)  # entry 0 with 4
    assert torch.count_nonzero(R.abs() > 1e-9) == 16
    with pytest.raises(ShapeError, match="group_size = 5 must divide"):
        deltaw.attach(net(), RoAd(group_size=5))
    with pytest.raises(ShapeError, match="must divide group_size = 3"):
        deltaw.attach(net(), RoAd(group_size=3))


# ---- LoReFT


def test_reft_stays_orthonormal_and_edits_its_subspace() -> None:
    model = llama().double()
    adapted = deltaw.attach(model, ReFT(r=3))
    assert [a.site.name for a in adapted.assignments] == ["model.layers.0", "model.layers.1"]
    assert adapted.report()["trainable"] == 2 * (2 * 16 * 3 + 3)
    optimizer = adapted.optimizer(lr=5e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
    entry = adapted.entries()["model.layers.0"]
    R, Wp, c = columns(entry.get("U")), entry.get("Wp"), entry.get("c")
    torch.testing.assert_close(R.mT @ R, torch.eye(3, dtype=F64), atol=1e-10, rtol=0)
    h = torch.randn(2, 5, 16, dtype=F64)
    L = entry.layer(adapted.assignments[0].site.leaf(), {})
    move = L(h) - h
    torch.testing.assert_close(move @ R @ R.mT, move)  # inside the span of R
    torch.testing.assert_close(L(h) @ R, h @ Wp.mT + c)  # Rᵀ h' = Wp h + c
    with pytest.raises(NotMergeable):
        adapted.merge()
    with pytest.raises(NotMergeable):
        adapted.to_lora()


def test_reft_between_blocks_is_the_closed_form() -> None:
    model = llama().double()
    plain = copy.deepcopy(model)
    adapted = randomise(deltaw.attach(model, deltaw.Plan(ReFT(r=2), layers=[1])))
    p = {k: t for k, t in adapted.entries()["model.layers.1"].named()}

    def edit(_m: Any, _a: Any, out: Any) -> Any:
        h = out[0] if isinstance(out, tuple) else out
        new = loreft(None, None, None, p, h)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    plain.model.layers[1].register_forward_hook(edit)
    torch.testing.assert_close(model(ids()).logits, plain(ids()).logits, atol=1e-10, rtol=1e-10)


def test_reft_can_be_the_identity_and_adds_up() -> None:
    model = llama().double()
    base = model(ids()).logits
    adapted = deltaw.attach(model, ReFT(r=2), "a")
    assert (model(ids()).logits - base).abs().max() > 1e-3  # its start is none, as declared
    assert ReFT.start.startswith("none")
    with torch.no_grad():
        for entry in adapted.entries().values():
            entry.get("Wp").copy_(columns(entry.get("U")).mT)
            entry.get("c").zero_()
    torch.testing.assert_close(model(ids()).logits, base)
    deltaw.attach(model, deltaw.Plan(ReFT(r=2), seed=5), "b")
    alone = model(ids()).logits
    with deltaw.activate(model, ["a", "b"]):
        torch.testing.assert_close(model(ids()).logits, alone)
    with deltaw.rows(model, ["b", None, "a"]):
        mixed = model(ids()).logits
    torch.testing.assert_close(mixed, torch.stack([alone[0], base[1], base[2]]))


# ---- X-LoRA and route


def experts(model: Any, **kw: Any) -> dict[str, Any]:
    out = {}
    for k, (name, method) in enumerate({"one": LoRA(r=2, alpha=6.0), "two": LoRA(r=3)}.items()):
        plan = deltaw.Plan(method, targets=["q_proj", "v_proj", "down_proj"], seed=k, **kw)
        out[name] = randomise(deltaw.attach(model, plan, name), seed=k)
    return out


def one_hot(router: Any, k: int) -> None:
    with torch.no_grad():
        state = router.state()
        state["model.V"].zero_()
        state["model.c"].copy_(torch.where(torch.arange(len(state["model.c"])) == k, 200.0, 0.0))


def test_xlora_one_hot_is_that_expert() -> None:
    model = llama().double()
    made = experts(model)
    router = route(model, made)
    assert sorted(router.trainable()) == ["model.V", "model.c"]
    assert router.report()["trainable"] == (16 + 1) * 2
    for k, name in enumerate(made):
        one_hot(router, k)
        got = model(ids()).logits
        with deltaw.activate(model, name):
            torch.testing.assert_close(got, model(ids()).logits)
    for a in made.values():
        a.detach()
    torch.testing.assert_close(model(ids()).logits, got)  # the banks are copies
    with pytest.raises(NotMergeable):
        router.merge()


def test_xlora_only_the_classifier_learns() -> None:
    model = llama().double()
    router = route(model, experts(model))
    model(input_ids=ids(), labels=ids()).loss.backward()
    got = {n for n, p in model.named_parameters() if p.grad is not None}
    assert len(got) == 2 and all("deltaw_shared.router" in n for n in got)
    before = {k: v.clone() for k, v in router.state().items()}
    router.optimizer(lr=1e-2).step()
    moved = {k for k, v in router.state().items() if not torch.equal(v, before[k])}
    assert moved == {"model.V", "model.c"}


def test_xlora_of_one_expert_and_top_k() -> None:
    model = llama().double()
    made = experts(model)
    route(model, {"one": made["one"]}, name="single")
    got = model(ids()).logits
    with deltaw.activate(model, "one"):
        torch.testing.assert_close(got, model(ids()).logits)
    router = route(model, made, XLoRA(top_k=1), name="top")
    h = torch.randn(2, 5, 16, dtype=F64)
    L = router.entries()["model.layers.0.self_attn.q_proj"].layer(router.assignments[0].site.leaf(), {"hidden": h})
    both = torch.stack([L.w[..., 0], L.w[..., 2]], -1)  # ranks 2 and 3: one weight of each expert
    assert torch.equal((both != 0).sum(-1), torch.ones(2, 5, dtype=torch.int64))
    assert both.max() < 1  # not renormalised
    with pytest.raises(SpecError, match="top_k"):
        route(model, made, XLoRA(top_k=3), name="bad")


def test_route_over_different_places_methods_and_directories(tmp_path: Any) -> None:
    model = llama().double()
    a = randomise(deltaw.attach(model, deltaw.Plan(LoRAXS(r=2), targets=["q_proj"]), "a"))
    b = randomise(deltaw.attach(model, deltaw.Plan(HRA(r=2), targets=["q_proj", "o_proj"]), "b"))
    b.save(tmp_path / "b")
    with deltaw.activate(model, "b"):
        want = model(ids()).logits
    b.detach()
    router = route(model, {"a": a, "b": tmp_path / "b"})
    ranks = {s.site.name.split(".")[-1]: s.method.ranks for s in router.assignments}
    assert ranks == {"q_proj": (2, 2), "o_proj": (0, 2)}
    assert [x.name for x in deltaw.adapters(model)] == ["a", "router"]
    one_hot(router, 1)
    torch.testing.assert_close(model(ids()).logits, want)
    kept = router.save(tmp_path / "router")
    again = llama().double()
    deltaw.load(again, kept)
    assert torch.equal(again(ids()).logits, model(ids()).logits)
    with deltaw.rows(model, [None, "a", "router"]):
        mixed = model(ids()).logits
    torch.testing.assert_close(mixed[2], want[2])
    with deltaw.disabled(model):
        torch.testing.assert_close(mixed[0], model(ids()).logits[0])


def test_route_refuses() -> None:
    model = llama().double()
    with pytest.raises(SpecError, match="at least one"):
        route(model, {})
    made = {"a": deltaw.attach(model, "dora", "a")}
    with pytest.raises(NotMergeable, match="no exact low-rank factors"):
        route(model, made)
    assert [x.name for x in deltaw.adapters(model)] == ["a"]
    route(model, made, rank=2)


@pytest.mark.parametrize("more", [{}, {"top_k": 1}, {"depth": 3, "size": 5}, {"softmax": False}, {"depth": 2, "size": 6, "again": True}], ids=str)
def test_xlora_as_in_peft(tmp_path: Any, more: dict[str, Any]) -> None:
    """Two LoRA experts on a tiny Llama, the same classifier: equal logits and gradients of the classifier and inputs."""
    peft = pytest.importorskip("peft")
    folders = {}
    for k in range(2):
        torch.manual_seed(10 + k)
        config = peft.LoraConfig(r=2 + k, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        expert = peft.get_peft_model(llama(), config)
        with torch.no_grad():
            for n, p in expert.named_parameters():
                if "lora_B" in n:
                    p.normal_(std=0.5)
        expert.save_pretrained(tmp_path / str(k))
        folders[str(k)] = str(tmp_path / str(k))
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=16, xlora_depth=more.get("depth", 1), xlora_size=more.get("size", 7), adapters=folders,
        layerwise_scalings=False, softmax_temperature=0.5, global_scaling_weight=1.5, top_k_lora=more.get("top_k"), xlora_dropout_p=0.0,
        enable_softmax=more.get("softmax", True), enable_softmax_topk=more.get("again", False),
    )  # fmt: skip
    theirs = peft.get_peft_model(llama(), config).eval()
    model = llama()
    router = route(model, folders, XLoRA(tau=0.5, gamma=1.5, **more))
    layers = [m for m in theirs.base_model.internal_xlora_classifier.layers if isinstance(m, nn.Linear)]
    words = [*map(str, range(1, len(layers))), ""]
    trained = router.trainable()
    ours_ = [trained[f"model.{k}{w}"] for w in words for k in "Vc"]
    theirs_ = [t for layer in layers for t in (layer.weight, layer.bias)]
    assert len(ours_) == len(trained)
    with torch.no_grad():
        for a, b in zip(ours_, theirs_, strict=True):
            b.normal_(std=0.5, generator=torch.Generator().manual_seed(5 + b.numel()))
            a.copy_(b)
    results = []
    for net_, trained_ in ((model, ours_), (theirs, theirs_)):
        with torch.no_grad():
            embedded = model.get_input_embeddings()(ids())
        embedded.requires_grad_()
        logits = net_(inputs_embeds=embedded).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids().flatten()).backward()
        results.append((logits, embedded.grad, *(t.grad for t in trained_)))
    for ours, other in zip(*results, strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


def test_xlora_deepcopy_generate_and_low_precision() -> None:
    model = llama()
    route(model, experts(model))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids()).logits, model(ids()).logits)
    prompt, seen = ids(1, 4), torch.ones(1, 4, dtype=torch.int64)
    out = model.generate(prompt, attention_mask=seen, max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0)
    step = prompt
    for _ in range(3):
        step = torch.cat([step, model(step).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, step)
    with pytest.raises(SpecError, match="use_cache=False"):
        model.generate(prompt, attention_mask=seen, max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0)
    assert model.to(torch.bfloat16)(ids()).logits.dtype == torch.bfloat16


def test_xlora_where_tokens_come_in_one_axis() -> None:
    """Layers that see batch x tokens flattened (mixtures of experts do that), alone and in a mixed batch."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.config = nn.Linear(16, 16), type("Config", (), {"hidden_size": 16})()

        def forward(self, x: Tensor, **kw: Any) -> Any:
            y = self.lin(x.flatten(0, 1)).view_as(x)
            return type("Out", (), {"hidden_states": (x,)}) if kw.get("output_hidden_states") else y

    torch.manual_seed(0)
    model, x = Flat().double(), torch.randn(3, 5, 16, dtype=F64)
    base = model(x)
    randomise(deltaw.attach(model, deltaw.Plan(XLoRA(ranks=(2, 1), hidden_size=16), targets=["lin"]), "r"))
    want = model(x)
    one = model(x[1:2])
    torch.testing.assert_close(want[1:2], one)
    with deltaw.rows(model, ["r", None, "r"]):
        torch.testing.assert_close(model(x), torch.stack([want[0], base[1], want[2]]))
    deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["lin"]), "lora")
    with deltaw.activate(model, ["r", "lora"], [0.5, 1.0]):
        torch.testing.assert_close(model(x), base + 0.5 * (want - base))
