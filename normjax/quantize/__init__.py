"""Networks in fewer bits, simulated in floating point.

Quantizers of RepQ-ViT (uniform with calibrated ranges, log-sqrt2 for attention) and of
ZeroQ; LayerNorms rewritten so that one scale fits all their channels; data distilled
from batch statistics; how sensitive layers are and which bits fit a budget; the
rounding and noise of analog hardware.
"""

from normjax.quantize.analog import (
    add_noise,
    analog_input,
    analog_output,
    clamp,
    noise_std,
    reduce_precision,
)
from normjax.quantize.asymmetric import asymmetric_quantize, quantize_outputs
from normjax.quantize.distill import (
    distill_images,
    first_images,
    statistics_distance,
)
from normjax.quantize.log_sqrt2 import LogSqrt2Quantizer, calibrate_log_sqrt2
from normjax.quantize.rescale import Rescaled, rescale_norm
from normjax.quantize.sensitivity import (
    Allocation,
    allocate_bits,
    allocations,
    divergence,
)
from normjax.quantize.simulate import (
    Calibration,
    Quantized,
    QuantizedModel,
    quantized,
)
from normjax.quantize.uniform import UniformQuantizer, calibrate_uniform

__all__ = [
    "Allocation",
    "Calibration",
    "LogSqrt2Quantizer",
    "Quantized",
    "QuantizedModel",
    "Rescaled",
    "UniformQuantizer",
    "add_noise",
    "allocate_bits",
    "allocations",
    "analog_input",
    "analog_output",
    "asymmetric_quantize",
    "calibrate_log_sqrt2",
    "calibrate_uniform",
    "clamp",
    "distill_images",
    "divergence",
    "first_images",
    "noise_std",
    "quantize_outputs",
    "quantized",
    "reduce_precision",
    "rescale_norm",
    "statistics_distance",
]
