"""Tests of where weights come from: files, folders, names, the hub's cache, and what each failure says."""

import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import DenseNet121_Weights, ResNet18_Weights
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from medvill_pl import MedViLL
from medvill_pl.models.image_encoder import ImageEncoder, make_cnn
from medvill_pl.models.medvill import BackboneConfig
from medvill_pl.weights import fetch, load_exactly, looks_like_path, read_state_dict

State = dict[str, Tensor]
Build = Callable[..., MedViLL]


@pytest.fixture
def build(tiny: BackboneConfig) -> Build:
    """Build a tiny backbone: ``build(image_encoder_weights=...)``. Equal seeds, so equal where nothing is loaded."""

    def build(**arguments: Any) -> MedViLL:
        torch.manual_seed(0)
        return MedViLL(**(tiny | arguments)).eval()

    return build


@pytest.fixture(autouse=True)
def own_hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache of the hub, never the user's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def assert_one_line(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert part in message


def trained_cnn(name: str) -> nn.Module:
    """A CNN whose every tensor differs from a fresh one's, the statistics of BatchNorm too."""
    torch.manual_seed(7)
    cnn = make_cnn(name)
    for tensor in cnn.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.1 + 0.01)
        else:
            tensor.fill_(5)
    return cnn


def assert_image_encoder_is(backbone: MedViLL, cnn: nn.Module) -> None:
    expected, actual = ImageEncoder(cnn).state_dict(), backbone.image_encoder.state_dict()
    assert actual.keys() == expected.keys()
    differing = [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)]
    assert differing == []


def save(state: State, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def cache_on_hub(name: str, folder: Path, revision: str = "main") -> None:
    """Put a folder's files into the hub's local cache, as if they had been downloaded from a repository."""
    home = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(f"commit-of-{revision}")
    shutil.copytree(folder, home / "snapshots" / f"commit-of-{revision}")


# --- finding a file


def test_file_is_found_by_path_in_a_folder_and_in_the_hubs_cache(tmp_path: Path) -> None:
    names = ("tokenizer.json", "vocab.txt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("words")
    assert fetch(str(folder / "vocab.txt"), names, "tokenizer") == folder / "vocab.txt"
    assert fetch(str(folder), names, "tokenizer") == folder / "vocab.txt"
    cache_on_hub("acme/words", folder)
    assert fetch("acme/words", names, "tokenizer").read_text() == "words"
    (folder / "tokenizer.json").write_text("{}")
    assert fetch(str(folder), names, "tokenizer") == folder / "tokenizer.json", "the preferred one first"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "holds no a.bin or b.bin"),
        ("weights.pth", "no such file or folder"),
        ("deep/er/folder", "no such file or folder"),
        ("acme/absent", "Hugging Face hub"),
    ],
)
def test_missing_file_says_what_and_where_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = source or str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^image_encoder_weights: ") as caught:
        fetch(source, ("a.bin", "b.bin"), "image_encoder_weights")
    assert_one_line(caught.value, source, says)


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("IMAGENET1K_V2", False),
        ("bert-base-uncased", False),
        ("owner/name", False),
        ("a/b/c", True),
        ("./owner", True),
        ("/weights", True),
        ("image_encoder.pth", True),
        ("here", True),
    ],
)
def test_paths_are_told_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, is_path: bool) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(source) is is_path


# --- reading and loading a state dict


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.bin"])
@pytest.mark.parametrize("content", [b"", b"neither zip nor pickle" * 9, b"PK\x03\x04 broken zip"])
def test_broken_weights_are_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read as weights: ")) as caught:
        read_state_dict(path)
    assert_one_line(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": 3}, "text"])
def test_file_without_tensors_is_no_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_state_dict(path)
    assert_one_line(caught.value)


class Intruder:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_reading_weights_runs_no_code_of_theirs(tmp_path: Path) -> None:
    torch.save({"weight": Intruder(tmp_path / "made")}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth cannot be read as weights"):
        read_state_dict(tmp_path / "a.pth")
    assert not (tmp_path / "made").exists()


def test_state_dict_is_read_from_a_training_checkpoint_too(tmp_path: Path) -> None:
    state = {"weight": torch.rand(2, 3)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pth")
    assert torch.equal(read_state_dict(tmp_path / "a.pth")["weight"], state["weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.zeros(3, 2)}, ["weight is (3, 2) there and (2, 3) here"]),
        ({"weight": None}, ["weight is missing there"]),
        ({"extra": torch.zeros(1)}, ["extra is unknown here"]),
        ({"weight": torch.zeros(3, 2), "bias": None, "extra": torch.zeros(1)}, ["weight is", "and 2 more differences"]),
    ],
)
def test_weights_that_differ_are_refused_and_load_nothing(change: dict[str, Tensor | None], says: list[str]) -> None:
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | change
    with pytest.raises(ValueError, match="do not fit Linear") as caught:
        load_exactly(module, {name: tensor for name, tensor in state.items() if tensor is not None}, "a.pth")
    assert_one_line(caught.value, "a.pth", *says)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_optional_weights_may_be_missing_on_either_side() -> None:
    module = nn.Sequential(nn.Linear(3, 2))
    load_exactly(module, {"0.weight": torch.ones(2, 3), "1.weight": torch.zeros(9)}, "a.pth", optional=("0.bias", "1."))
    assert torch.equal(module[0].weight, torch.ones(2, 3))


# --- image_encoder_weights


@pytest.mark.parametrize("form", ["image_encoder.safetensors", "image_encoder.pth", "a folder", "a name on the hub"])
def test_image_encoder_starts_from_a_file(build: Build, tmp_path: Path, form: str) -> None:
    cnn = trained_cnn("resnet_tiny")
    (tmp_path / "folder").mkdir()
    source = save(cnn.state_dict(), tmp_path / "folder" / (form if "." in form else "model.safetensors"))
    if form == "a folder":
        source = str(tmp_path / "folder")
    if form == "a name on the hub":
        source = "acme/cnn"
        cache_on_hub(source, tmp_path / "folder")
    assert_image_encoder_is(build(image_encoder_weights=source), cnn)


def without_classifier(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def without_batch_counts(state: State) -> State:
    """As PyTorch wrote them before 0.4.1, the ImageNet weights of 2016 to 2018 among them."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("change", [dict, without_classifier, without_batch_counts])
def test_image_encoder_starts_from_torchvisions_names(
    build: Build, tmp_path: Path, change: Callable[[State], State]
) -> None:
    cnn = trained_cnn("resnet18")
    source = save(change(cnn.state_dict()), tmp_path / "resnet18.pth")
    if change is without_batch_counts:
        for name, tensor in cnn.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
    assert_image_encoder_is(build(image_encoder="resnet18", image_encoder_weights=source), cnn)


def with_dotted_names(state: State) -> State:
    """The names that torchvision's published DenseNet weights have: ``denselayer1.norm.1.weight``."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor for name, tensor in state.items()}


def cache_for_torchvision(monkeypatch: pytest.MonkeyPatch, home: Path, url: str, state: State) -> None:
    monkeypatch.setenv("TORCH_HOME", str(home))
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub" / "checkpoints" / url.rsplit("/", 1)[1])


def test_image_encoder_starts_from_a_name_of_torchvision(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn = trained_cnn("resnet18")
    cache_for_torchvision(monkeypatch, tmp_path, ResNet18_Weights.IMAGENET1K_V1.url, cnn.state_dict())
    assert_image_encoder_is(build(image_encoder="resnet18", image_encoder_weights="IMAGENET1K_V1"), cnn)
    assert_image_encoder_is(build(image_encoder="resnet18", image_encoder_weights="DEFAULT"), cnn)


def test_densenet_starts_from_the_old_names_that_torchvision_publishes(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn = trained_cnn("densenet121")
    published = with_dotted_names(cnn.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    cache_for_torchvision(monkeypatch, tmp_path, DenseNet121_Weights.IMAGENET1K_V1.url, published)
    assert_image_encoder_is(build(image_encoder="densenet121", image_encoder_weights="IMAGENET1K_V1"), cnn)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            {"image_encoder": "resnet18", "image_encoder_weights": "IMAGENET1K_V9"},
            ValueError,
            ["IMAGENET1K_V9", "IMAGENET1K_V1"],
        ),
        (
            {"image_encoder_weights": "IMAGENET1K_V1"},
            ValueError,
            ["image_encoder_weights", "IMAGENET1K_V1", "resnet_tiny"],
        ),
        (
            {"image_encoder_weights": "no/such/file.pth"},
            FileNotFoundError,
            ["image_encoder_weights", "no/such/file.pth"],
        ),
        (
            {"image_encoder_weights": "owner/name"},
            FileNotFoundError,
            ["image_encoder_weights", "owner/name", "give its path"],
        ),
        (
            {"image_encoder": "resnet18", "image_encoder_weights": "IMAGENET1K_V1"},
            FileNotFoundError,
            ["image_encoder_weights", ResNet18_Weights.IMAGENET1K_V1.url, "set image_encoder_weights to none"],
        ),
    ],
)
def test_image_encoder_weights_that_are_not_to_be_had(
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, str],
    error: type[Exception],
    says: list[str],
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise socket.gaierror("name resolution is off")  # which would take seconds to fail by itself

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(error) as caught:
        build(**arguments)
    assert_one_line(caught.value, *says)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_image_encoder_weights_of_another_architecture_or_shape(build: Build, tmp_path: Path, form: str) -> None:
    state = trained_cnn("resnet_tiny").state_dict()
    state["stem.0.weight"] = torch.zeros(4, 1, 5, 5)
    source = save(state, tmp_path / f"grey.{form}")
    with pytest.raises(ValueError, match="do not fit") as caught:
        build(image_encoder_weights=source)
    assert_one_line(caught.value, source, "stem.0.weight is (4, 1, 5, 5) there and (4, 3, 5, 5) here")
    with pytest.raises(ValueError, match="more differences") as caught:
        build(image_encoder="resnet18", image_encoder_weights=source)
    assert_one_line(caught.value, source)


# --- text_weights

BERT_SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
EPS = 1e-12  # BERT's, everywhere


def make_bert(kind: type[nn.Module] = BertForPreTraining, **sizes: int) -> nn.Module:
    torch.manual_seed(11)
    bert = kind(BertConfig(**(BERT_SIZES | sizes), layer_norm_eps=EPS))
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.normal_(std=0.3)
    return bert.eval()


@torch.no_grad()
def test_text_weights_make_the_text_side_that_bert(build: Build, tmp_path: Path) -> None:
    bert = make_bert()
    bert.save_pretrained(tmp_path)
    backbone = build(text_weights=str(tmp_path), mlm_layer_norm_eps=EPS)
    ids = torch.randint(0, 272, (2, 9), generator=torch.Generator().manual_seed(0))

    embeddings, norm = bert.bert.embeddings, backbone.embedding_norm
    text = embeddings(input_ids=ids, token_type_ids=torch.ones_like(ids))
    torch.testing.assert_close(norm(backbone.report_embedding(ids)), text)
    words = backbone.report_embedding.word.weight
    for token, position in [
        (backbone.tokenizer.cls_id, backbone.cls_position_embedding),
        (backbone.tokenizer.sep_id, backbone.sep_position_embedding),
    ]:
        first = embeddings(input_ids=torch.tensor([[token]]), token_type_ids=torch.tensor([[0]]))
        torch.testing.assert_close(norm(words[token] + position), first[0, 0])

    hidden = bert.bert.encoder(text).last_hidden_state
    torch.testing.assert_close(backbone.encoder(text, None), hidden)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)).lt(0.5) | torch.eye(9).bool()
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(backbone.encoder(text, mask), bert.bert.encoder(text, added).last_hidden_state)
    torch.testing.assert_close(backbone.pooler(hidden), bert.bert.pooler(hidden))
    torch.testing.assert_close(backbone.mlm_logits(hidden[0]), bert.cls.predictions(hidden)[0])


def differing(backbone: MedViLL, other: MedViLL) -> set[str]:
    """Names of the parts, one dot deep at most, that differ between two backbones."""
    theirs = other.state_dict()
    return {
        name.split(".")[0] for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, theirs[name])
    }


FROM_ANY_BERT = {"report_embedding", "cls_position_embedding", "sep_position_embedding", "embedding_norm", "encoder"}


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (BertForPreTraining, FROM_ANY_BERT | {"pooler", "mlm_head"}),
        (BertForMaskedLM, FROM_ANY_BERT | {"mlm_head"}),
        (BertModel, FROM_ANY_BERT | {"pooler"}),
    ],
)
def test_what_a_bert_lacks_stays_as_it_was(
    build: Build, tmp_path: Path, kind: type[nn.Module], taken: set[str]
) -> None:
    make_bert(kind).save_pretrained(tmp_path)
    assert differing(build(text_weights=str(tmp_path)), build()) == taken


def test_text_weights_come_from_the_hubs_cache(build: Build, tmp_path: Path) -> None:
    make_bert().save_pretrained(tmp_path)
    cache_on_hub("acme/bert", tmp_path)
    assert differing(build(text_weights="acme/bert"), build(text_weights=str(tmp_path))) == set()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"vocab_size": 300}, "has vocab_size 300, the model 272"),
        ({"hidden_size": 64}, "has hidden_size 64, the model 32"),
        ({"num_hidden_layers": 3}, "has num_hidden_layers 3, the model 2"),
        ({"num_attention_heads": 4}, "has num_attention_heads 4, the model 2"),
        ({"intermediate_size": 32}, "has intermediate_size 32, the model 64"),
        ({"max_position_embeddings": 64}, "has 64 positions, max_tokens needs 121"),
    ],
)
def test_text_weights_of_another_size(build: Build, tmp_path: Path, sizes: dict[str, int], says: str) -> None:
    make_bert(**sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        build(text_weights=str(tmp_path))
    assert_one_line(caught.value, "text_weights", str(tmp_path))


def test_text_weights_of_another_activation(build: Build, tmp_path: Path) -> None:
    make_bert(hidden_act="gelu_new").save_pretrained(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has hidden_act 'gelu_new', the model 'gelu'") as caught:
        build(text_weights=str(tmp_path))
    assert_one_line(caught.value, "text_weights", str(tmp_path))


@pytest.mark.parametrize("source", ["owner/name", "bert-base-uncased"])
def test_text_weights_with_the_hub_out_of_reach_name_a_remedy(build: Build, source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"^text_weights") as caught:
        build(text_weights=source)
    assert_one_line(caught.value, source, "give a folder with config.json", "set text_weights to none")


@pytest.mark.parametrize("source", ["no/such/folder", "./nowhere", "an empty folder"])
def test_text_weights_that_are_not_there(build: Build, tmp_path: Path, source: str) -> None:
    where = str(tmp_path) if source == "an empty folder" else source
    with pytest.raises(FileNotFoundError, match=r"^text_weights") as caught:
        build(text_weights=where)
    assert_one_line(caught.value, where)


@pytest.mark.parametrize("content", [b"", b"neither json nor tensors" * 9])
def test_broken_text_weights_are_one_line(build: Build, tmp_path: Path, content: bytes) -> None:
    make_bert().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=r"^text_weights") as caught:
        build(text_weights=str(tmp_path))
    assert_one_line(caught.value, str(tmp_path))


@pytest.mark.parametrize("lost", ["bert.encoder.layer.1.", "bert.embeddings.word_embeddings."])
def test_text_weights_without_a_part_that_is_needed(build: Build, tmp_path: Path, lost: str) -> None:
    # Else transformers fills the gap with random numbers, and the run is not what its configuration says.
    bert = make_bert()
    state = {name: tensor.clone() for name, tensor in bert.state_dict().items() if not name.startswith(lost)}
    state.pop("cls.predictions.decoder.weight")  # tied to the word embedding
    bert.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^text_weights") as caught:
        build(text_weights=str(tmp_path))
    assert_one_line(caught.value, str(tmp_path), lost.removesuffix("."))


@pytest.mark.parametrize("word", ["none", "None"])
def test_word_none_means_no_weights(build: Build, word: str) -> None:
    backbone = build(image_encoder_weights=word, text_weights=word)
    assert (backbone.hparams["image_encoder_weights"], backbone.hparams["text_weights"]) == (None, None)
    assert differing(backbone, build()) == set()


# --- whole backbones from the hub


def test_backbone_comes_from_the_hub_at_the_revision_asked_for(build: Build, tmp_path: Path) -> None:
    shared = {}
    for revision, max_tokens in [("main", 20), ("v1", 30)]:
        shared[revision] = build(max_tokens=max_tokens)
        nn.init.constant_(shared[revision].cls_position_embedding, max_tokens)
        shared[revision].save_pretrained(tmp_path / revision)
        cache_on_hub("acme/backbone", tmp_path / revision, revision)
    for revision, expected in shared.items():
        loaded = MedViLL.from_pretrained("acme/backbone", revision=revision)
        assert differing(loaded, expected) == set()
        assert loaded.config() == expected.config()


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json", "trained_on.json"])
def test_folder_of_a_backbone_that_lacks_a_file_says_which(build: Build, tmp_path: Path, lost: str) -> None:
    build().save_pretrained(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        MedViLL.from_pretrained(tmp_path)
    assert_one_line(caught.value, str(tmp_path), lost)


@pytest.mark.parametrize("source", ["acme/absent", "no/such/folder", "./nowhere"])
def test_backbone_that_is_not_there_is_named_in_one_line(source: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        MedViLL.from_pretrained(source)
    assert_one_line(caught.value, source)
