"""Generated datasets with the real folders, file names and tables."""

import gzip
import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def png_bytes(seed: int, width: int = 40, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def write_mimic_cxr() -> Callable[..., None]:
    """``write_mimic_cxr(root, studies, side=..., zipped=...)``: the generator of the benchmark."""
    spec = importlib.util.spec_from_file_location("mimic_cxr_scale", ROOT / "benchmarks/mimic_cxr_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write: Callable[..., None] = module.write_tree
    return write


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_400_000_000
            tar.addfile(info, io.BytesIO(content))
    return path


def open_i_xml(
    number: int, findings: str, impression: str, images: Sequence[str], mesh: Sequence[str] = ("normal",)
) -> bytes:
    terms = "".join(f"<major>{term}</major>" for term in mesh)
    radiographs = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>'
        f'<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
        f"<MeSH>{terms}</MeSH>{radiographs}</eCitation>"
    ).encode()


@pytest.fixture
def write_open_i() -> Callable[..., Path]:
    """Write Open-I with so many reports, each with a frontal and a lateral image, as archives or unpacked."""

    def write(root: Path, reports: int = 20, packed: bool = True, with_images: bool = True) -> Path:
        root.mkdir(parents=True)
        xmls, radiographs, tags = {}, {}, ["imageid,View Position"]
        for number in range(1, reports + 1):
            names = [f"CXR{number}_IM-{number:04d}-{series}001" for series in (1, 2)]
            findings = f"There is XXXX cardiomegaly on film {number}. No pneumothorax." if number % 2 else ""
            xmls[f"ecgen-radiology/{number}.xml"] = open_i_xml(
                number, findings, "Clear lungs.", names, ("Cardiomegaly/mild",) if number % 2 else ("normal",)
            )
            radiographs |= {f"{name}.png": png_bytes(number * 2 + index) for index, name in enumerate(names)}
            tags += [f"{names[0]},{('PA', 'AP', '')[number % 3]}", f"{names[1]},LL"]
        (root / "nlmcxr_dicom_metadata.csv.gz").write_bytes(gzip.compress("\n".join(tags).encode()))
        if packed:
            write_tar(root / "NLMCXR_reports.tgz", xmls)
        if packed and with_images:
            write_tar(root / "NLMCXR_png.tgz", radiographs)
        if not packed:
            (root / "ecgen-radiology").mkdir()
            (root / "NLMCXR_png").mkdir()
            for name, content in xmls.items():
                (root / name).write_bytes(content)
            for name, content in radiographs.items() if with_images else ():
                (root / "NLMCXR_png" / name).write_bytes(content)
        return root

    return write


def vqa_record(qid: int | str, image: str, question: str, answer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "phrase_type": "freeform",
        "qid_linked_id": f"link {qid}",
        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={image}",
        "image_name": image,
        "image_organ": "CHEST",
        "evaluation": "evaluated",
        "question": question,
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": answer,
        "answer_type": "CLOSED" if str(answer).lower() in ("yes", "no") else "OPEN",
    } | changes


@pytest.fixture
def write_vqa_rad() -> Callable[..., Path]:
    """Write VQA-RAD with the given records, by default 40 about 10 images; ``images`` names the folder."""

    def write(root: Path, records: Sequence[Any] | None = None, images: str = "VQA_RAD Image Folder") -> Path:
        (root / images).mkdir(parents=True)
        if records is None:
            records = [
                vqa_record(
                    number,
                    f"synpic{number % 10}.jpg",
                    f"Is there finding {number}?",
                    "Yes" if number % 2 else f"The finding {number % 5}",
                    phrase_type="test_freeform" if number >= 30 else "freeform",
                    question_frame=f"Does it show finding {number}?" if number % 3 == 0 else "NULL",
                )
                for number in range(40)
            ]
        (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(records))
        for number in range(10):
            Image.open(io.BytesIO(png_bytes(number))).save(root / images / f"synpic{number}.jpg")
        return root

    return write
