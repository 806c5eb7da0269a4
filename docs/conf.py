"""How the pages are built: make docs."""

import importlib.metadata
import os
from pathlib import Path

project = "scfast"
author = copyright = "The scfast developers"
release = importlib.metadata.version("scfast")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_templates", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = "scfast"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"show_navbar_depth": 2, "use_download_button": False, "use_fullscreen_button": False}

# Every public name of a module, as its __all__ says, on a page of its own.
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # numpydoc's sections say shapes, types and units
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Figures of the analyses are drawn while the pages build, by the code that stands above them.
plot_formats = [("png", 140)]
plot_html_show_formats = plot_html_show_source_link = False
plot_rcparams = {"savefig.bbox": "tight"}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 1200  # of a cell, on a machine that does much else
nb_execution_raise_on_error = True
nb_merge_streams = True
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of the notebooks' kernels, which draw no bars


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", bars_are_text)
    app.connect("source-read", with_unreleased_changes)


def bars_are_text(app, what, name, obj, options, lines):
    """Make |x| a norm, as it is meant, and not a substitution."""
    for number, line in enumerate(lines):
        lines[number] = "``".join(
            part if place % 2 else part.replace("|", r"\|") for place, part in enumerate(line.split("``"))
        )


def with_unreleased_changes(app, page, source):
    """What no release holds yet, from a file for each change."""
    if page != "changelog":
        return
    folder, text = Path(app.srcdir).parent / "changelog.d", ""
    for kind in ("added", "changed", "removed", "fixed", "security"):
        items = [path.read_text() for path in sorted(folder.glob(f"+*.{kind}.md"))]
        text += "\n".join([f"### {kind.capitalize()}\n", *items, ""]) if items else ""
    source[0] = source[0].replace("UNRELEASED", text or "Nothing yet.\n")
