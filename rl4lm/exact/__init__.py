"""The exact truth about a tiny problem, and the trainer on that problem."""
