"""The recipes name the layers that their papers adapt, and the one for thin structures segments some."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.train import Recipe
from deltaw.train.topology import ConvAdapter, cldice, dice, soft_skeleton, topology_loss

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


def plan(name):
    return Recipe.of(str(Path(__file__).parents[1] / "recipes" / f"{name}.yaml")).the_plan()


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_one(path):
    recipe = Recipe.of(str(path))
    assert recipe.the_plan().method.key and recipe.out.startswith(f"runs/{path.stem.partition('-')[0]}")


@pytest.mark.parametrize("name, sizes", [("galore-full", ["plan.update.r=4"]), ("lora-ga", ["plan.method.r=4", "plan.update=lora_plus"])])
def test_weights_and_starts_train_as_the_recipe_says(name, sizes, tmp_path):
    from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

    from deltaw.train import run

    rows = jsonl(tmp_path / "rows.jsonl", pairs())
    small = [f"data.path={rows}", f"out={tmp_path / 'run'}", "train.steps=6", "train.lr=1e-2", "train.log_every=1", "train.probe_batches=2"]
    done = run(
        str(Path(__file__).parents[1] / "recipes" / f"{name}.yaml"), small + sizes, model=tiny_model(), tokenizer=tiny_tokenizer(),
        progress=False,
    )  # fmt: skip
    assert len(done.adapted.assignments) == 14 and done.metrics["eval_loss"] > 0
    assert all(t.isfinite().all() for t in done.adapted.state().values())
    assert (name == "lora-ga") == any(k.endswith("offset.B") for k in done.adapted.state())


# ---- which layers: real architectures, without data


def on_meta(make):
    with torch.device("meta"):
        return make(pytest.importorskip("transformers"))


def text(t, **more):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
    return sizes | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | more


def sites(model, name):
    chosen = {row["name"] for row in deltaw.preview(model, plan(name)).rows}
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return chosen, linear


def test_ecg_lora_is_on_both_towers_without_the_projector():
    def make(t):
        vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4,
                  "vision_output_dim": 128, "image_size": 56, "patch_size": 14, "intermediate_layers_indices": [0]}  # fmt: skip
        language = text(t, num_hidden_layers=4, num_key_value_heads=2, cross_attention_layers=[3])
        language["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
        return t.MllamaForConditionalGeneration(t.MllamaConfig(vision_config=vision, text_config=language))

    chosen, linear = sites(on_meta(make), "ecg-lora")
    assert linear - chosen == {"lm_head", "model.multi_modal_projector"} and chosen <= linear


def test_cddm_is_on_vision_connector_and_language():
    def make(t):
        vision = t.CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
        )  # fmt: skip
        return t.LlavaForConditionalGeneration(
            t.LlavaConfig(text_config=t.LlamaConfig(**text(t)), vision_config=vision)
        )

    chosen, linear = sites(on_meta(make), "cddm")
    assert linear - chosen == {"lm_head"} and chosen <= linear
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(part in name for name in chosen), part


def test_protein_slm_trains_four_percent_of_phi_3_mini():
    model = on_meta(lambda t: t.Phi3ForCausalLM(t.Phi3Config(num_hidden_layers=8)))
    seen = deltaw.preview(model, plan("protein-slm"))
    tables = sum(p.numel() for n, p in model.named_parameters() if "embed" in n or "lm_head" in n)
    share = 4 * seen.trainable / (4 * (seen.base - tables) + tables)  # 32 layers
    assert 0.038 < share < 0.042
    assert {r["name"].split(".")[-1] for r in seen.rows} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    llama = on_meta(lambda t: t.LlamaForCausalLM(t.LlamaConfig(**text(t))))
    chosen, linear = sites(llama, "protein-slm")
    assert linear - chosen == {"lm_head"}


def test_topolora_is_on_the_mlps_of_a_real_sam_encoder():
    model = on_meta(lambda t: t.SamModel(t.SamConfig()))
    model.conv_adapter = ConvAdapter(256)
    rows = deltaw.preview(model, plan("topolora-sam")).rows
    adapted = [r["name"] for r in rows if r["method"] == "lora"]
    assert len(adapted) == 24 and all(n.startswith("vision_encoder.layers.") and ".mlp.lin" in n for n in adapted)
    assert {r["name"] for r in rows if r["method"] == "full"} == {"conv_adapter", "mask_decoder"}


# ---- the loss for thin structures


def line(gap=()):
    y = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    y[0, 0, 12, 3:21] = 1
    for k in gap:
        y[0, 0, 12, k] = 0
    return y


def test_the_skeleton_of_a_thin_line_is_the_line():
    torch.testing.assert_close(soft_skeleton(line()), line())
    thick = F.max_pool2d(line(), (5, 1), 1, (2, 0))
    skeleton = soft_skeleton(thick)
    assert (skeleton <= thick).all() and skeleton.sum() < thick.sum() / 3
    torch.testing.assert_close(skeleton[0, 0, 12, 6:18], torch.ones(12, dtype=torch.float64))


def test_cldice_is_zero_for_the_truth_and_closes_gaps():
    y = line()
    assert float(cldice(y, y)) < 1e-6 and float(cldice(F.max_pool2d(y, 5, 1, 2), F.max_pool2d(y, 5, 1, 2))) < 1e-6
    losses = [float(cldice(line(gap), y)) for gap in ([10, 11, 12], [10, 11], [10], [])]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-2] > losses[-1]
    # by hand: Tp = 1, Ts = 17/18
    assert losses[2] == pytest.approx(1 - 2 * (17 / 18) / (1 + 17 / 18), abs=1e-6)
    p = torch.rand(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    topology_loss(torch.logit(p, 1e-3), y.expand(2, -1, -1, -1)).backward()
    assert p.grad.isfinite().all() and p.grad.any()
    assert float(dice(y, y)) == 0


def test_the_conv_adapter_counts_and_can_start_at_nothing():
    e = torch.rand(2, 8, 6, 6)
    assert torch.equal(ConvAdapter(8, 16, zero=True).eval()(e), e)
    assert not torch.equal(ConvAdapter(8, 16).eval()(e), e)
    assert sum(p.numel() for p in ConvAdapter(8, 16).parameters()) == 8 * 9 + 2 * 8 * 16 + 2 * 16


# ---- the whole recipe: a segmenter that knows discs learns vessels


class Mixer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.mix = nn.GroupNorm(1, d), nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.lin1, self.lin2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, h):
        z = self.norm(self.mix(h)).movedim(1, -1)
        return h + self.lin2(F.gelu(self.lin1(z))).movedim(-1, 1)


class Segmenter(nn.Module):
    """Encoder, adapter, decoder, under the names of a Segment-Anything model."""

    def __init__(self, d=24):
        super().__init__()
        self.vision_encoder = nn.Sequential(nn.Conv2d(1, d, 2, 2), Mixer(d), Mixer(d))
        self.conv_adapter = nn.Identity()
        self.mask_decoder = nn.Sequential(nn.GELU(), nn.ConvTranspose2d(d, 8, 2, 2), nn.GELU(), nn.Conv2d(8, 1, 1))

    def forward(self, x):
        return self.mask_decoder(self.conv_adapter(self.vision_encoder(x)))


GRID = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))


def pictures(count, seed, vessels):
    """Noisy images with their masks: discs, or two winding lines of 2 to 3 pixels each."""
    g = torch.Generator().manual_seed(seed)
    masks = []
    for _ in range(count):
        mask = torch.zeros(32, 32)
        for _ in range(2):
            a, b, c, w = torch.rand(4, generator=g)
            if vessels:
                y = 6 + 20 * a + (3 + 3 * b) * torch.sin(GRID[1] * (0.15 + 0.2 * c) + 6 * w)
                near = (GRID[0] - y).abs() < 1.2
                mask += near if a < 0.5 else near.T
            else:
                mask += (GRID - 32 * torch.stack([a, b])[:, None, None]).square().sum(0) < (3 + 6 * c) ** 2
        masks.append(mask.clamp(max=1))
    y = torch.stack(masks)[:, None]
    return 0.6 * y + 0.5 * torch.randn(y.shape, generator=g), y


def learn(model, params, data, steps, loss, lr):
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=1e-4)
    x, y = data
    for step in range(steps):
        at = torch.arange(8) + 8 * (step % (len(x) // 8))
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss(model(x[at]), y[at]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def overlap(model, data):
    p = (model(data[0]) > 0).float()
    return float((2 * (p * data[1]).sum((1, 2, 3)) / (p + data[1]).sum((1, 2, 3))).mean())


def test_topolora_learns_vessels(tmp_path):
    torch.manual_seed(0)
    model, train, test = Segmenter(), pictures(64, 1, True), pictures(32, 2, True)
    learn(model, model.parameters(), pictures(64, 0, False), 60, topology_loss, 3e-3)
    knows = overlap(model, test)
    scores = {}
    for name, wanted in (("decoder", Plan("full", targets=["mask_decoder"])), ("topolora", plan("topolora-sam"))):
        copied = copy.deepcopy(model)
        if name == "topolora":
            copied.conv_adapter = ConvAdapter(24, 48)
        adapted = deltaw.attach(copied.train(), wanted)
        learn(copied, list(adapted.trainable().values()), train, 90, topology_loss, 3e-3)
        scores[name] = overlap(copied, test)
    assert scores["topolora"] > knows + 0.1 and scores["topolora"] > scores["decoder"] + 0.02, (knows, scores)
    # the file holds LoRA, adapter and decoder; BatchNorm's means belong to the model
    adapted.save(tmp_path)
    again = copy.deepcopy(model)
    again.conv_adapter = ConvAdapter(24, 48)
    for k, b in copied.conv_adapter.bn.named_buffers():
        again.conv_adapter.bn.get_buffer(k).copy_(b)
    deltaw.load(again.eval(), tmp_path)
    torch.testing.assert_close(again(test[0]), copied(test[0]))
