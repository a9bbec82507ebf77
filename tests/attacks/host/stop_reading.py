# task: read_sum
# reward: 0
# layer: parent
# seconds: 0.4
# Leaves its input unread, to block whoever writes it.

while True:
    time.sleep(1)
