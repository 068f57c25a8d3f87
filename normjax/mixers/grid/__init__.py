"""Mixers of feature maps [B, H, W, C], all called `mixer(x, *, mask, train) -> y`.

`mask` is bool [B, H, W]; False is padding, which gives no key and no value and leaves
no trace. `train` is passed to the norms inside. What attends in a map, in its windows
or stripes, or to a smaller map is the argument `core` of `whole_map`, `window`,
`cross_shaped_window` and `spatial_reduction`: a key of `mixers.CORES`, a dict with
`name` and arguments, or a factory. A key such as `window_sla` is one of them with that
core and with the arguments of the core among its own.
"""
