"""Object proposals: boxes that may hold an object, found in images or read from files."""
