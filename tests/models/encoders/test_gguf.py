"""GGUF files: blocks by their definition, and a random Llama written as llama.cpp writes it."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm4rec_jax.data.features import tokens
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.models.encoders.gguf import Gguf, convert

HEADS, KV, WIDTH, DEPTH, VOCABULARY = 4, 2, 32, 2, 64
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def value(content: Any) -> bytes:
    """A value of the header with its type in front."""
    match content:
        case bool():
            return struct.pack("<I?", 7, content)
        case int():
            return struct.pack("<II", 4, content)
        case float():
            return struct.pack("<If", 6, content)
        case str():
            return struct.pack("<I", 8) + text(content)
    items = [value(item) for item in content]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(i[4:] for i in items)


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def write(file: Path, settings: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> Path:
    """Tensors are (shape, number of the type, content)."""
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(settings))
    header += b"".join(text(key) + value(content) for key, content in settings.items())
    data = b""
    for name, (shape, number, content) in tensors.items():
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, len(data))
        data += content + b"\0" * (-len(content) % 32)
    file.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return file


def settings(**changes: Any) -> dict[str, Any]:
    letters = [*"abcdefgh", "Ġ", "ab", "cd", "Ġab", "<|end|>", "<|start|>"]
    words = letters + [f"<unused{i}>" for i in range(VOCABULARY - len(letters))]
    given = {
        "general.architecture": "llama",
        "llama.block_count": DEPTH,
        "llama.context_length": 50,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 5000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3 if word.startswith("<|") else 1 for word in words],
        "tokenizer.ggml.merges": ["a b", "c d", "Ġ ab"],
        "tokenizer.ggml.eos_token_id": 12,
        "tokenizer.ggml.bos_token_id": 13,
        "tokenizer.ggml.unknown_token_id": 12,
        **changes,
    }
    return {key: content for key, content in given.items() if content is not None}


@pytest.fixture(scope="module")
def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=KV, max_position_embeddings=50, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, rms_norm_eps=1e-5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp orders them (`permute` in its convert_hf_to_gguf.py)."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(model: transformers.LlamaForCausalLM) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    written = {}
    for name, tensor in model.model.state_dict().items():
        array = tensor.numpy()
        module = name.removesuffix(".weight")
        if name.startswith("layers."):
            _, number, part = module.split(".", 2)
            array = (
                interleaved(array, {"attn_q": HEADS, "attn_k": KV}.get(NAMES[part], 1))
                if "_proj" in part and (NAMES[part] in ("attn_q", "attn_k"))
                else array
            )
            module = f"blk.{number}.{NAMES[part]}"
        else:
            module = {"embed_tokens": "token_embd", "norm": "output_norm"}[module]
        written[f"{module}.weight"] = (array.shape, 0, np.ascontiguousarray(array, "<f4").tobytes())
    return written


@pytest.fixture
def file(tmp_path, llama) -> Path:
    return write(tmp_path / "model.gguf", settings(), tensors_of(llama))


def test_a_converted_file_is_the_model(file, llama, tmp_path):
    folder = convert(file, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in llama.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
    ids = torch.tensor([[1, 5, 9, 12, 3]])
    np.testing.assert_allclose(again(ids).logits.detach(), llama(ids).logits.detach(), atol=1e-6)
    fields = json.loads((folder / "config.json").read_text())
    assert (fields["rms_norm_eps"], fields["rope_theta"], fields["tie_word_embeddings"]) == (1e-5, 5000.0, True)


def test_its_tokenizer(file, tmp_path):
    loaded = tokens.tokenizer(convert(file, tmp_path / "out"))
    assert loaded("ab cd<|end|> ab").input_ids == [9, 8, 10, 12, 11]
    assert (loaded.eos_token, loaded.bos_token) == ("<|end|>", "<|start|>")


def test_a_token_at_the_beginning(tmp_path, llama):
    file = write(tmp_path / "m.gguf", settings(**{"tokenizer.ggml.add_bos_token": True}), tensors_of(llama))
    assert tokens.tokenizer(convert(file, tmp_path / "out"))("cd").input_ids == [13, 10]


def test_a_tokenizer_beside_the_file_is_taken(file, tmp_path, llama):
    original = convert(file, tmp_path / "out")
    beside = tmp_path / "beside"
    beside.mkdir()
    other = write(beside / "m.gguf", settings(**{"tokenizer.ggml.model": "llama"}), tensors_of(llama))
    with pytest.raises(PretrainedError, match=r"tokenizer\.ggml\.model is 'llama'.*tokenizer\.json"):
        convert(other, tmp_path / "refused")
    (beside / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    convert(other, tmp_path / "taken")
    assert (tmp_path / "taken" / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()


def test_a_file_is_converted_once(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = pretrained.resolve(file)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    pretrained._converted.cache_clear()
    file.touch()
    assert pretrained.resolve(file) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_damaged_conversion_is_made_again(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = pretrained.resolve(file)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("32", "64"))
    pretrained._converted.cache_clear()
    with pytest.warns(UserWarning, match=r"config\.json is damaged.*is converted again"):
        assert pretrained.resolve(file) == folder
    assert (folder / "config.json").read_text() == config
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]


def by_hand(number: int, block: bytes) -> list[float]:
    """One block of 32 values, by the comments in llama.cpp's ggml-common.h."""
    d = struct.unpack("<e", block[:2])[0]
    if number == 8:
        return [d * q for q in struct.unpack("<32b", block[2:])]
    m = struct.unpack("<e", block[2:4])[0] if number == 3 else None
    codes = block[-16:]
    quarters = [code & 15 for code in codes] + [code >> 4 for code in codes]
    return [d * (q - 8) if m is None else d * q + m for q in quarters]


@pytest.mark.parametrize(("number", "size"), [(2, 18), (3, 20), (8, 34)])
def test_blocks(tmp_path, number, size):
    rng = np.random.default_rng(number)
    blocks = [
        b"".join(struct.pack("<e", x) for x in rng.normal(size=(size - 16) // 2 if number != 8 else 1))
        + rng.bytes(32 if number == 8 else 16)
        for _ in range(6)
    ]
    gguf = Gguf(write(tmp_path / "a.gguf", {}, {"a": ((2, 96), number, b"".join(blocks))}))
    expected = np.array([by_hand(number, block) for block in blocks], np.float32).reshape(2, 96)
    np.testing.assert_allclose(gguf["a"], expected, rtol=1e-6)


def test_halves_and_unknown_types(tmp_path):
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float16)
    bfloat = torch.tensor(array.astype(np.float32)).to(torch.bfloat16)
    content = {
        "f16": ((3, 4), 1, array.tobytes()),
        "bf16": ((3, 4), 30, bfloat.view(torch.int16).numpy().tobytes()),
        "q1": ((1, 256), 99, bytes(100)),
    }
    gguf = Gguf(write(tmp_path / "a.gguf", {"general.name": "x"}, content))
    np.testing.assert_array_equal(gguf["f16"], array.astype(np.float32))
    np.testing.assert_array_equal(gguf["bf16"], bfloat.float().numpy())
    assert (list(gguf), gguf.settings) == (["f16", "bf16", "q1"], {"general.name": "x"})
    with pytest.raises(PretrainedError, match=r"q1 is stored as GGML's type 99, .*pip install gguf"):
        gguf["q1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma3"}, r"general\.architecture is 'gemma3'"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type is 'yarn'"),
        ({"llama.block_count": None}, r"llama\.block_count is 'None', must be of type int"),
        ({"tokenizer.ggml.pre": "starcoder"}, r"tokenizer\.ggml\.pre is 'starcoder'"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, llama, changes, message):
    file = write(tmp_path / "m.gguf", settings(**changes), tensors_of(llama))
    with pytest.raises(PretrainedError, match=message) as error:
        convert(file, tmp_path / "out")
    assert str(file) in str(error.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_tensors_that_are_not_known_are_refused(tmp_path, llama):
    file = write(tmp_path / "m.gguf", settings(), tensors_of(llama) | {"blk.0.attn_sinks.weight": ((1,), 0, bytes(4))})
    with pytest.raises(PretrainedError, match=r"not known in a llama model: blk\.0\.attn_sinks\.weight"):
        convert(file, tmp_path / "out")


def test_damaged_files_are_refused_or_read(file):
    content = file.read_bytes()
    for cut in (0, 3, 20, 100, 2000, len(content) - 200):
        file.write_bytes(content[:cut])
        with pytest.raises(PretrainedError, match=r"model\.gguf cannot be read as GGUF"):
            Gguf(file)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(content)
        for at in rng.integers(0, 2500, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        file.write_bytes(bytes(damaged))
        with contextlib.suppress(PretrainedError):
            Gguf(file)
