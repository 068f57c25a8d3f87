"""The training loop and what belongs to it: state, step, checkpoints, evaluation."""
