# task: read_sum
# reward: 0
# The right line, and then an exception.

print(sum(map(int, input().split())), flush=True)
raise RuntimeError
