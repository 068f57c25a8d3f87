"""Config files: `get_config(arg)` gives an ml_collections.ConfigDict. No jax here."""
