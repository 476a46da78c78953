"""Commands run in this process as a person would, with all that a refusal promises checked."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinray.__main__ import main
from tests.merge.kitchen import Kitchen

LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"


class Refusing:
    """Runs commands on the models base, a and b in the working folder; b is there to be spoilt.

    Each command must end with exit code 2 and one line on stderr, with nothing written and nothing that a terminal obeys.
    """

    def __init__(self, kitchen: Kitchen, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.kitchen, self._capfd = kitchen.folder, kitchen, capfd

    @property
    def spoilt(self) -> Path:
        """The folder of model b."""
        return self.folder / "b"

    def change_config(self, **settings: Any) -> None:
        """Change config.json of b."""
        self.rewrite_json("config.json", lambda config: config | settings)

    def rewrite_json(self, file: str, change: Callable[[Any], Any]) -> None:
        path = self.spoilt / file
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    def change_tensors(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        """Change the weights of b."""
        tensors = load_file(self.spoilt / "model.safetensors")
        change(tensors)
        save_file(tensors, self.spoilt / "model.safetensors", metadata={"format": "pt"})

    def command(self, *arguments: str) -> str:
        """Run a command and return the line that it ends with."""
        before = _contents(self.folder)
        self._capfd.readouterr()
        code = main(arguments)
        out, err = self._capfd.readouterr()
        lines = [line for line in err.split("\n") if line and not line.startswith("Note: ")]
        assert code == 2, err
        assert len(lines) == 1 and lines[0].startswith("Error: "), err
        assert [sign for sign in out + err if not sign.isprintable() and sign != "\n"] == []
        assert _contents(self.folder) == before
        return lines[0]

    def merge(self, recipe: str | bytes = LINEAR) -> str:
        """Run ``kinray merge``."""
        (self.folder / "recipe.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        return self.command("merge", "recipe.yaml", "out")

    def kinship(self, *models: str) -> str:
        """Run ``kinray kinship``."""
        return self.command("kinship", "--base", "base", *(models or ("a", "b")))

    def evolve(self, config: Mapping[str, Any] | str | bytes = "", **settings: Any) -> str:
        """Run ``kinray evolve`` with a configuration as it is, or with the usual one and other settings."""
        usual = {"base": "base", "founders": ["a", "b"], "tasks": ["arc_easy"], "output": "run"}
        text = config or yaml.safe_dump(usual | settings)
        (self.folder / "search.yaml").write_bytes(text if isinstance(text, bytes) else str(text).encode())
        return self.command("evolve", "search.yaml")

    def everywhere(self) -> list[str]:
        """Run all commands on a and b, and return the line of each."""
        return [self.merge(), self.kinship(), self.evolve()]


def _contents(folder: Path) -> dict[str, int]:
    """List what lies in a folder, with sizes, but for the files that the test itself writes and the claim on a run."""
    files = (path for path in folder.rglob("*") if path.name not in ("recipe.yaml", "search.yaml", ".lock"))
    return {str(path.relative_to(folder)): path.lstat().st_size for path in files}
