"""Self-contained pages: text, tables and pictures in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medvill_pl.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f6f7f9; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; } .note { color: #5a6675; font-size: .9rem; }
table { border-collapse: collapse; background: #fff; margin: 1rem 0; }
th, td { padding: .45rem .9rem; border: 1px solid #dde2e8; text-align: left; }
th { background: #eef1f5; font-weight: 600; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure > img, figure > svg { max-width: 100%; height: auto; background: #fff; }
figcaption { color: #5a6675; font-size: .9rem; }
.card { display: flex; gap: 1.2rem; background: #fff; border: 1px solid #dde2e8; border-radius: 6px;
  padding: 1rem; margin: 1rem 0; align-items: flex-start; flex-wrap: wrap; }
.card > div { flex: 1 1 22rem; } .card img { width: 256px; height: 256px; background: #000; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.result { display: flex; gap: 1rem; background: #fff; border: 1px solid #dde2e8; border-left: 5px solid #aab4c0;
  border-radius: 6px; padding: .8rem; align-items: flex-start; }
.result > img { width: 150px; height: 150px; background: #000; flex: none; } .result p { margin: .4rem 0 0; }
.result.good { border-left-color: #4c9f6b; } .result.bad { border-left-color: #c8624f; }
.result .text { font-size: .88rem; line-height: 1.4; max-height: 9.8rem; overflow: auto; }
.tag { display: inline-block; background: #e6eaef; border-radius: 3px; padding: 0 .4em; margin: 0 .3em .2em 0;
  font-size: .85rem; }
.tag.right { background: #d3eedb; } .tag.wrong { background: #fbd9d3; }
.right, .wrong { border-radius: 3px; padding: 0 .25em; white-space: nowrap; }
.right { background: #d3eedb; } .wrong { background: #fbd9d3; } .wrong s { color: #8a3325; }
"""


NO_FINDING = "no positive finding"


def paragraph(text: str, is_note: bool = False) -> str:
    """A paragraph of plain text.

    Example:
        >>> paragraph("p < 0.05")
        '<p>p &lt; 0.05</p>'
    """
    return f'<p class="note">{escape(text)}</p>' if is_note else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """The heading of a section.

    Example:
        >>> heading("Labels")
        '<h2>Labels</h2>'
    """
    return f"<h2>{escape(text)}</h2>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; floats are rounded to three digits and set to the right.

    Example:
        >>> table(["split", "AUROC"], [["test", 0.81234]]).count("<td")
        2
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    return f"<td>{escape(str(value))}</td>"


def drawing(figure: Figure, caption: str) -> str:
    """A matplotlib figure as a drawing that scales.

    Example:
        >>> from matplotlib.figure import Figure
        >>> "<svg" in drawing(Figure(), "An empty figure.")
        True
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(pixels: NDArray[np.uint8], title: str = "") -> str:
    """Pixels, uint8, shape ``(H, W)`` or ``(H, W, 3)``, as an image inside the page.

    Example:
        >>> import numpy as np
        >>> picture(np.zeros((16, 16), np.uint8), "black")[:31]
        '<img src="data:image/png;base64'
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{code}" alt="{escape(title)}" title="{escape(title)}">'


def card(*parts: str) -> str:
    """Pictures and text side by side.

    Example:
        >>> card(paragraph("left"), paragraph("right"))
        '<div class="card"><p>left</p><p>right</p></div>'
    """
    return f'<div class="card">{"".join(parts)}</div>'


def tags(names: Sequence[str], expected: Collection[str] | None = None) -> str:
    """Names of findings, each green where it is expected and red where not; grey without ``expected``.

    Example:
        >>> tags(["Edema"], expected=["Edema", "Fracture"])
        '<span class="tag right">Edema</span>'
    """
    labels = names or [NO_FINDING]
    right = expected or [NO_FINDING]
    kinds = ["" if expected is None else " right" if name in right else " wrong" for name in labels]
    return "".join(f'<span class="tag{kind}">{escape(name)}</span>' for name, kind in zip(labels, kinds, strict=True))


def result(
    pixels: NDArray[np.uint8],
    title: str,
    text: str,
    findings: Sequence[str] | None,
    expected: Collection[str] | None = None,
) -> str:
    """One result of a search, for :func:`results`: its image beside its title, findings and text.

    Args:
        pixels: uint8, shape ``(H, W)``.
        title: such as its rank.
        text: its report.
        findings: names of its positive findings; None where they are not known.
        expected: those of the query; the frame is green where they are the same and red where not. None leaves it grey.

    Example:
        >>> import numpy as np
        >>> result(np.zeros((16, 16), np.uint8), "1st", "Edema.", ["Edema"], expected=["Edema"])[:24]
        '<div class="result good"'
    """
    frame = "" if findings is None or expected is None else " good" if set(findings) == set(expected) else " bad"
    named = "" if findings is None else f"<p>{tags(findings, expected)}</p>"
    words = f'<div><strong>{escape(title)}</strong>{named}<p class="text">{escape(text)}</p></div>'
    return f'<div class="result{frame}">{picture(pixels)}{words}</div>'


def results(parts: Sequence[str]) -> str:
    """Results of a search side by side.

    Example:
        >>> results(["<div>1</div>", "<div>2</div>"])
        '<div class="results"><div>1</div><div>2</div></div>'
    """
    return f'<div class="results">{"".join(parts)}</div>'


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the ``.html``; its folder is made where it is not there.
        title: its title and first heading.
        parts: what the other functions of this module give.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page(Path(folder) / "page.html", "Results", [heading("Test"), table(["K", "Hit@K"], [[5, 0.5]])])
        ...     (Path(folder) / "page.html").read_text().startswith("<!doctype html>")
        True
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f"<main><h1>{escape(title)}</h1>{chr(10).join(parts)}</main>"
    html = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>{body}</body></html>\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.encode())
