"""Forms of text for comparison: what is equal to people gets the same form."""

import re
from itertools import filterfalse
from unicodedata import category, combining, normalize

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's Default_Ignorable_Code_Point: soft hyphens, joiners, marks of direction, and so on."""

_BLANK = "\u2800"  # a Braille pattern without dots
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ALIKE = str.maketrans(
    "\u0131\u0142\u00f8\u0111\u0127\u0167\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f",
    "ilodht''''" + '""""',
)
"""The dotless i, letters with a stroke, which Unicode does not take apart, and curly quotes."""


def folded(text: str) -> str:
    """Return the form by which emails are compared: NFKC and case folding."""
    return normalize("NFKC", normalize("NFKC", text).casefold())


def tag_key(name: str) -> str:
    """Return the form by which names of tags are compared: accents count, invisible ones do not."""
    return folded(_INVISIBLE.sub("", name))


def search_key(text: str) -> str:
    """Return the form in which text is searched and sorted.

    Case, accents, width, the spelling of code points, invisible characters, curly quotes, the dot
    of an i and the amount of white space make no difference.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Before, too: case folding makes a letter of the iota below another one.
    plain = _without_marks(_without_marks(text).casefold()).translate(_ALIKE)
    return " ".join(_INVISIBLE.sub("", plain).split())


def _without_marks(text: str) -> str:
    return "".join(filterfalse(combining, normalize("NFKD", text)))


def has_control_characters(text: str) -> bool:
    """Return whether there are any (C0, C1) but tab, line feed and carriage return."""
    return not text.isprintable() and bool(_CONTROL.search(text))


def is_visible(text: str) -> bool:
    """Return whether one can see any of it: more than controls, separators and ignorable ones."""
    if text.isascii() and text.isprintable():
        return bool(text.strip())
    seen = _INVISIBLE.sub("", text).replace(_BLANK, "")
    return any(category(character)[0] not in "CZ" for character in seen)
