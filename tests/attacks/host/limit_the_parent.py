# task: add
# reward: any
# layer: seccomp
# Takes limits, priority and cores away from the trainer.

attempt("limits", resource.prlimit, @PARENT@, resource.RLIMIT_CORE, (0, 0))
attempt("priority", os.setpriority, os.PRIO_PROCESS, @PARENT@, 1)
attempt("cores", os.sched_setaffinity, @PARENT@, {min(os.sched_getaffinity(0))})
