# task: add
# reward: any
# layer: seccomp
# Kernel interfaces that have had the holes: keyrings, bpf, perf, io_uring, userfaultfd, memfd.

attempt("keyring", call, "keyctl", 0, -3, 0)
attempt("key", call, "add_key", b"user", b"@MARK@", b"x", 1, -2)
attempt("notifications", os.pipe2, os.O_EXCL)
attempt("memfd", call, "memfd_create", b"@MARK@", 0)
attempt("userfaultfd", call, "userfaultfd", 1)
attempt("io_uring", call, "io_uring_setup", 1, ctypes.create_string_buffer(120))
attempt("perf", call, "perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0)
attempt("bpf", call, "bpf", 0, ctypes.create_string_buffer(64), 64)
