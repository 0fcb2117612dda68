"""Numbers and names with their noun: `1 case`, `2 cases`, `folds 2, 3`."""

from __future__ import annotations

from collections.abc import Iterable

HISSING = ("s", "x", "sh", "tch")


def counted(number: int, noun: str) -> str:
    """How many of a thing there are.

    >>> counted(1, "case"), counted(0, "case"), counted(2, "epoch"), counted(2, "patch")
    ('1 case', '0 cases', '2 epochs', '2 patches')
    """
    return f"{number} {noun if number == 1 else _plural(noun)}"


def listed(noun: str, names: Iterable[object]) -> str:
    """Which ones there are.

    >>> listed("fold", [2]), listed("fold", [2, 3, 4])
    ('fold 2', 'folds 2, 3, 4')
    """
    texts = [str(name) for name in names]
    return f"{noun if len(texts) == 1 else _plural(noun)} {', '.join(texts)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(HISSING) else "s")
