"""``python -m kinray.methods``."""

import sys

from kinray.methods.cli import main

sys.exit(main())
