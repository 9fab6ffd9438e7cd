"""The parameter-efficient methods, one file each.

Importing this package imports every file in it, so a new method needs nothing but its own file. A file that begins with
an underscore is not imported. See docs/guides/adding_a_method.md.
"""

from llm4rec_jax.registry import import_all

import_all(__name__, __path__)
