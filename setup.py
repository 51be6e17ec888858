"""The packages of the distribution; everything else is in pyproject.toml.

Only here because a list of found packages cannot be extended there: `recipes/` and
`kernels/bmpeft_kernels/` live outside `bmpeft/`, and the recipes are installed inside it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["bmpeft", "bmpeft.*"]), "bmpeft.recipes", "bmpeft_kernels"],
    package_dir={"bmpeft.recipes": "recipes", "bmpeft_kernels": "kernels/bmpeft_kernels"},
)
