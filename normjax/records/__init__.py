"""What a run leaves in its folder: checkpoints, metrics, what its data were."""
