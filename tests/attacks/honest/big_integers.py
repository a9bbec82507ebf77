# task: power
# reward: 1
# Numbers of thousands of digits.


def power(base, exponent):
    return base**exponent
