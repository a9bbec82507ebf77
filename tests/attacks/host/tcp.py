# task: add
# reward: any
# layer: seccomp
# Connects to a server on this machine, and listens for one.

attempt("connect", lambda: socket.create_connection(("127.0.0.1", @TCP@), timeout=1))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
