"""Runs planned steps on a device: inputs, forward, scores, sampling. Decides nothing."""
