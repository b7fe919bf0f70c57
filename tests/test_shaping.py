"""Rewards and advantages of groups, against numbers worked out by hand or in plain loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from deltaw.errors import ShapeError
from deltaw.study.checks.stable_rank import stable_rank
from deltaw.testing.tiny import values
from deltaw.train import shaping as s

F = torch.float64


def test_advantages_are_standard_scores_within_a_group():
    r = [1.0, 0.0, 0.0, 1.0, 0.2, 0.4, 0.9, 0.5]
    got = s.advantages(torch.tensor(r, dtype=F), size=4)
    for k in (0, 4):
        part = r[k : k + 4]
        want = [(x - statistics.mean(part)) / (statistics.stdev(part) + 1e-4) for x in part]
        torch.testing.assert_close(got[k : k + 4], torch.tensor(want, dtype=F))
    assert (s.advantages(torch.full((6,), 0.7), 3) == 0).all(), "equal rewards teach nothing"
    items = values(8, 3, name="items")
    per = s.advantages(items, 4)
    for i in range(3):
        torch.testing.assert_close(per[:, i], s.advantages(items[:, i], 4))
    for size, n in ((3, 8), (1, 8)):
        with pytest.raises(ShapeError, match="whole number of groups"):
            s.advantages(torch.zeros(n), size)


def test_the_least_likely_keeps_its_full_reward():
    r, logp = torch.ones(4, dtype=F), torch.tensor([-0.1, -3.0, -1.0, -0.5], dtype=F)
    # ascending: -3 (rank 0), -1 (1), -0.5 (2), -0.1 (3)
    want = torch.tensor([1 - 0.25 * 3 / 4, 1.0, 1 - 0.25 / 4, 1 - 0.25 * 2 / 4], dtype=F)
    torch.testing.assert_close(s.unlikeliness(r, logp, 4), want)


def test_laws_of_the_unlikeliness_reward():
    r, logp = torch.tensor([1.0, 0, 1, 0.5, 1, 1, 0, 1]), values(8, name="logp").float()
    assert torch.equal(s.unlikeliness(r, logp, 4, beta=0.0), r)
    got = s.unlikeliness(r, logp, 4, beta=0.8)
    assert (got[r == 0] == 0).all(), "a wrong answer stays without reward"
    order = torch.tensor([2, 0, 3, 1, 5, 4, 7, 6])  # permutes within the groups
    assert torch.equal(s.unlikeliness(r[order], logp[order], 4, 0.8), got[order])
    swapped = torch.cat([got[4:], got[:4]])  # and the groups among themselves
    assert torch.equal(s.unlikeliness(r.roll(4), logp.roll(4), 4, 0.8), swapped)
    ones = s.unlikeliness(torch.ones(8), logp, 4, 0.8).view(2, 4)
    for row, lp in zip(ones, logp.view(2, 4)):
        assert (row[lp.argsort()].diff() < 0).all(), "the more likely, the less"


def test_stable_ranks_are_those_of_the_unpadded_matrices():
    H, mask = values(3, 7, 5, name="h"), torch.ones(3, 7)
    mask[0, 4:], mask[1, :2], mask[2] = 0, 0, 0
    got = s.stable_ranks(H, mask)
    assert got[0] == pytest.approx(stable_rank(H[0, :4])) and got[1] == pytest.approx(stable_rank(H[1, 2:]))
    assert got[2] == 0, "no response"
    H[0, 4:] = math.nan  # padding may hold anything
    assert s.stable_ranks(H, mask)[0] == got[0]
    rows = torch.eye(4, 5, dtype=F)[None]
    assert s.stable_ranks(3 * rows, torch.ones(1, 4))[0] == pytest.approx(4)
    assert s.stable_ranks(values(1, 1, 5, name="one").bfloat16(), torch.ones(1, 1))[0] == pytest.approx(1)


def test_a_token_belongs_to_the_item_that_it_ends():
    breaks = torch.tensor([[0, 1, 0, 2, 0, 0], [1, 0, 0, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    assert s.segments(breaks, mask).tolist() == [[0, 0, 1, 1, 3, 0], [0, 1, 1, 0, 0, 0]]


def test_segments_lie_between_tokens_and_sequences():
    logp, old = values(3, 6, name="logp"), values(3, 6, name="old")
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
    tokens, whole = torch.arange(6).expand(3, 6), torch.zeros(3, 6, dtype=torch.long)
    torch.testing.assert_close(s.segment_mean_log_ratio(logp, old, tokens, mask), (logp - old) * mask)
    mean = ((logp - old) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(s.segment_mean_log_ratio(logp, old, whole, mask), mean[:, None] * mask)
    seg = torch.tensor([[0, 0, 1, 1, 1, 2]] * 3)
    got = s.segment_mean_log_ratio(logp, old, seg, mask)
    for n in range(3):
        for t in range(6):
            mine = [float(logp[n, u] - old[n, u]) for u in range(6) if mask[n, u] and seg[n, u] == seg[n, t]]
            assert got[n, t] == pytest.approx(statistics.mean(mine) if mask[n, t] else 0.0)


def test_padding_changes_no_ratio_and_gets_no_gradient():
    logp, old = values(2, 5, name="logp").requires_grad_(), values(2, 5, name="old")
    seg, mask = torch.tensor([[0, 0, 1, 0, 0]] * 2), torch.tensor([[1, 1, 1, 0, 0]] * 2)
    got = s.segment_mean_log_ratio(logp, old, seg, mask)
    other = s.segment_mean_log_ratio(torch.where(mask.bool(), logp, 99.0), old, seg, mask)
    assert torch.equal(got, other)
    got.exp().sum().backward()
    assert (logp.grad[:, 3:] == 0).all() and (logp.grad[:, :3] != 0).all()


def test_an_item_answers_for_what_follows_it():
    hits = torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 0]], dtype=F)
    d = [1.0, 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(5)]
    want = [d[0] + d[2] + d[3], d[2] + d[3], d[2] + d[3], d[3]]
    torch.testing.assert_close(s.suffix_gain(hits), torch.tensor([want, [0.0] * 4], dtype=F))


def test_advantages_of_tokens():
    items = torch.tensor([[2.0, -1.0]] * 4)
    seg = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 2, 2, 3], [0, 0, 0, 0, 0], [0, 1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    end = torch.zeros(4, 5, dtype=torch.bool)
    end[0, 3] = end[2, 1] = end[3, 2] = True  # exactly two items; not ended; one item; a break behind the second
    got = s.token_advantages(items, seg, mask, end, overflow=-0.5, exact=0.25, early=-0.125)
    want = [[2, 2, -1, 0.25, 0], [2, -1, -0.5, -0.5, -0.5], [2, -0.125, 0, 0, 0], [2, -1, -0.5, 0, 0]]
    assert got.tolist() == want
    plain = s.token_advantages(items, seg, mask, end)
    assert plain[1].tolist() == [2, -1, 0, 0, 0] and plain[0, 3] == 0
