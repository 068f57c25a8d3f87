"""A graph transformer that finds communities: minutes on two cores.

    python train.py --config=configs/communities.py --workdir=runs/communities
    python train.py --config=configs/communities.py:variant=cluster ...

Random graphs in which one node of every community says which it is; see
`normjax.data.communities`. Arguments: variant (small: three communities of 5 to 15
nodes; cluster: six of 5 to 35 and the published network), norm, steps, and runlocal (20
steps, to see that it works).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import base_config, norm_config, parse_arg, small_recipe
from normjax.core.errors import UserError, one_of

SMALL = {"communities": 3, "smallest": 5, "largest": 15, "positions": 4}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; see the module's docstring for `arg`."""
    choice: Any = parse_arg(
        arg, variant="small", norm="batch_norm", steps=1000, runlocal=False
    )
    variants = ("small", "cluster")
    if choice["variant"] not in variants:
        raise UserError(one_of("variant", choice["variant"], variants))
    config = base_config("node_classification")
    config.batch_size = 32
    config.total_steps = choice["steps"]
    config.eval_every = config.checkpoint.every = 250

    config.data.name = "communities"
    config.data.eval_split, config.data.test_split = "validation", "test"

    model = config.model
    model.norm = norm_config(choice["norm"])
    if choice["variant"] == "small":
        config.data.update(SMALL)
        model.name, model.dim, model.depth, model.num_heads = "graph", 32, 4, 4
        model.readout = "nodes"
    else:
        model.name = "graph_transformer_cluster"

    small_recipe(config, runlocal=choice["runlocal"])
    config.optim.lr = 1e-3
    return config
