"""Puts the commands and studies of the repository inside the package of the wheel, which setup.cfg cannot express."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithPrograms(build_py):
    """Takes `experiments`, `configs` and `third_party` into llm4rec_jax/programs; an editable install leaves them."""

    def run(self) -> None:
        if not self.editable_mode:
            inside = "llm4rec_jax.programs"
            self.package_dir |= {f"{inside}.{name}": name for name in ("experiments", "configs")}
            self.packages += [f"{inside}.{name}" for name in find_packages(include=["experiments*", "configs"])]
            self.packages.append(inside)
            self.package_dir[inside] = "third_party"
            self.package_data[inside] = ["*.txt"]
        super().run()


setup(cmdclass={"build_py": BuildWithPrograms})
