"""MedViLL: one BERT-style transformer over a radiograph and its report (MedViLL, Sec. III-B)."""

import copy
import json
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lightning.pytorch import LightningModule
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertPooler

from medvill_pl.masks import MaskStrategy, attention_mask
from medvill_pl.models.image_encoder import ImageEncoder, ImageEncoderName, VisualEmbedding, make_cnn, sample_positions
from medvill_pl.models.text import LanguageModellingHead, ReportEmbedding
from medvill_pl.tokenizer import MAX_TOKENS, ReportTokenizer
from medvill_pl.weights import fetch, load_exactly, looks_like_path, read_state_dict, torchvision_state_dict

_CARD = """---
{{ card_data }}
---

# {{ title }}

A MedViLL backbone: one BERT-style transformer over CNN features of a chest radiograph and the words of its report
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


class BackboneConfig(TypedDict, total=False):
    """The arguments of :class:`MedViLL`, for tasks that build a backbone; what is left out keeps its default."""

    image_encoder: ImageEncoderName
    image_size: int
    image_encoder_weights: str | None
    freeze_image_encoder_stages: int
    tokenizer: str
    max_tokens: int
    text_weights: str | None
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    dropout: float
    layer_norm_eps: float
    mlm_layer_norm_eps: float
    gradient_checkpointing: bool
    channels_last: bool


class TrainingCorpus(TypedDict):
    """A corpus that a backbone was trained on.

    Attributes:
        name: name and version of the corpus.
        pairs: image-report pairs in its training split.
        credentialed: True if its text and images may not be shared.
    """

    name: str
    pairs: int
    credentialed: bool


class BackboneOutput(NamedTuple):
    """Contextual embeddings of a batch of image-report pairs, d wide.

    Attributes:
        pooled: BERT's pooler on CLS, shape ``(B, d)``; under ``non_crossing`` the elementwise
            product of the pooled CLS_V and CLS_L.
        cls: CLS, shape ``(B, d)``.
        visual: visual tokens, shape ``(B, K, d)``.
        text: words and SEP_L, shape ``(B, T, d)``.
    """

    pooled: Tensor
    cls: Tensor
    visual: Tensor
    text: Tensor


class MedViLL(
    LightningModule,
    PyTorchModelHubMixin,
    library_name="medvill_pl",
    license="mit",
    tags=["radiology", "chest-x-ray", "vision-language"],
    paper_url="https://arxiv.org/abs/2105.11333",
    model_card_template=_CARD,
):
    """Image and report to contextual embeddings. It never logs and never optimises: tasks do.

    The joint sequence is CLS, visual tokens, SEP_V, words, SEP_L (Sec. III-B.3). CLS and SEP_V are
    a word embedding plus one learned vector each; under ``non_crossing``, CLS_L is put before the
    words. Sizes default to the paper's (Sec. IV-B).

    Args:
        image_encoder: CNN trunk.
        image_size: side of the square images, in pixels.
        image_encoder_weights: initial weights of the trunk: a torchvision name (``IMAGENET1K_V2``), a
            local file, a hub name (``owner/name``), or None (also ``"none"``) for random ones. The paper
            starts from ImageNet.
        freeze_image_encoder_stages: how many stages of the trunk, the stem first, are not trained.
        tokenizer: what :meth:`ReportTokenizer.load` takes.
        max_tokens: longest report in word pieces, without SEP_L.
        text_weights: initial weights of embeddings, encoder, pooler and MLM head: a local folder or
            a hub name that ``transformers`` can load as BERT, or None (also ``"none"``) for random ones.
        hidden_size: width d of the transformer.
        num_layers: transformer layers.
        num_heads: attention heads a layer.
        intermediate_size: width of the feed-forward layers.
        dropout: probability of dropout, of hidden states and of attention.
        layer_norm_eps: epsilon of every LayerNorm but the MLM head's.
        mlm_layer_norm_eps: epsilon of the MLM head's LayerNorm.
        gradient_checkpointing: recompute the activations of transformer layers in the backward
            pass, for less memory.
        channels_last: run the trunk in the channels-last memory format.

    Attributes:
        tokenizer: the :class:`ReportTokenizer` whose ids the model reads.
        num_visual: visual tokens K of a whole image.
        trained_on: the corpora that the weights were trained on.

    Raises:
        ValueError: if an argument is out of range or weights do not fit.
        FileNotFoundError: if weights or tokenizer are not to be had.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... ).eval()
        >>> ids = torch.tensor([backbone.tokenizer.encode(["No pneumothorax."])[0] + [backbone.tokenizer.sep_id]])
        >>> output = backbone(
        ...     images=torch.zeros(1, 1, 64, 64),
        ...     input_ids=ids,
        ...     text_mask=torch.ones_like(ids).bool(),
        ...     mask_strategy="bar",
        ... )
        >>> output.pooled.shape, output.visual.shape, output.text.shape
        (torch.Size([1, 32]), torch.Size([1, 16, 32]), torch.Size([1, 4, 32]))
    """

    def __init__(
        self,
        image_encoder: ImageEncoderName = "resnet50",
        image_size: int = 512,
        image_encoder_weights: str | None = None,
        freeze_image_encoder_stages: int = 0,
        tokenizer: str = "bert-base-uncased",
        max_tokens: int = MAX_TOKENS,
        text_weights: str | None = None,
        hidden_size: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int = 3072,
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        mlm_layer_norm_eps: float = 1e-5,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        image_encoder_weights, text_weights = _name_or_none(image_encoder_weights), _name_or_none(text_weights)
        self.tokenizer = ReportTokenizer.load(tokenizer)
        arguments |= {
            "image_encoder_weights": image_encoder_weights,
            "text_weights": text_weights,
            "tokenizer": "embedded" if tokenizer.startswith("{") else tokenizer,
        }
        self.save_hyperparameters(arguments)  # by name: Lightning alone would add those of a task that calls this
        self.trained_on: list[TrainingCorpus] = []

        cnn = make_cnn(image_encoder)
        if image_encoder_weights is not None:
            _load_image_encoder_weights(cnn, image_encoder, image_encoder_weights)
        self.image_encoder = ImageEncoder(cnn, freeze_image_encoder_stages)
        if image_size < self.image_encoder.stride or image_size % self.image_encoder.stride:
            raise ValueError(
                f"image_size must be a multiple of {self.image_encoder.stride} for {image_encoder}, not {image_size}"
            )
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_heads {num_heads}")
        self.num_visual = (image_size // self.image_encoder.stride) ** 2

        config = BertConfig(
            vocab_size=self.tokenizer.vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=intermediate_size,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            layer_norm_eps=layer_norm_eps,
            attn_implementation="sdpa",
        )
        self.visual_embedding = VisualEmbedding(self.image_encoder.channels, self.num_visual, hidden_size)
        self.report_embedding = ReportEmbedding(self.tokenizer.vocab_size, max_tokens + 1, hidden_size)
        self.cls_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.sep_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.text_cls_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.embedding_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.embedding_dropout = nn.Dropout(dropout)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        self.mlm_head = LanguageModellingHead(hidden_size, self.tokenizer.vocab_size, mlm_layer_norm_eps)
        self._initialise(config.initializer_range * (768 / hidden_size) ** 0.5)
        if text_weights is not None:
            _load_text_weights(self, config, text_weights)
        if gradient_checkpointing:
            checkpoint = partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
            for layer in self.encoder.layer:
                layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, checkpoint
        if channels_last and image_encoder == "resnet_tiny":
            raise ValueError("resnet_tiny has too few channels for PyTorch's channels-last kernels: set it to false")
        if channels_last:
            self.image_encoder.to(memory_format=torch.channels_last)

    def _initialise(self, std: float) -> None:
        """Draw everything but the trunk as BERT does: normal weights, zero biases, unit LayerNorms."""
        for name, parameter in self.named_parameters():
            if name.startswith("image_encoder."):
                continue
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("norm.weight", "LayerNorm.weight")):
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=std)

    def encode_image(self, images: Tensor, num_sampled: int | None = None) -> Tensor:
        """Turn images into visual tokens, which can be kept and given to :meth:`forward` again and again.

        Args:
            images: grey pixels, uint8 in 0..255 or floating point in 0..1, shape
                ``(B, 1, image_size, image_size)``.
            num_sampled: keep so many tokens of each image, drawn at random (Sec. III-B.1); None keeps all K.

        Returns:
            Visual tokens before the joint LayerNorm (Eq. 3), shape ``(B, K or num_sampled, d)``.

        Raises:
            ValueError: if the images have another shape.
        """
        size = self.hparams["image_size"]
        if images.ndim != 4 or images.shape[1:] != (1, size, size):
            raise ValueError(f"images must be of shape (B, 1, {size}, {size}), not {tuple(images.shape)}")
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        features = self.image_encoder(images)
        places = None
        if num_sampled is not None and num_sampled < self.num_visual:
            places = sample_positions(len(images), self.num_visual, num_sampled, images.device)
        tokens: Tensor = self.visual_embedding(features, places)
        return tokens

    def forward(
        self,
        *,
        input_ids: Tensor,
        text_mask: Tensor,
        images: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        mask_strategy: MaskStrategy | str = MaskStrategy.BIDIRECTIONAL,
    ) -> BackboneOutput:
        """Embed image-report pairs in context.

        Args:
            input_ids: words and SEP_L, then padding, int64, shape ``(B, T)``.
            text_mask: True at real tokens, bool, shape ``(B, T)``.
            images: as :meth:`encode_image` takes them; or give ``visual_tokens``.
            visual_tokens: what :meth:`encode_image` returned, shape ``(B, K, d)``.
            mask_strategy: who attends to whom; any strategy but ``bi_seq2seq``.

        Raises:
            ValueError: if the strategy is unknown or ``bi_seq2seq``, a shape is wrong, or not
                exactly one of ``images`` and ``visual_tokens`` is given.
        """
        if (images is None) == (visual_tokens is None):
            raise ValueError("give either images or visual_tokens")
        if visual_tokens is None:
            assert images is not None
            visual_tokens = self.encode_image(images)
        has_text_cls = MaskStrategy(mask_strategy) is MaskStrategy.NON_CROSSING
        joint, mask = self.embed(visual_tokens, input_ids, text_mask, mask_strategy)
        hidden = self.encoder(joint, attention_mask=mask).last_hidden_state

        num_image = visual_tokens.shape[1] + 2
        text = hidden[:, num_image + has_text_cls :]
        pooled = self.pooler(hidden)
        if has_text_cls:
            pooled = pooled * self.pooler(hidden[:, num_image:])
        return BackboneOutput(pooled, hidden[:, 0], hidden[:, 1 : num_image - 1], text)

    def embed(
        self, visual_tokens: Tensor, input_ids: Tensor, text_mask: Tensor, mask_strategy: MaskStrategy | str
    ) -> tuple[Tensor, Tensor]:
        """Build the joint sequence that the encoder takes, and its mask (Sec. III-B.3).

        Args:
            visual_tokens: what :meth:`encode_image` returned, shape ``(B, K, d)``.
            input_ids: as :meth:`forward` takes them, shape ``(B, T)``; T may be 0 for an image alone.
            text_mask: True at real tokens, bool, shape ``(B, T)``.
            mask_strategy: any strategy but ``bi_seq2seq``.

        Returns:
            Embedded tokens, shape ``(B, S, d)``, and True where attention is allowed, shape ``(B, 1, S, S)``.
        """
        word = self.report_embedding.word.weight
        cls, sep = word[self.tokenizer.cls_id], word[self.tokenizer.sep_id]
        text = self.report_embedding(input_ids)
        batch_size = len(input_ids)
        if MaskStrategy(mask_strategy) is MaskStrategy.NON_CROSSING:
            text_cls = cls + self.text_cls_position_embedding + self.report_embedding.semantic
            text = torch.cat([text_cls.expand(batch_size, 1, -1), text], dim=1)
            text_mask = torch.cat([text_mask.new_ones(batch_size, 1), text_mask], dim=1)
        ends = [(cls + self.cls_position_embedding), (sep + self.sep_position_embedding)]
        first, last = (end.expand(batch_size, 1, -1) for end in ends)
        joint = torch.cat([first, visual_tokens, last, text], dim=1)
        mask = attention_mask(mask_strategy, num_visual=visual_tokens.shape[1], text_mask=text_mask)
        return self.embedding_dropout(self.embedding_norm(joint)), mask

    def mlm_logits(self, hidden: Tensor) -> Tensor:
        """Score every word of the vocabulary at the given places only.

        Args:
            hidden: contextual embeddings, shape ``(M, d)``.

        Returns:
            Vocabulary logits, shape ``(M, V)``.
        """
        logits: Tensor = self.mlm_head(hidden, self.report_embedding.word.weight)
        return logits

    def flops(self, num_sampled: int | None, num_text: int) -> int:
        """Floating point operations of one forward pass for one pair: trunk, projection and encoder.

        Args:
            num_sampled: visual tokens that go through the encoder; None for all K.
            num_text: text tokens, padding included.
        """
        num_visual = min(num_sampled or self.num_visual, self.num_visual)
        tokens, hidden = num_visual + 2 + num_text, self.hparams["hidden_size"]
        matrices = sum(weight.numel() for weight in self.encoder.parameters() if weight.ndim == 2)
        attention = 2 * tokens * hidden * self.hparams["num_layers"]  # scores and weighted sum, for each token
        projection = num_visual * self.image_encoder.channels * hidden
        encoder: int = tokens * (matrices + attention) + projection
        return 2 * encoder + self._image_encoder_flops

    @cached_property
    def _image_encoder_flops(self) -> int:
        size = self.hparams["image_size"]
        trunk = copy.deepcopy(self.image_encoder).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            trunk(torch.empty(1, 1, size, size, device="meta"))
        return int(counter.get_total_flops())

    @torch.no_grad()
    def attention_weights(
        self,
        *,
        input_ids: Tensor,
        text_mask: Tensor,
        images: Tensor,
        mask_strategy: MaskStrategy | str = MaskStrategy.BIDIRECTIONAL,
    ) -> Tensor:
        """Attention of every token on every other, which fused kernels do not keep (Eq. 8).

        Takes what :meth:`forward` takes, and never drops out.

        Returns:
            Probabilities, float32, shape ``(B, layers, heads, S, S)``: rows are queries and sum to
            1. The visual tokens are columns ``1 .. K``, row by row of the feature map.
        """
        was_training = self.training
        self.eval()
        joint, mask = self.embed(self.encode_image(images), input_ids, text_mask, mask_strategy)
        weights, hidden = [], joint
        for layer in self.encoder.layer:
            attention = layer.attention.self
            query, key = (
                projection(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
                for projection in (attention.query, attention.key)
            )
            scores = (query @ key.transpose(2, 3)).float() * attention.scaling
            weights.append(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1))
            hidden = layer(hidden, mask)
        self.train(was_training)
        return torch.stack(weights, dim=1)

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
        """Load a backbone that :meth:`save_pretrained` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face hub.
            kwargs: what the hub takes (``revision``, ``token``, ``cache_dir``, ...), and arguments of the
                backbone to change.

        Raises:
            FileNotFoundError: if there is no such folder, or the hub cannot be reached.
            ValueError: if the weights do not fit.
        """
        source = str(pretrained_model_name_or_path)
        fetch(source, ("config.json",), "backbone", **cls._hub_arguments(kwargs))
        model: Self = super().from_pretrained(source, **kwargs)
        return model

    @classmethod
    def _hub_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name not in cls._hub_mixin_init_parameters}

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **arguments: Any) -> Self:
        """Load a folder or a hub repository that :meth:`save_pretrained` wrote (called by the mixin)."""
        hub = cls._hub_arguments(arguments)
        arguments = {name: value for name, value in arguments.items() if name not in hub}
        tokenizer = fetch(model_id, ("tokenizer.json",), "tokenizer of the backbone", **hub).read_text(encoding="utf-8")
        model = cls(**{**arguments, "tokenizer": tokenizer})
        weights = fetch(model_id, (SAFETENSORS_SINGLE_FILE,), "weights of the backbone", **hub)
        load_exactly(model, read_state_dict(weights), str(weights))
        trained_on = fetch(model_id, ("trained_on.json",), "training record of the backbone", **hub)
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


def _name_or_none(weights: str | None) -> str | None:
    """Take the word ``none`` for None, which a command line cannot say inside a mapping."""
    return None if weights is None or weights.lower() == "none" else weights


def _load_image_encoder_weights(cnn: nn.Module, image_encoder: str, source: str) -> None:
    is_name = not looks_like_path(source) and "/" not in source
    if is_name:
        state = torchvision_state_dict(image_encoder, source)
    else:
        state = read_state_dict(fetch(source, (SAFETENSORS_SINGLE_FILE, "pytorch_model.bin"), "image_encoder_weights"))
    load_exactly(cnn, state, source, optional=("fc.", "classifier."))


def _load_text_weights(model: MedViLL, config: BertConfig, source: str) -> None:
    """Copy a BERT into the model: embeddings, encoder, pooler and, where it has one, the MLM head."""
    from transformers import BertForPreTraining

    if looks_like_path(source) and not Path(source).is_dir():
        raise FileNotFoundError(f"text_weights: no such folder: {source}")
    try:
        bert, report = BertForPreTraining.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise FileNotFoundError(
            f"text_weights: {source!r} could not be loaded as a BERT, here or from the Hugging Face hub: give a folder "
            f"with config.json and model.safetensors, or set text_weights to none ({str(error).splitlines()[0]})"
        ) from error
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for size in sizes:
        if getattr(bert.config, size) != getattr(config, size):
            raise ValueError(
                f"text_weights: {source} has {size} {getattr(bert.config, size)}, the model {getattr(config, size)}"
            )
    lost = [key for key in report["missing_keys"] if key.startswith(("bert.embeddings.", "bert.encoder."))]
    if lost:
        raise ValueError(f"text_weights: {source} lacks {sorted(lost)[0]}")
    embeddings = bert.bert.embeddings
    position, kind = embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight
    report_embedding = model.report_embedding
    if len(report_embedding.position) > len(position):
        raise ValueError(
            f"text_weights: {source} has {len(position)} positions, max_tokens needs {len(report_embedding.position)}"
        )
    with torch.no_grad():
        report_embedding.word.weight.copy_(embeddings.word_embeddings.weight)
        report_embedding.position.copy_(position[: len(report_embedding.position)])
        report_embedding.semantic.copy_(kind[1])
        for place in (model.cls_position_embedding, model.sep_position_embedding):
            place.copy_(position[0] + kind[0])
    model.embedding_norm.load_state_dict(embeddings.LayerNorm.state_dict())
    model.encoder.load_state_dict(bert.bert.encoder.state_dict())
    missing = " ".join(report["missing_keys"])
    if "pooler" not in missing:
        model.pooler.load_state_dict(bert.bert.pooler.state_dict())
    if "predictions.transform" not in missing:
        head = bert.cls.predictions
        model.mlm_head.dense.load_state_dict(head.transform.dense.state_dict())
        model.mlm_head.norm.load_state_dict(head.transform.LayerNorm.state_dict())
        with torch.no_grad():
            model.mlm_head.bias.copy_(head.bias)
