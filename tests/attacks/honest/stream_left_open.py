# task: read_sum
# reward: 1
# Leaves the flushing to the end of the interpreter.

import os

out = open(1, "w")
out.write(str(sum(map(int, open(0).read().split()))))
assert os.path.basename(__file__)
