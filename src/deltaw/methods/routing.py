"""What routing methods share: frozen banks of low-rank experts, weighted per token (no method imports another)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SpecError
from ..ops import Affine, Map, as_op
from ..sites import Site
from ..sites.find import layer_index
from ..spec import Declared, Fill, Param, Start, Tensors, kaiming, uniform


def banks(m: int, n: int, ranks: tuple[int, ...]) -> Declared:
    """A (R, n) and B (m, R), R = sum of the experts' ranks, frozen: the experts' factors one after the other.

    `deltaw.route` fills them; a rank of 0 is an expert that leaves this site alone. Random until then.
    """
    if not ranks or min(ranks) < 0:
        raise SpecError(f"a router needs one rank (0 or more) for every expert; found ranks = {ranks}")
    R = sum(ranks)
    return {"A": Param((R, n), kaiming, train=False), "B": Param((m, R), kaiming, train=False)}


class Routed(Map):
    """y = L(x) + B (w ⊙ A x), with the weight of expert e, w[..., e], on each of its `ranks[e]` rows of A.

    w (batch, tokens, K); a site that sees the tokens of all rows in one axis is recognised.
    """

    def __init__(self, L: Affine, B: Tensor, A: Tensor, w: Tensor, ranks: tuple[int, ...]):
        self.L, self.B, self.A = L, as_op(B), as_op(A)
        self.w = torch.cat([w[..., e : e + 1].expand(*w.shape[:-1], r) for e, r in enumerate(ranks)], -1)

    def mixed(self, y: Tensor, z: Tensor) -> Tensor:
        w: Tensor = self.w.to(y.dtype).reshape(*z.shape[:-1], z.shape[-1])
        return y + self.B(z.to(y.dtype) * w)

    def __call__(self, x: Tensor) -> Tensor:
        return self.mixed(self.L(x), self.A(x))

    def cols(self, i: Tensor) -> Tensor:
        return self.mixed(self.L.cols(i), self.A.cols(i))


def classifier(d: int, K: int, depth: int, size: int, scope: str) -> Declared:
    """V (K, d), c (K,); of more layers V1 (size, d), V2 (size, size), ... before it, one set for the model, and V (K, size)."""
    if depth < 1 or size < 1:
        raise SpecError(f"a classifier has at least one layer, of at least one number; found depth = {depth}, size = {size}")
    out: Declared = {}
    for k in range(1, depth):
        out[f"V{k}"] = Param((size, d), kaiming, scope="model")
        out[f"c{k}"] = Param((size,), uniform(d**-0.5), scope="model")
        d = size
    return {**out, "V": Param((K, d), kaiming, scope=scope), "c": Param((K,), uniform(d**-0.5), scope=scope)}


def classify(h: Tensor, p: Tensors, depth: int) -> Tensor:
    """V g + c with the tensors of `classifier`, g = h after its ReLU layers."""
    for k in range(1, depth):
        h = F.relu(Affine(as_op(getattr(p, f"V{k}")), getattr(p, f"c{k}"))(h))
    return Affine(as_op(p.V), p.c)(h)


def keep_largest(w: Tensor, k: int) -> Tensor:
    """w with all but its k largest entries set to 0, not renormalised; k = 0 keeps all."""
    return w if k == 0 else w * torch.zeros_like(w).scatter(-1, w.topk(k).indices, 1.0)


class Pooled(Map):
    """y = L(x) + h (sum_e p_e B_e), h = A x, p the mean of softmax(R h) over the tokens of a row of the batch."""

    mixes_tokens = True  # what a token gets depends on the other tokens of its row

    def __init__(self, L: Affine, A: Tensor, R: Tensor, B: Tensor):
        self.L, self.A, self.R, self.B = L, as_op(A), as_op(R), B

    def mixed(self, y: Tensor, h: Tensor) -> Tensor:
        rows = h if h.dim() > 2 else h.unsqueeze(-2)  # a layer that sees vectors: each is a row
        share = torch.softmax(self.R(rows), -1, dtype=self.B.dtype).mean(-2)
        B = torch.einsum("...e,erm->...rm", share, self.B)
        return y + (rows @ B.to(rows.dtype)).reshape(y.shape).to(y.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.mixed(self.L(x), self.A(x))

    def cols(self, i: Tensor) -> Tensor:
        return self.mixed(self.L.cols(i), self.A.cols(i))


def kin(site: Site) -> tuple[str, int]:
    """(a word for all sites of this name, its layer left out, and shape; the number of the layer, 0 without one)."""
    number = layer_index(site.name)
    parts = site.name.split(".")
    if number is not None:
        parts[parts.index(str(number))] = "*"
    m, n = site.shape
    return f"{'.'.join(parts)}/{m}x{n}", number or 0


def shares(z: Tensor, training: bool) -> Tensor:
    """sigmoid(z) normalised over the last axis; in training of a relaxed Bernoulli sample (Concrete, temperature 1)."""
    if training:
        u = torch.rand_like(z).clamp(torch.finfo(z.dtype).eps, 1 - torch.finfo(z.dtype).eps)
        z = z + u.log() - (-u).log1p()
    w = torch.sigmoid(z)
    return w / (w.sum(-1, keepdim=True) + 1e-12)


class ByTask(Map):
    """y = L(x) + B_k A_k x, `made(tasks)` = (B (rows, m, r), A (rows, r, n)) for the task of every row of x; a site that
    sees the tokens of all rows in one axis is recognised, and one task stands for all rows."""

    def __init__(self, L: Affine, k: Tensor, made: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self.L, self.k, self.made = L, k, made

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0] if x.dim() > 2 else 1  # made anew for every row: in training each has a sample of its own
        k = self.k.expand(rows) if len(self.k) == 1 else self.k
        if x.dim() < 2 or x.shape[0] % len(k):
            raise SpecError(f"deltaw.tasks was told of {len(k)} rows; this layer sees an input of shape {tuple(x.shape)}")
        B, A = self.made(k)
        z = x.reshape(len(k), -1, x.shape[-1])
        y = self.L(x)
        return y + (z @ A.mT.to(z.dtype) @ B.mT.to(z.dtype)).reshape(y.shape).to(y.dtype)


class Slotted(Map):
    """y = L(x) + B (w ⊙ z), z = A x, w = weigh(x, z) (…, r): a weight for every term and token. seen: counts, by term, of tokens whose
    weight is not 0; added to in place where it is given (in training)."""

    def __init__(self, L: Affine, B: Tensor, A: Tensor, weigh: Callable[[Tensor, Tensor], Tensor], seen: Tensor | None = None):
        self.L, self.B, self.A, self.weigh, self.seen = L, as_op(B), as_op(A), weigh, seen

    def __call__(self, x: Tensor) -> Tensor:
        y, z = self.L(x), self.A(x)
        w = self.weigh(x, z)
        if self.seen is not None:
            with torch.no_grad():
                self.seen.add_((w.detach() != 0).reshape(-1, w.shape[-1]).sum(0).to(self.seen))
        return y + self.B((z * w.to(z.dtype)).to(y.dtype))


class Prototyped(Map):
    """y = L(x) + sum_e w_e B_e A_e x; w the softmax of |<x, v_e>| / tau over the k experts where it is largest, 0 for the others."""

    def __init__(self, L: Affine, B: Tensor, A: Tensor, V: Tensor, ranks: tuple[int, ...], k: int, tau: float):
        self.L, self.B, self.A, self.V, self.ranks, self.k, self.tau = L, B, A, as_op(V), ranks, k, tau

    def weights(self, x: Tensor) -> Tensor:
        q = self.V(x).abs().to(torch.promote_types(x.dtype, torch.float32))
        top = q.topk(self.k, -1)
        return torch.zeros_like(q).scatter(-1, top.indices, torch.softmax(top.values / self.tau, -1))

    def __call__(self, x: Tensor) -> Tensor:
        return Routed(self.L, self.B, self.A, self.weights(x), self.ranks)(x)


def prototypes(B: Tensor, A: Tensor, ranks: tuple[int, ...], rounds: int) -> Tensor:
    """(K, n): of each expert the leading right singular vector of B_e A_e, by power iteration v <- Aᵀ Bᵀ B A v from a fixed start; 0 for an
    expert without terms."""
    B, A, out, at = B.double(), A.double(), [], 0
    for r in ranks:
        b, a = B[:, at : at + r], A[at : at + r]
        gram, at = b.mT @ b, at + r
        v = a.sum(0) + a[:1].sum(0) if r else A.new_zeros(A.shape[1])
        for _ in range(rounds if r else 0):
            v = torch.nn.functional.normalize(a.mT @ (gram @ (a @ v)), dim=0)
        out.append(v)
    return torch.stack(out)


class Fused(Map):
    """y = L(x) + sum_i w_o * g_i * h_i, h_i = B_i A_i x, g_i = sigmoid(LN_b(L(x)) * w_b + LN_l(h_i) * w_l + both * w_c + b)."""

    def __init__(self, L: Affine, p: Tensors, ranks: tuple[int, ...]):
        self.L, self.p, self.parts, at = L, p, [], 0
        for r in ranks:
            self.parts += [(as_op(p.B[:, at : at + r]), as_op(p.A[at : at + r]))] if r else []
            at += r

    def __call__(self, x: Tensor) -> Tensor:
        y, p = self.L(x), self.p
        base = F.layer_norm(y.to(p.b.dtype), y.shape[-1:], p.gain_b, p.shift_b)
        out = y
        for B, A in self.parts:
            h = B(A(x))
            mine = F.layer_norm(h.to(p.b.dtype), h.shape[-1:], p.gain_l, p.shift_l)
            gate = torch.sigmoid(base * p.w_b + mine * p.w_l + base * mine * p.w_c + p.b)
            out = out + (p.w_o * gate).to(h.dtype) * h
        return out


def sparse_rows(count: int, std: float) -> Fill:
    """In every row `count` numbers N(0, std²) at random columns, the others 0."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        order = start.uniform(shape, 1.0).argsort(dim=1, stable=True).argsort(dim=1)
        return start.normal(shape, std) * (order < count)

    return fill


def of_vectors(site: Site, key: str) -> tuple[int, int]:
    """The shape of a site that sees vectors; SpecError for an embedding, which has nothing to route by."""
    if site.kind == "embedding":
        raise SpecError(f"{site.name}: {key} routes by vectors; an embedding is looked up")
    return site.shape
