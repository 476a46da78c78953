"""``python -m kinray.evolve``."""

import sys

from kinray.evolve.cli import main

sys.exit(main())
