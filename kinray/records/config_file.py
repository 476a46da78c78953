"""A run's config.yaml: its resolved configuration, and the versions and weights that it was begun with."""

import platform
from collections.abc import Mapping
from pathlib import Path

from kinray.config import Config, SearchConfig, parse_config
from kinray.config.loading import MAX_BYTES, as_text, read_text, read_yaml, write_yaml
from kinray.errors import RunError
from kinray.records.store import Store, is_uri, within
from kinray.versions import installed

FORMAT = 2
"""Version of a run folder's layout; a run of another one is refused."""

_PACKAGES = ("kinray", "torch", "transformers", "lm-eval", "ray", "optuna", "pyarrow", "safetensors")


def read_run_config(place: str | Path) -> tuple[Config, dict[str, str]]:
    """Read a run's configuration and the digests of its base and founders by name.

    Args:
        place: path or URI of the run folder.

    Raises:
        RunError: when the folder holds no run, or one of another format.
    """
    place = str(place)
    file = within(place, "config.yaml")
    text = _read(place, file)
    if text is None:
        raise RunError(f"{place} holds no run (there is no config.yaml in it). Name the folder that --output named.")
    data = read_yaml(text, file)
    about = data.pop("run", None) if isinstance(data, dict) else None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise RunError(f"{place} is a run of format {found}, this version of kinray reads format {FORMAT}.")
    if not isinstance(about.get("digests"), dict):
        raise RunError(f"{file} does not say which weights the run was begun with: its 'run' has no 'digests'.")
    return parse_config(data, file).model_copy(update={"output": place}), about["digests"]


def _read(place: str, file: str) -> str | None:
    """Return the text of the file, None where there is none."""
    if not is_uri(place):
        return read_text(Path(file), "configuration") if Path(file).is_file() else None
    data = Store(place).read("config.yaml", MAX_BYTES + 1)
    return None if data is None else as_text(data, "configuration", file)


def with_search(text: str, search: SearchConfig) -> str:
    """Write the file's text again for another ``search``, all else as it was."""
    return write_yaml(read_yaml(text, "config.yaml") | {"search": search.model_dump(mode="json")})


def config_text(config: Config, digests: Mapping[str, str]) -> str:
    """Write the file's text for a configuration and the digests of the base and the founders by name."""
    about = {
        "format": FORMAT,
        "digests": dict(digests),
        "versions": {"python": platform.python_version()} | {name: installed(name) or "not installed" for name in _PACKAGES},
    }
    return write_yaml(config.model_dump(mode="json") | {"run": about})
