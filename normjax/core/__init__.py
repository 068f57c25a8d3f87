"""Layer 0: what every other package stands on. Imports jax and flax only."""
