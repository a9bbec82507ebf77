# task: read_sum
# reward: 0
# The right line in another stream.

import sys

print(sum(map(int, input().split())), file=sys.stderr)
