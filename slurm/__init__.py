"""Submits either command line, unchanged, to a SLURM cluster, and keeps it going until it is done."""
