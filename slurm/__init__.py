"""Submits `crosschannel` and `transfer` commands to a SLURM cluster, and restarts them until they finish."""
