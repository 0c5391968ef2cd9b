"""Run folders: locks, stored configs, interrupts and results."""
