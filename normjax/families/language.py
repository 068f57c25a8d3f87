"""Language models of our own sizes: on bytes, on letters, and on 32,000 tokens."""

from normjax.families.base import Family
from normjax.families.llama import TOKENS, llama

_BYTES = 257  # and the end of a document
_LETTERS = 53  # small and capital ones, and the end

LANGUAGE = Family(
    name="lm",
    kind="tokens",
    presets={
        "lm_tiny": llama(192, 4, 4, 512, vocab_size=_BYTES),
        "lm_70m": llama(512, 12, 8, 1368, vocab_size=TOKENS),
        "lm_130m": llama(768, 12, 12, 2048, vocab_size=TOKENS),
        "transduction_tiny": llama(
            96, 2, 4, 256, name="encoder_decoder", vocab_size=_LETTERS
        ),
        "transnormer_tiny": llama(
            192,
            4,
            4,
            512,
            vocab_size=_BYTES,
            norm="simple_rms_norm",
            mixer="transnormer",
            mlp="sglu",
        ),
    },
    config="lm_llama.py:variant={size},norm=rms_norm",
)
