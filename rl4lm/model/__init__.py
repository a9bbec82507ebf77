"""The module that owns the parameters: how it is read, adapted, prepared and merged."""
