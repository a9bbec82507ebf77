# task: read_sum
# reward: 1
# The buffers of the streams, and leaves by quit().

import sys

numbers = sys.stdin.buffer.read().split()
sys.stdout.buffer.write(b"%d\n" % sum(map(int, numbers)))
quit(0)
