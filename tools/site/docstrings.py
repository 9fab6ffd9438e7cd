"""An extension of Griffe, which reads docstrings for the site: a section "Example" is one of examples that run."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section "Example" of docstrings to "Examples", the name by which Griffe knows it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
