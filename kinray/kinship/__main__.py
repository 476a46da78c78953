"""``python -m kinray.kinship``."""

import sys

from kinray.kinship.cli import main

sys.exit(main())
