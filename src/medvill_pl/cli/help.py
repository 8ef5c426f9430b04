"""The help of a job: the options that most people need, shown without importing anything heavy."""

_TITLES = {
    "fit": "Train a task by a recipe.",
    "validate": "Score a checkpoint on the validation split.",
    "test": "Score a checkpoint on the test split: test.parquet and test.json beside it.",
    "predict": "Write a table of predictions for the test split: predictions.csv and .jsonl beside the checkpoint.",
}
_CHECKPOINT = {
    "fit": """\
  --ckpt_path FILE                go on from a checkpoint, in a run of its own
  --ckpt_path last                go on with the newest run of this recipe, in its folder
  --ckpt_path last-or-new         the same, or start where there is none: for jobs that are restarted""",
    "": """\
  --ckpt_path FILE                the checkpoint
  --ckpt_path best|last           that of the newest run of this recipe""",
}


def job_help(verb: str) -> str:
    """The help of ``medvill fit``, ``validate``, ``test`` or ``predict``.

    Example:
        >>> print(job_help("fit").splitlines()[0])
        usage: medvill fit -c RECIPE [-c FILE ...] [OPTIONS]
    """
    return f"""\
usage: medvill {verb} -c RECIPE [-c FILE ...] [OPTIONS]

{_TITLES[verb]}

  -c FILE                         a recipe, yours or one that `medvill recipes` lists; later files win over earlier
                                  ones, options over files
{_CHECKPOINT.get(verb, _CHECKPOINT[""])}
  --model CLASS                   a task, by its class path (those of medvill_pl by name alone)
  --model.init_args.NAME VALUE    an argument of it, such as --model.init_args.lr 1e-4
  --data CLASS                    a data module
  --data.init_args.NAME VALUE     an argument of it, such as --data.init_args.corpus FOLDER
  --trainer.NAME VALUE            an argument of Lightning's Trainer, such as --trainer.max_epochs 3
  --trainer.callbacks+=CLASS      a callback beside the usual ones (--trainer.callbacks null: none)
  --seed_everything SEED          seed of all random numbers (default: 0)
  --print_config                  print every value as it would be used, and end
  --model.help CLASS, --data.help CLASS, --trainer.logger.help CLASS, ...
                                  the arguments of a class
  --help-all                      every option there is
  --traceback                     show where an error comes from
"""
