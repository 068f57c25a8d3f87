"""Studies: many runs, one table.

python -m normjax.study configs/studies/digits_norms.py --workdir=runs/digits_norms
"""
