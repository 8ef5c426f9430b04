"""Tests that the rooms of the house import what they may, stay small, and are cheap to import."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

import medvill_pl

ROOT = Path(medvill_pl.__file__).parent

# What a room may import of ours, from the bottom of the house to its top. What all may import is in EVERYWHERE.
ALLOWED: dict[str, set[str]] = {
    "batch": set(),
    "masks": set(),
    "files": set(),
    "html": set(),
    "atomic_checkpoint_io": set(),
    "runs": set(),
    "weights": set(),
    "tokenizer": {"weights"},
    "labeler": set(),
    "evaluation": set(),
    "models": {"masks", "tokenizer", "weights"},
    "data": {"tokenizer", "weights"},
    "preparation": {"data", "html", "labeler"},
    "synthetic": {"data", "tokenizer"},
    "tasks": {"data", "evaluation", "labeler", "masks", "models", "runs", "tokenizer", "weights"},
    "baselines": {"evaluation", "models", "tasks", "tokenizer"},
    "callbacks": {"data", "evaluation", "html", "labeler", "runs", "tokenizer"},
    "demo": {"baselines", "data", "evaluation", "html", "labeler", "masks", "models", "synthetic", "tasks"},
    "cli": {"callbacks", "atomic_checkpoint_io", "data", "demo", "labeler", "preparation", "runs", "tokenizer"},
}
EVERYWHERE = {"batch", "files"}

MAX_LINES_OF_FILE, MAX_LINES_OF_CLASS, MAX_LINES_OF_BODY = 400, 250, 50
# Files, and classes of files, that are still too long. To be emptied, never extended.
TOO_LONG: set[str] = set()


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def read_homes() -> dict[str, str]:
    """The room of each public name, from the list of them."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module).split(".")[0] for node in imports for alias in node.names}


HOMES = read_homes()


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "medvill_pl":
            rooms |= {HOMES.get(alias.name, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medvill_pl."):
            rooms.add(str(node.module).split(".")[1])
    return rooms


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return  # the public names, imported lazily
    assert imported_rooms(path) <= ALLOWED[room] | EVERYWHERE | {room}


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function after its docstring; those of functions inside it count too."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    start = function.body[0].end_lineno if has_docstring else function.body[0].lineno - 1
    return int(function.end_lineno or 0) - int(start or 0)


def too_long(path: Path) -> set[str]:
    """What is longer than it may be: the file, or a class or function of it."""
    name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    longer = {name} if len(text.splitlines()) > MAX_LINES_OF_FILE else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            num_lines, limit = int(node.end_lineno or 0) - node.lineno + 1, MAX_LINES_OF_CLASS
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines, limit = lines_of_body(node), MAX_LINES_OF_BODY
        else:
            continue
        if num_lines > limit:
            longer.add(f"{name} {node.name}")
    return longer


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_classes_and_functions_are_short(path: Path) -> None:
    assert too_long(path) <= TOO_LONG


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_or_asking_for_help_loads_nothing_heavy() -> None:
    code = """
import sys, medvill_pl
from medvill_pl.cli import main
main(["--help"])
print("loaded:", [name for name in ("torch", "lightning", "transformers", "numpy") if name in sys.modules])
"""
    assert "loaded: []" in run_python(code)


def test_backbone_and_tasks_need_neither_datasets_nor_wandb_nor_jsonargparse() -> None:
    code = """
import sys
for name in ("datasets", "wandb", "jsonargparse"):
    sys.modules[name] = None  # importing it fails
from lightning.pytorch import Trainer
from medvill_pl import PretrainingTask, SyntheticDataModule
tiny = dict(image_encoder="resnet_tiny", image_size=32, tokenizer="synthetic", hidden_size=8, num_layers=1, num_heads=1)
data = SyntheticDataModule(num_train=4, num_val=4, batch_size=4, image_size=32, negatives="labels")
trainer = Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(PretrainingTask(tiny), datamodule=data)
print("steps:", trainer.global_step)
"""
    assert "steps: 1" in run_python(code)


# Constants, whose docstring is that of their type.
NOT_DOCUMENTED = {"FINDINGS"}


def test_public_names_come_from_one_list() -> None:
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)]
    listed = [(f"medvill_pl.{node.module}", alias) for node in imports for alias in node.names]
    assert all(alias.name == alias.asname for _, alias in listed)  # else type checkers take it for private
    assert sorted(alias.name for _, alias in listed) == medvill_pl.__all__ == dir(medvill_pl)
    for module, alias in listed:
        assert getattr(medvill_pl, alias.name) is getattr(import_module(module), alias.name)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = medvill_pl.nonsense  # type: ignore[attr-defined]


def test_public_names_can_be_imported_all_at_once() -> None:
    names: dict[str, object] = {}
    exec("from medvill_pl import *", names)
    assert set(medvill_pl.__all__) <= set(names)


def test_public_names_can_be_named_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    parsed = parser.parse_args(["--callback=medvill_pl.Throughput"])
    assert isinstance(parser.instantiate(parsed).callback, medvill_pl.Throughput)


def test_public_names_are_typed_for_users(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is one of the tools of the extra `dev`")
    # Other libraries are left out: reading torch takes a minute, and the names are ours.
    Path(tmp_path, "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\n[mypy-medvill_pl.*]\nfollow_imports = silent\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import medvill_pl\n"
        "from medvill_pl import *\n"
        "reveal_type(medvill_pl.Throughput)\n"
        "reveal_type(MedViLL)\n"
        "medvill_pl.nonsense\n"
    )
    environment = os.environ | {"MYPYPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(script)],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert "-> medvill_pl.callbacks.throughput.Throughput" in done.stdout
    assert "-> medvill_pl.models.medvill.MedViLL" in done.stdout
    assert 'Module has no attribute "nonsense"' in done.stdout


@pytest.mark.parametrize("name", sorted(set(medvill_pl.__all__) - NOT_DOCUMENTED))
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(medvill_pl, name).__doc__ or "")
