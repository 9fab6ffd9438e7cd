"""Writes the generated pages of the site; mkdocs-gen-files runs it at each build (`make docs`)."""

import mkdocs_gen_files

from llm4rec_jax.losses.ranking import LOSSES
from tools.site import documents, galleries
from tools.site.curves import loss_curve


def _write(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def _reference() -> list[str]:
    """Writes a page for each module and returns their part of the navigation."""
    lines = ["* API"]
    for name, path in documents.modules():
        depth = name.count(".")
        if path.endswith("/index.md"):
            lines += [f"{'    ' * (depth + 1)}* {name.rpartition('.')[2]}", f"{'    ' * (depth + 2)}* [{name}]({path})"]
        else:
            lines.append(f"{'    ' * (depth + 1)}* [{name.rpartition('.')[2]}]({path})")
        _write(path, f"# {name}\n\n::: {name}\n")
    return lines


def _galleries() -> list[str]:
    """Writes the pages of the galleries and returns their part of the navigation."""
    lines = ["* Galleries"]
    for gallery in galleries.galleries():
        folder = f"gallery/{gallery.folder}"
        lines += [f"    * {gallery.title}", f"        * [{gallery.title}]({folder}/index.md)"]
        lines += [f"        * [{name}]({folder}/{name}.md)" for name in gallery.entries]
    for path, text in galleries.pages().items():
        _write(path, text)
    for name, loss in LOSSES.items():
        _write(f"gallery/losses/{name}.svg", loss_curve(loss))
    return lines


for page, content in documents.pages().items():
    _write(page, content)
_write("SUMMARY.md", "\n".join([*documents.navigation(), *_galleries(), *_reference()]) + "\n")
