"""NF4: the published table, exact grid points, block maxima, bits by formula and as stored."""

from __future__ import annotations

import torch

from ....codecs import NF, Dynamic, Plain, levels
from ...laws.base import close, must
from ...tiny import values

NF4 = (-1.0, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0.0, 0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1.0)
NF3, NF2 = (-1.0, -0.4786, -0.2171, 0.0, 0.1609, 0.3379, 0.5626, 1.0), (-1.0, 0.0, 0.3379, 1.0)


def check() -> str:
    for b, table, digits in ((4, NF4, 5), (3, NF3, 4), (2, NF2, 4)):
        must(tuple(round(v, digits) for v in levels(b)) == table, f"NF{b}: {levels(b)}")
    must(sum(v < 0 for v in levels(4)) == 7 and sum(v > 0 for v in levels(4)) == 8, "7 below 0, 8 above")
    grid = torch.tensor(levels(4)).repeat(8).view(2, 64) * torch.tensor([[3.0], [0.25]])
    plain = NF(4, 64, Plain())
    must(torch.equal(plain.decode(plain.encode(grid), (2, 64)), grid), "points of the grid do not come back exactly")
    W = values(33, 70, name="W", dtype=torch.float32)
    back = plain.decode(plain.encode(W), (33, 70))
    many = torch.nn.functional.pad(W.flatten(), (0, -W.numel() % 64)).view(-1, 64)
    decoded = torch.nn.functional.pad(back.flatten(), (0, -W.numel() % 64)).view(-1, 64)
    at = many.abs().argmax(1, keepdim=True)
    close("the largest of every block", decoded.gather(1, at).abs(), many.gather(1, at).abs(), 1e-6)
    for codec, stated in ((plain, 4.5), (NF(4, 64, Dynamic()), 4.127), (NF(3, 64, Plain()), 3.5)):
        must(abs(codec.bits(1024, 1024) - stated) < 1e-3, f"{codec}: {codec.bits(1024, 1024)} bits, {stated} stated")
        big = values(256, 256, name="big", dtype=torch.float32)
        stored = sum(t.numel() * t.element_size() for t in codec.encode(big).values()) * 8 / big.numel()
        must(abs(stored - codec.bits(256, 256)) < 1e-3, f"{codec}: {stored} bits are stored, {codec.bits(256, 256)} stated")
    gauss = values(256, 256, name="gauss", dtype=torch.float32)
    unit = gauss.view(-1, 64).abs().amax(1, keepdim=True)
    int4 = ((gauss.view(-1, 64) / unit * 7).round() / 7 * unit).view(256, 256)
    errors = [float((t - gauss).norm()) for t in (plain.decode(plain.encode(gauss), (256, 256)), int4)]
    must(errors[0] < errors[1], f"NF4 is no better than symmetric int4 on Gaussian numbers: {errors}")
    zero = torch.zeros(2, 64)
    must(torch.equal(plain.decode(plain.encode(zero), (2, 64)), zero), "a block of zeros")
    return "three tables, the grid, the largest of blocks, three prices as stored"
