"""What is equal to people is found and sorted as equal, in every language."""

import pytest

from folding import folded, search_key, tag_key

ALIKE = [
    ("Buy MILK", "buy milk"),
    ("STRASSE", "Straße"),
    ("École", "E\u0301COLE"),  # NFC, NFD
    ("ecole", "École"),
    ("ΣΊΣΥΦΟΣ", "σισυφος"),  # the final sigma, too
    ("Ёлка", "елка"),
    ("İstanbul", "ıstanbul"),
    ("istanbul", "ISTANBUL"),
    ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
    ("ﬁle", "file"),
    ("Tiếng Việt đường", "tieng viet duong"),
    ("Łódź, ØRSTED, Ħal Tarxien", "lodz, orsted, hal tarxien"),
    ("ᾼδης ᾠδή", "αδης ωδη"),
    ("שָׁלוֹם", "שלום"),
    ("مُحَمَّد", "محمد"),
    ("Don\u2019t \u201cshout\u201d", 'don\'t "shout"'),
    ("ha\u00adbit\u200b\ufeff", "habit"),
    ("❤\ufe0f", "❤\U000e0100"),
    ("tag\U000e0061\U000e0fff", "tag"),
    ("two\u00a0\t\n  words ", "two words"),
    ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_what_is_alike_has_one_key(one: str, other: str) -> None:
    assert search_key(one) == search_key(other)


@pytest.mark.parametrize(
    ("one", "other"), [("a", "b"), ("ab", "a b"), ("100%", "100"), ("a_b", "a-b"), ("क", "ख")]
)
def test_what_differs_has_two_keys(one: str, other: str) -> None:
    assert search_key(one) != search_key(other)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b\ufeff", "\u0301", "\u3000\u00ad"])
def test_of_nothing_visible_nothing_is_left(text: str) -> None:
    assert search_key(text) == ""


def test_a_key_is_its_own_key() -> None:
    """Or a title, read and searched for, would not be found."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for character in characters:
        key = search_key(f"a{character}b")
        assert search_key(key) == key


def test_names_of_tags_keep_their_accents() -> None:
    assert tag_key("Hôme") != tag_key("home")
    assert tag_key("HO\u200bME\ufe0f") == tag_key("home")
    assert folded("ＡＤＡ@Example.com") == "ada@example.com"
    assert folded("\u01f0") == "\u01f0"  # whose case folding is decomposed
