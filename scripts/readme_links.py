"""The README for the package index: its relative links become absolute, or plain text.

Run by hatchling when a distribution is built (`[tool.hatch.metadata.hooks.custom]`). Links point
into the repository that `[project.urls] Repository` names, at the tag of the version. While no
repository is named, a link is replaced by its text, so that none is broken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def absolute(text: str, repository: str | None, version: str) -> str:
    """Replace the relative links of a Markdown text.

    Args:
        text: Markdown.
        repository: address of the repository without a final slash, or None.
        version: the links point to the tag `v` + version.
    """

    def replaced(match: re.Match[str]) -> str:
        image, words, path = match.groups()
        if repository is None:
            return words
        kind = "raw" if image else "blob"
        return f"{image}[{words}]({repository}/{kind}/v{version}/{path})"

    return LINK.sub(replaced, text)


class ReadmeHook(MetadataHookInterface):
    """Sets `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README to the metadata of the distribution."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository, metadata["version"]),
        }
