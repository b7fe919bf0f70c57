"""The demo's report: what was asked, what was learned, and the evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .. import report as r

MISTAKES = 3


def page(
    s: dict[str, Any],
    answers: Sequence[dict[str, str]],
    history: Sequence[dict[str, Any]],
    norms: dict[str, dict[str, float]],
    recipe: str,
) -> r.Safe:
    """HTML of a summary (see demo.run), all answers, the lines of metrics.jsonl, the norms of run.json, recipe.yaml."""
    title = f"{s['model_name']} learns {s['task']['name'].replace('_', ' ')}"
    count, a = s["task"]["held_out"], s["adapter"]
    quick = r.tag("p", r.badge("quick run: few questions, to see that it works; its numbers mean nothing", False))
    loss = {
        "training": [(h["step"], h["loss"]) for h in history if isinstance(h.get("loss"), (int, float))],
        "held out": [(h["step"], h["eval_loss"]) for h in history if isinstance(h.get("eval_loss"), (int, float))],
    }
    return r.document(
        f"ΔW demo: {title}",
        r.tag(
            "header",
            r.tag("h1", title),
            r.tag("p", f"deltaw demo, {s['finished']}", class_="soft"),
            quick if s["quick"] else None,
        ),
        r.tiles(
            {
                "accuracy before": f"{100 * s['accuracy_before']:.1f} %",
                "accuracy after": f"{100 * s['accuracy_after']:.1f} %",
                "training": duration(s["train_seconds"]),
                "peak memory": f"{s['peak_rss_bytes'] / 1e9:.1f} GB",
                f"trained parameters, {100 * a['share']:.2g} % of the base": f"{a['trainable']:,}",
                "adapter file": f"{a['file_bytes'] / 1e6:.1f} MB",
            }
        ),
        r.section(
            "Exact answers on held-out questions",
            r.bars(
                {"before": s["accuracy_before"], "after": s["accuracy_after"]},
                f"{count} questions that were not trained on; same prompt before and after; an answer counts when it equals "
                "the expected one, character for character (white space around it aside).",
            ),
            r.tag("p", f"One prompt. System: “{s['task']['system']}” User:"),
            r.tag("pre", answers[0]["prompt"]),
        ),
        r.section(
            "Answers",
            r.tag("p", "The first held-out questions, not selected."),
            _answers(answers[:6]),
            *_mistakes(answers),
        ),
        r.section("Loss", r.lines(loss, caption="Mean over the answer tokens. Held out: once, after training.")),
        r.section(
            "How far each site moved",
            r.heat(_grid(norms), _range(norms)),
        ),
        r.section("Adapter", r.facts(_adapter(s))),
        r.section(
            "Merge certificate",
            r.tag(
                "p", "The saved adapter, read back onto a float32 base and merged; the probe is one held-out question."
            ),
            r.facts(_certificate(s["certificate"])),
        ),
        r.section("Time, memory and machine", r.facts(_machine(s))),
        r.section(
            "Recipe",
            r.tag("p", "deltaw train on this file is the training above:"),
            r.tag("pre", recipe),
        ),
        r.section("Versions", r.facts(s["versions"])),
    )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _answers(rows: Sequence[dict[str, str]]) -> r.Safe:
    def cell(row: dict[str, str], when: str) -> r.Safe:
        ok = row[when] == row["completion"]
        return r.tag("span", r.tag("b", "✓ " if ok else "✗ ", class_="good" if ok else "bad"), row[when] or "(nothing)")

    return r.table(
        ["words to reverse", "before", "after", "expected"],
        [
            [row["prompt"].rpartition(": ")[2], cell(row, "before"), cell(row, "after"), row["completion"]]
            for row in rows
        ],
    )


def _mistakes(answers: Sequence[dict[str, str]]) -> list[r.Safe]:
    wrong = [row for row in answers if row["after"] != row["completion"]]
    if not wrong:
        return [r.tag("p", "None of the answers after training was wrong.")]
    text = f"What is still wrong: {len(wrong)} of {len(answers)} answers after training; the first {min(MISTAKES, len(wrong))}:"
    return [r.tag("p", text), _answers(wrong[:MISTAKES])]


def _grid(norms: dict[str, dict[str, float]]) -> dict[str, dict[int, tuple[float, str]]]:
    """Kind of site -> layer -> (|ΔW| / |W|, hint)."""
    grid: dict[str, dict[int, tuple[float, str]]] = {}
    for name, n in norms.items():
        layer = re.search(r"\.(\d+)\.", f".{name}.")
        kind = ".".join(re.sub(r"\.\d+(?=\.)", "", name).split(".")[-2:])
        hint = f"{name}: |ΔW| = {n['delta']:.4g}, {100 * n['relative']:.3g} % of |W|"
        grid.setdefault(kind, {})[int(layer.group(1)) if layer else 0] = (n["relative"], hint)
    return grid


def _range(norms: dict[str, dict[str, float]]) -> str:
    if not norms:
        return ""
    shares = [n["relative"] for n in norms.values()]
    return (
        f"|ΔW| / |W| in the Frobenius norm, by layer (across) and site: {100 * min(shares):.2g} % to {100 * max(shares):.2g} %, "
        "the strongest colour is the largest. Point at a cell for its numbers."
    )


def _adapter(s: dict[str, Any]) -> dict[str, Any]:
    a, peft = s["adapter"], s["peft"]
    out = {
        "base": f"{s['model_name']} ({s['model']}), {a['base']:,} parameters",
        "directory": r.tag("code", s["adapter_dir"]),
        "method": a["method"],
        "sites": a["sites"],
        "trained parameters": f"{a['trainable']:,}",
        "mergeable": "yes" if a["mergeable"] else "no",
        "exact LoRA rank": a["exact_lora_rank"],
        "needs a dense base": "yes" if a["needs_dense_base"] else "no",
        "read by PEFT": "not checked: PEFT is not installed",
    }
    if peft:
        out["read by PEFT"] = (
            f"PEFT {peft['version']}: {peft['missing_keys']} missing and {peft['unexpected_keys']} unexpected keys, logits "
            f"differ by at most {peft['max_logit_difference']:.2g} (the adapter itself changes them by up to "
            f"{s['logit_change']:.3g})"
        )
    return out


def _certificate(c: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> str:
        return "-" if value is None else f"{value:.3g}"

    return {
        "weights changed": f"{c['weights_changed']:,} in {c['tensors']} tensors",
        "largest error of an output (logit)": number(c["max_error"]),
        "mean error": number(c["mean_error"]),
        "largest output, for scale": number(c["output_scale"]),
        "part of the change lost to rounding": f"{number(c['lost'])}" + (f" at {c['lost_at']}" if c["lost_at"] else ""),
        "ties broken": ", ".join(c["untied"]) or "none",
        "base, structure": r.tag("code", c["base"]["structure"]),
        "base, content": r.tag("code", c["base"]["content"]),
    }


def _machine(s: dict[str, Any]) -> dict[str, Any]:
    m, t = s["machine"], s["seconds"]
    return {
        "training": f"{duration(t['train'])}, {s['tokens']:,} tokens, {s['tokens_per_second']:.0f} tokens/s",
        "answers before, after": f"{duration(t['answers_before'])}, {duration(t['answers_after'])}",
        "everything": duration(t["all"]),
        "peak memory of the process": ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in s["peaks"].items()),
        "processor": f"{m['cpu']}, {m['cores']} cores, {m['cpu_capability']}",
        "threads in use": ", ".join(f"{k} {v}" for k, v in m["threads"].items()),
        "load average, start and end": f"{m['load_before']}, {m['load_after']}",
        "seeds": ", ".join(f"{k} {v}" for k, v in s["seeds"].items()),
    }
