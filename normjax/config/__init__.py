"""The fields of a run: names, bounds, who may change them, recipes that give them."""
