# task: add
# reward: any
# layer: seccomp
# Pools and multiprocessing, as a program that is only in a hurry would use them.

import concurrent.futures
import multiprocessing

attempt("process", lambda: multiprocessing.get_context("fork").Process(target=print).start())
attempt("thread pool", lambda: concurrent.futures.ThreadPoolExecutor(1).submit(int).result(1))
