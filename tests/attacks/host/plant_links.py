# task: add
# reward: any
# layer: seccomp
# Plants links that a later writer on the host would follow, and a pipe and a socket.

folder = "@CANARY@/@MARK@"
attempt("symlink", os.symlink, "/etc/passwd", folder + ".sym")
attempt("hard link", os.link, "@CANARY@/secret.txt", folder + ".hard")
attempt("fifo", os.mkfifo, folder + ".fifo")
attempt("node", os.mknod, folder + ".node")
attempt("socket", lambda: socket.socket(socket.AF_UNIX).bind(folder + ".sock"))
