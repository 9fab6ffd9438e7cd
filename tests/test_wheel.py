"""The wheel holds the package alone at top level, and its command runs the programs that it holds."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[1]
FOLDERS = ("llm4rec_jax", "experiments", "configs", "third_party")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the wheel and of the archive of the sources that it was built from."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / file, source / file)
    out = source / "dist"
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel puts into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def llm4rec(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the wheel's command in another folder than the clone's."""
    return subprocess.run(
        [sys.executable, "-m", "llm4rec_jax.command_line", *arguments],
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_the_package_alone_with_all_programs_and_studies_inside(site):
    (about,) = site.glob("*.dist-info")
    assert {path.name for path in site.iterdir()} == {"llm4rec_jax", about.name}
    assert (about / "entry_points.txt").read_text().split() == [
        *("[console_scripts]", "llm4rec", "=", "llm4rec_jax.command_line:main")
    ]
    for name in ("experiments", "configs"):
        there = {str(file.relative_to(ROOT / name)) for file in (ROOT / name).rglob("*.py")}
        inside = site / "llm4rec_jax" / "programs" / name
        assert {str(file.relative_to(inside)) for file in inside.rglob("*.py")} == there
    here = {str(file.relative_to(ROOT)) for file in (ROOT / "llm4rec_jax").rglob("*.py")}
    package = site / "llm4rec_jax"
    assert here == {str(f.relative_to(site)) for f in package.rglob("*.py") if package / "programs" not in f.parents}
    assert (package / "py.typed").exists()
    pinned = (ROOT / "third_party" / "requirements.txt").read_text()
    assert (package / "programs" / "requirements.txt").read_text() == pinned


def test_the_description_of_the_release_is_valid(dist):
    files = sorted(map(str, dist.iterdir()))
    assert len(files) == 2
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_doctor_of_the_wheel_passes_its_self_test(site, tmp_path):
    done = llm4rec(site, tmp_path, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["self_test_seconds"] > 0
    assert found["devices"] == dict.fromkeys(found["environment"]["devices"])
    assert os.path.isabs(found["data_and_weights"]["minilm"])


def test_studies_of_the_wheel_are_found_by_name(site, tmp_path):
    done = llm4rec(site, tmp_path, "train", "--config=movielens_100k:lorra", "--workdir=run")
    assert done.returncode == 2
    assert "unknown model of configs/movielens_100k.py 'lorra'; did you mean 'lora'" in done.stderr


@pytest.mark.long
def test_a_sweep_of_the_wheel_starts_trials_of_its_programs(site, tmp_path):
    assert llm4rec(site, tmp_path, "new-study", "clicks").returncode == 0
    rows = [f"u{user},i{(user + step) % 9},{step}" for user in range(12) for step in range(7)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    items = [f"i{item},thing {item},things" for item in range(9)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title,category", *items]) + "\n")
    study = tmp_path / "clicks.py"
    study.write_text(study.read_text().replace("train.steps = 400", "train.steps = 2"))
    done = llm4rec(site, tmp_path, "sweep", "--config=clicks.py", "--workdir=runs", "--only=id", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "| id |" in (tmp_path / "runs" / "table.md").read_text()
