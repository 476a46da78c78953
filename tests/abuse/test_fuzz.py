"""Any bytes, any JSON and valid input with anything changed: each reader gives a value or a KinrayError, and nothing else.

``--hypothesis-profile=thorough`` draws more; scripts/fuzz.py goes on as long as one likes.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.abuse.readers import Reader, readers
from tests.abuse.test_run_folder import JSON, places

NAMES = ("header", "index", "config", "adapter", "tokenizer", "configuration", "recipe", "task", "nodes", "planned merge")
IN_JSON = ("index", "config", "adapter", "tokenizer", "nodes")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    """Make the readers once."""
    before, offline = os.getcwd(), os.environ.get("HF_HUB_OFFLINE")
    made = readers(tmp_path_factory.mktemp("readers"))
    assert tuple(made) == NAMES
    yield made
    os.chdir(before)
    if offline is None:
        del os.environ["HF_HUB_OFFLINE"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_changed_is_accepted_as_it_was(known: dict[str, Reader], name: str) -> None:
    known[name].read(known[name].seed)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=200))
def test_any_bytes(known: dict[str, Reader], name: str, data: bytes) -> None:
    known[name](data)


@pytest.mark.parametrize("name", IN_JSON)
@given(value=JSON)
def test_any_json(known: dict[str, Reader], name: str, value: Any) -> None:
    known[name](json.dumps(value).encode())


@pytest.mark.parametrize("name", NAMES)
@given(draw=st.data())
def test_a_few_other_bytes_in_valid_input(known: dict[str, Reader], name: str, draw: st.DataObject) -> None:
    data = bytearray(known[name].seed)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at : at + draw.draw(st.integers(0, 4))] = draw.draw(
            st.binary(max_size=4)
            | st.sampled_from([b"null", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'"', b"\n", b": ", b"\x00", b"\\ud800"])
        )
    known[name](bytes(data))


@pytest.mark.parametrize("name", IN_JSON)
@given(draw=st.data())
def test_another_value_in_any_place_of_valid_json(known: dict[str, Reader], name: str, draw: st.DataObject) -> None:
    whole = json.loads(known[name].seed)
    way = draw.draw(st.sampled_from(places(whole)[1:]))
    inner = whole
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = draw.draw(JSON)

    known[name](json.dumps(whole).encode())
