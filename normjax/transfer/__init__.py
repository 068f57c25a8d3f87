"""Runs that begin with other weights: a run's, a converted one's, or a file's.

`source` says what there is, `match` what becomes of every array of it and of the model,
`rules` how arrays of another size are fitted, `resample` computes them.
"""
