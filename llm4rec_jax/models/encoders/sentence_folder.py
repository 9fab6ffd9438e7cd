"""Parts of a sentence-transformers folder beside its language model: pooling, layers on the vector, prompts, limits.

Such a folder has a `modules.json`. A folder without one is a language model alone.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.checkpoint import Checkpoint, PretrainedError
from llm4rec_jax.models.encoders.pooling import DENSE_ACTIVATIONS, POOLINGS, Dense, Normalize, Steps
from llm4rec_jax.registry import unknown_name

MODULES = "modules.json"

MODES = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
"""Poolings that sentence-transformers has, by our names: its name, and the flag of its first releases."""
_ACTIVATIONS = {name.capitalize(): name for name in DENSE_ACTIVATIONS} | {
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}


class SentenceFolder(NamedTuple):
    """The treatment of texts and hidden states, as a folder describes it.

    Attributes:
      model: Folder of the language model itself.
      pooling: Hidden states to vectors.
      params: The pooling's parameters; empty without dense layers.
      prompts: Texts that stand before a text, by name.
      prompt: The one that is used unless another is asked for.
      max_tokens: Number of tokens that texts are cut to; None leaves it to the model.
      lower_case: Whether texts are lower-cased first.
      says_pooling: Whether the folder says how to pool; otherwise the pooling is that of the model's family.
    """

    model: Path
    pooling: Steps
    params: dict[str, Any]
    prompts: dict[str, str]
    prompt: str = ""
    max_tokens: int | None = None
    lower_case: bool = False
    says_pooling: bool = True

    def prepare(self, texts: Sequence[str], prompt: str | None = None) -> list[str]:
        """The texts as the language model was trained to read them.

        Args:
          texts: Any.
          prompt: Name in `prompts`; None takes the folder's default.

        Raises:
          ValueError: there is no prompt of that name.
        """
        if prompt is not None and prompt not in self.prompts:
            raise ValueError(unknown_name("prompt", prompt, self.prompts))
        before = self.prompt if prompt is None else self.prompts[prompt]
        whole = [before + text for text in texts]
        return [text.lower() for text in whole] if self.lower_case else whole

    def changes_texts(self, prompt: str | None = None) -> bool:
        """Returns whether `prepare` changes any text."""
        return self.lower_case or self.prepare([""], prompt) != [""]

    def notices(self, pooling: str) -> list[str]:
        """Returns what is left out when another pooling is taken instead, one sentence each."""
        said = []
        if not self.says_pooling:
            return said
        if self.pooling.poolings != (pooling,):
            said.append(f"{self.model} was trained with pooling {'+'.join(self.pooling.poolings)}, not {pooling}")
        if dense := [layer.width for layer in self.pooling.layers if isinstance(layer, Dense)]:
            said.append(f"{self.model} has dense layers to {', '.join(map(str, dense))} values, which are left out")
        return said


def describe(folder: Path) -> SentenceFolder:
    """Reads what a folder says beside its language model; one of a language model alone pools as its family does.

    Raises:
      PretrainedError: a file is damaged, or asks for a module or an option that is not supported.
    """
    if not (folder / MODULES).is_file():
        family, _ = huggingface.read_config(folder)
        return SentenceFolder(folder, Steps((family.pooling,)), {}, {}, says_pooling=False)
    listed = _json(folder / MODULES, list)
    steps: list[tuple[str, Path]] = []
    for entry in listed:
        path, kind = (entry.get(key) if isinstance(entry, dict) else None for key in ("path", "type"))
        if (
            not isinstance(path, str)
            or not isinstance(kind, str)
            or ".." in Path(path).parts
            or Path(path).is_absolute()
        ):
            raise PretrainedError(f"{folder / MODULES} has {str(entry)[:80]} where a module should be: fetch it again")
        steps.append((kind.rpartition(".")[2], folder / path))
    kinds = [kind for kind, _ in steps]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise PretrainedError(
            f"{folder / MODULES} lists the modules {', '.join(kinds)}: only Transformer, then Pooling, then Dense and "
            "Normalize are supported"
        )
    model = steps[0][1]
    poolings = _poolings(steps[1][1] / "config.json")
    layers: list[nn.Module] = []
    params: dict[str, Any] = {}
    for i, (kind, place) in enumerate(steps[2:]):
        if kind == "Dense":
            layer, params[f"layers_{i}"] = _dense(place)
            layers.append(layer)
        else:
            layers.append(Normalize())
    limits = _json(model / "sentence_bert_config.json", dict, {})
    prompts = _json(folder / "config_sentence_transformers.json", dict, {})
    named = {str(name): str(text) for name, text in (prompts.get("prompts") or {}).items()}
    default = prompts.get("default_prompt_name")
    if default is not None and default not in named:
        raise PretrainedError(f"{folder}: default_prompt_name is {default!r}, and there is no prompt of that name")
    return SentenceFolder(
        model,
        Steps(poolings, tuple(layers)),
        params,
        named,
        "" if default is None else named[default],
        limits.get("max_seq_length"),
        bool(limits.get("do_lower_case", False)),
    )


def _poolings(file: Path) -> tuple[str, ...]:
    fields = _json(file, dict)
    if not fields.get("include_prompt", True):
        raise PretrainedError(f"{file}: include_prompt is false, and leaving prompts out of pooling is not supported")
    # Concatenation follows the order of the flags, or of the list that later releases write.
    if (modes := fields.get("pooling_mode")) is None:
        return tuple(name for name, (_, flag) in MODES.items() if fields.get(flag, False)) or ("mean",)
    theirs = {mode: name for name, (mode, _) in MODES.items()}
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in theirs for mode in modes):
        raise PretrainedError(f"{file}: pooling_mode is {modes!r}; {', '.join(theirs)} are supported")
    return tuple(theirs[mode] for mode in modes)


def _dense(folder: Path) -> tuple[Dense, dict[str, Any]]:
    fields = _json(folder / "config.json", dict)
    for key, wanted in {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}.items():
        if fields.get(key) not in (None, wanted):
            raise PretrainedError(f"{folder / 'config.json'}: {key} is {fields[key]!r}, only {wanted!r} is supported")
    if fields.get("use_residual"):
        raise PretrainedError(f"{folder / 'config.json'}: use_residual is set and not supported")
    named = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if named not in _ACTIVATIONS:
        raise PretrainedError(f"{folder}: {unknown_name('activation_function', named, sorted(_ACTIVATIONS))}")
    tensors = Checkpoint(folder)
    wanted = {"linear.weight", "linear.bias"} if fields.get("bias", True) else {"linear.weight"}
    if set(tensors) != wanted:
        raise PretrainedError(f"{folder} holds {', '.join(tensors)}, must hold {', '.join(sorted(wanted))}")
    params = {"kernel": jnp.array(tensors["linear.weight"].T)}
    if "linear.bias" in tensors:
        params["bias"] = jnp.array(tensors["linear.bias"])
    layer = Dense(params["kernel"].shape[1], _ACTIVATIONS[named], "bias" in params)
    return layer, {"linear": params}


def _json(file: Path, kind: type, default: Any = None) -> Any:
    if default is not None and not file.is_file():
        return default
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PretrainedError(f"{file} cannot be read as JSON ({error}): fetch it again") from error
    if not isinstance(content, kind):
        raise PretrainedError(f"{file} holds {str(content)[:80]} instead of a {kind.__name__}: fetch it again")
    return content


class PretrainedText(NamedTuple):
    """A pretrained model of texts.

    Attributes:
      encoder: Language model, token ids to hidden states.
      pooling: Hidden states to vectors.
      params: {"encoder": …}, and "pooling" where it has parameters that were trained.
      folder: How texts are prepared, and where the tokenizer is.
      notices: Parts of the folder that are not applied, one sentence each.
    """

    encoder: Encoder
    pooling: nn.Module
    params: dict[str, Any]
    folder: SentenceFolder
    notices: list[str]


def load_text_encoder(
    path_or_hub_name: str | os.PathLike[str], pooling: str | None = None, **options: Any
) -> PretrainedText:
    """Loads a language model with all that its folder says of how texts become vectors.

    Args:
      path_or_hub_name: A sentence-transformers or Hugging Face folder, or a repository on the hub.
      pooling: Name in `POOLINGS`, in place of the folder's pooling and the layers after it. None takes the folder's,
        or the one that suits the model's family.
      **options: Options of `huggingface.load`.

    Raises:
      PretrainedError: see `huggingface.load`.
      ValueError: there is no pooling of that name.
    """
    folder = describe(huggingface.resolve(path_or_hub_name))
    encoder, params = huggingface.load(folder.model, **options)
    whole = {"encoder": params}
    if pooling is not None:
        return PretrainedText(encoder, POOLINGS.build(pooling), whole, folder, folder.notices(pooling))
    if folder.params:
        whole["pooling"] = folder.params
    return PretrainedText(encoder, folder.pooling, whole, folder, [])
