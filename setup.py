"""What pyproject.toml cannot say: recipes are installed within the package.

A top-level package called `configs` would be everybody's.
"""

from setuptools import find_packages, setup

recipes = find_packages(include=["configs", "configs.*"])
setup(
    packages=[
        *find_packages(include=["normjax", "normjax.*"]),
        *(f"normjax.{name}" for name in recipes),
    ],
    package_dir={"normjax.configs": "configs"},
)
