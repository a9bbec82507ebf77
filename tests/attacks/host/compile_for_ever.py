# task: add
# reward: 0
# layer: parent
# seconds: 0.4
# A constant that takes for ever to compute.

big = 9**9**9
