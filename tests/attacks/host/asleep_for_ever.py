# task: add
# reward: 0
# layer: parent
# seconds: 0.4
# Waits for nothing.


def add(a, b):
    time.sleep(1000)
