"""The words of a job's command line: put in order before anything heavy is imported."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import medvill_pl
from medvill_pl.cli.recipes import find_recipe, run_name


class JobWords(NamedTuple):
    """A job's command line after the verb.

    Attributes:
        recipes: the files of ``-c``, in order.
        options: the other words, in order.
    """

    recipes: list[Path]
    options: list[str]

    def arguments(self) -> list[str]:
        """The words with the recipes first, so that an option wins over a recipe wherever it was written."""
        return [*(f"--config={path}" for path in self.recipes), *self.options]

    def name(self) -> str:
        """The name of the run: that of its first recipe."""
        recipes = [path for path in self.recipes if not path.resolve().parent.name.startswith("_")]
        return run_name(recipes[0]) if recipes else "run"

    def import_named(self) -> None:
        """Import the public names of the package that are mentioned, so that they are found by their short names."""
        text = " ".join([*self.options, *(path.read_text(encoding="utf-8") for path in self.recipes)])
        for name in sorted(set(re.findall(r"\b[A-Z]\w+", text)) & set(dir(medvill_pl))):
            getattr(medvill_pl, name)


def read_words(words: Sequence[str]) -> JobWords:
    """Tell recipes from options, and find the files of the recipes.

    Raises:
        ValueError: if the last word is a ``-c`` without a file.
        FileNotFoundError: if there is no such recipe.

    Example:
        >>> words = read_words(["--trainer.max_epochs=1", "-c", "pretraining/synthetic.yaml"])
        >>> words.name(), words.arguments()[-1]
        ('pretraining-synthetic', '--trainer.max_epochs=1')
    """
    recipes, options = [], []
    rest = iter(words)
    for word in rest:
        if word in ("-c", "--config"):
            name = next(rest, None)
            if name is None:
                raise ValueError(f"{word} needs the file of a recipe")
            recipes.append(find_recipe(name))
        elif match := re.fullmatch(r"(?:-c|--config=)=?(.+)", word):
            recipes.append(find_recipe(match[1]))
        else:
            options.append(word)
    return JobWords(recipes, options)
