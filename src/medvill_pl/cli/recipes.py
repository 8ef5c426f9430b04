"""``medvill recipes``: the recipes and examples that come with the package, wherever it is installed."""

import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from medvill_pl.cli.parser import Parser

_FOLDERS = ("tasks", "examples")


def run(verb: str, options: list[str]) -> None:
    """List the recipes, or copy them and the examples to a folder."""
    parser = Parser(f"medvill {verb}", description="List the recipes that come with the package, or copy them.")
    parser.add_argument("folder", type=Path, nargs="?", help="folder to copy tasks/ and examples/ to")
    chosen = parser.parse_args(options)
    source = shipped()
    if chosen.folder is None:
        for recipe in list_recipes():
            print(f"{recipe:<34} {_title(source / 'tasks' / recipe)}")
        print(f"\n-c finds them from any folder. They are in {source / 'tasks'}; `medvill recipes FOLDER` copies them.")
        return
    for name in _FOLDERS:
        target = chosen.folder / name
        if target.exists():
            raise FileExistsError(f"{target} is there already: move it away or choose another folder")
    for name in _FOLDERS:
        shutil.copytree(source / name, chosen.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    print(f"{chosen.folder / 'tasks'} has the recipes, {chosen.folder / 'examples'} the examples")


def shipped() -> Path:
    """The folder that holds ``tasks`` and ``examples``: the checkout, or where the package's data were installed.

    Raises:
        FileNotFoundError: if the installation lacks them.
    """
    checkout = Path(__file__).parents[3]
    if (checkout / "setup.cfg").is_file() and (checkout / "tasks").is_dir():
        return checkout
    try:
        installed = files("medvill_pl") or []
    except PackageNotFoundError:
        installed = []
    beside = Path(__file__).parents[2] / "share/medvill_pl/tasks/README.md"  # where `pip install --target` puts it
    recorded = [Path(str(path.locate())) for path in installed if path.match("share/medvill_pl/tasks/README.md")]
    for path in (*recorded, beside):
        if path.is_file():
            return path.resolve().parents[1]
    raise FileNotFoundError("this installation of medvill_pl has no recipes: install it again with pip")


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, relative to its ``tasks``.

    Example:
        >>> "pretraining/synthetic.yaml" in list_recipes()
        True
    """
    folder = shipped() / "tasks"
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.yaml"))


def find_recipe(name: str) -> Path:
    """Find the file of ``-c``: a file seen from the working folder, else one that comes with the package.

    Args:
        name: a path, or one relative to the package's ``tasks`` or to the folder that holds ``tasks`` and ``examples``.

    Raises:
        FileNotFoundError: if there is neither.

    Example:
        >>> find_recipe("pretraining/synthetic.yaml").parts[-3:]
        ('tasks', 'pretraining', 'synthetic.yaml')
    """
    if Path(name).is_file():
        return Path(name)
    if not Path(name).is_absolute():
        for folder in (shipped() / "tasks", shipped()):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"no such recipe: {name}: `medvill recipes` lists those that come with the package")


def run_name(recipe: Path) -> str:
    """The name of a run that does not give one: that of its recipe, with its task if it lies in a folder ``tasks``.

    Example:
        >>> run_name(Path("tasks/classification/mimic_cxr.yaml")), run_name(Path("mine/wide_model.yaml"))
        ('classification-mimic-cxr', 'wide-model')
    """
    words = [recipe.stem]
    if recipe.resolve().parents[1].name == "tasks":
        words.insert(0, recipe.resolve().parent.name)
    return "-".join(words).replace("_", "-")


def _title(recipe: Path) -> str:
    """The first line of a recipe's comment."""
    return recipe.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip(":")
