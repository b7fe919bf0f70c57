"""What the documents say is so: the README's example runs, its table is current, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deltaw
from deltaw.cli import main
from deltaw.spec import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)


def test_generated_documents_are_current(capsys):
    code = main(["docs", "--check", "--root", str(ROOT)])
    assert code == 0, f"run `make docs`: {capsys.readouterr().out}"


def test_docs_rewrites_what_is_stale(tmp_path, capsys):
    from deltaw.cli.docs import BEGIN, END, LAST, SECOND, own
    from deltaw.testing import AXES

    tables = f"{BEGIN}\nrow of yesterday\n{END}\nbetween\n{SECOND}\n{LAST}\n"
    (tmp_path / "README.md").write_text(f"before\n{tables}after\n")
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    (tmp_path / "docs" / "methods" / "gone.md").write_text("a method that is no more")
    assert main(["docs", "--root", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "`lora`" in text and "yesterday" not in text
    assert "`galore`" in text.split("\nbetween\n")[1] and "`galore`" not in text.split("\nbetween\n")[0]
    others = {f"{axis}-{key}" for axis, table in AXES.items() for key in table if own(table[key])}
    assert {"rules-lora_fa", "update-galore"} <= others, "a rule may be called like a structure"
    assert {p.stem for p in (tmp_path / "docs" / "methods").glob("*.md")} == set(METHODS) | others
    assert main(["docs", "--check", "--root", str(tmp_path)]) == 0
    assert main(["docs", "--root", str(tmp_path / "docs")]) == 2


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_exist(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_decision_is_listed_and_short():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for path in folder.glob("[0-9]*.md"):
        assert f"({path.name})" in index
        assert len(path.read_text().split()) < 250, f"{path.name} is more than half a page"


def test_files_named_in_decisions_exist():
    for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"):
        for name in re.findall(r"`((?:src/deltaw/)?[a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", path.read_text()):
            inside = name.removeprefix("src/deltaw/")
            assert (ROOT / "src" / "deltaw" / inside).exists(), f"{path.name}: {name}"


EXAMPLES = {"training": ("Adapted('default': LoRA", "my-adapter/adapter_config.json"), "movement": ("SubOptimizer", None), "ranks": ("0.13 [4, 5", None)}


@pytest.mark.parametrize("number, name", list(enumerate(EXAMPLES)), ids=list(EXAMPLES))
def test_the_readme_examples_are_short_and_run(number, name, tmp_path):
    """Ten lines or so each, on the real model."""
    examples = blocks(ROOT / "README.md", "python")
    assert len(examples) == len(EXAMPLES)
    assert len([line for line in examples[number].splitlines() if line.strip()]) <= 15
    env = {**os.environ, "PYTHONPATH": str(Path(deltaw.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", examples[number]], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=600
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, left = EXAMPLES[name]
    assert said in done.stdout
    assert left is None or (tmp_path / left).is_file()


def test_the_commands_of_the_readme_exist(capsys):
    from deltaw.cli.app import COMMANDS

    known = {name for names in COMMANDS.values() for name in names}
    text = "\n".join(blocks(ROOT / "README.md", "sh"))
    assert {w for w in re.findall(r"^deltaw (\w+)", text, re.M)} <= known
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text + "\n".join(blocks(ROOT / "CONTRIBUTING.md", "sh")), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_worked_example_is_the_code():
    """CONTRIBUTING shows lines of asym.py first: they are there."""
    shown = blocks(ROOT / "CONTRIBUTING.md", "python")[0]
    source = " ".join((ROOT / "src/deltaw/methods/structure/asym.py").read_text().split())
    for line in shown.splitlines():
        assert " ".join(line.split()) in source, line


def test_the_complete_examples_are_verified(tmp_path):
    """CONTRIBUTING shows whole files, under their paths: in a copy of the package each is found and agrees with its closed form."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = dict(re.findall(r"^`((?:methods|testing)/[\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)```", text, re.M | re.S))
    examples = [Path(name) for name in files if name.startswith("methods/")]
    assert [p.parent.name for p in examples] == ["update", "init", "rules"]
    assert {f"testing/closed/{p.parent.name}/{p.name}" for p in examples} == {n for n in files if n.startswith("testing/")}
    assert len(blocks(ROOT / "CONTRIBUTING.md", "python")) == 1 + len(files)
    home = Path(deltaw.__file__).parent
    shutil.copytree(home, tmp_path / "deltaw", ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in files.items():
        assert not (home / name).exists() and len(source.splitlines()) <= 45, name
        (tmp_path / "deltaw" / name).write_text(source)
    code = "import sys; from deltaw.cli import main; sys.exit(max(main(['check', word]) for word in sys.argv[1:]))"
    words = [f"{p.parent.name}/{p.stem}" for p in examples]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in words:
        assert re.search(rf"^{word} +verified", done.stdout, re.M), done.stdout


def test_constraints_pin_the_cpu_build():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pins if name.startswith(("nvidia", "triton", "cuda"))]
    assert f"TORCH  := {pins['torch']}" in (ROOT / "Makefile").read_text()
