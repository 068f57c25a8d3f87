"""What a run would need and take on machines that need not be there."""
