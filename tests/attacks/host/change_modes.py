# task: add
# reward: any
# layer: seccomp
# Changes mode, owner, times and attributes of a file, which Landlock does not cover.

path = "@CANARY@/victim.txt"
attempt("chmod", os.chmod, path, 0o777)
attempt("chown", os.chown, path, os.getuid(), os.getgid())
attempt("times", os.utime, path, (1, 1))
attempt("attribute", os.setxattr, path, "user.mark", b"1")
