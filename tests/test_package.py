"""Tests of what the wheel and the source distribution hold."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import medvill_pl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the project."""
    copy = tmp_path_factory.mktemp("build") / "project"
    leave = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "runs", "demo", "wandb")
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: leave(folder, names) if Path(folder) == ROOT else set())
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True, env=environ)
    return copy / "dist"


@pytest.mark.slow
def test_wheel_holds_the_package_alone(built: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert wheel.name.split("-")[1] == medvill_pl.__version__
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"medvill_pl"}
    files = ("__init__.pyi", "py.typed", "synthetic/vocab.txt", "cli/entry.py")
    assert {f"medvill_pl/{name}" for name in files} <= set(names)
    assert any(name.endswith("entry_points.txt") for name in names)


@pytest.mark.slow
def test_sdist_holds_recipes_tests_and_examples(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {
        "tasks/run.py",
        "tasks/pretraining/synthetic.yaml",
        "tests/conftest.py",
        "tests/preparation/conftest.py",
        "examples/use_backbone.py",
        "examples/own_task.yaml",
        "benchmarks/common.py",
        "docs/preparation.md",
        "LICENSE",
        "CHANGELOG.md",
        "README.md",
    }
    assert expected <= names


@pytest.mark.slow
def test_installed_package_has_recipes_and_examples(built: Path, tmp_path: Path) -> None:
    """All of them: a recipe in a new folder would be forgotten in setup.cfg."""
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    shared = {name.split("/share/medvill_pl/")[1] for name in names if "/share/medvill_pl/" in name}
    files = [path for folder in ("tasks", "examples") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert shared == {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(tmp_path / "lib")]
    subprocess.run([*command, str(next(built.glob("*.whl")))], check=True, capture_output=True)
    code = "import sys; from medvill_pl.cli import main; sys.exit(main())"
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    for words in (["recipes"], ["recipes", "mine"], ["fit", "-c", "vqa/synthetic.yaml", "--print_config"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/examples/own_task.yaml").is_file()
    assert "name: vqa-synthetic" in done.stdout
