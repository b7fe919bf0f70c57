"""The target language, overrides and previews; everything that matches nothing is an error with a way out."""

import json

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import ShapeError, SpecError, TargetError
from deltaw.methods import DoRA, LoRA


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(8, 16), "down_proj": nn.Linear(16, 8)})

    def forward(self, x):
        x = x + self.v_proj(torch.tanh(self.q_proj(x)))
        return x + self.mlp["down_proj"](torch.relu(self.mlp["up_proj"](x)))


class Net(nn.Module):
    def __init__(self, layers=12):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.lm_head = nn.Linear(8, 10)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.layers:
            x = block(x)
        return self.lm_head(x)


def names(plan, model=None):
    return [a.site.name for a in plan.resolve(model or Net())]


def test_all_linear_leaves_the_output_head_out():
    found = names(deltaw.Plan("lora"))
    assert len(found) == 48 and "lm_head" not in found and "embed" not in found


def test_all_linear_is_also_a_place_for_whole_modules():
    assert names(deltaw.Plan("full")) == names(deltaw.Plan("lora"))


def test_suffixes_match_whole_components():
    assert len(names(deltaw.Plan("lora", targets=["q_proj", "mlp.down_proj"]))) == 24
    assert names(deltaw.Plan("lora", targets=["layers.1.q_proj"])) == ["layers.1.q_proj"]  # not layers.11
    with pytest.raises(TargetError, match="q_proj"):
        names(deltaw.Plan("lora", targets=["proj"]))


def test_a_string_is_one_regular_expression_for_whole_names():
    assert names(deltaw.Plan("lora", targets=r"layers\.(0|3)\.[qv]_proj")) == [
        "layers.0.q_proj", "layers.0.v_proj", "layers.3.q_proj", "layers.3.v_proj",
    ]  # fmt: skip
    with pytest.raises(TargetError):
        names(deltaw.Plan("lora", targets=r"q_proj"))
    with pytest.raises(SpecError, match="regular expression"):
        names(deltaw.Plan("lora", targets=r"layers.(0"))


def test_an_element_that_matches_nothing_is_an_error_even_if_others_match():
    with pytest.raises(TargetError, match="'k_proj' matches nothing.*nearest: .*q_proj"):
        names(deltaw.Plan("lora", targets=["q_proj", "k_proj"]))


def test_a_container_is_no_target_and_the_message_names_what_is_inside():
    with pytest.raises(TargetError, match="holds no weight.*mlp.up_proj"):
        names(deltaw.Plan("lora", targets=["layers.0.mlp"]))


def test_exclusions_must_match_too():
    assert len(names(deltaw.Plan("lora", exclude=["down_proj"]))) == 36
    with pytest.raises(TargetError, match="exclude 'o_proj'"):
        names(deltaw.Plan("lora", exclude=["o_proj"]))
    with pytest.raises(TargetError, match="leaves nothing"):
        names(deltaw.Plan("lora", targets=["q_proj"], exclude=["q_proj"]))


def test_layers():
    assert names(deltaw.Plan("lora", targets=["q_proj"], layers=range(2))) == ["layers.0.q_proj", "layers.1.q_proj"]
    assert names(deltaw.Plan("lora", targets=["q_proj"], layers=11)) == ["layers.11.q_proj"]
    with pytest.raises(TargetError, match=r"layers \[12, 30\] do not exist.*0 to 11"):
        names(deltaw.Plan("lora", targets=["q_proj"], layers=[1, 12, 30]))


def test_overrides_change_any_field_reach_into_wrappers_and_can_drop_a_site():
    plan = deltaw.Plan(
        DoRA(LoRA(r=4, alpha=8.0)),
        targets=["q_proj", "down_proj"],
        overrides={"layers.0.q_proj": {"r": 2}, "q_proj": {"r": 6, "alpha": 3.0}, r"layers\.1\..*down_proj": None},
    )
    by_name = {a.site.name: a.method for a in plan.resolve(Net())}
    assert by_name["layers.0.q_proj"] == DoRA(LoRA(r=2, alpha=8.0))
    assert by_name["layers.5.q_proj"] == DoRA(LoRA(r=6, alpha=3.0))
    assert by_name["layers.0.mlp.down_proj"] == DoRA(LoRA(r=4, alpha=8.0))
    assert "layers.1.mlp.down_proj" not in by_name


def test_overrides_that_match_nothing_or_set_unknown_fields_are_errors():
    with pytest.raises(TargetError, match="override 'o_proj'"):
        names(deltaw.Plan("lora", overrides={"o_proj": {"r": 2}}))
    with pytest.raises(SpecError, match="no field 'rank'"):
        names(deltaw.Plan("lora", overrides={"q_proj": {"rank": 2}}))


def test_absent_saved_modules_and_wrong_token_ids():
    with pytest.raises(TargetError, match="train_modules 'score' matches nothing"):
        names(deltaw.Plan("lora", train_modules=["score"]))
    with pytest.raises(SpecError, match="0..9"):
        deltaw.preview(Net(), deltaw.Plan("lora", token_rows={"embed": [3, 10]}))


def test_unknown_words_offer_the_nearest():
    with pytest.raises(SpecError, match="no method 'lorra'; nearest: lora"):
        deltaw.Plan("lorra")
    with pytest.raises(SpecError, match="no init 'pisa'; nearest: pissa"):
        deltaw.Plan("lora", init="pisa")
    with pytest.raises(SpecError, match="no update 'adamwe'; nearest: adamw"):
        deltaw.Plan("lora", update="adamwe")
    with pytest.raises(SpecError, match="no field 'target'; nearest: targets"):
        deltaw.Plan.from_dict({"method": "lora", "target": ["q_proj"]})
    with pytest.raises(SpecError, match="lora.r must be int"):
        deltaw.Plan.from_dict({"method": {"key": "lora", "r": "8"}})


def test_a_plan_survives_json():
    plan = deltaw.Plan(
        DoRA(LoRA(r=4)), targets=["q_proj"], exclude=["layers.0.q_proj"], layers=range(3), init="pissa", update="lora_plus",
        overrides={"layers.1.q_proj": {"r": 2}, "layers.2.q_proj": LoRA(r=1)}, train_modules=["lm_head"],
        token_rows={"embed": [1]}, seed=3,
    )  # fmt: skip
    again = deltaw.Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan


def test_preview_counts_what_attach_makes_and_touches_nothing():
    model = Net(3)
    before = (
        [id(p) for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        list(model.state_dict()),
    )
    plan = deltaw.Plan(DoRA(LoRA(r=2)), train_modules=["lm_head"], token_rows={"embed": [1, 2]})
    seen = deltaw.preview(model, plan, tokens=64)
    after = [id(p) for p in model.parameters()], [p.requires_grad for p in model.parameters()], list(model.state_dict())
    assert before == after and "forward" not in model.lm_head.__dict__
    adapted = deltaw.attach(model, plan)
    assert seen.trainable == sum(p.numel() for p in adapted.trainable().values())
    assert seen.optimizer_bytes == 8 * seen.trainable and seen.activation_bytes > 0
    assert json.loads(json.dumps(seen.to_dict()))["trainable"] == seen.trainable
    assert "trainable parameters" in str(seen)


@pytest.mark.parametrize("method", ["full", LoRA(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("update", ["adamw", {"key": "galore", "r": 4}, {"key": "frugal", "density": 0.5}, "lora_pro"], ids=str)
def test_previewed_optimiser_bytes_are_those_of_the_update_rule(method, update):
    from deltaw.testing.updates import state_floats

    model, plan = Net(1), deltaw.Plan(method, update=update)
    seen = deltaw.preview(model, plan)
    adapted = deltaw.attach(model, plan)
    if update == "lora_pro" and method == "full":
        with pytest.raises(SpecError):  # it moves A and B together
            adapted.optimizer(1e-3)
        return
    optimizer = adapted.optimizer(1e-3)
    model(torch.arange(9).view(3, 3)).square().mean().backward()
    optimizer.step()
    assert ("layers.0.mlp.up_proj", (16, 8)) in [(r["name"], tuple(r["shape"])) for r in seen.rows] and seen.activation_bytes > 0
    assert seen.optimizer_bytes == 4 * sum(state_floats(optimizer, p) for p in adapted.trainable().values())


def test_nothing_is_attached_when_a_plan_fails_halfway():
    model = Net(2)
    keys = list(model.state_dict())
    with pytest.raises((SpecError, ShapeError)):
        deltaw.attach(model, deltaw.Plan("lora", token_rows={"embed": [99]}))
    assert list(model.state_dict()) == keys and "_deltaw" not in model.__dict__
    assert all(p.requires_grad for p in model.parameters())


def test_a_tensor_of_the_whole_model_cannot_have_two_seeds():
    plan = deltaw.Plan(deltaw.methods.VeRA(r=2), overrides={"q_proj": {"seed": 1}})
    with pytest.raises(SpecError, match="shared by all sites"):
        deltaw.attach(Net(1), plan)


def test_the_first_override_wins_in_files_too(tmp_path):
    """JSON and YAML are written with sorted keys; an order that is another one has to survive."""
    from deltaw.testing.tiny import Tiny, settle

    plan = deltaw.Plan(LoRA(r=4), overrides={"up": {"r": 2}, "blocks.0.up": {"r": 3}})
    again = deltaw.Plan.from_dict(json.loads(json.dumps(plan.to_dict(), sort_keys=True)))
    assert again == plan and list(again.overrides) == ["up", "blocks.0.up"]
    deltaw.attach(settle(Tiny(), torch.float32), plan).save(tmp_path)
    loaded = deltaw.load(settle(Tiny(), torch.float32), tmp_path)
    assert {e.get("A").shape[0] for n, e in loaded.entries().items() if n.endswith("up")} == {2}
    assert list(loaded.plan.overrides) == ["up", "blocks.0.up"]
