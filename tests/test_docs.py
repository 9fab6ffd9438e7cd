"""Links of the documentation resolve, and its reference pages list what the package has."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from configs import movielens_100k
from llm4rec_jax import peft
from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.data.features.columns import FEATURES
from llm4rec_jax.data.sources import LABELED_SOURCES, SOURCES
from llm4rec_jax.data.splits.protocols import SPLITS
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders.base import families
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.generators import GENERATORS
from llm4rec_jax.models.graphs.base import GRAPHS
from llm4rec_jax.models.graphs.triples import TRIPLE_MODELS
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.items.fusion import FUSIONS
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.semantic_ids import QUANTIZERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "third_party").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in set(re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8"))):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_code_exists(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        pytest.skip("names what is gone")
    for path in set(re.findall(r"`((?:llm4rec_jax|experiments|configs|tests|tools|docs)/[\w/.]+\w)/?`", text)):
        # The files of an example are the reader's.
        assert (ROOT / path).exists() or Path(path).stem == "ssf", path


def test_every_page_is_reached_from_the_index():
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)", (DOCS / "index.md").read_text("utf-8"))}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def test_pages_that_code_names_exist():
    folders = ("llm4rec_jax", "experiments", "configs", "tests", "tools")
    for file in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for page in re.findall(r"(?<![\w/])docs/[\w/]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{file} names {page}"


def keys(table, prefix=""):
    """Yields the keys of a configuration; tables of options count as one."""
    for name, value in table.items():
        if hasattr(value, "items") and not name.endswith("options"):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_of_the_configuration_is_described():
    page = (DOCS / "reference" / "config.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `([\w.]+)` \| .* \| (?!.*tallrec_movie)", page, re.MULTILINE))
    assert described == set(keys(movielens_100k.get_config("lora")))


@pytest.mark.parametrize(
    ("heading", "registry", "more"),
    [
        ("Methods", peft.METHODS, set()),
        ("Losses", LOSSES, set()),
        ("User encoders", {*USERS, *GRAPHS}, set()),
        ("Heads", HEADS, set()),
        ("Kinds of features", FEATURES, set()),
        ("Fusions", FUSIONS, set()),
        ("Models of triples", TRIPLE_MODELS, set()),
        ("Baselines", BASELINES, {"liked_share", "gp"}),
        ("Quantizers", QUANTIZERS, set()),
        ("Generators", GENERATORS, set()),
    ],
)
def test_every_entry_of_a_registry_is_described(heading, registry, more):
    page = (DOCS / "reference" / "registries.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {*registry, *more}


@pytest.mark.parametrize(
    ("page", "heading", "registry"),
    [
        ("reference/registries.md", "Poolings", POOLINGS),
        ("reference/registries.md", "Model families", families()),
        ("guides/data.md", "Sources", {*SOURCES, *LABELED_SOURCES}),
        ("guides/data.md", "Splits", SPLITS),
    ],
)
def test_every_entry_of_a_smaller_registry_is_named(page, heading, registry):
    section = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert set(registry) <= set(re.findall(r"`([\w-]+)`", section))


def test_options_of_methods_are_those_of_the_package():
    page = (DOCS / "reference" / "registries.md").read_text(encoding="utf-8")
    for name, method in peft.METHODS.items():
        options = ", ".join(f"{p.name}={p.default!r}" for p in inspect.signature(method).parameters.values())
        row = f"| `{name}` | {f'`{options}`' if options else ''} | {peft.METHODS.papers[name]} |"
        assert row.replace("\\\\", "\\") in page.replace("\\|", "|").replace("\\\\", "\\"), row


def test_every_command_is_described():
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    commands = {path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == commands


def test_messages_of_troubleshooting_are_those_of_the_program():
    page = (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(headings) > 15
    files = [path for folder in ("llm4rec_jax", "experiments") for path in (ROOT / folder).rglob("*.py")]
    # Adjacent literals are one message; values that are written into it are "…".
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(string for string in strings if isinstance(string, str))
    for heading in headings:
        for part in heading.split("…"):
            assert part.strip() in said, heading
