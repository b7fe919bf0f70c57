"""Laws of the expression: what it says as a matrix is what it does as a function."""

from __future__ import annotations

import torch

from ... import preview
from ...errors import DeltawError, SpecError
from ...ops import Affine, delta, factors, rank_bound
from ..tiny import Reader, Tiny, settle, values
from .base import Case, NotApplicable, close, dense, law, must


@law()
def forward_is_affine_of_dense(case: Case) -> None:
    """At every site f(x) = x Wᵀ + b with W the dense matrix of the expression."""
    model, x = case.tiny(), case.x()
    for site, L, _ in case.affine(case.attach(model), x):
        h = case.x(7, L.op.shape[1], name="h")
        want = h @ L.op.dense().mT + (0 if L.bias is None else L.bias)
        close(f"{site.name} {site.shape}", L(h), want, case.tol)
        close(f"{site.name} {site.shape} node by node", L.walk(h), want, case.tol)


@law()
def factors_are_dense(case: Case) -> str:
    """The exact factors multiply to the dense change, whose numerical rank keeps within the bound."""
    model, x, notes = case.tiny(), case.x(), set()
    for site, L, W in case.affine(case.attach(model), x):
        op = delta(L.op, W)
        change = dense(op)
        rank, bound = int(torch.linalg.matrix_rank(change, rtol=1e-9)), rank_bound(op)
        must(rank <= bound <= min(op.shape), f"{site.name}: rank {rank}, bound {bound}, shape {op.shape}")
        pair = factors(op)
        if pair is not None:
            must(pair[0].shape[1] >= rank, f"{site.name}: {pair[0].shape[1]} factors cannot hold rank {rank}")
            close(f"{site.name} factors", pair[0] @ pair[1], change, case.tol)
        notes.add(f"rank {rank} <= {bound}" + ("" if pair is None else f", {pair[0].shape[1]} factors"))
    return "; ".join(sorted(notes))


@law()
def linear_and_transposed(case: Case) -> None:
    """op(a x + b z) = a op(x) + b op(z); <op x, y> = <x, rmv y>; the dense matrix of the transpose is the transpose."""
    model, x = case.tiny(), case.x()
    for site, L, W in case.affine(case.attach(model), x):
        for op in (L.op, delta(L.op, W)):
            m, n = op.shape
            u, v, y = case.x(2, 3, n, name="u"), case.x(2, 3, n, name="v"), case.x(2, 3, m, name="y")
            close(f"{site.name} linear", op(2.0 * u - 3.0 * v), 2.0 * op(u) - 3.0 * op(v), case.tol)
            close(f"{site.name} adjoint", (op(u) * y).sum(), (u * op.rmv(y)).sum(), 1e-9)
            close(f"{site.name} rmv", op.rmv(y), y @ op.dense(), case.tol)
            close(f"{site.name} transpose", op.T.dense(), op.dense().mT, case.tol)


@law()
def looks_up_columns(case: Case) -> None:
    """On an embedding the looked-up vectors are the columns of the dense map, of the change as well."""
    if case.method.sites != "weight":
        raise NotApplicable(f"acts on a {case.method.sites}, not on a weight that could be a table")
    model, ids = case.lookup(), torch.tensor([[0, 3, 15], [3, 3, 1]])
    try:
        adapted = case.attach(model)
        y = model(ids)
    except DeltawError as refusal:
        raise NotApplicable(f"refused on an embedding: {refusal}") from refusal
    for site, L, W in case.affine(adapted, ids):
        want = L.op.dense().mT[ids] + (0 if L.bias is None else L.bias)
        close(site.name, L.cols(ids), want, case.tol)
        close(f"{site.name} forward", y, want, case.tol)
        op = delta(L.op, W)
        close(f"{site.name} change", op.cols(ids), op.dense().mT[ids], case.tol)


@law()
def count_is_the_formula(case: Case) -> str:
    """The preview, made from declarations only, counts what is then really there; and leaves the model alone."""
    model = case.tiny()
    keys = list(model.state_dict())
    seen = preview(model, case.plan(model))
    must(keys == list(model.state_dict()), "the preview changed the model")
    adapted = case.attach(model, move=False)
    trained = sum(p.numel() for p in adapted.trainable().values())
    frozen = sum(t.numel() for t in adapted.state().values()) - trained
    must(seen.trainable == trained, f"preview says {seen.trainable} trained, there are {trained}")
    must(seen.frozen_extra == frozen, f"preview says {seen.frozen_extra} frozen, there are {frozen}")
    must(trained > 0, "nothing is trained")
    return f"{trained} trained, {frozen} frozen"


AWKWARD = ((23, 17), (7, 16), (24, 13), (3, 2), (1, 1))


@law()
def shapes_fit_or_are_refused(case: Case) -> str:
    """A layer of awkward size either works or is refused with a typed error before the model is touched."""
    refused, worked = [], []
    for m, n in AWKWARD:
        prompt = case.method.sites in ("prefix", "attention", "block")
        wanted = (m, m) if case.method.sites == "stream" else (m, n)
        special = Tiny(n, n) if case.method.sites == "block" else Reader(n, 1, m)
        model = settle(special, case.dtype) if prompt else case.one(*wanted)
        wide, out = (n, n) if prompt else (model.blocks[0].in_features, model.blocks[0].out_features)
        keys = list(model.state_dict())
        try:
            adapted = case.attach(model)
        except SpecError as error:
            must(keys == list(model.state_dict()), f"{m} x {n} was refused, but the model has changed")
            must("forward" not in vars(model.blocks[0]), f"{m} x {n} was refused, but the forward is replaced")
            refused.append(f"{m}x{n} {type(error).__name__}")
            must(bool(str(error)), f"{m} x {n} was refused without a word")
            continue
        x = values(4, wide, name="x", dtype=case.dtype)
        y = model(x)
        must(y.shape == (4, out), f"{m} x {n}: output {tuple(y.shape)}")
        for site, L, _ in case.layers(adapted, x):
            if isinstance(L, Affine):
                must(L.op.dense().shape == L.op.shape == tuple(site.shape), f"{m} x {n}: operator {L.op.shape}")
        worked.append(f"{m}x{n}")
    return f"refused: {', '.join(refused) or 'none'}; worked: {', '.join(worked) or 'none'}"


@law()
def expression_ignores_the_route(case: Case) -> None:
    """The same map whether the layer is called with one vector, a batch, or a batch of sequences. What looks at a whole row
    by definition, because it reads a signal or mixes tokens, is at least the same for every row."""
    model, x = case.tiny(), case.x(2, 3, 16)
    adapted = case.attach(model)
    whole = model(x)
    mixes = any(getattr(L, "mixes_tokens", False) for _, L, _ in case.layers(adapted, x))
    if mixes or any(e.signals for e in adapted.entries().values()) or case.method.sites in ("prefix", "attention"):
        close("rows", torch.stack([model(x[k : k + 1])[0] for k in range(2)]), whole, case.tol)
        return
    close("vectors", torch.stack([model(v) for v in x.flatten(0, 1)]), whole.flatten(0, 1), case.tol)
