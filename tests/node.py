"""What the tests run with Node: in CI it is there; where it is missing, they are skipped."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NEEDED = "CI"


def install(folder: Path) -> Path:
    """Install what a folder's package.json names, or skip the test."""
    if not shutil.which("npm"):
        assert not os.environ.get(NEEDED), "npm is missing"
        pytest.skip("needs Node and npm")
    needed = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    if not all((folder / "node_modules" / name).exists() for name in needed):
        options = ["--no-package-lock", "--no-audit", "--no-fund", "--silent", "--prefer-offline"]
        done = subprocess.run(
            ["npm", "install", *options],  # noqa: S607  (wherever it is)
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            assert not os.environ.get(NEEDED), done.stdout + done.stderr
            pytest.skip(f"npm cannot install {folder.name}: the registry is out of reach")
    return folder
