"""Optimisers of several workers: HD-PiSSA, DiLoCo and eager DiLoCo, in one process by hand and in two over gloo."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import ShapeError, SpecError, StateMismatch
from deltaw.methods import LoRA
from deltaw.methods.rules.relora import ReLoRA
from deltaw.methods.rules.switchlora import SwitchLoRA
from deltaw.methods.update.adamw import AdamW
from deltaw.methods.update.diloco import DiLoCo
from deltaw.methods.update.diloco_eager import DiLoCoEager
from deltaw.methods.update.hd_pissa import HDPiSSA
from deltaw.plan import Plan
from deltaw.testing.tiny import Tiny, settle, values

# ---- HD-PiSSA


def one(rule, steps=1, m=12, n=10, lr=1e-2):
    """W before and after steps on a fixed gradient, and the optimiser."""
    W = nn.Parameter(values(m, n, name="W"))
    start, opt = W.detach().clone(), rule.optimizer({"W": W}, lr)
    for k in range(steps):
        W.grad = values(m, n, name=f"G{k}")
        opt.step()
    return start, W.detach(), opt.state[W]


def test_frames_are_orthogonal_slices_that_stay():
    start, _, state = one(HDPiSSA(r=2, workers=4))
    frame = {k: t.clone() for k, t in state["frame"].items()}
    B, A = frame["B"], frame["A"]
    assert B.shape == (4, 12, 2) and A.shape == (4, 2, 10)
    inner, outer = B.movedim(0, 1).flatten(1), A.flatten(0, 1)
    S = torch.linalg.svdvals(start)[:8]
    torch.testing.assert_close(inner.mT @ inner, S.diag(), rtol=0, atol=1e-12)
    torch.testing.assert_close(outer @ outer.mT, S.diag(), rtol=0, atol=1e-12)
    U, S, V = torch.linalg.svd(start)
    torch.testing.assert_close(inner @ outer, U[:, :8] * S[:8] @ V[:8], rtol=0, atol=1e-12)
    later = one(HDPiSSA(r=2, workers=4), steps=6)[2]["frame"]
    assert all(torch.equal(later[k], frame[k]) for k in frame)


def test_a_step_has_at_most_twice_the_rank_of_all_frames():
    for workers, r in ((1, 2), (2, 2), (4, 1)):
        start, after, _ = one(HDPiSSA(r=r, workers=workers))
        assert int((torch.linalg.svdvals(after - start) > 1e-12).sum()) == 2 * workers * r


def test_workers_add_up():
    """With one gradient for all, K slices move W by the sum of what each slice alone would."""
    start, both, state = one(HDPiSSA(r=2, workers=2))
    total, G = torch.zeros_like(start), values(12, 10, name="G0")
    for k in range(2):
        B, A = state["frame"]["B"][k], state["frame"]["A"][k]
        dA, dB = (1e-2 * g / (g.abs() + 1e-8) for g in (8 * B.T @ G, 8 * G @ A.T))  # Adam's first step, s = 16 / 2
        total += (B - dB) @ (A - dA) - B @ A
    torch.testing.assert_close(both - start, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(one(HDPiSSA(r=2))[1] - start, (one(HDPiSSA(r=2, workers=1))[1] - start), rtol=0, atol=0)


def test_more_directions_than_there_are():
    with pytest.raises(ShapeError, match="12 directions for all workers together; a weight .12, 10. has 10"):
        one(HDPiSSA(r=4, workers=3))


# ---- DiLoCo in one process, with a wire of its own


class Wire:
    """A network with a clock: a sum is there `latency` after the last worker has sent its part. One per worker, over one log."""

    def __init__(self, rank, size, log, latency=1.0):
        self.rank, self.size, self.log, self.latency, self.time, self.sends = rank, size, log, latency, 0.0, 0

    def now(self):
        return self.time

    def start(self, t):
        parts = self.log.setdefault(self.sends, {})
        parts[self.rank] = (t.clone(), self.time)
        self.sends += 1
        return {"parts": parts, "began": self.time}

    def finish(self, sent):
        assert len(sent["parts"]) == self.size, "a worker waits for a part that was never sent"
        there = max(at for _, at in sent["parts"].values()) + self.latency
        self.time, sent["ended"] = max(self.time, there), there
        return sum(t for t, _ in sent["parts"].values()) / self.size


def workers(count, rule, latency=1.0, **kw):
    log, made = {}, []
    for rank in range(count):
        p = nn.Parameter(values(5, name="theta", dtype=torch.float64))
        made.append((p, rule.optimizer({"p": p}, 1e-2, wire=Wire(rank, count, log, latency), **kw)))
    return made


def phase(made, t, H, busy=1.0, same=False):
    """H inner steps of every worker on gradients of its own (or one for all)."""
    for rank, (p, opt) in enumerate(made):
        for h in range(H):
            p.grad = values(5, name=f"g {0 if same else rank} {t} {h}")
            opt.outer.wire.time += busy / H
            opt.step()


SGD = AdamW()


def deltas(made, before, t, H):
    """What the inner optimiser alone would have done in the phase, from the same state."""
    out = []
    for rank, (_, start) in enumerate(zip(made, before)):
        p = nn.Parameter(start["p"].clone())
        inner = SGD.optimizer({"p": p}, 1e-2)
        inner.load_state_dict({k: v for k, v in start["state"].items() if k != "outer"})
        for h in range(H):
            p.grad = values(5, name=f"g {rank} {t} {h}")
            inner.step()
        out.append(start["p"] - p.detach())
    return out


@pytest.mark.parametrize("K", [1, 3])
def test_eager_mixing_by_hand(K):
    import copy

    H, made = 3, workers(K, DiLoCoEager(every=3))
    theta = [values(5, name="theta") for _ in range(K)]
    u, last = [torch.zeros(5, dtype=torch.float64) for _ in range(K)], None
    for t in range(4):
        state = [
            copy.deepcopy(o.state_dict()) if t else {"state": {}, "param_groups": o.state_dict()["param_groups"]}
            for _, o in made
        ]
        new = deltas(made, [{"p": th, "state": s} for th, s in zip(theta, state)], t, H)
        phase(made, t, H)
        for k in range(K):
            others = 0 if last is None else sum(last) / K - last[k] / K
            d = new[k] / K + others
            u[k] = 0.9 * u[k] + d
            theta[k] = theta[k] - 0.7 * (d + 0.9 * u[k])
            torch.testing.assert_close(made[k][0].detach(), theta[k], rtol=0, atol=1e-12)
        last = new


def test_one_worker_is_plain_diloco():
    eager, plain = workers(1, DiLoCoEager(every=2)), workers(1, DiLoCo(every=2))
    for t in range(5):
        phase(eager, t, 2)
        phase(plain, t, 2)
        assert torch.equal(eager[0][0], plain[0][0])


def test_identical_workers_with_constant_moves_move_by_them_from_the_second_phase_on():
    moves = []
    made = workers(3, DiLoCoEager(every=1, momentum=0.0, outer_lr=1.0, inner={"key": "adamw"}))
    for _ in range(4):
        before = [p.detach().clone() for p, _ in made]
        phase(made, 0, 1, same=True)  # the same gradient every time: Adam moves by lr
        moves.append([float((b - p.detach()).abs().mean()) for b, (p, _) in zip(before, made)])
    assert moves[0] == pytest.approx([1e-2 / 3] * 3) and all(m == pytest.approx([1e-2] * 3) for m in moves[1:])


def test_every_share_counts_once():
    """Without momentum, and with nothing done in the last phase, all workers have moved by the sum of all means."""
    made = workers(3, DiLoCoEager(every=2, momentum=0.0, outer_lr=0.5))
    means = 0
    for t in range(4):
        phase(made, t, 2)
        means = means + sum(opt.outer.s["own"] for _, opt in made) / 3
    for p, opt in made:
        for group in opt.param_groups:
            group["lr"] = 0.0
        phase([(p, opt)], 9, 2)
        torch.testing.assert_close(values(5, name="theta") - p.detach(), 0.5 * means, rtol=0, atol=1e-12)


def test_nobody_waits_while_a_sum_travels_for_less_than_a_phase():
    for latency, want in ((0.9, 0.0), (1.0, 0.0), (1.5, 4 * 0.5)):
        made = workers(2, DiLoCoEager(every=2), latency)
        for t in range(5):
            phase(made, t, 2)
        assert all(o.outer.waited == pytest.approx(want, abs=1e-9) and o.outer.phases == 5 for _, o in made)
        assert all(o.outer.took == pytest.approx(4 * latency) for _, o in made)
    made = workers(1, DiLoCo(every=2), 0.9)
    for t in range(5):
        phase(made, t, 2)
    assert made[0][1].outer.waited == pytest.approx(5 * 0.9)


@pytest.mark.parametrize("stop", [5, 6])
def test_resume_keeps_what_was_on_its_way(stop):
    """In the middle of a phase, and between two: the sum that travels is in the state."""
    import copy

    whole, cut = workers(2, DiLoCoEager(every=3)), workers(2, DiLoCoEager(every=3))

    def go(made, first, last):
        for k in range(first, last):
            for rank, (p, opt) in enumerate(made):
                p.grad = values(5, name=f"g{rank}{k}")
                opt.step()

    go(whole, 0, 14)
    go(cut, 0, stop)
    saved = [(p.detach().clone(), copy.deepcopy(opt.state_dict())) for p, opt in cut]
    assert {"theta", "u", "own", "mean", "step"} == set(saved[0][1]["outer"]) and set(saved[0][1]["outer"]["u"]) == {
        "p"
    }
    again = workers(2, DiLoCoEager(every=3))
    for (p, opt), (w, state) in zip(again, saved):
        with torch.no_grad():
            p.copy_(w)
        opt.load_state_dict(state)
    go(again, stop, 14)
    go(cut, stop, 14)
    for (a, _), (b, _), (c, _) in zip(whole, again, cut):
        assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(StateMismatch, match="belongs to another run"):
        again[0][1].load_state_dict(AdamW().optimizer({"p": nn.Parameter(torch.zeros(5))}, 1e-2).state_dict())


def test_any_rule_may_be_inside_and_configurations_come_back():
    plan = Plan("lora", update={"key": "diloco_eager", "every": 7, "inner": {"key": "lora_plus", "ratio": 4.0}})
    assert plan.update.inner.ratio == 4.0 and Plan.from_dict(plan.to_dict()) == plan
    with pytest.raises(SpecError, match="no update 'galor'.*galore"):
        DiLoCo(inner="galor").optimizer({"p": nn.Parameter(torch.zeros(5))}, 1e-2)
    with pytest.raises(SpecError, match="at least one step"):
        DiLoCo(every=0).optimizer({"p": nn.Parameter(torch.zeros(5))}, 1e-2)
    model = settle(Tiny(), torch.float32)
    opt = deltaw.optimizer(model, DiLoCo(inner={"key": "galore", "r": 3}, every=2), 1e-2)
    for _ in range(4):
        opt.zero_grad()
        model(values(4, 16, name="x", dtype=torch.float32)).square().mean().backward()
        opt.step()
    assert opt.outer.phases == 2


def test_moves_too_small_for_bfloat16_add_up():
    """The outer weights are kept in float32, so that outer moves below the grid of the weights are not lost."""
    p = nn.Parameter(torch.full((4,), 100.0, dtype=torch.bfloat16))
    opt = DiLoCo(every=1, outer_lr=0.1, momentum=0.0).optimizer({"p": p}, 0.5)
    for _ in range(12):
        p.grad = torch.ones_like(p)
        opt.step()
    assert float(opt.outer.s["theta"][0]) == pytest.approx(100 - 12 * 0.05, abs=0.01) and float(p.detach()[0]) == 99.5


# ---- two processes

CHILD = """
import json, sys, time
import torch, torch.distributed as dist
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + folder + "/rendezvous", rank=rank, world_size=2)
import deltaw
from deltaw.methods import LoRA
from deltaw.methods.update.diloco import DiLoCo
from deltaw.methods.update.diloco_eager import DiLoCoEager
from deltaw.methods.update.hd_pissa import HDPiSSA
from deltaw.testing.tiny import Tiny, settle, values
def go(model, opt, steps, mine=True, nap=None):
    for k in range(steps):
        opt.zero_grad()
        (model(values(4, 16, name=f"x{rank if mine else 0}{k}")) - values(4, 16, name=f"y{k}")).square().mean().backward()
        if nap is not None:
            time.sleep(nap(k))
        opt.step()
def fresh():
    return settle(Tiny(), torch.float64)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list:
    """All of it in one pair of processes over gloo, which have to import torch; what each of them leaves."""
    folder = tmp_path_factory.mktemp("gloo")
    (folder / "go.py").write_text(CHILD + HD + LOCO)
    src = str(Path(deltaw.__file__).parents[1])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])}
    words = [[sys.executable, str(folder / "go.py"), str(rank), str(folder)] for rank in range(2)]
    made = [subprocess.Popen(w, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for w in words]
    try:
        done = [p.communicate(timeout=120) for p in made]
    finally:
        for p in made:
            p.kill()
    assert [p.returncode for p in made] == [0, 0], done[0][1][-1500:] + done[1][1][-1500:]
    return [torch.load(folder / f"out{rank}", weights_only=True) for rank in range(2)]


HD = """
same = fresh()
go(same, deltaw.optimizer(same, HDPiSSA(r=3), 1e-2), 5, mine=False)
own = fresh()
opt = deltaw.optimizer(own, HDPiSSA(r=3), 1e-2)
go(own, opt, 5)
frames = {n: opt.state[p]["frame"]["B"] for n, p in own.named_parameters() if "frame" in opt.state[p]}
out = {"same": same.state_dict(), "own": own.state_dict(), "frames": frames}
"""


def test_hd_pissa_over_two_processes(found):
    a, b = found
    for word in ("same", "own", "frames"):
        for name, t in a[word].items():
            assert torch.equal(t, b[word][name]), f"{name}: the processes disagree"
    virtual = settle(Tiny(), torch.float64)  # with identical data they are two slices in one process
    opt = deltaw.optimizer(virtual, HDPiSSA(r=3, workers=2), 1e-2)
    for k in range(5):
        opt.zero_grad()
        (virtual(values(4, 16, name=f"x0{k}")) - values(4, 16, name=f"y{k}")).square().mean().backward()
        opt.step()
    for name, p in virtual.named_parameters():
        torch.testing.assert_close(a["same"][name], p.detach(), rtol=0, atol=1e-12)
    first = settle(Tiny(), torch.float64)
    moved = hand(first, [f"x{rank}" for rank in range(2)], 3)
    for name, p in moved.items():
        torch.testing.assert_close(a["own"][name], p, rtol=0, atol=1e-9)


def hand(model, shards, r, steps=5, lr=1e-2):
    """HD-PiSSA with a gradient for every worker, in one process, by hand."""
    from deltaw.testing.closed.hand import adam

    p = dict(model.named_parameters())
    frames, states = {}, defaultdict(dict)
    for name, W in p.items():
        if W.dim() == 2:
            U, S, V = torch.linalg.svd(W.detach(), full_matrices=False)
            for k in range(len(shards)):
                c = slice(k * r, (k + 1) * r)
                frames[name, k] = (U[:, c] * S[c].sqrt(), S[c].sqrt()[:, None] * V[c])
    for step in range(steps):
        grads = []
        for shard in shards:
            model.zero_grad()
            (model(values(4, 16, name=f"{shard}{step}")) - values(4, 16, name=f"y{step}")).square().mean().backward()
            grads.append({n: q.grad.clone() for n, q in p.items()})
        with torch.no_grad():
            for name, W in p.items():
                if W.dim() != 2:
                    g = sum(g[name] for g in grads) / len(grads)
                    W.sub_(adam(g, states[name], lr))
                    continue
                for k, g in enumerate(grads):
                    B, A = frames[name, k]
                    gA, gB = 16 / r * B.T @ g[name], 16 / r * g[name] @ A.T
                    dA, dB = adam(gA, states[name, k, "A"], lr), adam(gB, states[name, k, "B"], lr)
                    W.add_((B - dB) @ (A - dA) - B @ A)
    return {n: q.detach() for n, q in p.items()}


LOCO = """
for word, rule in (("plain", DiLoCo(every=3)), ("eager", DiLoCoEager(every=3))):
    model = fresh()
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=3), targets=["sq", "up"], update=rule))
    go(model, adapted.optimizer(1e-2), 9)
    out[word] = {k: t.detach() for k, t in adapted.trainable().items()}
full = fresh()
opt = deltaw.optimizer(full, DiLoCoEager(every=3), 1e-2)
go(full, opt, 6)
out["full"] = {k: t.detach() for k, t in full.named_parameters()}
# process 0 is slow in even phases, process 1 in odd ones
slow = lambda k: 0.25 if (k + rank) % 2 == 0 else 0.0
for word, rule in (("waited plain", DiLoCo(every=1)), ("waited eager", DiLoCoEager(every=1))):
    model = fresh()
    opt = deltaw.optimizer(model, rule, 1e-2)
    dist.barrier()
    go(model, opt, 6, nap=slow)
    opt.state_dict()  # nothing is left on its way
    out[word], out["took" + word[6:]] = torch.tensor(opt.outer.waited), torch.tensor(opt.outer.took)
import gc
from deltaw.methods.rules.relora import ReLoRA
from deltaw.methods.rules.switchlora import SwitchLoRA
for word, rule, kw in (("relora", ReLoRA(2, 4, 0.5, 1), {}), ("switchlora", SwitchLoRA(4, 99, 2), {"init": "switchlora", "update": "switchlora"})):
    model = fresh()
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=4, alpha=1.0), targets=["sq", "up"], rules=rule, **kw))
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    go(ddp, adapted.optimizer(1e-2), 5)
    out[word] = {k: t.detach() for k, t in adapted.state().items()}
    del ddp
    gc.collect()  # its threads may not outlive the group
torch.save(out, f"{folder}/out{rank}")
dist.destroy_process_group()
"""


def by_hand(rule, eager, whole, steps):
    """Two workers in one process: the inner optimisers are AdamW, the outer one is written out."""
    models, opts = [], []
    for _ in range(2):
        model = settle(Tiny(), torch.float64)
        adapted = None if whole else deltaw.attach(model, Plan(LoRA(r=3), targets=["sq", "up"]))
        models.append((model, dict(model.named_parameters()) if whole else adapted.trainable()))
        opts.append(torch.optim.AdamW(models[-1][1].values(), 1e-2, weight_decay=0.0))
    theta = [{k: p.detach().clone() for k, p in named.items()} for _, named in models]
    u, last = [{k: 0 * t for k, t in th.items()} for th in theta], None
    for k in range(steps):
        for rank, ((model, _), opt) in enumerate(zip(models, opts)):
            opt.zero_grad()
            (model(values(4, 16, name=f"x{rank}{k}")) - values(4, 16, name=f"y{k}")).square().mean().backward()
            opt.step()
        if (k + 1) % rule.every == 0:
            d = [{n: th[n] - p.detach() for n, p in named.items()} for th, (_, named) in zip(theta, models)]
            for rank, (_, named) in enumerate(models):
                for n, p in named.items():
                    mix = (d[0][n] + d[1][n]) / 2
                    if eager:
                        mix = d[rank][n] / 2 + (0 if last is None else last[1 - rank][n] / 2)
                    u[rank][n] = 0.9 * u[rank][n] + mix
                    theta[rank][n] = theta[rank][n] - 0.7 * (mix + 0.9 * u[rank][n])
                    p.data.copy_(theta[rank][n])
            last = d
    return theta


def test_diloco_over_two_processes(found):
    cases = (
        ("plain", DiLoCo(every=3), False, False, 9),
        ("eager", DiLoCoEager(every=3), True, False, 9),
        ("full", DiLoCoEager(every=3), True, True, 6),
    )
    for word, rule, eager, whole, steps in cases:
        want = by_hand(rule, eager, whole, steps)
        for rank in range(2):
            for name, t in want[rank].items():
                torch.testing.assert_close(found[rank][word][name], t, rtol=0, atol=1e-10, msg=f"{word} {name}")
    for name, t in found[0]["plain"].items():
        assert torch.equal(t, found[1]["plain"][name])
    assert any(not torch.equal(t, found[1]["eager"][name]) for name, t in found[0]["eager"].items())
    for f in found:  # of six phases the plain form waits in three, for 0.25 s each
        assert float(f["waited plain"]) > 0.6 and float(f["waited eager"]) < 0.5 * float(f["waited plain"]), json.dumps(
            {k: float(v) for k, v in f.items() if "wait" in k}
        )
        assert float(f["took eager"]) > float(f["waited eager"])


def test_restarts_under_ddp_are_those_of_one_process(found):
    """Rules fold and draw the same in every process; gradients are means over two."""
    cases = (
        ("relora", ReLoRA(2, 4, 0.5, 1), {}),
        ("switchlora", SwitchLoRA(4, 99, 2), {"init": "switchlora", "update": "switchlora"}),
    )
    for word, rule, kw in cases:
        model = settle(Tiny(), torch.float64)
        adapted = deltaw.attach(model, Plan(LoRA(r=4, alpha=1.0), targets=["sq", "up"], rules=rule, **kw))
        opt = adapted.optimizer(1e-2)
        for k in range(5):
            opt.zero_grad()
            for rank in range(2):
                (
                    (model(values(4, 16, name=f"x{rank}{k}")) - values(4, 16, name=f"y{k}")).square().mean() / 2
                ).backward()
            opt.step()
        for name, t in adapted.state().items():
            assert torch.equal(found[0][word][name], found[1][word][name]), f"{name}: the processes disagree"
            torch.testing.assert_close(found[0][word][name], t.detach(), rtol=1e-6, atol=1e-9)
        assert all(e.moved > 4 for e in adapted.entries().values())
