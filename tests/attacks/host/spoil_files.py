# task: add
# reward: any
# layer: seccomp
# Truncates, deletes and renames files that are there.

folder = "@CANARY@/"
attempt("truncate", os.truncate, folder + "victim.txt", 0)
attempt("open", os.open, folder + "victim.txt", os.O_WRONLY | os.O_TRUNC)
attempt("unlink", os.unlink, folder + "victim2.txt")
attempt("rename", os.rename, folder + "victim3.txt", folder + "stolen.txt")
attempt("rmdir", os.rmdir, folder + "empty")
