"""Tests that what version 0.1 saved still loads and gives the same numbers. The files were written by that version."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medvill_pl import MedViLL
from medvill_pl.models.old_names import rename_backbone_arguments, rename_state_dict

SAVED = Path(__file__).parents[1] / "assets" / "v0_1"


def checkpoint(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(SAVED / f"{name}.ckpt", weights_only=True)
    return loaded


@pytest.fixture
def backbone() -> MedViLL:
    return MedViLL.from_pretrained(SAVED / "backbone")


@pytest.mark.parametrize("strategy", ["bidirectional", "seq2seq", "bar", "non_crossing"])
@torch.no_grad()
def test_folder_of_version_0_1_gives_what_it_gave_there(backbone: MedViLL, strategy: str) -> None:
    saved = torch.load(SAVED / "outputs.pt", weights_only=True)
    output = backbone(
        images=saved["image"], input_ids=saved["input_ids"], text_mask=saved["text_mask"], mask_strategy=strategy
    )
    expected = saved["outputs"][strategy]
    torch.testing.assert_close(output.pooled, expected["pooled"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.text, expected["text"], rtol=1e-5, atol=1e-6)


def test_arguments_and_record_of_version_0_1_are_kept(backbone: MedViLL) -> None:
    saved = json.loads((SAVED / "backbone" / "config.json").read_text(encoding="utf-8"))
    assert (backbone.hparams["image_encoder"], backbone.hparams["image_size"]) == ("resnet_tiny", 32)
    assert backbone.hparams["max_tokens"] == saved["max_words"] == 40
    assert not backbone.training
    assert backbone.trained_on == [{"name": "synthetic v1", "pairs": 8, "credentialed": False}]


def test_folder_of_version_0_1_is_saved_under_the_names_of_today(backbone: MedViLL, tmp_path: Path) -> None:
    backbone.save_pretrained(tmp_path)
    assert "max_tokens" in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    again = MedViLL.from_pretrained(tmp_path)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["pretraining", "generation"])
def test_weights_and_arguments_of_a_task_get_the_names_of_today(name: str) -> None:
    saved = checkpoint(name)
    backbone = MedViLL(**rename_backbone_arguments(saved["hyper_parameters"]["backbone"]))
    renamed = rename_state_dict(saved["state_dict"], "backbone.")
    assert {key for key in renamed if key.startswith("backbone.")} == {
        f"backbone.{key}" for key in backbone.state_dict()
    }
    assert [tensor.shape for tensor in renamed.values()] == [tensor.shape for tensor in saved["state_dict"].values()]


def test_a_module_that_holds_a_backbone_takes_weights_of_version_0_1(backbone: MedViLL) -> None:
    saved = checkpoint("pretraining")
    holder = nn.ModuleDict({"backbone": backbone, "irm_head": nn.Linear(8, 1)})
    holder.load_state_dict(saved["state_dict"])
    weight = saved["state_dict"]["backbone.encoder.layer.1.attention.output.dense.weight"]
    assert torch.equal(backbone.encoder.layers[1].attention_output.weight, weight)
    assert torch.equal(backbone.cls_position_embedding, saved["state_dict"]["backbone.cls_place"])


def test_optimizer_state_of_version_0_1_still_goes_with_the_parameters(backbone: MedViLL) -> None:
    # The optimizer knows parameters by their order alone: matrices first, then vectors.
    saved = checkpoint("pretraining")
    holder = nn.ModuleDict({"backbone": backbone, "irm_head": nn.Linear(8, 1)})
    backbone.text_cls_position_embedding.requires_grad_(False)  # which this strategy does not use
    parameters = [parameter for parameter in holder.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    (state,) = saved["optimizer_states"]
    groups = [group["params"] for group in state["param_groups"]]
    assert [len(group) for group in groups] == [len(matrices), len(vectors)]
    for index, parameter in zip(groups[0] + groups[1], matrices + vectors, strict=True):
        if index in state["state"]:
            assert state["state"][index]["exp_avg"].shape == parameter.shape, index
    names = list(rename_state_dict(saved["state_dict"], "backbone."))
    assert names == list(holder.state_dict())


def test_names_of_today_and_of_others_stay() -> None:
    state = {name: torch.zeros(1) for name in ("image_encoder.mean", "head.trunk.weight", "trunk.0.weight")}
    assert list(rename_state_dict(state, "backbone.")) == list(state)
    assert list(rename_state_dict(state)) == ["image_encoder.mean", "head.trunk.weight", "image_encoder.0.weight"]
    assert rename_backbone_arguments({"max_tokens": 3, "dropout": 0.1}) == {"max_tokens": 3, "dropout": 0.1}
