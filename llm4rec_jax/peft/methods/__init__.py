"""The parameter-efficient methods, one file each.

Importing this package imports every file in it whose name does not begin with an underscore, so adding a method takes
one file and no other change. See docs/guides/adding_a_method.md.
"""

from llm4rec_jax.registry import import_all

import_all(__name__, __path__)
