"""Files of a release agree with each other: versions, bounds of dependencies, workflows."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from llm4rec_jax.version import __version__
from tools.lowest_versions import lowest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REQUIREMENTS = {"install_requires": SETUP["options"]["install_requires"], **SETUP["options.extras_require"]}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_dependency_is_bounded_on_both_sides(name):
    lines = REQUIREMENTS[name].split("\n")[1:]
    assert len(lowest(REQUIREMENTS[name])) == len(lines)
    assert not [line for line in lines if not re.search(r"==|<", line)]


def test_a_dependency_without_a_lower_bound_is_named():
    with pytest.raises(ValueError, match="'rich <16' has no lower bound: write it as"):
        lowest("numpy >=2.0,<3\nrich <16")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"version = {{{__version__}}}" in readme
    assert f"{{{citation['title']}}}" in readme


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_run_targets_of_the_makefile(file):
    steps = [step for job in yaml.safe_load(file.read_text())["jobs"].values() for step in job["steps"]]
    targets = {match for step in steps for match in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_python_that_is_promised_is_tested():
    promised = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda f: f.stem)
def test_issue_forms_have_what_a_form_needs(file):
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    for part in form["body"]:
        assert part["type"] == "textarea"
        assert part["attributes"]["label"]
        assert part["id"]
