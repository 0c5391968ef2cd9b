"""Linear probes on frozen layers: what can a linear classifier read out of each layer?"""
