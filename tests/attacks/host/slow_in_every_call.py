# task: add
# reward: 0
# layer: parent
# seconds: 0.4
# Each call is quick enough, all together are not.


def add(a, b):
    time.sleep(0.15)
    return a + b
