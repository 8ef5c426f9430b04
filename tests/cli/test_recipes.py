"""Tests of ``medvill recipes`` and of recipes that are found from any folder."""

from pathlib import Path

import pytest

from medvill_pl.cli import main, recipes
from medvill_pl.cli.argument_order import read_words
from medvill_pl.cli.recipes import find_recipe, list_recipes, run_name, shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_recipes_are_listed_with_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for recipe in (ROOT / "tasks").glob("*/*.yaml"):
        assert f"{recipe.relative_to(ROOT / 'tasks')} " in printed
    assert "Diagnosis classification on Open-I\n" in printed


def test_recipes_and_examples_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "mine"]) == 0
    assert (tmp_path / "mine/tasks/vqa/synthetic.yaml").read_bytes() == (ROOT / "tasks/vqa/synthetic.yaml").read_bytes()
    assert (tmp_path / "mine/examples/own_task.py").is_file()
    assert main(["recipes", "mine"]) == 1
    assert "mine/tasks is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vqa/synthetic.yaml", "tasks/vqa/synthetic.yaml", "examples/own_task.yaml"])
def test_recipe_of_the_package_is_found_from_any_folder(name: str) -> None:
    assert find_recipe(name).is_file()


def test_file_of_the_working_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa/synthetic.yaml").touch()
    assert find_recipe("vqa/synthetic.yaml") == Path("vqa/synthetic.yaml")


def test_recipes_of_an_installation_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wheel puts them: the module in one folder, the recipes under ``share`` in another."""

    class Installed(type(Path())):  # type: ignore[misc]
        def locate(self) -> Path:
            return tmp_path / self

    (tmp_path / "share/medvill_pl/tasks/vqa").mkdir(parents=True)
    (tmp_path / "share/medvill_pl/tasks/vqa/mine.yaml").touch()
    (tmp_path / "share/medvill_pl/tasks/README.md").touch()
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "lib/site-packages/medvill_pl/cli/recipes.py"))
    monkeypatch.setattr(recipes, "files", lambda name: [Installed("share/medvill_pl/tasks/README.md")])
    assert shipped() == tmp_path / "share/medvill_pl"
    assert list_recipes() == ["vqa/mine.yaml"]
    monkeypatch.setattr(recipes, "files", lambda name: [])
    with pytest.raises(FileNotFoundError, match="has no recipes: install it again"):
        shipped()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-c", "classification/mimic_cxr.yaml"], "classification-mimic-cxr"),
        (["-ctasks/classification/mimic_cxr.yaml"], "classification-mimic-cxr"),
        (["-c=_trainer/cpu_debug.yaml", "--config=vqa/synthetic.yaml", "-c", "vqa/vqa_rad.yaml"], "vqa-synthetic"),
        (["--config", "examples/own_task.yaml"], "own-task"),
        (["--model", "ClassificationTask"], "run"),
    ],
)
def test_run_is_named_by_its_first_recipe(words: list[str], name: str) -> None:
    assert read_words(words).name() == name


def test_run_of_a_copied_recipe_has_the_same_name() -> None:
    assert main(["recipes", "mine"]) == 0
    assert run_name(Path("mine/tasks/vqa/vqa_rad.yaml")) == "vqa-vqa-rad"
