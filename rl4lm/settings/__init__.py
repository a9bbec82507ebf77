"""How options are declared, the declarations by theme, and what is refused with a reason."""
