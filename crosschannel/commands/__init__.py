"""One module a command: its config (a dataclass is its YAML file, its flags and its help) and its function."""
