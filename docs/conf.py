"""How ``make docs`` builds the site: Sphinx reads docs/*.md and the docstrings of the package.

Nothing is fetched, while the site is built or while it is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_extensions")]

from easyeditor.version import VERSION  # noqa: E402

project = "EasyEdit"
author = "The EasyEdit authors"
copyright = author
release = version = VERSION

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "reference",
]
exclude_patterns = ["_static", "_extensions"]
language = "en"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # a page may begin below the first level

# Every reference to a name of the package must lead somewhere; other projects are not asked.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!easyeditor\b).*")]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"EasyEdit {VERSION}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"sidebar_hide_name": False}
pygments_style = "friendly"
pygments_dark_style = "monokai"
