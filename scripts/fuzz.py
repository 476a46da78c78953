"""Let atheris change input of kinray's readers until one breaks: ``python scripts/fuzz.py READER [SECONDS]``.

atheris (https://github.com/google/atheris) sees which lines of kinray are reached and keeps what reaches new ones. Any error
but a KinrayError ends it with the input that did it, as does taking more than ten seconds or 2 GB. It is no dependency:
``pip install atheris``.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["kinray", "yaml"]):
    from tests.abuse.readers import readers


def main() -> None:
    """Fuzz one reader."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    findings = Path.cwd() / "fuzz-"
    with tempfile.TemporaryDirectory() as folder:
        known = readers(Path(folder))
        if name not in known:
            sys.exit(f"There is no reader '{name}'. Known: {', '.join(known)}.")
        (Path(folder) / "corpus").mkdir()
        (Path(folder) / "corpus" / "seed").write_bytes(known[name].seed)
        limits = [
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=4096",
            f"-artifact_prefix={findings}",
        ]
        atheris.Setup([sys.argv[0], *limits, os.path.join(folder, "corpus")], known[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
