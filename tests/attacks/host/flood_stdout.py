# task: add
# reward: 0
# layer: output
# seconds: 0.5
# Prints until somebody's memory or disk is full.

while True:
    print("x" * 1000)
