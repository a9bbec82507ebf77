# task: double
# reward: 1
# Goes on with the prompt.

    result = n * _FACTOR
    return result
