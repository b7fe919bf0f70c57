"""Extrapolation of weight changes: synthetic trajectories that are known exactly, and the command on real checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from train_kit import jsonl, pairs, tiny_home, tiny_model, tiny_tokenizer

import deltaw
from deltaw import Plan, extrapolate
from deltaw.cli import main
from deltaw.convert import site_delta
from deltaw.errors import NotMergeable, SpecError, StateMismatch
from deltaw.methods import LoRA, ReFT, SHiRA
from deltaw.ops import chain
from deltaw.testing.laws.base import push
from deltaw.testing.tiny import values

M, N, K = 12, 9, 5


def spectra(changes):
    return [extrapolate.spectrum((D, torch.eye(D.shape[1], dtype=D.dtype))) for D in changes]


def line_of(k, a0, d, v):
    return torch.outer(a0 + k * d, v)


def trajectory(noise=0.0):
    """ΔW_k = (a_0 + k d) vᵀ, k = 1 ... K, plus smaller directions."""
    a0, d, v = values(M, name="a0"), values(M, name="d"), values(N, name="v")
    v = v / v.norm()
    out = [line_of(k, a0, d, v) + noise * values(M, N, name=f"noise{k}") for k in range(1, K + 1)]
    return out, lambda k: line_of(k, a0, d, v)


def test_the_spectrum_of_factors_never_needs_the_matrix(monkeypatch):
    B, A = values(40, 3, name="B"), values(3, 30, name="A")
    op = chain(B, A)
    monkeypatch.setattr(type(op), "dense", lambda self: pytest.fail("made dense"))
    U, S, V = extrapolate.spectrum(op)
    assert U.shape == (40, 3) and V.shape == (3, 30)
    torch.testing.assert_close(U @ torch.diag(S) @ V, B @ A)
    torch.testing.assert_close(S, torch.linalg.svdvals(B @ A)[:3])


def test_a_linear_path_is_followed_exactly():
    changes, at = trajectory()
    for target in (K + 7, 2.5, -3):
        (B, A), line = extrapolate.predict(spectra(changes), range(1, K + 1), target)
        torch.testing.assert_close(B @ A, at(target), rtol=0, atol=1e-11)
        assert B.shape == (M, 1) and line.r2 == pytest.approx(1)
    # scores on any straight scale of the step lead to the same place
    (B, A), _ = extrapolate.predict(spectra(changes), [0.1 + 0.02 * k for k in range(1, K + 1)], 0.1 + 0.02 * 20)
    torch.testing.assert_close(B @ A, at(20), rtol=0, atol=1e-10)


def test_the_signs_of_the_svd_do_not_matter():
    """u_1 and v_1 flip together in every checkpoint; the ambient prediction stays."""
    changes, _ = trajectory(0.05)
    path, y = spectra(changes), [0.1, 0.15, 0.3, 0.35, 0.5]
    want = extrapolate.predict(path, y, 0.8)[0]
    for flips in ([-1, 1, -1, 1, -1], [1, -1, -1, -1, 1], [-1] * 5):
        flipped = [(U * f, S, V * f) for (U, S, V), f in zip(path, flips)]
        B, A = extrapolate.predict(flipped, y, 0.8)[0]
        torch.testing.assert_close(B @ A, want[0] @ want[1])
    a = extrapolate.align(torch.stack([f * U[:, 0] * S[0] for (U, S, _), f in zip(path, [-1, 1, -1, 1, 1])]))
    assert (torch.nn.functional.cosine_similarity(a[:-1], a[1:]) > 0).all()
    assert torch.equal(a[-1], path[-1][0][:, 0] * path[-1][1][0]), "the last one is the reference"


def test_the_prediction_is_counted_from_the_base_and_has_rank_one():
    changes, _ = trajectory(0.1)
    path = spectra(changes)
    (B, A), _ = extrapolate.predict(path, range(1, K + 1), 9)
    assert torch.linalg.matrix_rank(B @ A) == 1
    (B1, A1), _ = extrapolate.predict(path, range(1, K + 1), 9, rest=True)
    U, S, V = path[-1]
    torch.testing.assert_close(B1 @ A1 - B @ A, (U[:, 1:] * S[1:]) @ V[1:])


def test_partial_least_squares_of_one_component():
    """Against scikit-learn's, without its scaling."""
    cross = pytest.importorskip("sklearn.cross_decomposition")
    a, y = values(6, M, name="a"), values(6, name="y")
    line = extrapolate.fit(a, y)
    pls = cross.PLSRegression(n_components=1, scale=False)
    t = torch.as_tensor(pls.fit_transform(a.numpy(), y[:, None].numpy())[0][:, 0])
    c1 = float((t - t.mean()) @ (y - y.mean()) / ((t - t.mean()) @ (t - t.mean())))
    star = (0.7 - float(y.mean() - c1 * t.mean())) / c1
    want = torch.as_tensor(pls.inverse_transform([[star]])[0])
    torch.testing.assert_close(line.at(0.7), want)
    left = y - y.mean() - c1 * (t - t.mean())
    assert line.r2 == pytest.approx(1 - float(left @ left / ((y - y.mean()) @ (y - y.mean()))))


def test_what_does_not_move_stays():
    zero = [torch.zeros(M, N, dtype=torch.float64)] * 3
    (B, A), line = extrapolate.predict(spectra(zero), [1, 2, 3], 10)
    assert (B @ A == 0).all() and line.r2 == 0
    same = [values(M, N, name="same")] * 3
    (B, A), line = extrapolate.predict(spectra(same), [1, 2, 3], 10)
    U, S, V = spectra(same)[0]
    torch.testing.assert_close(B @ A, S[0] * torch.outer(U[:, 0], V[0]), rtol=0, atol=1e-6)
    for y in ([1.0], [1.0, 2.0]):
        with pytest.raises(SpecError, match="one score for each of at least two"):
            extrapolate.fit(values(3 if len(y) == 2 else 1, M, name="x"), y)


def test_a_truncation_keeps_the_norm():
    D = values(M, N, name="D")
    (s,) = spectra([D])
    for k in (1, 3, N):
        B, A = extrapolate.truncate(s, k)
        assert (
            torch.linalg.matrix_norm(B @ A) == pytest.approx(float(D.norm())) and torch.linalg.matrix_rank(B @ A) == k
        )
    torch.testing.assert_close(B @ A, D)
    B, A = extrapolate.truncate(s, 2, c=0.5)
    assert float((B @ A).norm()) == pytest.approx(0.5 * float(D.norm()))
    B, A = extrapolate.truncate(spectra([torch.zeros(M, N, dtype=torch.float64)])[0], 1)
    assert (B @ A == 0).all()
    with pytest.raises(SpecError, match="at least one direction"):
        extrapolate.truncate(s, 0)


# ---- adapters and the command


def checkpoint(folder, step, plan, scale=1.0):
    """An adapter whose every change is `step` times that of step 1."""
    model = tiny_model()
    adapted = deltaw.attach(model, plan)
    push(adapted, 0.05)
    with torch.no_grad():
        for name, p in adapted.trainable().items():
            if name.endswith(".B"):
                p.mul_(step * scale)
    adapted.save(folder / f"checkpoint-{step}" / "adapter")
    return adapted


def test_the_command_follows_a_run(tmp_path, capsys):
    home, run = tiny_home(tmp_path / "base"), tmp_path / "run"
    plan = Plan(LoRA(r=1), targets=["q_proj", "down_proj"])
    for step in (10, 2, 4):  # the number orders them, not the name
        last = checkpoint(run, step, plan)
    (run / "recipe.yaml").write_text(f"model: {home}\n")
    assert main(["extrapolate", str(run), "--target", "30", "-o", str(tmp_path / "out"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scores"] == [2, 4, 10] and facts["rank"] == 1 and len(facts["sites"]) == 4
    assert all(s["r2"] == pytest.approx(1) and s["rank1_share"] == pytest.approx(1) for s in facts["sites"])
    made = deltaw.load(tiny_model(), tmp_path / "out")
    for name, (B, A) in made.to_lora().factors.items():
        B4, A4 = last.to_lora().factors[name]
        torch.testing.assert_close(B @ A, 30 / 4 * B4 @ A4, rtol=1e-4, atol=1e-6)
    lines = [{"step": s, "reward": s / 20} for s in (2, 3, 4, 10)] + [{"step": 4, "warning": "x"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    words = ["extrapolate", str(run), "--scores", "reward", "--target", "1.5", "-o", str(tmp_path / "same")]
    assert main(words) == 0
    assert "from 3 checkpoints" in capsys.readouterr().out
    again = deltaw.load(tiny_model(), tmp_path / "same")
    for name, (B, A) in again.to_lora().factors.items():
        want = made.to_lora().factors[name]
        torch.testing.assert_close(B @ A, want[0] @ want[1], rtol=1e-4, atol=1e-6)
    two = [str(run / f"checkpoint-{s}") for s in (2, 4)]
    assert (
        main(
            [
                "extrapolate",
                *two,
                "--scores",
                "0.1,0.2",
                "--target",
                "1.5",
                "-o",
                str(tmp_path / "b"),
                "--base",
                str(home),
            ]
        )
        == 0
    )
    B, A = next(iter(deltaw.load(tiny_model(), tmp_path / "b").to_lora().factors.values()))
    torch.testing.assert_close(B @ A, want_first(made), rtol=1e-4, atol=1e-6)


def want_first(made):
    B, A = next(iter(made.to_lora().factors.values()))
    return B @ A


def test_the_command_truncates(tmp_path, capsys):
    home = tiny_home(tmp_path / "base")
    adapted = checkpoint(tmp_path / "run", 4, Plan(LoRA(r=3), targets=["q_proj"]))
    words = ["extrapolate", str(tmp_path / "run"), "--rank", "1", "-o", str(tmp_path / "out"), "--base", str(home)]
    assert main(words) == 0 and "LoRA of rank 1" in capsys.readouterr().out
    made = deltaw.load(tiny_model(), tmp_path / "out").to_lora().factors
    for name, (B, A) in adapted.to_lora().factors.items():
        assert float((made[name][0] @ made[name][1]).detach().norm()) == pytest.approx(
            float((B @ A).detach().norm()), rel=1e-4
        )


def test_changes_without_factors_go_through_the_dense_matrix(tmp_path):
    for step in (1, 2):
        adapted = deltaw.attach(tiny_model(), Plan(SHiRA(r=2), targets=["q_proj"], layers=[0]))
        with torch.no_grad():
            (v,) = adapted.trainable().values()
            v.copy_(step * values(len(v), name="v"))
        adapted.save(tmp_path / str(step))
    D = site_delta(adapted, adapted.assignments[0]).dense().detach().double() / 2
    read = extrapolate.read(tiny_model(), [tmp_path / "1", tmp_path / "2"])
    ((B, A),) = read.predict([1, 2], 5)[0].factors.values()
    U, S, V = torch.linalg.svd(D)
    torch.testing.assert_close(B @ A, (5 * S[0] * torch.outer(U[:, 0], V[0])).float(), rtol=1e-4, atol=1e-5)
    B, A = next(iter(read.predict([1, 2], 2, rest=True)[0].factors.values()))
    torch.testing.assert_close(B @ A, 2 * D.float(), rtol=1e-4, atol=1e-5)


def test_checkpoints_of_two_runs_are_refused(tmp_path):
    checkpoint(tmp_path, 1, Plan(LoRA(r=1), targets=["q_proj"]))
    checkpoint(tmp_path, 2, Plan(LoRA(r=1), targets=["k_proj"]))
    folders = [tmp_path / f"checkpoint-{k}" / "adapter" for k in (1, 2)]
    with pytest.raises(StateMismatch, match="adapts other places"):
        extrapolate.read(tiny_model(), folders)
    deltaw.attach(tiny_model(), Plan(ReFT(r=2))).save(tmp_path / "reft")
    with pytest.raises(NotMergeable, match="no path of weights"):
        extrapolate.read(tiny_model(), [tmp_path / "reft"])
    with pytest.raises(SpecError, match="no checkpoint"):
        extrapolate.read(tiny_model(), [])
    one = extrapolate.read(tiny_model(), folders[:1])
    with pytest.raises(SpecError, match="nothing says which way"):
        extrapolate.Checkpoints({s: p * 2 for s, p in one.paths.items()}, one.last).predict([0.5, 0.5], 1.0)


def test_the_command_says_what_is_missing(tmp_path, capsys):
    home = tiny_home(tmp_path / "base")
    for step in (1, 2):
        checkpoint(tmp_path / "run", step, Plan(LoRA(r=1), targets=["q_proj"]))
    words = ["extrapolate", str(tmp_path / "run"), "-o", str(tmp_path / "out"), "--base", str(home)]
    for more, text in [
        ([], "either --target"),
        (["--target", "3", "--rank", "1"], "either --target"),
        (["--target", "3", "--scores", "0.1"], "one score for each of the 2 checkpoints"),
        (["--target", "3", "--scores", "rewrad"], "a metric of a run"),
        (["--target", "3", "--last", "0"], "no checkpoint up to step 0"),
    ]:
        assert main(words + more) == 2 and text in capsys.readouterr().err
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    assert main([*words, "--target", "3", "--scores", "rewrad"]) == 2
    assert "nearest: reward" in capsys.readouterr().err


def test_real_checkpoints_of_a_run(tmp_path, capsys):
    """Trained here: three checkpoints, followed to the next one's step, come nearer to it than the last of them."""
    recipe = {
        "model": str(tiny_home(tmp_path / "base")),
        "data": {"path": jsonl(tmp_path / "rows.jsonl", pairs())},
        "plan": {"method": {"key": "lora", "r": 4}, "targets": ["q_proj", "down_proj"]},
        "train": {"steps": 20, "batch_size": 4, "lr": 2e-3, "schedule": "constant", "warmup": 0, "save_every": 4,
                  "keep": 9, "max_length": 64, "tune_allocator": False},
        "out": str(tmp_path / "run"),
    }  # fmt: skip
    from deltaw.train import run

    end = run(recipe, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False).adapted.to_lora().factors
    words = [
        "extrapolate",
        str(tmp_path / "run"),
        "--target",
        "20",
        "--last",
        "16",
        "--rest",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0 and "from 4 checkpoints" in capsys.readouterr().out
    guess = deltaw.load(tiny_model(), tmp_path / "out").to_lora().factors
    before = deltaw.load(tiny_model(), tmp_path / "run" / "checkpoint-16" / "adapter").to_lora().factors

    def off(found):
        return sum(float((found[s][0] @ found[s][1] - B @ A).square().sum()) for s, (B, A) in end.items())

    assert off(guess) < off(before)
