# task: read_sum
# reward: 0
# Prints every answer that there may be.

for number in range(-100, 100):
    print(number)
