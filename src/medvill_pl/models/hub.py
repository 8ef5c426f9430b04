"""Saving, loading and sharing of a backbone: one folder, or one repository of the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any, Self, TypedDict

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lightning.pytorch import LightningModule
from safetensors.torch import save_model

from medvill_pl.models.config import BackboneConfig
from medvill_pl.models.old_names import rename_backbone_arguments, rename_state_dict
from medvill_pl.tokenizer import InputSpec, ReportTokenizer
from medvill_pl.weights import fetch, load_exactly, read_state_dict

_CARD = """---
{{ card_data }}
---

# {{ title }}

A MedViLL backbone: one BERT-style transformer over CNN features of a chest radiograph and the tokens of its report
([Moon et al., 2022](https://arxiv.org/abs/2105.11333)), made with `medvill_pl`.

**For research, not a medical device.** It must not be used for diagnosis or treatment.

## Trained on

{{ trained_on }}

## Use

```python
from medvill_pl import MedViLL

backbone = MedViLL.from_pretrained("path or name of this folder")
```
"""
_DOWNLOAD = ("revision", "token", "cache_dir", "force_download", "local_files_only")
"""What ``from_pretrained`` hands on to the hub; all else is an argument of the backbone."""


class TrainingCorpus(TypedDict):
    """A corpus that a backbone was trained on.

    Attributes:
        name: name and version of the corpus.
        pairs: image-report pairs in its training split.
        credentialed: True if its text and images may not be shared.

    Example:
        >>> TrainingCorpus(name="Open-I 2024", pairs=2483, credentialed=False)["pairs"]
        2483
    """

    name: str
    pairs: int
    credentialed: bool


class HubModule(
    LightningModule,
    PyTorchModelHubMixin,
    library_name="medvill_pl",
    license="mit",
    tags=["radiology", "chest-x-ray", "vision-language"],
    paper_url="https://arxiv.org/abs/2105.11333",
    model_card_template=_CARD,
):
    """A module that is saved to a folder with all that it needs, and knows what it was trained on.

    Attributes:
        tokenizer: whose ids the model reads.
        trained_on: the corpora that the weights were trained on.
    """

    tokenizer: ReportTokenizer
    trained_on: list[TrainingCorpus]

    @property
    def input_spec(self) -> InputSpec:
        """What the model reads, which its data must agree with."""
        return InputSpec(self.tokenizer, self.hparams["image_size"], self.hparams["max_tokens"])

    def config(self) -> BackboneConfig:
        """Arguments that build a backbone of this shape anywhere: no file, name or network is needed.

        The tokenizer is embedded, and no initial weights are named, since :meth:`state_dict` has them.
        """
        arguments = {
            **self.hparams,
            "image_encoder_weights": None,
            "text_weights": None,
            "tokenizer": self.tokenizer.to_json(),
        }
        return BackboneConfig(**arguments)  # type: ignore[typeddict-item]

    @property
    def is_credentialed(self) -> bool:
        """Whether a corpus that may not be shared was trained on."""
        return any(corpus["credentialed"] for corpus in self.trained_on)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights, configuration, tokenizer and what the weights were trained on (called by the mixin)."""
        save_model(self, str(save_directory / SAFETENSORS_SINGLE_FILE))
        arguments = {**self.config(), "tokenizer": "tokenizer.json"}
        (save_directory / "config.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
        (save_directory / "trained_on.json").write_text(json.dumps(self.trained_on, indent=2) + "\n", encoding="utf-8")
        self.tokenizer.save(save_directory)
        self.generate_model_card().save(save_directory / "README.md")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a backbone that ``save_pretrained`` wrote, also in version 0.1, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face hub.
            kwargs: what the hub takes (``revision``, ``token``, ``cache_dir``, ``force_download``,
                ``local_files_only``), and arguments of the backbone to change.

        Raises:
            FileNotFoundError: if there is no such folder, or the hub cannot be reached.
            ValueError: if the path is a file, such as a task's checkpoint, or the weights do not fit.
            TypeError: if an argument is none of the backbone's.
        """
        source = str(pretrained_model_name_or_path)
        _refuse_file(source)
        hub = {name: kwargs.pop(name) for name in _DOWNLOAD if name in kwargs}
        config = fetch(source, ("config.json",), "backbone", **hub)
        arguments = rename_backbone_arguments(json.loads(config.read_text(encoding="utf-8")))
        unknown = sorted(arguments.keys() - cls._hub_mixin_init_parameters.keys())
        if unknown:
            raise ValueError(f"backbone: {config} has an unknown argument {unknown[0]!r}: a later version may read it")
        tokenizer = fetch(source, ("tokenizer.json",), "tokenizer of the backbone", **hub).read_text(encoding="utf-8")
        model = cls(**{**arguments, **kwargs, "tokenizer": tokenizer})
        weights = fetch(source, (SAFETENSORS_SINGLE_FILE,), "weights of the backbone", **hub)
        load_exactly(model, rename_state_dict(read_state_dict(weights)), str(weights))
        trained_on = fetch(source, ("trained_on.json",), "training record of the backbone", **hub)
        model.trained_on = json.loads(trained_on.read_text(encoding="utf-8"))
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the model card: what the backbone is, what it was trained on, and what it is not for."""
        corpora = [
            f"- {corpus['name']}: {corpus['pairs']:,} image-report pairs" + " (credentialed)" * corpus["credentialed"]
            for corpus in self.trained_on
        ]
        trained_on = (
            "\n".join(corpora)
            or "Nothing is recorded: the weights are initial ones, or were trained outside the tasks of `medvill_pl`."
        )
        title = f"MedViLL backbone ({self.hparams['image_encoder']}, {self.hparams['num_layers']} layers)"
        card: ModelCard = super().generate_model_card(*args, title=title, trained_on=trained_on, **kwargs)
        return card

    def push_to_hub(self, repo_id: str, *, allow_credentialed: bool = False, **kwargs: Any) -> str:
        """Upload the backbone to the Hugging Face hub.

        Args:
            repo_id: name of the repository, ``owner/name``.
            allow_credentialed: upload even though a credentialed corpus was trained on. The terms of
                such corpora may forbid it.
            kwargs: what ``huggingface_hub.PyTorchModelHubMixin.push_to_hub`` takes.

        Raises:
            PermissionError: if a credentialed corpus was trained on and it is not allowed.
        """
        if self.is_credentialed and not allow_credentialed:
            names = ", ".join(corpus["name"] for corpus in self.trained_on if corpus["credentialed"])
            raise PermissionError(
                f"this backbone was trained on {names}, whose terms restrict sharing: read them, then pass "
                "allow_credentialed=True if they permit it"
            )
        url: str = super().push_to_hub(repo_id, **kwargs)
        return url


def _refuse_file(source: str) -> None:
    if Path(source).is_file() or source.endswith(".ckpt"):
        raise ValueError(
            f"{source} is no folder: a task's checkpoint is read by load_from_checkpoint of the task, and its backbone "
            "alone by medvill_pl.load_backbone, or by backbone_ckpt of another task"
        )
