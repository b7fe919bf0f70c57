"""Batches: an order that depends on seed and epoch only, and padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .encode import IGNORE, Item

WINDOW = 16  # batches that are sorted by length together: large enough to save padding, small enough to stay random


class Order(Sampler[int]):
    """Every row once an epoch. sort: rows are shuffled, sorted by length within windows, and the batches shuffled.

    The order is a function of (seed, epoch), not of the global random state: resuming needs no replay.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, sort: bool):
        self.lengths, self.batch_size, self.seed, self.sort, self.epoch = lengths, batch_size, seed, sort, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        g = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(len(self.lengths), generator=g).tolist()
        if not self.sort:
            yield from order
            return
        B = self.batch_size
        batches: list[list[int]] = []
        for k in range(0, len(order), B * WINDOW):
            window = sorted(order[k : k + B * WINDOW], key=lambda i: self.lengths[i])
            batches += [window[j : j + B] for j in range(0, len(window), B)]
        tail = batches.pop() if len(batches[-1]) < B else []  # a short batch anywhere else would shift all after it
        for b in torch.randperm(len(batches), generator=g).tolist():
            yield from batches[b]
        yield from tail


class Collate:
    """Right padding. Packed rows get no attention mask: their position_ids restart, also at the padding."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, items: list[Item]) -> dict[str, Tensor]:
        width = max(len(i["input_ids"]) for i in items)

        def rows(key: str, fill: int) -> Tensor:
            return torch.tensor([i[key] + [fill] * (width - len(i[key])) for i in items])

        out = {"input_ids": rows("input_ids", self.pad), "labels": rows("labels", IGNORE)}
        if "position_ids" in items[0]:
            out["position_ids"] = torch.tensor(
                [i["position_ids"] + list(range(width - len(i["position_ids"]))) for i in items]
            )
        else:
            out["attention_mask"] = torch.tensor(
                [[1] * len(i["input_ids"]) + [0] * (width - len(i["input_ids"])) for i in items]
            )
        return out


class Rows(torch.utils.data.Dataset[Item]):
    """A list as torch wants it."""

    def __init__(self, items: list[Item]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


@torch.no_grad()
def keeps_rows_apart(model: Any) -> bool:
    """Does the model treat a packed row like its parts? Asked of the model itself with two short rows, because it depends
    on the architecture and on the attention implementation, and a wrong guess lets rows read each other."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, vocabulary, (1, n), generator=g).to(device) for n in (7, 9))
    position = torch.cat([torch.arange(7), torch.arange(9)])[None].to(device)
    was = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=a).logits, model(input_ids=b).logits], 1).float()
        packed = model(input_ids=torch.cat([a, b], 1), position_ids=position, use_cache=False).logits.float()
        together = model(input_ids=torch.cat([a, b], 1), use_cache=False).logits.float()
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        model.train(was)
    error, leak = (alone - packed).abs().max(), (alone - together).abs().max()
    return bool(error < 0.05 * leak)
