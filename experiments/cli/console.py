"""Data shown on a terminal: text that nobody but its reader interprets."""

import sys
import unicodedata

# Control pictures have one symbol for each of the first 32 characters, and one for DEL.
_PICTURES = {**{i: 0x2400 + i for i in range(32)}, 0x7F: 0x2421}


def visible(text: str, keep: str = "") -> str:
    """Returns text whose control characters are replaced by symbols.

    Titles, ids and names come from files of other people. A terminal would obey an escape sequence in one, and a
    direction mark would reorder what stands beside it.

    Args:
      text: any text.
      keep: control characters that stay, such as line breaks of a message.

    Example:
      >>> visible("Alien\\x1b[2J\\tdirector's cut")
      "Alien␛[2J␉director's cut"
      >>> visible("abc\\u202efdp")
      'abc\\\\u202efdp'
    """
    return "".join(_symbol(character) if character not in keep else character for character in text)


def to_stderr(text: str) -> None:
    """Prints a message to standard error, its control characters as symbols."""
    print(visible(text, keep="\n"), file=sys.stderr)


def _symbol(character: str) -> str:
    code = ord(character)
    if code in _PICTURES:
        return chr(_PICTURES[code])
    # Cc: other controls; Cs: half a character; Bidi: embeddings, overrides and isolates of a direction.
    if unicodedata.category(character) in ("Cc", "Cs") or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
        return f"\\u{code:04x}"
    return character
