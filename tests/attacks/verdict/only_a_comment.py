# task: double
# reward: 0
# A comment in place of the body.

    # return n * 2
