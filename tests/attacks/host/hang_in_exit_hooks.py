# task: read_sum
# reward: 0
# layer: parent
# seconds: 0.4
# Is right, and then does not end.

import atexit

print(sum(map(int, input().split())), flush=True)
atexit.register(time.sleep, 1000)
