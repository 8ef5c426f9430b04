"""MedViLL: one BERT-style transformer over a radiograph and its report (MedViLL, Sec. III-B)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medvill_pl.masks import MaskStrategy, attention_mask
from medvill_pl.models.config import BackboneConfig as BackboneConfig
from medvill_pl.models.encoder import Encoder, Pooler
from medvill_pl.models.hub import HubModule
from medvill_pl.models.hub import TrainingCorpus as TrainingCorpus
from medvill_pl.models.image_encoder import ImageEncoderName, VisualEmbedding, lay_out, sample_positions
from medvill_pl.models.initial_weights import draw_as_bert, load_bert, make_image_encoder
from medvill_pl.models.modes import evaluating
from medvill_pl.models.old_names import rename_on_load
from medvill_pl.models.text import LanguageModellingHead, ReportEmbedding, check_end
from medvill_pl.tokenizer import MAX_TOKENS, ReportTokenizer


class BackboneOutput(NamedTuple):
    """Contextual embeddings of a batch of image-report pairs, d wide.

    Attributes:
        pooled: BERT's pooler on CLS, shape ``(B, d)``; under ``non_crossing`` the elementwise
            product of the pooled CLS_V and CLS_L.
        cls: CLS, shape ``(B, d)``.
        visual: visual tokens, shape ``(B, K, d)``.
        text: tokens and SEP_L of the report, shape ``(B, T, d)``.

    Example:
        >>> backbone = MedViLL(image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic", hidden_size=32,
        ...                    num_layers=1, num_heads=2, intermediate_size=64)
        >>> ids = torch.tensor([[*backbone.tokenizer.encode(["No edema."])[0], backbone.tokenizer.sep_id]])
        >>> output = backbone(images=torch.zeros(1, 1, 64, 64, dtype=torch.uint8), input_ids=ids, text_mask=ids >= 0)
        >>> output.pooled.shape, output.visual.shape, output.text.shape
        (torch.Size([1, 32]), torch.Size([1, 16, 32]), torch.Size([1, 4, 32]))
    """

    pooled: Tensor
    cls: Tensor
    visual: Tensor
    text: Tensor


class MedViLL(HubModule):
    """Image and report to contextual embeddings. It never logs and never optimises: tasks do.

    The joint sequence is CLS, visual tokens, SEP_V, the report's tokens, SEP_L (Sec. III-B.3). CLS and SEP_V are a
    word embedding plus one learned vector each; under ``non_crossing``, CLS_L is put before the report. Sizes default
    to the paper's (Sec. IV-B).

    Args:
        image_encoder: architecture of the CNN.
        image_size: side of the square images, in pixels.
        image_encoder_weights: initial weights of the image encoder: a torchvision name (``IMAGENET1K_V2``, with which
            the paper starts), a local file, a hub name (``owner/name``), or None (also ``"none"``) for random ones.
        freeze_image_encoder_stages: how many stages of the image encoder, the stem first, are not trained.
        tokenizer: what :meth:`ReportTokenizer.load` takes.
        max_tokens: longest report in tokens, without SEP_L.
        text_weights: initial weights of embeddings, encoder, pooler and MLM head: a local folder or a hub name that
            ``transformers`` can load as BERT, or None (also ``"none"``) for random ones.
        hidden_size: width d of the transformer.
        num_layers: transformer layers.
        num_heads: attention heads per layer.
        intermediate_size: width of the feed-forward networks.
        dropout: probability of dropout, of hidden states and of attention.
        layer_norm_eps: epsilon of every LayerNorm but the MLM head's.
        mlm_layer_norm_eps: epsilon of the MLM head's LayerNorm.
        gradient_checkpointing: compute the activations of transformer layers anew in the backward pass, for less
            memory.
        channels_last: run the image encoder in the channels-last memory format.

    Attributes:
        tokenizer: the :class:`ReportTokenizer` whose ids the model reads.
        num_visual: visual tokens K of a whole image.
        trained_on: the corpora that the weights were trained on.

    Raises:
        ValueError: if an argument is out of range or weights do not fit.
        FileNotFoundError: if there are no such weights or no such tokenizer.

    Example:
        >>> backbone = MedViLL(
        ...     image_encoder="resnet_tiny", image_size=64, tokenizer="synthetic",
        ...     hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
        ... ).eval()
        >>> ids = torch.tensor([[*backbone.tokenizer.encode(["No pneumothorax."])[0], backbone.tokenizer.sep_id]])
        >>> images, text_mask = torch.zeros(1, 1, 64, 64), torch.ones_like(ids).bool()
        >>> output = backbone(images=images, input_ids=ids, text_mask=text_mask, mask_strategy="bar")
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
        self.trained_on = []
        self.register_load_state_dict_pre_hook(rename_on_load)  # type: ignore[no-untyped-call]
        self.image_encoder = make_image_encoder(
            image_encoder, image_size, image_encoder_weights, freeze_image_encoder_stages, channels_last
        )
        self.num_visual = (image_size // self.image_encoder.stride) ** 2
        self._make_transformer()
        if text_weights is not None:
            load_bert(self, text_weights)

    def _make_transformer(self) -> None:
        hparams, hidden_size, vocab_size = self.hparams, self.hparams["hidden_size"], self.tokenizer.vocab_size
        self.visual_embedding = VisualEmbedding(self.image_encoder.channels, self.num_visual, hidden_size)
        self.report_embedding = ReportEmbedding(vocab_size, hparams["max_tokens"] + 1, hidden_size)
        self.cls_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.sep_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.text_cls_position_embedding = nn.Parameter(torch.empty(hidden_size))
        self.embedding_norm = nn.LayerNorm(hidden_size, eps=hparams["layer_norm_eps"])
        self.embedding_dropout = nn.Dropout(hparams["dropout"])
        sizes = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "dropout", "layer_norm_eps")
        self.encoder = Encoder(
            **{name: hparams[name] for name in sizes}, is_checkpointed=hparams["gradient_checkpointing"]
        )
        self.pooler = Pooler(hidden_size)
        self.mlm_head = LanguageModellingHead(hidden_size, vocab_size, hparams["mlm_layer_norm_eps"])
        draw_as_bert(self, hidden_size, but=self.image_encoder)

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
        features = self.image_encoder(lay_out(images, self.hparams["image_size"], self.hparams["channels_last"]))
        positions = None
        if num_sampled is not None and num_sampled < self.num_visual:
            positions = sample_positions(len(images), self.num_visual, num_sampled, images.device)
        tokens: Tensor = self.visual_embedding(features, positions)
        return tokens

    def cache_features(self, images: Tensor, batch_size: int = 64) -> None:
        """Compute the image encoder's features of images once and keep them, for as long as it is frozen.

        :meth:`encode_image` and all that calls it are faster from then on, and give what they gave. See
        :meth:`ImageEncoder.cache_features <medvill_pl.models.image_encoder.ImageEncoder.cache_features>` for when the
        features are used, how much memory they take, and how they are forgotten.

        Args:
            images: as :meth:`encode_image` takes them.
            batch_size: how many go through the image encoder at a time.

        Raises:
            ValueError: if the image encoder is trainable, or the images have another shape.
        """
        self.image_encoder.cache_features(
            lay_out(images, self.hparams["image_size"], self.hparams["channels_last"]), batch_size
        )

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
            input_ids: tokens and SEP_L, then padding, int64, shape ``(B, T)``; T may be 0 for an image alone. A text
                that is being written ends with MASK instead. This is checked on the CPU only, so that no device has
                to be waited for.
            text_mask: True at real tokens, bool, shape ``(B, T)``.
            images: as :meth:`encode_image` takes them; or give ``visual_tokens``.
            visual_tokens: what :meth:`encode_image` returned, shape ``(B, K, d)``.
            mask_strategy: who attends to whom; any strategy but ``bi_seq2seq``.

        Raises:
            ValueError: if the strategy is unknown or ``bi_seq2seq``, a shape is wrong, a text has no closing SEP_L
                (on the CPU), or not exactly one of ``images`` and ``visual_tokens`` is given.
        """
        if (images is None) == (visual_tokens is None):
            raise ValueError("give either images or visual_tokens")
        if visual_tokens is None:
            assert images is not None
            visual_tokens = self.encode_image(images)
        check_end(input_ids, text_mask, self.tokenizer)
        has_text_cls = MaskStrategy(mask_strategy) is MaskStrategy.NON_CROSSING
        joint, mask = self.embed(visual_tokens, input_ids, text_mask, mask_strategy)
        hidden = self.encoder(joint, mask)

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
        """Score every token of the vocabulary at the given positions only.

        Args:
            hidden: contextual embeddings, shape ``(M, d)``.

        Returns:
            Vocabulary logits, shape ``(M, V)``.
        """
        logits: Tensor = self.mlm_head(hidden, self.report_embedding.word.weight)
        return logits

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
        check_end(input_ids, text_mask, self.tokenizer)
        with evaluating(self):
            joint, mask = self.embed(self.encode_image(images), input_ids, text_mask, mask_strategy)
            return self.encoder.attention(joint, mask)


def _name_or_none(weights: str | None) -> str | None:
    """Take the word ``none`` for None, which a command line cannot say inside a mapping."""
    return None if weights is None or weights.lower() == "none" else weights
