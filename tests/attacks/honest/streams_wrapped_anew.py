# task: read_sum
# reward: 1
# Gives the standard streams another encoding, as programs for other systems do.

import io
import sys

sys.stdin = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
print(sum(int(word) for line in sys.stdin for word in line.split()))
