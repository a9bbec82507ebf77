"""Rewards found by name and asked, each in a process of its own."""
