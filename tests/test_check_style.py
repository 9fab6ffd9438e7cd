"""The style check finds what docs/style.md forbids, and nothing in code."""

from pathlib import Path

import pytest

from tools.check_style import check_file, check_markdown, check_python, repository_files

PAGE, MODULE = Path("page.md"), Path("module.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("It ends.\nWhat is left is kept.", '2: a sentence begins with "What"'),
        ("Of the items one is drawn.", '1: a sentence begins with "Of"'),
        ("| a | b |\n|---|---|\n| x | That it works |", '3: a sentence begins with "That"'),
        ("at most so\nmany in a program", '1: "so many"'),
        ("How many users there are is none.", '1: "is none"'),
    ],
)
def test_forbidden_sentences_are_found_with_their_line(text, message):
    (finding,) = check_markdown(PAGE, text)
    assert str(finding).startswith(f"page.md:{message}")


def test_code_in_markdown_is_not_prose():
    text = "Fine.\n\n    What = 1\n\n```python\n# Of code\n```\n\nA `That ` in code, a [link](What is it).\n"
    assert not list(check_markdown(PAGE, text))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('def f():\n    """How it goes."""', '2: a docstring begins with "How"'),
        ('def f():\n    """Whether it goes."""', '2: a function\'s docstring begins with "Whether"'),
        ('"""From a file to a table."""', '1: a docstring begins with "From"'),
        ('"""A table.\n\nArgs:\n  n: how many rows.\n"""', '4: an argument is described by "how many"'),
        ("x = 1\n# Fine.\n# What pads.\ny = 2", '3: a sentence begins with "What"'),
        ('raise ValueError("no file. That is all")', '1: a sentence begins with "That"'),
        ("model.profiles(x)", '1: the name "profiles" was replaced by "user_embeddings"'),
        ("f(only_last=0.2)", '1: the name "only_last" was replaced by "mask_last_prob"'),
    ],
)
def test_docstrings_comments_messages_and_names_of_python_are_checked(code, message):
    (finding,) = check_python(MODULE, code)
    assert str(finding).startswith(f"module.py:{message}")


def test_a_property_may_say_whether_and_doctests_are_code():
    code = (
        'class A:\n    """A thing.\n\n    >>> print("What is this")\n    """\n\n'
        '    @property\n    def b(self):\n        """Whether it is so."""\n'
    )
    assert not list(check_python(MODULE, code))
    assert not list(check_python(MODULE, 'title = "What Women Want"', strings_are_prose=False))


def test_the_repository_follows_the_style():
    assert not [str(finding) for path in repository_files() for finding in check_file(path)]
