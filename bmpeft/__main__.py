"""`python -m bmpeft` is the command `bmpeft`."""

from __future__ import annotations

import sys

from bmpeft.cli import main

sys.exit(main())
