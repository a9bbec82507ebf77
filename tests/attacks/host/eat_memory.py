# task: add
# reward: any
# layer: rlimits
# Takes more memory than there is for a run (and would stop at 700 MiB).

held = []


def eat():
    for _ in range(70):
        held.append(bytearray(10 << 20))


attempt("memory", eat)
held.clear()
