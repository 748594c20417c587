"""Memory in hand: what is kept from forward to backward, and what a step will need."""
