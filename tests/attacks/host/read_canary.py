# task: add
# reward: any
# layer: files
# Reads an ordinary file of the host, also by mmap, by a relative path and through `..`.

path = "@CANARY@/secret.txt"
attempt("open", lambda: open(path).read())
attempt("os.open", os.open, path, os.O_RDONLY)
attempt("relative", os.open, path[1:], os.O_RDONLY)
attempt("around the library", os.open, os.path.dirname(os.__file__) + "/../../../../../.." + path, 0)
attempt("by descriptor", lambda: os.open(path, 0, dir_fd=os.open("/", os.O_RDONLY)))
attempt("folder", os.listdir, "@CANARY@")
