"""The generation loop, what picks the next token, and completions from a server."""
