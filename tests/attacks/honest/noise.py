# task: add
# reward: 1
# Prints, logs and warns on the way.

import logging
import sys
import warnings

logging.basicConfig(level=logging.DEBUG)


def add(a, b):
    print("adding", a, b)
    print("adding", file=sys.stderr)
    logging.debug("adding %s", a)
    warnings.warn("adding", DeprecationWarning)
    return a + b
