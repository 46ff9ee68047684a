"""A hook of MkDocs: makes pages of the repository's documents that lie outside docs/.

A link in them is right where the file lies; in the site, docs/ is the root.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/*.md")
_LINK = re.compile(r"\]\((?:\.\./|docs/)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for pattern in _OUTSIDE:
        for path in sorted(root.glob(pattern)):
            name = "index.md" if path.name == "README.md" else str(path.relative_to(root))
            files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend the links of the pages that lie at the root of the site."""
    return markdown if "/" in page.file.src_uri else _LINK.sub("](", markdown)
