# task: read_sum
# reward: 0
# seconds: 0.4
# The right line, and then nothing.

print(sum(map(int, input().split())), flush=True)
while True:
    pass
