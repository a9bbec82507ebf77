# task: add
# reward: any
# layer: rlimits
# The same by one mapping, which counts only when it is touched.

attempt("mapping", mmap.mmap, -1, 600 << 20)
