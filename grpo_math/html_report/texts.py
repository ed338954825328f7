"""Texts of models and data, made harmless for HTML."""

from __future__ import annotations

from html import escape

KEPT = "\n\t"


def clean(text: str) -> str:
    """The text with characters that no reader can see (controls, direction marks, lone surrogates) replaced."""
    return "".join(c if c.isprintable() or c in KEPT else "\N{REPLACEMENT CHARACTER}" for c in text)


def cut(text: str, width: int) -> str:
    """At most about `width` characters: the beginning and the end."""
    return text if len(text) <= width else f"{text[: width // 2]}\n[...]\n{text[-width // 2 :]}"


def tag(name: str, text: str, kind: str = "") -> str:
    """An element with this text, escaped."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<{name}{attribute}>{escape(clean(text))}</{name}>"
