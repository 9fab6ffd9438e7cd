"""Texts of items and users, written from templates.

A template is a Python format string over columns, such as "{title} ({year}). {genres}". It is read as clauses parted by
punctuation (`. ! ? ; , |`, spaced dashes, line breaks), and brackets hold clauses of their own. A bracket or clause
whose fields are all empty (null, NaN, blank, an empty list) vanishes with its words, labels and separator; in other
clauses an empty field takes along only the marks and blanks around it. Fields are never altered.
"""

import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.registry import unknown_name

_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_SEPARATOR = re.compile(r"\s*[.!?;,|]+(?:\s+|\Z)|\s+[-–—]+(?:\s+|\Z)|[^\S\n]*\n\s*")
_SENTENCE_END = re.compile(r"\s*[.!?]")
_JOINER = re.compile(r"[/&+·•~–—-]")
_LAST_MARKS = re.compile(r"[^\w)\]}]*\Z")
_FIRST_MARKS = re.compile(r"\A[^\w(\[{]*")
_HISTORY_FIELDS = ("history", "liked", "disliked")


class UserTemplate:
    """A template that writes a user as text, from the titles of a history and the columns of the user table.

    Fields are {history}, the titles of all items kept; {liked} and {disliked}, those titles split by a mask; and any
    user column. `max_items` keeps the most recent, before the split.

    Raises:
        ValueError: for a malformed template, or max_items below 1.

    Example:
        >>> UserTemplate("Liked: {liked}. Disliked: {disliked}.")(["Heat", "Jaws"], liked_mask=[True, True])
        'Liked: Heat; Jaws.'
    """

    def __init__(
        self, template: str = "The user watched: {history}", separator: str = "; ", max_items: int | None = None
    ) -> None:
        if max_items is not None and max_items < 1:
            raise ValueError(f"max_items must be at least 1 or None, got {max_items}")
        self._template = _Template(template)
        self._separator = separator
        self._max_items = max_items

    def __call__(
        self,
        titles: Sequence[str],
        user_row: Mapping[str, object] | None = None,
        liked_mask: Sequence[bool] | NDArray[np.bool_] | None = None,
    ) -> str:
        """Writes one user; "" if all fields are empty. titles [H], most recent last; liked_mask bool [H].

        Raises:
            ValueError: for a field that is neither a history field nor in `user_row`, {liked} or {disliked} without a
                mask, or a mask of another length than the titles.
        """
        values: dict[str, object] = dict(user_row or {})
        first = 0 if self._max_items is None else max(len(titles) - self._max_items, 0)
        values["history"] = self._join(titles[first:])
        if liked_mask is not None:
            if len(liked_mask) != len(titles):
                raise ValueError(f"liked_mask has {len(liked_mask)} entries for {len(titles)} titles")
            marked = list(zip(titles, liked_mask, strict=True))[first:]
            values["liked"] = self._join([title for title, liked in marked if liked])
            values["disliked"] = self._join([title for title, liked in marked if not liked])
        for field in self._template.fields:
            if field in _HISTORY_FIELDS and field not in values:
                raise ValueError(
                    f"the template uses {{{field}}}: pass liked_mask, such as ratings at least a threshold"
                )
            if field not in values:
                raise ValueError(unknown_name("template field", field, values))
        return self._template(values) or ""

    def _join(self, titles: Sequence[str]) -> str:
        return self._separator.join(title for title in titles if title.strip())


def item_texts(
    items: pl.DataFrame, template: str = "{title} ({year}). {genres}", rows: slice = slice(None)
) -> list[str]:
    """Writes the text of each item. Lists are joined by ", ".

    Whole floats read 1995 unless the field has a format, also in a column of text such as "1995.0" and "", which is
    how a table with missing whole numbers is often written.

    Args:
        items: the item table.
        template: a format string over its columns.
        rows: the items that are written; all by default.

    Raises:
        ValueError: for a malformed template, or a field that is not a column.
        DataError: for an item with all fields empty, or a value that is no text or that its format cannot take.

    Example:
        >>> item_texts(pl.DataFrame({"title": ["Heat", "Casino"], "year": [1995.0, None]}), "{title} ({year})")
        ['Heat (1995)', 'Casino']
    """
    compiled = _Template(template)
    for field in compiled.fields:
        if field not in items.columns:
            raise ValueError(unknown_name("template field", field, items.columns))
    texts = []
    columns = items.select(_without_point_zero(items[field]) for field in compiled.fields)[rows]
    for index, row in enumerate(columns.iter_rows(named=True), rows.start or 0):
        where = f"item {items['item_id'][index]!r}" if "item_id" in items.columns else f"item table, row {index}"
        try:
            text = compiled(row)
        except ValueError as error:
            raise DataError(f"{where}: {error}; change template {template!r}") from error
        if text is None:
            raise DataError(
                f"{where}: {', '.join(compiled.fields)} are all empty, which leaves no text; fill one of them, drop "
                f"the item, add another column to template {template!r}, or give the source the option no_text"
            )
        texts.append(text)
    return texts


def _without_point_zero(column: pl.Series) -> pl.Series:
    """Returns a column of text whose values all are whole numbers written as floats as whole numbers."""
    if column.dtype != pl.String:
        return column
    present = column.fill_null("").str.strip_chars()
    whole = present.filter(present != "").str.contains(r"^-?[0-9]+\.0$")
    return present.str.strip_suffix(".0").alias(column.name) if len(whole) and whole.all() else column


class _Field(NamedTuple):
    name: str
    spec: str
    conversion: str | None

    def render(self, values: Mapping[str, object]) -> str | None:
        """The field's text, None if it is empty."""
        value = values[self.name]
        if isinstance(value, (list, tuple, np.ndarray, pl.Series)):
            texts = [text for text in map(self._format, value) if text is not None]
            return ", ".join(texts) or None
        return self._format(value)

    def _format(self, value: object) -> str | None:
        if isinstance(value, (bytes, Mapping)):
            kind = "binary data" if isinstance(value, bytes) else "a record"
            raise ValueError(
                f"field {self.name!r} holds {kind}, {value!r:.80}, and no text; make a column of text of it"
            )
        is_float = isinstance(value, (float, np.floating))
        if value is None or (is_float and np.isnan(value)) or (isinstance(value, str) and not value.strip()):
            return None
        if is_float and not self.spec and not self.conversion and float(value).is_integer():
            return str(int(value))
        try:
            return format(string.Formatter().convert_field(value, self.conversion), self.spec)
        except (ValueError, TypeError) as error:
            raise ValueError(f"field {self.name!r}: cannot format {value!r} as {self.spec!r}: {error}") from error


class _Group(NamedTuple):
    opening: str
    clauses: "_Clauses"
    closing: str

    def render(self, values: Mapping[str, object]) -> str | None:
        inner = self.clauses.render(values)
        return None if inner is None else self.opening + inner + self.closing


class _Clauses(NamedTuple):
    """Clauses of literals, fields and groups, and the separators between them, one fewer."""

    clauses: list[list["str | _Field | _Group"]]
    separators: list[str]

    @property
    def has_fields(self) -> bool:
        return any(_has_fields(clause) for clause in self.clauses)

    def render(self, values: Mapping[str, object]) -> str | None:
        """The text, None if there are fields and all of them are empty."""
        text, started, filled = "", False, not self.has_fields
        pending: list[str] = []
        for clause, separator in zip(self.clauses, [*self.separators, ""], strict=True):
            rendered = _render_clause(clause, values)
            if rendered is not None:
                filled = filled or _has_fields(clause)
                if started:
                    between = _separator(pending)
                    text += between if rendered or len(pending) == 1 else between.rstrip()
                text += rendered
                started, pending = True, []
            pending.append(separator)
        # Separators before clauses that vanished are left over: the sentence still ends, a list does not go on.
        if len(pending) > 1 and _SENTENCE_END.match(_separator(pending)):
            text += _separator(pending).rstrip()
        return text if filled else None


class _Template:
    """A parsed template; calling it gives the text, or None if all fields are empty."""

    def __init__(self, template: str) -> None:
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"malformed template {template!r}: {error}") from error
        atoms: list[str | _Field] = []
        for literal, name, spec, conversion in parsed:
            atoms += re.findall(r"[()\[\]{}]|[^()\[\]{}]+", literal)
            if name is not None:
                if not name or name.isdigit():
                    raise ValueError(
                        f"template {template!r} has a field without a name; name a column, as in {{title}}"
                    )
                atoms.append(_Field(name, spec or "", conversion))
        self.fields = list(dict.fromkeys(atom.name for atom in atoms if isinstance(atom, _Field)))
        if not self.fields:
            raise ValueError(f"template {template!r} has no field; name a column, as in {{title}}")
        self._clauses = _parse_groups(atoms)

    def __call__(self, values: Mapping[str, object]) -> str | None:
        return self._clauses.render(values)


def _parse_groups(atoms: Sequence[str | _Field]) -> _Clauses:
    """Nests what stands between matching brackets; an unmatched bracket is a literal."""
    levels: list[list[str | _Field | _Group]] = [[]]
    openings: list[str] = []
    for atom in atoms:
        if isinstance(atom, str) and atom in _BRACKETS:
            openings.append(atom)
            levels.append([])
        elif isinstance(atom, str) and openings and atom == _BRACKETS[openings[-1]]:
            group = _Group(openings.pop(), _parse_clauses(inner := levels.pop()), atom)
            levels[-1] += [group] if group.clauses.has_fields else [group.opening, *inner, atom]
        else:
            levels[-1].append(atom)
    while openings:
        inner = levels.pop()
        levels[-1] += [openings.pop(), *inner]
    return _parse_clauses(levels[0])


def _parse_clauses(parts: Sequence[str | _Field | _Group]) -> _Clauses:
    merged: list[str | _Field | _Group] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    parsed = _Clauses([[]], [])
    for part in merged:
        if isinstance(part, str):
            start = 0
            for match in _SEPARATOR.finditer(part):
                parsed.clauses[-1].append(part[start : match.start()])
                parsed.separators.append(match.group())
                parsed.clauses.append([])
                start = match.end()
            part = part[start:]
        parsed.clauses[-1].append(part)
    return parsed


def _has_fields(clause: Sequence[str | _Field | _Group]) -> bool:
    return any(isinstance(part, _Field) or (isinstance(part, _Group) and part.clauses.has_fields) for part in clause)


def _separator(pending: Sequence[str]) -> str:
    """The one separator that stays where clauses vanished between several: the end of a sentence, or else the first."""
    return next((separator for separator in pending if _SENTENCE_END.match(separator)), pending[0])


def _render_clause(clause: Sequence[str | _Field | _Group], values: Mapping[str, object]) -> str | None:
    text, filled = "", False
    # The literals since the last part with text, cut where an empty part stood.
    pieces = [""]
    for part in clause:
        rendered = part if isinstance(part, str) else part.render(values)
        if rendered is None:
            pieces.append("")
        elif isinstance(part, str):
            pieces[-1] += part
        else:
            text += _bridge(pieces, filled, True) + rendered
            pieces, filled = [""], True
    if _has_fields(clause) and not filled:
        return None
    return text + _bridge(pieces, filled, False)


def _bridge(pieces: Sequence[str], before: bool, after: bool) -> str:
    """Joins literals over the gaps between them. Before and after tell whether text adjoins them on either side."""
    bridge = pieces[0]
    for remaining, piece in zip(range(len(pieces) - 2, -1, -1), pieces[1:], strict=True):
        words = _LAST_MARKS.sub("", bridge, count=1)
        next_words = _FIRST_MARKS.sub("", piece, count=1)
        marks, next_marks = bridge[len(words) :], piece[: len(piece) - len(next_words)]
        if ":" in marks or "=" in marks:  # A label goes with its field
            words, marks = "", ""
        adjoined = (before or words) and (after or next_words or remaining)
        bridge = words + (_merge_marks(marks, next_marks) if adjoined else "") + next_words
    return bridge


def _merge_marks(marks: str, next_marks: str) -> str:
    for candidate in (marks, next_marks):
        if _JOINER.search(candidate):
            return candidate
    return " " if re.search(r"\s", marks + next_marks) else ""
