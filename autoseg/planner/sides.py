"""Our own rule for labels of the left and the right side, which mirroring exchanges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from autoseg.plan.labels import check_mirrored

Pairs = tuple[tuple[int, int], ...]

# Words for the left and the right side in names of labels.
WORDS = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lft", "rgt"),
    ("lh", "rh"),
    ("links", "rechts"),
    ("linke", "rechte"),
    ("linker", "rechter"),
    ("linkes", "rechtes"),
    ("li", "re"),
    ("gauche", "droite"),
    ("gauche", "droit"),
    ("izquierdo", "derecho"),
    ("izquierda", "derecha"),
    ("sinistro", "destro"),
    ("sinistra", "destra"),
    ("sinister", "dexter"),
)
JOINED = 4  # words of at least so many letters may also be joined to others, as in `leftlung`
# Organs whose two sides are no mirror images of each other: a mirrored right atrium is no left one.
UNLIKE = re.compile(
    r"atri(um|a|al)\b|auricle|appendage|coronary|myocardium|aort|hepat|liver|leber|foie|herz|heart"
    r"|(?<!lateral )\bventricle|bundle branch",
)


def pairs_of(
    labels: Mapping[str, Sequence[int]], declared: Mapping[str, str] | None
) -> tuple[Pairs, str]:
    """The pairs of values to exchange when left and right are mirrored, and the evidence.

    Args:
        labels: name -> values, background first.
        declared: names on one side -> names on the other; None to find them.
    """
    names = by_name(list(labels)[1:]) if declared is None else list(declared.items())
    pairs: list[tuple[int, int]] = []
    for one, other in names:
        for pair in zip(labels[one], labels[other], strict=False):
            if pair[0] != pair[1] and pair not in pairs:
                pairs.append(pair)
    evidence = ", ".join(f"{one} and {other}" for one, other in names)
    try:
        check_mirrored({name: tuple(values) for name, values in labels.items()}, pairs)
    except ValueError as error:
        return (), f"off for {evidence}: {error}"
    return tuple(pairs), evidence


def by_name(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names that differ in the words for left and right only, in pairs (left, right).

    Organs that are no mirror images of each other, such as the ventricles of the heart, are left
    out. A name with several partners is left out as well.
    """
    normal = {" ".join(_words(name)): name for name in names}
    if len(normal) < len(names):
        normal = {name.casefold(): name for name in names}
    pairs = []
    for text, name in normal.items():
        partners = {normal[other] for other in _mirrored(text) if other in normal} - {name}
        if len(partners) == 1 and not UNLIKE.search(text):
            pairs.append((name, partners.pop()))
    named = list(chain.from_iterable(pairs))
    return [pair for pair in pairs if all(named.count(name) == 1 for name in pair)]


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z\u00df-\u00ff])(?=[A-Z])", " ", name)  # LeftLung
    return re.findall(r"[^\W_]+", apart.casefold())


def _mirrored(text: str) -> Iterator[str]:
    """The text with each word for the left side replaced by that for the right one."""
    words = text.split(" ")
    for left, right in WORDS:
        if left in words:
            yield " ".join(right if word == left else word for word in words)
        elif len(left) >= JOINED and left in text:
            joined = rf"\b{left}|{left}\b"
            yield re.sub(joined, right, text)
