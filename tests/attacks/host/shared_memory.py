# task: add
# reward: any
# layer: seccomp
# Leaves memory, semaphores and queues behind that the next run could read.

attempt("memory", call, "shmget", 0x5EED, 4096, 0o1600)
attempt("semaphore", call, "semget", 0x5EED, 1, 0o1600)
attempt("messages", call, "msgget", 0x5EED, 0o1600)
attempt("queue", call, "mq_open", b"@MARK@", os.O_CREAT | os.O_RDWR, 0o600, None)
