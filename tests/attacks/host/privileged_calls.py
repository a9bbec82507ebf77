# task: add
# reward: any
# layer: none
# What only root may, with arguments that would change nothing.

attempt("module", call, "init_module", None, 0, None)
attempt("syslog", call, "syslog", 3, ctypes.create_string_buffer(64), 64)
attempt("root", call, "pivot_root", b"", b"")
attempt("namespace", call, "setns", -1, 0)
