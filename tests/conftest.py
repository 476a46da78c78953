"""What holds for every test: a cache of its own, one thread, and the same Hypothesis draws in every run.

``--hypothesis-profile=thorough`` draws more examples, new ones each time;
``--kills=20`` kills more often.
"""

import signal

import pytest
import torch
from hypothesis import settings

settings.register_profile("kinray", deadline=None, max_examples=30, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=500, database=None)
settings.load_profile("kinray")

torch.set_num_threads(1)
# A runner in the background or under nohup ignores these, and so would all processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, metavar="N", help="how often tests/faults kills a driver at a random moment"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", range(metafunc.config.getoption("--kills")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep kinray's cache out of the home folder, and one test's cache from the next one's."""
    monkeypatch.setenv("KINRAY_CACHE", str(tmp_path_factory.mktemp("cache")))
