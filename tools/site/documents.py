"""The repository's own pages in the site: the README as home page, docs/, and the files that they link to.

Links are relative to the repository, so that every page can be read there. In the site, a link to a module leads to its
reference page, and one to any other file to a page that shows the file.
"""

import os
import re
from pathlib import Path, PurePosixPath

from tools.site.notebook_pages import notebook_page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")
_RENAMED = {"README.md": "index.md", "docs/index.md": "contents.md", "third_party/README.md": "third_party.md"}


def site_path(path: PurePosixPath) -> str:
    """Returns the place in the site of a file of the repository.

    Example:
      >>> [site_path(PurePosixPath(path)) for path in ("README.md", "docs/guides/peft.md", "SECURITY.md")]
      ['index.md', 'guides/peft.md', 'security.md']
      >>> [site_path(PurePosixPath(path)) for path in ("llm4rec_jax/peft/core.py", "tests/test_io.py")]
      ['api/llm4rec_jax/peft/core.md', 'source/tests/test_io.py.md']
      >>> site_path(PurePosixPath("notebooks/tpu.ipynb"))
      'notebooks/tpu.md'
    """
    if (name := str(path)) in _RENAMED:
        return _RENAMED[name]
    if path.suffix == ".md":
        return str(path.relative_to("docs")) if path.parts[0] == "docs" else name.lower()
    if path.suffix == ".ipynb":
        return str(path.with_suffix(".md"))
    if path.parts[0] == "llm4rec_jax" and path.suffix == ".py":
        return f"api/{path.parent}/index.md" if path.name == "__init__.py" else f"api/{path.with_suffix('.md')}"
    return f"source/{path}.md"


def documents() -> list[Path]:
    """Returns the pages of the repository: Markdown, and notebooks."""
    patterns = ("*.md", "docs/**/*.md", "third_party/*.md", "notebooks/*.ipynb")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def rewrite_links(page: Path, text: str, linked: set[Path]) -> str:
    """Returns a page's text with links between places in the site.

    Args:
      page: The file in the repository.
      text: Its content.
      linked: Gets the files that it links to.
    """
    here = PurePosixPath(site_path(PurePosixPath(page.relative_to(ROOT).as_posix()))).parent

    def rewritten(match: re.Match[str]) -> str:
        target = (page.parent / match[1]).resolve()
        if not target.exists():
            return match[0]
        linked.add(target)
        place = site_path(PurePosixPath(target.relative_to(ROOT).as_posix()))
        return PurePosixPath(os.path.relpath(place, here)).as_posix()

    return _LINK.sub(rewritten, text)


def source_page(path: Path) -> str:
    """Returns a page that shows a file, or lists the files of a folder."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return f"# {name}\n\n" + "".join(f"- `{file.name}`\n" for file in sorted(path.glob("*.py")))
    language = {".py": "python", ".toml": "toml", ".yml": "yaml"}.get(path.suffix, "text")
    return f"# {name}\n\n````{language}\n{path.read_text(encoding='utf-8')}\n````\n"


def pages() -> dict[str, str]:
    """Returns the Markdown of the repository's pages, and of the files that they link to, by path in the site."""
    made, linked = {}, set()
    for page in documents():
        place = site_path(PurePosixPath(page.relative_to(ROOT).as_posix()))
        text = page.read_text(encoding="utf-8")
        made[place] = rewrite_links(page, notebook_page(text) if page.suffix == ".ipynb" else text, linked)
    for file in sorted(linked):
        place = site_path(PurePosixPath(file.relative_to(ROOT).as_posix()))
        if place.startswith("source/"):
            made[place] = source_page(file)
    return made


def modules() -> list[tuple[str, str]]:
    """Returns the modules of the package, parents first: their names and places in the site."""
    files = [path.relative_to(ROOT) for path in (ROOT / "llm4rec_jax").rglob("*.py") if path.stem != "__main__"]
    named = {
        ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts): site_path(
            PurePosixPath(path.as_posix())
        )
        for path in files
    }
    return sorted(named.items(), key=lambda module: module[0].split("."))


def navigation() -> list[str]:
    """Returns the sections and links of docs/index.md, as lines of a nested list."""
    lines = ["* [Home](index.md)"]
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for section in re.split(r"^\*\*", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("**")
        lines.append(f"* {heading}")
        for item in re.split(r"^- ", rest, flags=re.MULTILINE)[1:]:
            group = re.match(r"(\w[^:\[]*): \[", item)
            indent = "        " if group else "    "
            lines += [f"    * {group[1]}"] if group else []
            for title, link in re.findall(r"\[([^\]]+)\]\(([^)#]+)", item):
                place = (ROOT / "docs" / link).resolve().relative_to(ROOT)
                title = " ".join(title.split())
                lines.append(f"{indent}* [{title[0].upper()}{title[1:]}]({site_path(PurePosixPath(place.as_posix()))})")
    return lines
