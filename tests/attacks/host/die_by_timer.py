# task: add
# reward: any
# layer: seccomp
# The same by a timer that sends the signal later.

event = ctypes.create_string_buffer(64)
ctypes.c_int.from_buffer(event, 8).value = signal.SIGUSR1
timer = ctypes.create_string_buffer(8)
attempt("timer", call, "timer_create", 1, event, timer)
