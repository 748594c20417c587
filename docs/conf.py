"""Sphinx settings; `make docs` builds the pages."""

from deepseek.version import __version__

project = "deepseek"
author = "The deepseek framework authors"
copyright = "The deepseek framework authors, Apache-2.0"
release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # the addresses in error messages, errors.md#config, are headings

html_theme = "furo"
html_title = f"deepseek {__version__}"
