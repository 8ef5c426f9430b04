"""The command `medvill`: one file per group of verbs."""

from medvill_pl.cli.entry import main

__all__ = ["main"]
