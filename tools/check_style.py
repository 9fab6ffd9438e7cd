"""Checks the rules of docs/style.md that a pattern can tell: sentences in Python and Markdown, names in Python.

    python tools/check_style.py [PATH …]    # prints FILE:LINE: message for each finding; exits with 1 if there is one
    python tools/check_style.py --count     # the number of findings in each folder

Docstrings, comments, messages and Markdown are read as prose, without code blocks and inline code. There is no list of
exceptions: text that has to show a forbidden phrase shows it as inline code.
"""

import argparse
import ast
import collections
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("llm4rec_jax", "experiments", "configs", "tests", "tools")
DOCUMENTS = ("*.md", "docs/**/*.md", "third_party/**/*.md")

# Each pattern has one group, which the message quotes.
PHRASES = [
    (re.compile(r"\b(What|Of|That|Beside)\s"), 'a sentence begins with "{}": begin with its subject'),
    (re.compile(r"\b(so\s+manieth|so\s+many)\b", re.IGNORECASE), '"{}": say which number'),
    (re.compile(r"\b(none\s+is|(?<!there\s)is\s+none(?!\s+of))\b"), '"{}": say "there is no …" or "… is not …"'),
    (re.compile(r"\b(which\b[^.,;:]{0,40}\bof\s+it)\b", re.IGNORECASE), '"{}": make two sentences'),
    (re.compile(r"\b(elsewhere\s+than)\b", re.IGNORECASE), '"{}": say where'),
    (re.compile(r"^[^\S\n]+\w[\w, *]*:\s+((?:how\s+(?:many|much|often|long)|what|whether what)\b)", re.MULTILINE),
     'an argument is described by "{}": say what it is, such as "Number of …"'),
]  # fmt: skip
# The first word of a docstring whose first line is a clause without a verb or a subject.
HEADLESS = re.compile(r"(How|Why|Where|Who|Whose|Which|When|From|To|By|As|So|If|None|Not)\b(?!-)")
# The word of docs/style.md for each name that was given up.
NAMES = {
    "Gaps": "ClozeMasking",
    "Journal": "MetricWriter",
    "PEOPLE_RULE": "USER_TABLE_RULE",
    "Programs": "CompiledSteps",
    "Room": "PaddingPlan",
    "Spread": "ShardLongestAxis",
    "Tiled": "map_in_fixed_batches",
    "adopt": "load_matching_params",
    "agreed": "broadcast_from_first",
    "answering": "rating",
    "aside": "exclude_from_timing",
    "contexts": "item_embeddings",
    "failing_together": "exit_all_on_error",
    "joining": "distributed",
    "lanes": "num_streams",
    "located": "resolve_data_path",
    "no_leak": "assert_no_leakage",
    "of_run": "select_run",
    "only_last": "mask_last_prob",
    "own_code": "plugins",
    "people": "num_users",
    "profiles": "user_embeddings",
    "room": "padding",
    "say": "log",
    "separate": "partition_params",
    "settle": "flush_metrics",
    "states_above": "encode_from",
    "states_below": "hidden_states(stop=)",
    "states_of_all": "all_hidden_states",
    "states_over": "encode_from",
    "unmoved": "unchanged_params",
}


class Finding(NamedTuple):
    """A broken rule and its place."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def check_prose(path: Path, text: str, line: int = 1) -> Iterator[Finding]:
    """Yields the forbidden phrases of a text that begins on `line`.

    Example:
      >>> for finding in check_prose(Path("a.md"), "It works.\\nThat `What` is code is fine."):
      ...     print(finding)
      a.md:2: a sentence begins with "That": begin with its subject
    """
    text = re.sub(r"(`+)[^`]+?\1|\]\([^)]*\)", lambda code: re.sub(r"[^\n]", "`", code[0]), text)
    for pattern, message in PHRASES:
        for match in pattern.finditer(text):
            place = line + text.count("\n", 0, match.start(1))
            yield Finding(path, place, message.format(" ".join(match[1].split())))


def check_markdown(path: Path, text: str) -> Iterator[Finding]:
    """Yields the findings of a Markdown page, without its fenced and indented code."""
    kept, fenced = [], False
    for line in text.split("\n"):
        fence = line.lstrip().startswith("```")
        kept.append("" if fenced or fence or line.startswith("    ") else line)
        fenced ^= fence
    yield from check_prose(path, "\n".join(kept))


def check_python(path: Path, text: str, strings_are_prose: bool = True) -> Iterator[Finding]:
    """Yields the findings of a Python file: in docstrings, comments, messages and names.

    Args:
      path: Path that the findings name.
      text: The file's content.
      strings_are_prose: Whether strings other than docstrings are checked. In tests they are mostly data.

    Example:
      >>> [finding.message for finding in check_python(Path("a.py"), "room = 1  # What pads.")]
      ['the name "room" was replaced by "padding"', 'a sentence begins with "What": begin with its subject']
    """
    tree = ast.parse(text)
    docstrings = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is None:
            continue
        string = node.body[0].value  # pyright: ignore[reportAttributeAccessIssue]
        docstrings.add(id(string))
        yield from check_prose(path, _without_code(string.value), string.lineno)
        if headless := HEADLESS.match(string.value.lstrip()):
            yield Finding(path, string.lineno, f'a docstring begins with "{headless[1]}": begin with a verb or a noun')
        elif string.value.startswith("Whether") and isinstance(node, ast.FunctionDef) and not _is_property(node):
            yield Finding(path, string.lineno, 'a function\'s docstring begins with "Whether": "Returns whether …"')
    for node in ast.walk(tree) if strings_are_prose else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from check_prose(path, node.value, node.lineno)
    comment, first = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if comment and token.start[0] > first + len(comment):
                yield from check_prose(path, "\n".join(comment), first)
                comment = []
            first = first if comment else token.start[0]
            comment.append(token.string.lstrip("#").strip())
        elif token.type == tokenize.NAME and token.string in NAMES:
            message = f'the name "{token.string}" was replaced by "{NAMES[token.string]}"'
            yield Finding(path, token.start[0], message)
    yield from check_prose(path, "\n".join(comment), first)


def _without_code(docstring: str) -> str:
    """Blanks the lines of doctests, and of commands, which stand four columns in after an empty line."""
    return "\n".join("" if re.match(r"\s*(>>>|\.\.\. |python -m )", line) else line for line in docstring.split("\n"))


def _is_property(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("property") for decorator in function.decorator_list)


def check_file(path: Path) -> list[Finding]:
    """Returns the findings of a file, in the order of its lines."""
    text, shown = path.read_text(encoding="utf-8"), path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if path.suffix == ".md":
        found = check_markdown(shown, text)
    else:
        found = check_python(shown, text, strings_are_prose="tests" not in shown.parts)
    return sorted(found, key=lambda finding: finding.line)


def repository_files() -> list[Path]:
    """Returns the Python files and Markdown pages that the check covers."""
    sources = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    return sorted([*sources, *(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings of the files given, or of the whole repository; returns the exit code."""
    parser = argparse.ArgumentParser(description="Checks the rules of docs/style.md.")
    parser.add_argument("paths", nargs="*", type=Path, help="Files; by default those of the repository.")
    parser.add_argument("--count", action="store_true", help="Print the number of findings in each folder instead.")
    options = parser.parse_args(arguments)
    found = [finding for path in options.paths or repository_files() for finding in check_file(path.resolve())]
    if options.count:
        for folder, number in sorted(collections.Counter(str(finding.path.parent) for finding in found).items()):
            print(f"{number:5} {folder}")
        print(f"{len(found):5} in all")
    else:
        print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
