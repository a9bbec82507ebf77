# task: read_sum
# reward: 0
# The right line, and then the status of failure.

import sys

print(sum(map(int, input().split())))
sys.exit(1)
