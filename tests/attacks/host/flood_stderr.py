# task: add
# reward: 0
# layer: output
# seconds: 0.5
# The same where errors go.

while True:
    os.write(2, b"x" * 4096)
