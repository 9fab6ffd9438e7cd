"""Pages of the site that are generated: every component has one, and every link between documents leads to a page."""

import posixpath
import re
from xml.etree import ElementTree

import pytest

from llm4rec_jax.losses.ranking import LOSSES, Loss, bpr
from llm4rec_jax.peft.registry import METHODS
from tools.site import documents, entry_pages, galleries
from tools.site.curves import loss_curve
from tools.site.drawings import drawing, kinds_of_sites

PAGES = galleries.pages()


def test_every_entry_of_every_registry_has_a_page():
    source = "\n".join(path.read_text("utf-8") for path in (documents.ROOT / "llm4rec_jax").rglob("*.py"))
    kinds = set(re.findall(r"^[A-Z_]+\b.* = Registry\(\"(.*)\"\)$", source, re.MULTILINE)) | {METHODS.kind}
    shown = {registry.kind: (gallery, registry) for gallery in galleries.galleries() for registry in gallery.registries}
    assert kinds == set(shown)
    for gallery, registry in shown.values():
        for name in registry:
            assert PAGES[f"gallery/{gallery.folder}/{name}.md"].startswith(f"# {name}\n")
            assert f"[{name}]({name}.md)" in PAGES[f"gallery/{gallery.folder}/index.md"]


def test_a_new_entry_gets_a_page(monkeypatch):
    monkeypatch.setitem(LOSSES, "mine", Loss(bpr, "sampled"))
    assert "gallery/losses/mine.md" in galleries.pages()


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page_has_equation_use_drawing_and_paper(name):
    page = PAGES[f"gallery/methods/{name}.md"]
    about = entry_pages.describe_method(name)
    assert about.use in page.split("## When to use it")[1].split("##")[0]
    assert METHODS.papers[name] in page
    (drawn, _) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    styles = {box.get("class") for box in ElementTree.fromstring(drawn).iter("rect")}
    assert ("added" in styles or "trained" in styles) == (name != "frozen")


def test_headings_of_galleries_are_plurals():
    assert galleries.plural("quantizer") == "Quantizers"
    assert galleries.plural("model of triples") == "Models of triples"
    assert not [gallery.title for gallery in galleries.galleries() if "ss" in gallery.title.replace("Losses", "")]


def test_a_method_without_an_equation_is_refused(monkeypatch):
    def bare():
        """Does something.

        Use it never.
        """

    monkeypatch.setitem(METHODS, "bare", bare)
    with pytest.raises(ValueError, match="'bare' must have an equation"):
        entry_pages.describe_method("bare")


def test_parameters_are_counted_in_the_stated_shape():
    # Two sites in each of six blocks, with A [384, 8] and B [8, 384].
    assert entry_pages.trained_parameters("lora")[0] == 6 * 2 * 2 * 384 * 8
    trained, share = entry_pages.trained_parameters("full")
    assert trained > 22_000_000
    assert share == 100
    assert entry_pages.trained_parameters("frozen")[0] == 0


def test_a_drawing_tells_arrays_in_place_from_added_ones():
    params = {"layer_0/ffn/up/kernel": (4, 8), "layer_0/ffn/up/bias": (8,)}
    (in_place,) = kinds_of_sites(params, {"layer_0/ffn/up": {"bias": (8,)}})
    (added,) = kinds_of_sites(params, {"layer_0/ffn/up": {"scale": (8,)}})
    assert in_place.in_place
    assert not added.in_place
    assert "a &lt;b&gt;" in drawing("a <b>", params, {})


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_curve(name):
    assert ElementTree.fromstring(loss_curve(LOSSES[name])).tag.endswith("svg")


def test_links_between_documents_lead_to_pages():
    pages = documents.pages()
    known = {*pages, *PAGES, *(place for _, place in documents.modules())}
    for place, text in pages.items():
        if place.startswith("source/"):
            continue
        for link in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(place), link)) in known, (place, link)


def test_a_notebook_is_a_page_with_its_code():
    page = documents.pages()["notebooks/add_a_method.md"]
    assert page.startswith("# Adding a method\n\n[![Open in Colab]")
    assert '\n```python title="my_ssf.py"\nimport jax.numpy as jnp\n' in page
    assert "\n```bash\nllm4rec sweep" in page
    assert "%%" not in page
    assert "(../guides/adding_a_method.md)" in page


def test_every_document_is_in_the_navigation():
    listed = set(re.findall(r"\]\(([^)]+)\)", "\n".join(documents.navigation())))
    assert {p for p in documents.pages() if not p.startswith("source/")} - listed == {"contents.md", "third_party.md"}
