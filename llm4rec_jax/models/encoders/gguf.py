"""GGUF files, the format of llama.cpp: one file with settings, weights in few bits, and the tokenizer.

`convert` writes what a file holds as a Hugging Face folder. Weights are dequantised to float32, so the folder computes
what the file does. Read are models of the architecture "llama" (Llama, Mistral, SmolLM2, TinyLlama) with weights of
the types F32, F16, BF16, Q8_0, Q4_0 and Q4_1; other types need the package `gguf`. See
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import importlib
import importlib.util
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from llm4rec_jax.models.encoders.checkpoint import PretrainedError, write_weights
from llm4rec_jax.models.encoders.weights import some

SUFFIX = ".gguf"

# Types of values in the header, by their number; 8 is text, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 34 bytes to 32 values: a scale d and 32 signed bytes q, d · q."""
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 18 bytes to 32 values: a scale d and 32 codes q from 0 to 15, d · (q − 8)."""
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]) - np.float32(8))


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    """Blocks of 20 bytes to 32 values: a scale d, a minimum m and 32 codes q from 0 to 15, d · q + m."""
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]) + _half(blocks[:, 2:4])


def _half(two_bytes: np.ndarray) -> np.ndarray:
    return two_bytes.copy().view(np.float16).astype(np.float32)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Bytes [n, 16] to codes [n, 32]: the lower halves of all bytes first, then the upper ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=1).astype(np.float32)


class _Type(NamedTuple):
    """How weights are stored: values in a block, bytes of a block, and what takes bytes [n, bytes] to values."""

    values: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


_TYPES = {
    0: _Type(1, 4, lambda blocks: blocks.view(np.float32)),
    1: _Type(1, 2, lambda blocks: blocks.view(np.float16).astype(np.float32)),
    2: _Type(32, 18, _q4_0),
    3: _Type(32, 20, _q4_1),
    8: _Type(32, 34, _q8_0),
    30: _Type(1, 2, lambda blocks: blocks.view(ml_dtypes.bfloat16).astype(np.float32)),
}


def _type(number: int) -> _Type | None:
    if number in _TYPES or importlib.util.find_spec("gguf") is None:
        return _TYPES.get(number)
    library = importlib.import_module("gguf")
    try:
        kind = library.GGMLQuantizationType(number)
        values, size = library.GGML_QUANT_SIZES[kind]
        return _Type(values, size, lambda blocks: library.quants.dequantize(blocks, kind))
    except (ValueError, KeyError):
        return None


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    number: int
    start: int


class Gguf(Mapping[str, np.ndarray]):
    """The tensors of a GGUF file by the file's own names, float32, each read when it is asked for.

    Args:
      file: The file.

    Attributes:
      settings: All that the header says, {"general.architecture": "llama", …}.

    Raises:
      PretrainedError: no GGUF, damaged or cut short. A lookup raises it for a type of weights that cannot be decoded.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.settings: dict[str, Any] = {}
        self._entries: dict[str, _Entry] = {}
        self._size = file.stat().st_size
        try:
            with file.open("rb") as opened:
                self._read_header(opened)
        except (struct.error, ValueError, OSError, MemoryError, RecursionError) as error:
            raise PretrainedError(f"{file} cannot be read as GGUF ({error}): damaged or cut short?") from error

    def _read_header(self, opened: BinaryIO) -> None:
        magic, version, tensors, settings = struct.unpack("<4sIQQ", opened.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r} and version {version}, not with b'GGUF' and 2 or 3")
        for _ in range(settings):
            key = self._text(opened)
            self.settings[key] = self._value(opened, self._number(opened, "I"))
        ends = []
        for _ in range(tensors):
            name, rank = self._text(opened), self._number(opened, "I")
            if rank > 4:
                raise ValueError(f"{name} has {rank} axes")
            # The fastest axis comes first there, and last here.
            shape = tuple(self._number(opened, "Q") for _ in range(rank))[::-1]
            number, start = self._number(opened, "I"), self._number(opened, "Q")
            self._entries[name] = _Entry(shape, number, start)
        align = self.settings.get("general.alignment", 32)
        data = -(-opened.tell() // align) * align
        for name, (shape, number, start) in self._entries.items():
            self._entries[name] = _Entry(shape, number, data + start)
            ends.append((data + start + self._bytes(shape, number), name))
        if ends and max(ends)[0] > self._size:
            raise ValueError(f"{max(ends)[1]} ends beyond the file")

    def _number(self, opened: BinaryIO, kind: str) -> Any:
        return struct.unpack(f"<{kind}", opened.read(struct.calcsize(kind)))[0]

    def _text(self, opened: BinaryIO) -> str:
        length = self._number(opened, "Q")
        if length > self._size:
            raise ValueError(f"a text of {length} bytes")
        return opened.read(length).decode("utf-8")

    def _value(self, opened: BinaryIO, kind: int) -> Any:
        if kind == _TEXT:
            return self._text(opened)
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise ValueError(f"a value of the unknown type {kind}")
            return self._number(opened, _SCALARS[kind])
        item, length = self._number(opened, "I"), self._number(opened, "Q")
        if length > self._size:
            raise ValueError(f"an array of {length} values")
        return [self._value(opened, item) for _ in range(length)]

    @staticmethod
    def _bytes(shape: tuple[int, ...], number: int) -> int:
        size = int(np.prod(shape, dtype=object))
        # Of types that are not known, only the beginning can be checked.
        return 0 if (kind := _TYPES.get(number)) is None else size // kind.values * kind.bytes

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> np.ndarray:
        shape, number, start = self._entries[name]
        if (kind := _type(number)) is None:
            raise PretrainedError(
                f"{self.file}: {name} is stored as GGML's type {number}, which only the package gguf decodes: "
                "`pip install gguf`, or give a file in F32, F16, BF16, Q8_0, Q4_0 or Q4_1"
            )
        blocks = int(np.prod(shape)) // kind.values
        content = np.fromfile(self.file, np.uint8, blocks * kind.bytes, offset=start).reshape(blocks, kind.bytes)
        return kind.decode(content).reshape(shape)

    def setting(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the header.

        Raises:
          PretrainedError: it is missing without a default, or of another type.
        """
        value = self.settings.get(key, default)
        if not isinstance(value, kind):
            raise PretrainedError(f"{self.file}: {key} is {str(value)[:80]!r}, must be of type {kind.__name__}")
        return value


# --------------------------------------------------------------------------------------------------------------- llama
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURE = "llama"


def config_json(gguf: Gguf) -> dict[str, Any]:
    """The fields of `config.json` of the model in a file.

    Raises:
      PretrainedError: an architecture or a kind of rotary positions that is not read.
    """
    if (named := gguf.setting("general.architecture", str)) != _ARCHITECTURE:
        raise PretrainedError(
            f"{gguf.file}: general.architecture is {named!r}, and only {_ARCHITECTURE!r} is read from GGUF: convert it "
            "with `AutoModel.from_pretrained(folder, gguf_file=…).save_pretrained(…)` in transformers"
        )
    scaling = gguf.settings.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in gguf:
        raise PretrainedError(
            f"{gguf.file}: llama.rope.scaling.type is {scaling!r} or rope_freqs.weight is there, and scaled rotary "
            "positions are not read from GGUF: give the original Hugging Face folder"
        )

    def integer(key: str, default: int | None = None) -> int:
        return gguf.setting(f"llama.{key}", int, default)

    def number(key: str, default: float) -> float:
        # The shortest decimal of a float32: 1e-05 and not 9.999999747378752e-06.
        return float(str(np.float32(gguf.setting(f"llama.{key}", float, default))))

    heads, width = integer("attention.head_count"), integer("embedding_length")
    tokens = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gguf["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv", heads),
        "head_dim": integer("attention.key_length", width // max(heads, 1)),
        "max_position_embeddings": integer("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": number("rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf,
        **{key: gguf.settings.get(f"tokenizer.ggml.{name}_token_id") for key, name in tokens.items()},
    }


def named_tensors(gguf: Gguf, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file by Hugging Face's names, in Hugging Face's order of rows.

    Raises:
      PretrainedError: a tensor without a counterpart.
    """
    unknown = []
    for name in gguf:
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
        if found is None or found[2] not in _NAMES:
            unknown.append(name)
            continue
        tensor, known = gguf[name], _NAMES[found[2]]
        if found[2] in ("attn_q", "attn_k"):
            tensor = _halves(tensor, config["num_attention_heads" if found[2] == "attn_q" else "num_key_value_heads"])
        yield f"{known if found[1] is None else f'model.layers.{found[1]}.{known}'}.weight", tensor
    if unknown:
        raise PretrainedError(f"{gguf.file}: tensors that are not known in a llama model: {some(unknown)}")


def _halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection [heads · d, D] in the order of rotary positions that turn one half with the other.

    llama.cpp turns neighbours: its rows 0, 1, 2, 3 of a head of width 4 are 0, 2, 1, 3 of Hugging Face's.
    """
    rows, width = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


# ----------------------------------------------------------------------------------------------------------- tokenizer
def write_tokenizer(gguf: Gguf, folder: Path) -> None:
    """Writes the file's tokenizer as `tokenizer.json` and `tokenizer_config.json`.

    Raises:
      PretrainedError: a kind of tokenizer that is not read, such as SentencePiece.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    def refuse(key: str) -> PretrainedError:
        return PretrainedError(
            f"{gguf.file}: {key} is {gguf.settings.get(key)!r}, which is not read: put the original model's "
            "tokenizer.json and tokenizer_config.json beside the file"
        )

    if gguf.settings.get("tokenizer.ggml.model") != "gpt2":
        raise refuse("tokenizer.ggml.model")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = {
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes]),
        "gpt-2": by_bytes,
        "default": by_bytes,
    }
    if (named := gguf.settings.get("tokenizer.ggml.pre", "default")) not in splits:
        raise refuse("tokenizer.ggml.pre")
    texts = gguf.setting("tokenizer.ggml.tokens", list)
    kinds = gguf.setting("tokenizer.ggml.token_type", list, [1] * len(texts))
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.setting("tokenizer.ggml.merges", list)]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = splits[named], decoders.ByteLevel()
    # Kinds 3 and 4 are control tokens and those that a user has added.
    added = [AddedToken(t, special=k == 3, normalized=False) for t, k in zip(texts, kinds, strict=True) if k in (3, 4)]
    tokenizer.add_tokens(added)
    special = {}
    for key, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (number := gguf.settings.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            special[f"{key}_token"] = texts[number]
    if gguf.settings.get("tokenizer.ggml.add_bos_token", False):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, gguf.settings["tokenizer.ggml.bos_token_id"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def convert(file: Path, folder: Path) -> Path:
    """Writes the model and the tokenizer in a GGUF file as a Hugging Face folder with float32 weights.

    A `tokenizer.json` beside the file takes the place of the file's own tokenizer.

    Args:
      file: The GGUF file.
      folder: Made if need be.

    Returns:
      The folder, which transformers opens too.

    Raises:
      PretrainedError: the file is damaged, or holds something that is not read.
    """
    gguf = Gguf(file)
    config = config_json(gguf)
    tensors = dict(named_tensors(gguf, config))
    folder.mkdir(parents=True, exist_ok=True)
    if (file.parent / "tokenizer.json").is_file():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (file.parent / name).is_file():
                (folder / name).write_bytes((file.parent / name).read_bytes())
    else:
        write_tokenizer(gguf, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_weights(folder, tensors)
    return folder
