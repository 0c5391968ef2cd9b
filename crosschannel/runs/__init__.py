"""What a command is told, where it works and what it found: config, run folder and result, written and read here."""
