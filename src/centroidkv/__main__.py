"""`python -m centroidkv`."""

import sys

from centroidkv.cli import main

sys.exit(main())
