"""Object proposals: boxes that may contain an object, computed by selective search or read from files."""
