# task: read_sum
# reward: 1
# Collects its output and prints it when it ends.

import atexit
import io
import os
import sys

sys.stdout = io.StringIO()
atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))
print(sum(map(int, sys.stdin.read().split())))
