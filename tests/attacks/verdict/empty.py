# task: double
# reward: 0
# Nothing: only what the prompt has begun.
