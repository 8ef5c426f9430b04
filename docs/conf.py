"""How `make docs` builds the pages of this folder and the API reference, by Sphinx."""

import ast
import inspect
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python._object import PyObject
from sphinx.environment import BuildEnvironment
from sphinx.ext import autosummary
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import inspect as sphinx_inspect
from sphinx.util.docutils import SphinxDirective

import medvill_pl

HERE = Path(__file__).parent

project = "medvill_pl"
author = "The medvill_pl developers"
project_copyright = author
version = release = medvill_pl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"medvill_pl {release}"
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small--3)"}}
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_show_sphinx = False
html_copy_source = False

# Links of the Markdown pages to headings, as GitHub makes them.
myst_heading_anchors = 3

# A page per module, written anew at each build, so that the page of a module that is gone does not stay.
shutil.rmtree(HERE / "api", ignore_errors=True)
autosummary_generate = True
autosummary.WELL_KNOWN_ABBREVIATIONS += ("Sec.", "Fig.", "Eq.")  # a sentence does not end there

# What a package only passes on is described where it is defined.
autodoc_default_options = {
    "ignore-module-all": True,
    "member-order": "bysource",
    "members": True,
    "show-inheritance": True,
}
autodoc_inherit_docstrings = False  # what Lightning says of its own methods is in Lightning's reference
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# References to names of ours must have a target. Names of other libraries, private ones and type variables have none.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!medvill_pl\b).*"), ("py:.*", r".*\.(_\w+|[A-Z])")]


def read_homes() -> dict[str, str]:
    """The module of each public name, from the stub that lists them."""
    stub = ast.parse(Path(medvill_pl.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(stub) if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"medvill_pl.{node.module}" for node in imports for alias in node.names}


HOMES = read_homes()


def summary_of(name: str) -> str:
    """The first paragraph of a public name's docstring, in one line."""
    if name.isupper():  # a constant: its docstring is in the source alone
        doc = " ".join(ModuleAnalyzer.for_module(HOMES[name]).find_attr_docs()["", name])
    else:
        doc = inspect.getdoc(getattr(medvill_pl, name)) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


class PublicNames(SphinxDirective):
    """A table of all public names, each with the first paragraph of its docstring."""

    def run(self) -> list[nodes.Node]:
        """Write the table in reStructuredText and parse it."""
        lines = [".. list-table::", "   :widths: 30 70", ""]
        for name in medvill_pl.__all__:
            lines += [f"   * - :py:obj:`{name} <{HOMES[name]}.{name}>`", f"     - {summary_of(name)}"]
        return self.parse_text_to_nodes("\n".join(lines))


def resolve_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.reference | None:
    """Let ``:class:`MedViLL``` find the class from every module, as a user's import does."""
    name = node.get("reftarget", "").removeprefix("medvill_pl.")
    if node.get("refdomain") != "py" or name not in medvill_pl.__all__:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"{HOMES[name]}.{name}", node, contnode)


def skip_field_of_tuple(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples: the class's docstring describes them."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field number") else None


def keep_text_before_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Put an empty type before returned values and constants, or napoleon takes words before a colon for a type."""
    first = 0 if what in ("attribute", "data", "property") else None
    for index, line in enumerate(lines):
        if index == first or (index and lines[index - 1].strip() in ("Returns:", "Yields:")):
            text = line.lstrip()
            lines[index] = line.removesuffix(text) + ": " + text


def sign_class(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Give a class that inherits a `__new__` of another library the signature of its own `__init__`."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    own = sphinx_inspect.signature(obj.__init__, bound_method=True)
    return sphinx_inspect.stringify_signature(own, show_annotation=False, show_return_annotation=False), returns


def setup(app: Sphinx) -> None:
    """Add what is above."""
    app.add_directive("public-names", PublicNames)
    app.connect("missing-reference", resolve_public_name)
    app.connect("autodoc-skip-member", skip_field_of_tuple)
    app.connect("autodoc-process-signature", sign_class)
    app.connect("autodoc-process-docstring", keep_text_before_colon, priority=400)  # before napoleon
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as our docstrings call it, in place of Variables
