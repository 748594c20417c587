"""Start a training on several processes or hosts: torchrun, Slurm, Kubernetes. Imports no torch."""
