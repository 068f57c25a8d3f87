"""Where commands print what a person reads."""

from rich.console import Console

# Names of users' files and classes may hold what rich would take for markup.
console = Console(stderr=False, highlight=False, markup=False, emoji=False)
if not console.is_terminal:
    console.width = 132  # a file has no width; 80 would cut the tables
