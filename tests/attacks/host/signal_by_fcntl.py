# task: add
# reward: any
# layer: seccomp
# Has the kernel signal the trainer when there is something to read: kill without kill.

reading, writing = os.pipe()
attempt("owner", fcntl.fcntl, reading, fcntl.F_SETOWN, @PARENT@)
attempt("signal", fcntl.fcntl, reading, 10, signal.SIGURG)
attempt("async", fcntl.fcntl, reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(writing, b"x")
