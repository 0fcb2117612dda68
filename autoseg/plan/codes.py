"""What a class is, in standard codes (SNOMED CT): for DICOM segmentation objects.

A class gets the codes that `dataset.json` declares for it, else those that its name stands for in a
small table, else a private code. A name is read word by word: `left_lung_tumour` is a neoplasm
whose region is the left lung. A name with any other word is not guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from autoseg.plan.labels import ClassValues
from autoseg.plan.sections import Section

PRIVATE_SCHEME = "99AUTOSEG"
Text = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\\\x00-\x1f]+$")]
Scheme = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=r"^[^\\\s]+$")]


def _is_sct_number(code: tuple[str, str, str]) -> tuple[str, str, str]:
    if code[1] == "SCT" and not code[0].isdecimal():
        raise ValueError(f"{code[0]!r} is not a SNOMED CT code, which is a number")
    return code


Code = Annotated[tuple[Text, Scheme, Text], AfterValidator(_is_sct_number)]
Codes = Mapping[str, "SegmentCode"]  # class -> its codes

TISSUE: Code = ("85756007", "SCT", "Tissue")
ORGAN: Code = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")


class SegmentCode(Section):
    """The codes of a class, each as [value, coding scheme, meaning]."""

    type: Code = Field(description='what it is, such as ["39607008", "SCT", "Lung"]')
    category: Code = Field(ORGAN, description="the kind of thing that it is")
    modifiers: tuple[Code, ...] = Field((), description='such as ["7771000", "SCT", "Left"]')
    region: Code | None = Field(None, description="the organ that a lesion is in")

    @property
    def is_private(self) -> bool:
        """Whether the type has no meaning outside of autoseg."""
        return self.type[1] == PRIVATE_SCHEME


# Names -> SNOMED CT code and meaning: of organs (singular, without sides), lesions, sides. Organs
# in pairs. Other spellings, irregular plurals and words that add nothing: SNOMED CT has no closer
# structure than a lesion for an infection, or for how it appears in a scan.
ORGANS, LESIONS, SIDES, PAIRED, SPELLINGS = json.loads(
    Path(__file__).with_name("snomed.json").read_text(encoding="utf-8")
).values()
KNOWN = {word for text in (*ORGANS, *LESIONS, *SIDES, *SPELLINGS) for word in text.split()}


def check_codes(declared: Codes, labels: ClassValues) -> None:
    """Raise a ValueError if codes are of no class besides the background, which is no segment."""
    classes = [name for name, values in labels.items() if 0 not in values]
    if unknown := [name for name in declared if name not in classes]:
        raise ValueError(f"codes: {unknown[0]!r} is none of {', '.join(classes)}")


def codes_of(labels: ClassValues, declared: Codes, task: str = "") -> dict[str, SegmentCode]:
    """The codes of each class: declared, or by its name, or private.

    Args:
        labels: the classes.
        declared: by `dataset.json`.
        task: its name gives the organ to classes that are only called `Anterior` or `left`.
    """
    return {name: declared.get(name) or _by_name(name, task) for name in labels}


def _by_name(name: str, task: str) -> SegmentCode:
    words = _words(name)
    code = _read(words)
    if code is None and words and all(word in SIDES for word in words):
        organ = [word for word in _words(task) if not any(map(str.isdigit, word))]
        code = _read([*words, *organ])
    if code is not None:
        return code
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()  # the same in every task
    return SegmentCode(type=(digest, PRIVATE_SCHEME, _meaning(name)), category=TISSUE)


def _meaning(name: str) -> str:
    """A class name without the characters that a code meaning cannot have."""
    return re.sub(r"[\\\x00-\x1f]", " ", name).strip()[:64] or "class"


def _words(name: str) -> list[str]:
    """The words of a name, such as `RightParotids`, in one spelling: `right`, `parotids`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_]+", spaced.lower())
    return [word for each in words for word in SPELLINGS.get(each, each).split()]


def _read(words: Sequence[str]) -> SegmentCode | None:
    """The codes that words stand for; None if one of them is unknown."""
    singular = [w[:-1] if w not in KNOWN and w[:-1] in KNOWN and w[-1] == "s" else w for w in words]
    known = [word for each in singular for word in SPELLINGS.get(each, each).split()]
    sides = [word for word in known if word in SIDES]
    if sides and (text := " ".join(known)) in ORGANS:  # such as left atrium
        return SegmentCode(type=_sct(ORGANS[text]))
    lesions = [word for word in known if word in LESIONS]
    organ = " ".join(word for word in known if word not in SIDES and word not in LESIONS)
    if len(lesions) > 1 or {"left", "right"} <= {*sides} or organ not in ("", *ORGANS):
        return None
    if not (sides or lesions) and organ in PAIRED and singular != [*words]:
        sides = ["bilateral"]
    modifiers = tuple(_sct(SIDES[side]) for side in sides)
    region = _sct(ORGANS[organ]) if organ else None
    if lesions:
        what = _sct(LESIONS[lesions[0]])
        return SegmentCode(type=what, category=ABNORMAL, modifiers=modifiers, region=region)
    return SegmentCode(type=region, modifiers=modifiers) if region else None


def _sct(known: Sequence[str]) -> Code:
    return known[0], "SCT", known[1]
