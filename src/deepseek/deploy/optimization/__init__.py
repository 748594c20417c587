"""The best way to run a model on this machine, found by measuring."""
