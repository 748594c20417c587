"""Sphinx settings; `make docs` builds the pages, without network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
from deepseek.version import __version__

project = "deepseek"
author = "The deepseek framework authors"
copyright = "The deepseek framework authors, Apache-2.0"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "public_names",
    "llms_txt",
    "line_breaks",
]
exclude_patterns = ["_build", "extensions"]
myst_heading_anchors = 4  # the addresses in error messages, errors.md#config, are headings
myst_enable_extensions = ["colon_fence", "deflist"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

smartquotes = False  # options such as --resume keep their hyphens

html_theme = "furo"
pygments_dark_style = "monokai"  # the theme's own underlines names
html_title = f"deepseek {__version__}"
html_static_path = ["static"]
html_css_files = ["deepseek.css"]
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#1d5fbf",
        "color-brand-content": "#1d5fbf",
        "font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7fb2ff",
        "color-brand-content": "#7fb2ff",
    },
}

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]
