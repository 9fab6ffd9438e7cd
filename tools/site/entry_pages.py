"""The page of an entry of a registry, made of its docstring and of what the program computes."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.reports.models import family_rows
from experiments.reports.render import markdown_table
from llm4rec_jax.data.download import Published
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.encoders.huggingface import abstract_params
from llm4rec_jax.models.users.base import UserInputs
from llm4rec_jax.peft.hf.formats import WRITERS
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.trees import flatten
from tools.site.documents import ROOT
from tools.site.drawings import Shapes, drawing, legend

# The encoder whose parameters are counted: MiniLM-L6's shape, BERT with six blocks.
_SHAPE = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
SHAPE_NAME = "BERT with 6 blocks of width 384 (the shape of all-MiniLM-L6)"
_WIDTH, _HISTORY, _USERS = 64, 50, 943

# Options of mkdocstrings: an object's docstring and signature, without its members. The page of its module is the one
# that references lead to.
_DOCSTRING = """::: {name}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_signature: false
      members: false
      show_bases: false
      skip_local_inventory: true
      show_docstring_description: {description}
"""


class Description(NamedTuple):
    """A docstring's text: its first line, the paragraphs that follow with their equations, and the last of them."""

    summary: str
    body: str
    use: str


def describe_method(name: str) -> Description:
    """Returns the text of a method's docstring before its first section.

    Raises:
      ValueError: the docstring lacks an equation, which is an indented block, or the paragraph on its use, the last.
    """
    text = re.split(r"^(?:Args|Example|References):$", inspect.getdoc(METHODS[name]) or "", flags=re.MULTILINE)[0]
    summary, _, rest = text.strip().partition("\n\n")
    body, _, use = rest.rpartition("\n\n")
    if not re.search(r"^    \S", body, re.MULTILINE) or use.startswith(" "):
        raise ValueError(
            f"the docstring of the method {name!r} must have an equation, indented by four columns, and then, as the "
            "last paragraph before its sections, when to use the method"
        )
    return Description(" ".join(summary.split()), body, use)


def documented(entry: Any) -> Any:
    """Returns the object whose docstring describes an entry: the function of a loss, the module of a family."""
    for attribute in ("function", "build"):
        entry = getattr(entry, attribute, entry)
    return entry


def summary(entry: Any) -> str:
    """Returns the first paragraph of an entry's docstring on one line, safe in a cell of a table."""
    text = entry.origin if isinstance(entry, Published) else inspect.getdoc(documented(entry)) or ""
    first = text.split("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


def _docstring(entry: Any, description: bool = True) -> str:
    described = inspect.unwrap(documented(entry))
    name = f"{described.__module__}.{described.__qualname__}"
    return _DOCSTRING.format(name=name, description=str(description).lower())


def _options(entry: Any) -> str:
    """Returns the options of an entry and their defaults as a table; "" without any."""
    parameters = inspect.signature(documented(entry)).parameters.values()
    rows = [
        [f"`{p.name}`", f"`{p.default!r}`".replace("|", "\\|")]
        for p in parameters
        if p.name not in ("parent", "name") and p.default is not p.empty and not is_dataclass(p.default)
    ]
    return f"## Defaults\n\n{markdown_table(['option', 'default'], rows)}\n" if rows else ""


@functools.cache
def _encoder_shapes() -> tuple[Any, Shapes]:
    params = abstract_params(Bert(_SHAPE))
    return params, {path: array.shape for path, array in flatten(params).items()}


@functools.cache
def trained_shapes(method: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of the arrays that a method trains in the encoder of the gallery, by site and name."""
    delta = jax.eval_shape(METHODS[method]().init, jax.random.key(0), _encoder_shapes()[0])
    return {site: {name: array.shape for name, array in flatten(arrays).items()} for site, arrays in delta.items()}


def _count(shapes: Shapes) -> int:
    return sum(int(jnp.prod(jnp.array(shape))) if shape else 1 for shape in shapes.values())


def trained_parameters(method: str) -> tuple[int, float]:
    """Returns the number of parameters that a method trains in the gallery's encoder, and their percentage of it."""
    trained = sum(map(_count, trained_shapes(method).values()))
    return trained, 100 * trained / _count(_encoder_shapes()[1])


def _study_row(method: str) -> str:
    """Returns the header and the row of a method in the table of the study; "" where the study lacks it."""
    lines = (ROOT / "docs" / "results" / "peft.md").read_text(encoding="utf-8").split("\n")
    row = next((i for i, line in enumerate(lines) if line.startswith(f"| {method} |")), None)
    if row is None:
        return ""
    first = max(i for i in range(row) if not lines[i].startswith("|")) + 1
    return "\n".join([*lines[first : first + 2], lines[row]])


def _listed(facts: list[str]) -> str:
    return "\n".join(f"- {fact}" for fact in facts)


def method_page(name: str, entry: Any) -> str:
    """Returns the page of a method: equation, drawing, use, cost, its row in the study, options and paper."""
    about, made = describe_method(name), entry()
    trained, share = trained_parameters(name)
    facts = [
        f"Trained parameters: {trained:,}, {share:.2f}% of the encoder's.",
        f"Folded into the weights (`--merge`): {'no' if made.merge is None else 'yes'}.",
        f"Adapters exchanged with Hugging Face peft: {'yes' if name in WRITERS else 'no'}.",
        f"Paper: {METHODS.papers[name]}.",
    ]
    row = _study_row(name)
    study = f"In [the study of methods](../../results/peft.md), whose encoder has two blocks:\n\n{row}\n" if row else ""
    return f"""# {name}

{about.summary}

{about.body}

    --config.peft.method={name}

## Where it acts

{drawing(name, _encoder_shapes()[1], trained_shapes(name))}

{legend()}

The drawing shows the arrays that the method trains with its default options, in {SHAPE_NAME}.
Sides of arrays grow with the logarithm of their sizes.

## When to use it

{about.use}

## Cost

{_listed(facts)}

{study}
## Options, example and references

{_docstring(entry, description=False)}"""


def entry_page(key: str = "") -> Callable[[str, Any], str]:
    """Returns a function that makes a page of an entry's docstring and defaults, with the key that selects it."""

    def page(name: str, entry: Any) -> str:
        usage = f"    --config.{key}={name}\n" if key else ""
        return f"# {name}\n\n{_docstring(entry)}\n{usage}\n{_options(entry)}"

    return page


def published_page(name: str, entry: Any) -> str:
    """Returns the page of a published data set: origin, command and files."""
    rows = [[f"`{file.name}`", f"`{file.sha256}`"] for file in entry.files]
    table = markdown_table(["file", "SHA-256"], rows)
    return f"""# {name}

Origin: {entry.origin}

    python -m llm4rec_jax.data.download {name}

{table}
"""


def loss_page(name: str, entry: Any) -> str:
    """Returns the page of a loss with its curve."""
    kinds = {
        "sampled": "sampled items (`loss.num_negatives`)",
        "in_batch": "the items of the batch",
        "mixed": "the items of the batch and sampled ones",
        "catalogue": "all items of the catalogue",
        "none": "no others: the score is compared with a label or a rating",
    }
    candidates = "eight other candidates have a score of 0 and are equally likely to be drawn"
    others = "the label is 1" if entry.negatives == "none" else candidates
    return f"""# {name}

{_docstring(entry)}

A target's score is compared with {kinds[entry.negatives]}.

    --config.loss.name={name}

![The loss and its gradient by the score of the target]({name}.svg)

The loss and its gradient in the target's score, where {others}.

{_options(entry)}"""


def user_page(name: str, entry: Any) -> str:
    """Returns the page of a user encoder with its number of parameters, where it can be built alone."""
    inputs = getattr(entry, "inputs", "user_id")
    given = {field: {"num_users": _USERS, "width": _WIDTH}.get(field) for field in _required(entry)}
    counted = ""
    if None not in given.values():
        trained = _count(_user_shapes(entry(**given), inputs))
        counted = f"It has {trained:,} parameters at a width of {_WIDTH}{f' for {_USERS} users' if given else ''}."
    return f"""# {name}

{_docstring(entry)}

    --config.model.users={name}

It reads: {inputs.replace("_", " ")}. {counted}

{_options(entry)}"""


def _required(entry: Any) -> list[str]:
    parameters = inspect.signature(entry).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.name not in ("parent", "name")]


def _user_shapes(module: Any, inputs: str) -> Shapes:
    history = jax.ShapeDtypeStruct((1, _HISTORY, _WIDTH), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, _HISTORY), jnp.bool_)
    users = jax.ShapeDtypeStruct((1,), jnp.int32)
    known = UserInputs(history, mask, None, users)
    return {path: array.shape for path, array in flatten(jax.eval_shape(module.init, jax.random.key(0), known)).items()}


def family_page(name: str, entry: Any) -> str:
    """Returns the page of a model family, from its record."""
    (row,) = [row for row in family_rows() if row["model_type"] == name]

    def quoted(names: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    facts = [
        f"Kind: {row['kind']}. Default pooling: `{row['pooling']}`.",
        f"States, logits and gradients compared with transformers {row['transformers']}.",
        f"Adapters exchanged with peft: {quoted(row['exchanged'])}.",
        f"Modules that peft adapts by default: {quoted(row['peft_targets'])}.",
    ]
    if row["shapes"]:
        facts.append(f"Shapes that `python -m experiments.models` knows by name: {quoted(row['shapes'])}.")
    return f"""# {name}

{_docstring(entry)}

    --config.encoder.path=FOLDER    # a folder or hub name whose config.json has the model_type of this family

{_listed(facts)}

{_tensors(entry)}
"""


def vision_page(name: str, entry: Any) -> str:
    """Returns the page of a family of vision encoders, from its record."""
    return f"""# {name}

{_docstring(entry)}

    --config.features.item_options="{{'image': {{'kind': 'images', 'path': 'images.zip', 'model': 'FOLDER'}}}}"

{_tensors(entry)}
"""


def _tensors(family: Any) -> str:
    """Returns the table of a family's tensors and parameters."""
    rows = [[f"`{rule.tensor}`", ", ".join(f"`{path}`" for path in rule.paths)] for rule in family.weight_rules]
    return f"## Tensors\n\n{markdown_table(['tensor', 'parameter'], rows)}"
