"""Run folders that were tampered with: ``--resume`` runs nothing that is in them and writes nowhere else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinray.config import parse_config
from kinray.errors import RunError
from kinray.records.run import RunFolder
from kinray.records.tables import children_schema
from tests.abuse.refusing import Refusing
from tests.helpers.search import chance_score, policy, run

FOUNDERS = ["ann", "bob", "cy"]
Spoil = Callable[[Path], None]


@pytest.fixture
def begun(refusing: Refusing) -> Path:
    """Begin a run whose models are there, with one founder scored."""
    config = parse_config({"base": "base", "founders": ["a", "b"], "tasks": ["arc_easy"], "output": "run"})
    RunFolder.create(config, {"base": "0" * 64, "a": "1" * 64, "b": "2" * 64}).close()
    folder = refusing.folder / "run"
    (folder / "children").mkdir(exist_ok=True)
    children()(folder)
    return folder


def children(**changed: Any) -> Spoil:
    """Write a table of one founder that failed, with other values in some columns."""

    def spoil(folder: Path) -> None:
        row = {
            "name": "a",
            "number": 0,
            "generation": 0,
            "operator": "founder",
            "digest": "1" * 64,
            "status": "failed",
        } | changed
        table = pa.Table.from_pylist([row], children_schema(["arc_easy"]))
        pq.write_table(table, folder / "children" / "generation-0000.parquet")

    return spoil


def config(change: Callable[[str], str]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.yaml"
        file.write_text(change(file.read_text()))

    return spoil


def instead(text: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def no_parquet(folder: Path) -> None:
    (folder / "children" / "generation-0001.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")


def other_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"name": ["a"], "generation": ["x"]}), folder / "children" / "generation-0001.parquet")


def without_names(folder: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), folder / "children" / "generation-0001.parquet")


CASES: dict[str, tuple[Spoil, str]] = {
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), "holds no run"),
    "a configuration that is no YAML": (instead("{"), "run/config.yaml, line 1"),
    "a tag": (instead("run: !!python/object/apply:os.system [ls]"), "tags .* are not supported"),
    "a bomb of anchors": (instead("a: &a [x]\nb: [*a, *a]"), "aliases"),
    "not text": (instead(b"\xff"), "is not text in UTF-8"),
    "2 MB": (instead(b"#" * (2 << 20)), "is too large"),
    "a list": (instead("[]"), "is a run of format None"),
    "another format": (config(lambda text: re.sub("format: [0-9]+", "format: 999", text)), "is a run of format 999"),
    "a format that clears the screen": (
        config(lambda text: re.sub("format: [0-9]+", r'format: "\\e[2J"', text)),
        r"is a run of format \\x1b\[2J",
    ),
    "digests that are a list": (config(lambda text: re.sub("digests:\n(    .*\n)+", "digests: []\n", text)), "no 'digests'"),
    "an unknown key": (config(lambda text: "evil: 1\n" + text), "unknown key 'evil'"),
    "a founder's name upwards": (config(lambda text: text.replace("name: b\n", "name: ../b\n")), "'../b' cannot be a founder"),
    "a model that is not there": (config(lambda text: text.replace("model: b\n", "model: gone\n")), "there is no folder gone"),
    "a table of rubbish": (no_parquet, "generation-0001.parquet is not a readable Parquet file|does not have the weights"),
    "a table of other columns": (other_parquet, "generation-0001.parquet is not a readable Parquet file"),
    "a table without names": (without_names, "generation-0001.parquet has a row that kinray did not write, of 'None'"),
    "a child upwards": (children(name="../../x"), "has a row that kinray did not write, of '../../x'"),
    "a child that clears the screen": (children(name="\x1b[2J"), r"did not write, of '\\\\?x1b\[2J'"),
    "a child of 10 000 characters": (children(name="n" * 10_000), "did not write, of 'n{80}'"),
    "a row without a number": (children(number=None), "has a row that kinray did not write"),
}


@pytest.mark.parametrize("case", CASES)
def test_tampered_folder(refusing: Refusing, begun: Path, case: str) -> None:
    spoil, message = CASES[case]
    spoil(begun)

    line = refusing.command("evolve", "--resume", "run")

    assert re.search(message, line), line


@pytest.mark.parametrize(
    "state", [b"", b"{", b"[" * 100_000, b"[]", b"null", b'{"outcomes": 5}', b'{"outcomes": [{}]}', b'{"outcomes": {"x": []}}']
)
def test_state_that_is_damaged_is_as_if_it_was_not_there(begun: Path, state: bytes) -> None:
    (begun / "state.json").write_bytes(state)

    assert RunFolder.resume(begun).load_state() is None


def test_sessions_of_other_names_do_not_disturb(begun: Path) -> None:
    for name in ("session-x", "session-", "session-²", "session-3", "session-\x1b"):
        (begun / "tune" / name).mkdir(parents=True)

    assert RunFolder.resume(begun).next_session() == begun / "tune" / "session-4"


def saved() -> dict[str, Any]:
    """Return the state of a search of some generations."""
    search = run(policy(FOUNDERS, max_generations=3), chance_score(1))
    state: dict[str, Any] = json.loads(json.dumps(search.state_dict()))
    return state


STATE = saved()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=5) | st.just("../x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the ways to all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@settings(max_examples=300, suppress_health_check=[HealthCheck.data_too_large])
@given(place=st.sampled_from(places(STATE)[1:]), value=JSON)
def test_state_with_any_other_value_in_any_place_is_read_or_refused(place: tuple[Any, ...], value: Any) -> None:
    state = json.loads(json.dumps(STATE))
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    search = policy(FOUNDERS, max_generations=3)

    try:
        search.load_state_dict(state)
    except RunError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", child.name) for child in search.population.children)
