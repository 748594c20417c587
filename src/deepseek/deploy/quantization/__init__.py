"""Weights and products in 8 or 16 bits, by a scheme, within a tolerance."""
