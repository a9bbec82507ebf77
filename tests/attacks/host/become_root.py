# task: add
# reward: any
# layer: seccomp
# Changes users and groups, to the ones that it has.

attempt("user", os.setuid, os.getuid())
attempt("group", os.setgid, os.getgid())
attempt("effective", os.setresuid, -1, -1, -1)
