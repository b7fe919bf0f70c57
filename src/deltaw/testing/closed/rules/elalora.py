"""ElaLoRA's exchange by hand: which terms go and who grows; that new ones are orthogonal, of length 1, and young for Adam.

Without the penalty (the rule adalora's form has it): at rows that are exactly orthonormal its gradient is rounding, which Adam makes large.
"""

from __future__ import annotations

import torch

from ....methods.structure.elalora import ElaLoRA
from ...laws.base import close, must
from ..terms import SIZES, Terms

R, B0, K, EVERY, STEPS = 3, 3, 2, 3, 24


def check() -> str:
    method = ElaLoRA(R, 4.0, B0, K, EVERY, 0.1, 0.25, 0.0)
    run, moved = Terms(method, STEPS, 4.0 / (R + 1e-5)), 0
    begin, end = round(0.1 * STEPS), round(0.75 * STEPS)
    for t in range(STEPS):
        run.step(t)
        count = 0
        if t < end:
            run.listen(0.85, 0.85)
            count = round(B0 * (1 - ((t - begin) / (end - begin)) ** 3)) if t > begin and t % EVERY == 0 else 0
        if count:
            pool = []
            for site in SIZES:
                order = sorted(run.terms[site], key=run.score)
                pool += [(run.score(term), site, term) for term in order[: max(0, min(K, len(order) - 1))]]
            pool.sort(key=lambda found: found[0])
            count = min(count, len(pool))
            gone, grown = [term for _, _, term in pool[:count]], [site for _, site, _ in pool[len(pool) - count :]]
            for site in SIZES:
                lost = [term for term in run.terms[site] if any(term is other for other in gone)]
                least = min([1e-13, *(abs(float(term.t["g"])) for term in run.terms[site])])
                run.terms[site] = [term for term in run.terms[site] if all(term is not other for other in lost)]
                old = len(run.terms[site])
                new = run.fresh(site, old)
                must(len(new) == grown.count(site), f"step {t}: {site} got {len(new)} terms, by hand {grown.count(site)}")
                for term in new:
                    must(abs(float(term.t["g"]) - least) <= 1e-15, f"step {t}: a new gate is {float(term.t['g'])}")
                    for w in "ba":
                        term.memory |= {f"I.{w}": torch.zeros_like(term.t[w]), f"U.{w}": torch.zeros_like(term.t[w])}
                        close("length of a new vector", term.t[w].norm(), torch.ones(()).to(term.t[w]), 1e-9)
                    term.memory |= {"I.g": torch.zeros_like(term.t["g"]), "U.g": torch.zeros_like(term.t["g"])}
                    moved += 1
                run.terms[site] += new
                for i, term in enumerate(new):
                    for w, room in (("b", SIZES[site][0]), ("a", SIZES[site][1])):
                        others = [o.t[w] for o in run.terms[site][: old + i]]
                        if len(run.terms[site]) <= room:
                            must(all(abs(float(o @ term.t[w])) < 1e-9 * max(1.0, float(o.norm())) for o in others), "a new vector is not orthogonal")
        run.agree(f"step {t}")
        must(len(run.all()) == 2 * R, "the total rank changed")
    must(moved > 3, f"{moved} terms changed hands")
    return f"{STEPS} steps, {moved} terms changed hands"
