"""Notebooks as pages of the site: their texts, and their code in fences. Colab, which each links to, shows outputs."""

import json
import re


def notebook_page(text: str) -> str:
    """Returns the Markdown of a notebook.

    A cell of a shell becomes a block of Bash, and one that writes a file a block with the file's name as title.

    Args:
      text: Content of the notebook's file.

    Example:
      >>> shell = {"cell_type": "code", "source": ["%%bash -e\\n", "ls"]}
      >>> cells = [{"cell_type": "markdown", "source": ["# Title"]}, shell]
      >>> print(notebook_page(json.dumps({"cells": cells})))
      # Title
      <BLANKLINE>
      ```bash
      ls
      ```
      <BLANKLINE>
    """
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        first, _, rest = source.partition("\n")
        if first.startswith("%%bash"):
            parts.append(f"```bash\n{rest}\n```")
        elif written := re.fullmatch(r"%%writefile (\S+)", first):
            parts.append(f'```python title="{written[1]}"\n{rest}\n```')
        else:
            parts.append(f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
