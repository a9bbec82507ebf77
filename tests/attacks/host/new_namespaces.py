# task: add
# reward: any
# layer: seccomp
# Makes a world of its own in which it is root.

attempt("unshare", call, "unshare", 0)
attempt("users", call, "unshare", 0x10000000)
attempt("mount", call, "mount", b"none", b"/tmp", b"tmpfs", 0, None)
attempt("root", os.chroot, "/")
