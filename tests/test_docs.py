"""Tests of the documents: their links, the code in them, and the reference that is built from the docstrings."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import medvill_pl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
PAGES += [path for folder in ("benchmarks", "docs", "tasks") for path in sorted((ROOT / folder).rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names by which GitHub and Sphinx link to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link} names no heading of {target.name}"


SNIPPETS = [
    "README.md",
    *(f"docs/{name}.md" for name in ("classification", "retrieval", "vqa", "generation", "pretraining")),
]
SMALLER = {
    r"max_epochs=\d+": "max_epochs=1, accelerator='cpu', limit_val_batches=1, enable_progress_bar=False",
    r"num_train=\d+": "num_train=32, num_val=16, num_test=16",
    r"num_candidates=\d+": "num_candidates=8",
    r"batch_size=\d+": "batch_size=8",
}


@pytest.mark.slow
def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's snippet saves a backbone, from which those of the task pages start; all with less data."""
    monkeypatch.chdir(tmp_path)
    for page in SNIPPETS:
        snippets = re.findall(
            r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        assert snippets, page
        for snippet in snippets:
            for pattern, smaller in SMALLER.items():
                snippet = re.sub(pattern, smaller, snippet)
            exec(compile(snippet, page, "exec"), {})
    assert (tmp_path / "backbone/config.json").is_file()
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").startswith("rank,id,match_probability,report")


class _Loads(HTMLParser):
    """Collects the addresses from which a page loads something: scripts, styles, pictures, frames, not links."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "href") if tag == "link" else ("src", "srcset")
        self.addresses += [value for name, value in attrs if name in names and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. They are built from a copy, since a build writes pages of the reference beside the others."""
    for module in ("furo", "myst_parser", "sphinx"):
        pytest.importorskip(module, reason="needs the extra docs")
    copy = tmp_path_factory.mktemp("docs")
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("api"))
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    options = ["--builder", "html", "--fail-on-warning", "--quiet"]
    command = [sys.executable, "-m", "sphinx", *options, copy / "docs", copy / "site"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy / "site"


@pytest.mark.slow
def test_reference_holds_every_module_and_public_name(site: Path) -> None:
    package = Path(medvill_pl.__file__).parent
    for path in package.rglob("*.py"):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        assert (site / f"api/{module}.html").is_file()
    reference = (site / "reference.html").read_text(encoding="utf-8")
    for name in medvill_pl.__all__:
        assert re.search(rf'href="api/medvill_pl[\w.]*\.html#medvill_pl\.[\w.]*\b{name}"', reference), name


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style.name
