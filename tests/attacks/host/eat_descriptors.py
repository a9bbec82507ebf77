# task: add
# reward: any
# layer: rlimits
# Opens descriptors until there are none (here at most 500).

taken = []
attempt("descriptors", lambda: [taken.append(os.dup(0)) for _ in range(500)])
for descriptor in taken:
    os.close(descriptor)
