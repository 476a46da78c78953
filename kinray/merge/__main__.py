"""``python -m kinray.merge``."""

import sys

from kinray.merge.cli import main

sys.exit(main())
