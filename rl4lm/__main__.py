"""``python -m rl4lm``: the same as the console script."""

import sys

from rl4lm.cli import main

if __name__ == "__main__":
    sys.exit(main())
