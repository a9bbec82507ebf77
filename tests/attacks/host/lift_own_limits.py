# task: add
# reward: any
# layer: seccomp
# Changes its own limits, priority and place.

attempt("limits", resource.setrlimit, resource.RLIMIT_CORE, (0, 0))
attempt("group", os.setpgid, 0, 0)
attempt("priority", os.nice, 1)
attempt("mask", os.umask, 0)
attempt("folder", os.chdir, "/")
