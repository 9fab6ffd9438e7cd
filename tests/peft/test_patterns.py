"""Regular expressions from files: those that may never end are refused before they are matched."""

import re
import time

import pytest

from llm4rec_jax.peft.patterns import matching

NAMES = [f"encoder.layer.{i}.attention.self.{name}" for i in range(12) for name in ("query", "key", "value")]
HOSTILE = [
    r"(a+)+b", r"(.*)*x", r"(\w|\w\w)+!", r"((e|en)+)*x", r"(.+?)+?x", r"(?:.*a){9}", r".*.*.*.*.*x",
    r"(e|en|enc)(o|c|co)(d|o|od)(e|d|de)(r|e|er)x", r"(?=(.+)+x)encoder.*", r"(?!(.+)+x).*",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_may_never_end_are_refused_at_once(pattern):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="repeats what repeats, or has more than 4 repetitions"):
        matching(pattern, ["e" * 5000])
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    "pattern",
    [
        r".*",
        r".*\.(query|value)",
        r"encoder\.layer\.(0|1|10)\..*",
        r"encoder\.layer\.\d+\.attention\.self\.[qv].*",
        r"(?!.*key)(?:.*layer\.)?.*value",
        r".*?(?:self_attn|attention).*?(?:query|key|value)",
        r"(?P<a>encoder)\.layer\.(?:[0-9]{1,2})\..*",
        "|".join(map(re.escape, NAMES[::2])),
    ],
)
def test_others_match_as_re_does(pattern):
    assert matching(pattern, NAMES) == [name for name in NAMES if re.fullmatch(pattern, name)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is not a regular expression"), ("x" * 100_001, "has 100001 characters"), ("(" * 5000, "is not a regular")],
)
def test_others_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        matching(pattern, NAMES)
