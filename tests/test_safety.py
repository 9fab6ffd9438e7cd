"""Input never runs as code, leaves its folder, or asks for more memory than its file has."""

import ast
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm4rec_jax.data.sources import load
from llm4rec_jax.models.encoders.checkpoint import Checkpoint, PretrainedError
from llm4rec_jax.peft.hf.adapter import InterchangeError
from llm4rec_jax.peft.hf.files import read_tensors

ROOT = Path(__file__).parents[1]
SOURCES = sorted(file for folder in ("llm4rec_jax", "experiments", "configs") for file in (ROOT / folder).rglob("*.py"))

# Modules that run their input. Worker processes are sent objects by them, within one run and never by a file.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "imp", "code"}
ALLOWED = {"llm4rec_jax/data/ondisk/mmap.py": {"pickle", "cloudpickle"}}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "extractall",
    "extract",
    "unpack_archive",
    "system",
    "popen",
    "mktemp",
}


def wrong(tree: ast.AST, allowed: set[str]) -> list[str]:
    """Returns the forbidden calls of a module, as "line: call"."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        found += [f"{node.lineno}: imports {name}" for name in names if name in MODULES - allowed]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _calls(node)]
    return found


def _calls(node: ast.Call) -> list[str]:
    function = node.func
    name = (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = []
    # `re.compile`, `lowered.compile()`, `pl.Series.list.eval` are other things of these names.
    if name in CALLS and (not owner or name not in {"eval", "compile", "extract"} or owner in {"builtins", "archive"}):
        found.append(f"calls {name}")
    if given.get("shell", "False") != "False":
        found.append("runs a shell")
    if given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle", "False") != "False":
        found.append("trusts code or pickle")
    if (owner, name) == ("np", "load") and given.get("allow_pickle") != "False":
        found.append("np.load without allow_pickle=False")
    if owner.startswith("Auto") and name == "from_pretrained" and given.get("trust_remote_code") != "False":
        found.append("from_pretrained without trust_remote_code=False")
    if (owner, name) in {("torch", "load"), ("pd", "read_pickle")}:
        found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(file):
    allowed = ALLOWED.get(file.relative_to(ROOT).as_posix(), set())
    assert wrong(ast.parse(file.read_text(encoding="utf-8")), allowed) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "import marshal as m",
        "eval('1')",
        "exec(text)",
        "builtins.eval(x)",
        "compile(x, 'f', 'exec')",
        "archive.extractall(folder)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "torch.load(path)",
    ],
)
def test_the_check_sees(code):
    assert len(wrong(ast.parse(code), set())) >= 1


# --------------------------------------------------------------------------------------------------------- safetensors
@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any], bytes]:
    """A file of two arrays: its bytes, its header, its data."""
    file = tmp_path_factory.mktemp("safetensors") / "a.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}, file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return content, json.loads(content[8 : 8 + size]), content[8 + size :]


def read_pretrained(file: Path) -> dict[str, np.ndarray]:
    return dict(Checkpoint(file.parent))


def refused(file: Path, content: bytes) -> None:
    """Both readers refuse a file and name it."""
    file.write_bytes(content)
    for read, kind in ((read_pretrained, PretrainedError), (read_tensors, InterchangeError)):
        with pytest.raises(kind, match=file.name):
            read(file)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("b", {"data_offsets": [8, 24]}),
        ("b", {"data_offsets": [24, 2**40], "shape": [2**38]}),
        ("b", {"data_offsets": [-1, 16]}),
        ("b", {"data_offsets": [28, 40], "shape": [3]}),
        ("a", {"shape": [2**62, 4]}),
        ("a", {"shape": [-2, -3]}),
        ("a", {"dtype": "F4"}),
        ("a", {"dtype": "O"}),
        ("b", {"dtype": "F8_E4M3", "shape": [16]}),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_file(whole, tmp_path, name, change):
    _, header, data = whole
    text = json.dumps({**header, name: {**header[name], **change}}).encode()
    refused(tmp_path / "model.safetensors", struct.pack("<Q", len(text)) + text + data)


def test_lengths_that_lie_and_headers_that_are_none(whole, tmp_path):
    content, _, data = whole
    for size in (2**40, 2**63, 2**64 - 1, len(content)):
        refused(tmp_path / "model.safetensors", struct.pack("<Q", size) + content[8:])
    for header in (b"", b"[]", b"{" * 100, b"[" * 100_000, b"\0" * 50, b" " * (101 * 2**20)):
        refused(tmp_path / "model.safetensors", struct.pack("<Q", len(header)) + header + data)
    for cut in (b"", content[:5], content[:40], content[:-3], content + b"x"):
        refused(tmp_path / "model.safetensors", cut)


def test_damaged_headers_are_read_or_refused(whole, tmp_path):
    content, _, _ = whole
    rng, file, read = np.random.default_rng(0), tmp_path / "model.safetensors", 0
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        file.write_bytes(bytes(damaged))
        for reader in (read_pretrained, read_tensors):
            try:
                reader(file)
                read += 1
            except (PretrainedError, InterchangeError):
                pass
    # Numbers may change, and letters of names; checksums are for that.
    assert 0 < read < 300


# ---------------------------------------------------------------------------------------------------------------- paths
@pytest.mark.parametrize("text", ["../../escaped", "/etc/passwd", "a/b", "x" * 5000, "con", "..", "~root", "${HOME}"])
def test_ids_are_text_and_no_paths(tmp_path, text):
    """Whatever users and items are called, loading writes nothing, and what is called so is what comes out."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "d.csv").write_text(f"user_id,item_id\n{text},{text}\nv,j\n")
    dataset = load("table", folder / "d.csv")
    assert dataset.items["item_id"][0] == dataset.users["user_id"][0] == text
    assert sorted(tmp_path.rglob("*")) == [folder, folder / "d.csv"]


@pytest.mark.parametrize("subset", ["../Beauty", "/tmp/Beauty", "a/b", "..", ""])
def test_a_subset_is_no_path(tmp_path, subset):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("s3rec", tmp_path, subset=subset)
    assert subset in str(error.value)
