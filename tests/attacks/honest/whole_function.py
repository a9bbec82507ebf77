# task: double
# reward: 1
# Says the prompt's function again.

def double(n):
    return n + n
