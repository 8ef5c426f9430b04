"""How reports are written: options, their ranges, and what each method uses."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

DecodingMethod = Literal["greedy", "beam", "sample"]

_USED_BY = {
    "num_beams": "beam",
    "length_penalty": "beam",
    "temperature": "sample",
    "top_k": "sample",
    "top_p": "sample",
}
_LEAST = {"max_new_tokens": 1, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "top_k": 1}


@dataclass(frozen=True)
class DecodingConfig:
    """How reports are written, in plain values.

    Args:
        method: ``greedy`` keeps the most probable token, ``beam`` searches, ``sample`` draws.
        max_new_tokens: a report stops after so many tokens, unfinished; None is the backbone's limit.
        min_new_tokens: SEP_L is not written before so many tokens.
        no_repeat_ngram_size: no n-gram of this size is repeated in a report; 0 allows it. Where this leaves no token,
            SEP_L follows, even before ``min_new_tokens``.
        num_beams: hypotheses per image that ``beam`` keeps.
        length_penalty: ``beam`` returns the hypothesis with the largest log-probability divided by
            length ** length_penalty, where the length counts tokens and SEP_L: 0 compares probabilities, 1 means
            per token; more favours longer reports.
        temperature: ``sample`` divides the logits by it; below 1 is closer to ``greedy``.
        top_k: ``sample`` draws from so many most probable tokens; None from all.
        top_p: ``sample`` draws from the fewest tokens that have this probability together (after ``top_k``), 0 to 1;
            None from all.

    Raises:
        ValueError: if a value is out of range, or is set although ``method`` does not use it.

    Example:
        >>> DecodingConfig("beam", num_beams=8).num_beams
        8
        >>> DecodingConfig(num_beams=8)
        Traceback (most recent call last):
        ValueError: num_beams=8 has no effect with method 'greedy': set method to 'beam'
    """

    method: DecodingMethod = "greedy"
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    num_beams: int = 4
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @classmethod
    def of(cls, options: "DecodingConfig | Mapping[str, Any] | None") -> "DecodingConfig":
        """Take a configuration as it is, or make one of options by name; what is left out keeps its default.

        Raises:
            ValueError: if there is no such option, or a value is wrong.

        Example:
            >>> DecodingConfig.of({"method": "sample", "top_k": 5}) == DecodingConfig("sample", top_k=5)
            True
        """
        if isinstance(options, DecodingConfig):
            return options
        names = [field.name for field in fields(cls)]
        for name in options or ():
            if name not in names:
                raise ValueError(f"unknown decoding option {name!r}: choose from {', '.join(names)}")
        return cls(**(options or {}))

    def __post_init__(self) -> None:
        methods = get_args(DecodingMethod)
        if self.method not in methods:
            raise ValueError(f"unknown decoding method {self.method!r}: choose one of {', '.join(methods)}")
        for field in fields(self):
            user, value = _USED_BY.get(field.name, self.method), getattr(self, field.name)
            if user != self.method and value != field.default:
                raise ValueError(
                    f"{field.name}={value} has no effect with method {self.method!r}: set method to {user!r}"
                )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be positive, not {self.temperature}: for no randomness, decode greedily"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
