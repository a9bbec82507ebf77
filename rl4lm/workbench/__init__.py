"""A reward tried before it pays: on rows, and on texts made to earn without merit."""
