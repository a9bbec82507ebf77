# task: add
# reward: any
# layer: seccomp
# Puts another filter or another personality on itself.

attempt("personality", call, "personality", 0xFFFFFFFF)
attempt("privileges", call, "prctl", 38, 1, 0, 0, 0)
attempt("dumpable", call, "prctl", 4, 1, 0, 0, 0)
attempt("filter", call, "seccomp", 0x2, 0, ctypes.create_string_buffer(4))
