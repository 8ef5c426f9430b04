"""What a data module must know of the model: given by the user, or taken from the task."""

from typing import NamedTuple

from lightning.pytorch import LightningDataModule

from medvill_pl.tokenizer import MAX_TOKENS, InputSpec, ReportTokenizer


class _Given(NamedTuple):
    """What the user gave; None is taken from the task."""

    tokenizer: ReportTokenizer | None
    image_size: int | None
    max_tokens: int | None


class SpecifiedDataModule(LightningDataModule):
    """A data module whose tokenizer, image size and longest text belong to the model.

    Args:
        tokenizer: what :meth:`ReportTokenizer.load` takes; None takes the model's.
        image_size: side of the square images in pixels; None takes the model's.
        max_tokens: longer texts are truncated to this many tokens; None takes the model's limit.

    Attributes:
        connected_spec: what the model reads that this data module was connected to; None before.

    Example:
        >>> SpecifiedDataModule("synthetic", image_size=64, max_tokens=None).image_size
        64
    """

    def __init__(self, tokenizer: str | None, image_size: int | None, max_tokens: int | None) -> None:
        super().__init__()
        self._given = _Given(None if tokenizer is None else ReportTokenizer.load(tokenizer), image_size, max_tokens)
        self.connected_spec: InputSpec | None = None

    def default_spec(self) -> InputSpec | None:
        """What is taken where neither the user nor a task says it; None refuses to guess."""
        return None

    @property
    def input_spec(self) -> InputSpec:
        """Tokenizer, image size and longest text of the batches.

        Raises:
            ValueError: if one of them was neither given nor taken from a task yet.
        """
        if self.connected_spec is not None:
            return self.connected_spec
        given, fallback = self._given, self.default_spec()
        if fallback is not None:
            known = {name: value for name, value in given._asdict().items() if value is not None}
            given = _Given(**(fallback._asdict() | known))
        if given.tokenizer is None or given.image_size is None:
            missing = [name for name, value in given._asdict().items() if value is None and name != "max_tokens"]
            raise ValueError(
                f"{type(self).__name__} does not know {', '.join(missing)}: use it in a trainer with a task, call "
                "connect(task.input_spec), or give it as an argument"
            )
        return InputSpec(given.tokenizer, given.image_size, given.max_tokens or MAX_TOKENS)

    @property
    def tokenizer(self) -> ReportTokenizer:
        """Turns the texts into ids."""
        return self.input_spec.tokenizer

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.input_spec.image_size

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, without SEP_L."""
        return self.input_spec.max_tokens

    def connect(self, spec: InputSpec) -> None:
        """Take from a model what this data module was not given; in a trainer it happens before each stage.

        Args:
            spec: what the model reads.

        Raises:
            ValueError: if the data module was given something that the model cannot read.

        Example:
            >>> from medvill_pl import MedViLL, SyntheticDataModule
            >>> backbone = MedViLL("resnet_tiny", image_size=64, tokenizer="synthetic", hidden_size=8, num_layers=1,
            ...                    num_heads=1, intermediate_size=8, max_tokens=40)
            >>> data = SyntheticDataModule(num_train=4, num_val=4)
            >>> data.connect(backbone.input_spec)
            >>> data.image_size, data.max_tokens
            (64, 40)
        """
        tokenizer, image_size, max_tokens = self._given
        once = "say it once, for the model: the data takes it from there"
        if tokenizer is not None and tokenizer != spec.tokenizer:
            raise ValueError(
                f"the data's tokenizer ({tokenizer.vocab_size:,} tokens) is not the model's "
                f"({spec.tokenizer.vocab_size:,} tokens): {once}"
            )
        if image_size is not None and image_size != spec.image_size:
            raise ValueError(f"the data's image_size is {image_size}, the model's {spec.image_size}: {once}")
        if max_tokens is not None and max_tokens > spec.max_tokens:
            raise ValueError(f"the data's max_tokens is {max_tokens}, the model reads {spec.max_tokens}: {once}")
        self.connected_spec = spec if max_tokens is None else spec._replace(max_tokens=max_tokens)
