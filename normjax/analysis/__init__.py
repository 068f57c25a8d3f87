"""What happens inside of a network."""
