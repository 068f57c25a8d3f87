"""Keys and shapes of published state dicts at 224 pixels and 1000 classes, as tables.

Read from models of the released code: one row is a pattern of names with # for their
numbers, how many there are, and their shapes; LN(C), REPBN(C), PREP(C), LLAMA(C) are
the arrays of a norm. PARAMETERS counts what is trained, unread vectors included.
"""

# ruff: noqa: E501 (tables)

TABLES = {
    "deit_tiny_prepbn": """
cls_token | 1 | (1, 1, 192)
pos_embed | 1 | (1, 197, 192)
patch_embed.proj.weight | 1 | (192, 3, 16, 16)
patch_embed.proj.bias | 1 | (192)
blocks.#.norm1 | 12 | PREP(192)
blocks.#.attn.qkv.weight | 12 | (576, 192)
blocks.#.attn.qkv.bias | 12 | (576)
blocks.#.attn.proj.weight | 12 | (192, 192)
blocks.#.attn.proj.bias | 12 | (192)
blocks.#.norm2 | 12 | PREP(192)
blocks.#.mlp.fc1.weight | 12 | (768, 192)
blocks.#.mlp.fc1.bias | 12 | (768)
blocks.#.mlp.fc2.weight | 12 | (192, 768)
blocks.#.mlp.fc2.bias | 12 | (192)
norm | 1 | PREP(192)
head.weight | 1 | (1000, 192)
head.bias | 1 | (1000)
""",
    "slab_deit_tiny": """
cls_token | 1 | (1, 1, 192)
pos_embed | 1 | (1, 196, 192)
patch_embed.proj.weight | 1 | (192, 3, 16, 16)
patch_embed.proj.bias | 1 | (192)
blocks.#.norm1 | 12 | PREP(192)
blocks.#.attn.positional_encoding | 12 | (1, 196, 192)
blocks.#.attn.qkv.weight | 12 | (576, 192)
blocks.#.attn.qkv.bias | 12 | (576)
blocks.#.attn.proj.weight | 12 | (192, 192)
blocks.#.attn.proj.bias | 12 | (192)
blocks.#.attn.dwc.weight | 12 | (64, 1, 5, 5)
blocks.#.attn.dwc.bias | 12 | (64)
blocks.#.norm2 | 12 | PREP(192)
blocks.#.mlp.fc1.weight | 12 | (768, 192)
blocks.#.mlp.fc1.bias | 12 | (768)
blocks.#.mlp.fc2.weight | 12 | (192, 768)
blocks.#.mlp.fc2.bias | 12 | (192)
norm | 1 | PREP(192)
head.weight | 1 | (1000, 192)
head.bias | 1 | (1000)
""",
    "swin_tiny_prepbn": """
patch_embed.proj.weight | 1 | (96, 3, 4, 4)
patch_embed.proj.bias | 1 | (96)
patch_embed.norm | 1 | REPBN(96)
layers.#.blocks.#.norm1 | 12 | REPBN(96); REPBN(192); REPBN(384); REPBN(768)
layers.#.blocks.#.attn.relative_position_bias_table | 12 | (169, 3); (169, 6); (169, 12); (169, 24)
layers.#.blocks.#.attn.relative_position_index | 12 | (49, 49)
layers.#.blocks.#.attn.qkv.weight | 12 | (288, 96); (576, 192); (1152, 384); (2304, 768)
layers.#.blocks.#.attn.qkv.bias | 12 | (288); (576); (1152); (2304)
layers.#.blocks.#.attn.proj.weight | 12 | (96, 96); (192, 192); (384, 384); (768, 768)
layers.#.blocks.#.attn.proj.bias | 12 | (96); (192); (384); (768)
layers.#.blocks.#.norm2 | 12 | REPBN(96); REPBN(192); REPBN(384); REPBN(768)
layers.#.blocks.#.mlp.fc1.weight | 12 | (384, 96); (768, 192); (1536, 384); (3072, 768)
layers.#.blocks.#.mlp.fc1.bias | 12 | (384); (768); (1536); (3072)
layers.#.blocks.#.mlp.fc2.weight | 12 | (96, 384); (192, 768); (384, 1536); (768, 3072)
layers.#.blocks.#.mlp.fc2.bias | 12 | (96); (192); (384); (768)
layers.#.blocks.#.attn_mask | 5 | (64, 49, 49); (16, 49, 49); (4, 49, 49)
layers.#.downsample.reduction.weight | 3 | (192, 384); (384, 768); (768, 1536)
layers.#.downsample.norm | 3 | REPBN(384); REPBN(768); REPBN(1536)
norm | 1 | REPBN(768)
head.weight | 1 | (1000, 768)
head.bias | 1 | (1000)
""",
    "slab_swin_tiny": """
patch_embed.proj.weight | 1 | (96, 3, 4, 4)
patch_embed.proj.bias | 1 | (96)
patch_embed.norm | 1 | PREP(96)
layers.#.blocks.#.norm1 | 12 | PREP(96); PREP(192); PREP(384); PREP(768)
layers.#.blocks.#.attn.positional_encoding | 4 | (1, 3136, 96); (1, 784, 192)
layers.#.blocks.#.attn.qkv.weight | 12 | (288, 96); (576, 192); (1152, 384); (2304, 768)
layers.#.blocks.#.attn.qkv.bias | 12 | (288); (576); (1152); (2304)
layers.#.blocks.#.attn.proj.weight | 12 | (96, 96); (192, 192); (384, 384); (768, 768)
layers.#.blocks.#.attn.proj.bias | 12 | (96); (192); (384); (768)
layers.#.blocks.#.attn.dwc.weight | 4 | (32, 1, 5, 5)
layers.#.blocks.#.attn.dwc.bias | 4 | (32)
layers.#.blocks.#.norm2 | 12 | PREP(96); PREP(192); PREP(384); PREP(768)
layers.#.blocks.#.mlp.fc1.weight | 12 | (384, 96); (768, 192); (1536, 384); (3072, 768)
layers.#.blocks.#.mlp.fc1.bias | 12 | (384); (768); (1536); (3072)
layers.#.blocks.#.mlp.fc2.weight | 12 | (96, 384); (192, 768); (384, 1536); (768, 3072)
layers.#.blocks.#.mlp.fc2.bias | 12 | (96); (192); (384); (768)
layers.#.downsample.reduction.weight | 3 | (192, 384); (384, 768); (768, 1536)
layers.#.downsample.norm | 3 | PREP(384); PREP(768); PREP(1536)
layers.#.blocks.#.attn.relative_position_bias_table | 8 | (169, 12); (169, 24)
layers.#.blocks.#.attn.relative_position_index | 8 | (49, 49)
layers.#.blocks.#.attn_mask | 3 | (4, 49, 49)
norm | 1 | PREP(768)
head.weight | 1 | (1000, 768)
head.bias | 1 | (1000)
""",
    "pvt_tiny_prepbn": """
pos_embed# | 4 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 49, 512)
patch_embed#.proj.weight | 4 | (64, 3, 4, 4); (128, 64, 2, 2); (320, 128, 2, 2); (512, 320, 2, 2)
patch_embed#.proj.bias | 4 | (64); (128); (320); (512)
patch_embed#.norm | 4 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.norm1 | 8 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.attn.q.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.q.bias | 8 | (64); (128); (320); (512)
block#.#.attn.kv.weight | 8 | (128, 64); (256, 128); (640, 320); (1024, 512)
block#.#.attn.kv.bias | 8 | (128); (256); (640); (1024)
block#.#.attn.proj.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.proj.bias | 8 | (64); (128); (320); (512)
block#.#.attn.sr.weight | 6 | (64, 64, 8, 8); (128, 128, 4, 4); (320, 320, 2, 2)
block#.#.attn.sr.bias | 6 | (64); (128); (320)
block#.#.attn.norm | 6 | PREP(64); PREP(128); PREP(320)
block#.#.norm2 | 8 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.mlp.fc1.weight | 8 | (512, 64); (1024, 128); (1280, 320); (2048, 512)
block#.#.mlp.fc1.bias | 8 | (512); (1024); (1280); (2048)
block#.#.mlp.fc2.weight | 8 | (64, 512); (128, 1024); (320, 1280); (512, 2048)
block#.#.mlp.fc2.bias | 8 | (64); (128); (320); (512)
head.weight | 1 | (1000, 512)
head.bias | 1 | (1000)
""",
    "slab_pvt_tiny": """
pos_embed# | 4 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 49, 512)
patch_embed#.proj.weight | 4 | (64, 3, 4, 4); (128, 64, 2, 2); (320, 128, 2, 2); (512, 320, 2, 2)
patch_embed#.proj.bias | 4 | (64); (128); (320); (512)
patch_embed#.norm | 4 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.norm1 | 8 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.attn.positional_encoding | 8 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 49, 512)
block#.#.attn.q.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.q.bias | 8 | (64); (128); (320); (512)
block#.#.attn.kv.weight | 8 | (128, 64); (256, 128); (640, 320); (1024, 512)
block#.#.attn.kv.bias | 8 | (128); (256); (640); (1024)
block#.#.attn.proj.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.proj.bias | 8 | (64); (128); (320); (512)
block#.#.attn.dwc.weight | 8 | (64, 1, 5, 5)
block#.#.attn.dwc.bias | 8 | (64)
block#.#.norm2 | 8 | PREP(64); PREP(128); PREP(320); PREP(512)
block#.#.mlp.fc1.weight | 8 | (512, 64); (1024, 128); (1280, 320); (2048, 512)
block#.#.mlp.fc1.bias | 8 | (512); (1024); (1280); (2048)
block#.#.mlp.fc2.weight | 8 | (64, 512); (128, 1024); (320, 1280); (512, 2048)
block#.#.mlp.fc2.bias | 8 | (64); (128); (320); (512)
head.weight | 1 | (1000, 512)
head.bias | 1 | (1000)
""",
    "slab_cswin_tiny": """
stage1_conv_embed.#.weight | 1 | (64, 3, 7, 7)
stage1_conv_embed.#.bias | 1 | (64)
stage1_conv_embed.# | 1 | PREP(64)
stage#.#.qkv.weight | 25 | (192, 64); (384, 128); (768, 256); (1536, 512)
stage#.#.qkv.bias | 25 | (192); (384); (768); (1536)
stage#.#.norm1 | 25 | PREP(64); PREP(128); PREP(256); PREP(512)
stage#.#.proj.weight | 25 | (64, 64); (128, 128); (256, 256); (512, 512)
stage#.#.proj.bias | 25 | (64); (128); (256); (512)
stage#.#.attns.#.scale | 6 | (1, 1, 64); (1, 1, 128)
stage#.#.attns.#.positional_encoding | 6 | (1, 3136, 64); (1, 784, 128)
stage#.#.attns.#.get_v.weight | 43 | (64, 1, 3, 3); (128, 1, 3, 3); (512, 1, 3, 3)
stage#.#.attns.#.get_v.bias | 43 | (64); (128); (512)
stage#.#.attns.#.dwc.weight | 6 | (32, 1, 5, 5)
stage#.#.attns.#.dwc.bias | 6 | (32)
stage#.#.mlp.fc1.weight | 25 | (256, 64); (512, 128); (1024, 256); (2048, 512)
stage#.#.mlp.fc1.bias | 25 | (256); (512); (1024); (2048)
stage#.#.mlp.fc2.weight | 25 | (64, 256); (128, 512); (256, 1024); (512, 2048)
stage#.#.mlp.fc2.bias | 25 | (64); (128); (256); (512)
stage#.#.norm2 | 25 | PREP(64); PREP(128); PREP(256); PREP(512)
merge#.conv.weight | 3 | (128, 64, 3, 3); (256, 128, 3, 3); (512, 256, 3, 3)
merge#.conv.bias | 3 | (128); (256); (512)
merge#.norm | 3 | PREP(128); PREP(256); PREP(512)
norm | 1 | PREP(512)
head.weight | 1 | (1000, 512)
head.bias | 1 | (1000)
""",
    "pvt_tiny": """
pos_embed# | 4 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 50, 512)
cls_token | 1 | (1, 1, 512)
patch_embed#.proj.weight | 4 | (64, 3, 4, 4); (128, 64, 2, 2); (320, 128, 2, 2); (512, 320, 2, 2)
patch_embed#.proj.bias | 4 | (64); (128); (320); (512)
patch_embed#.norm | 4 | LN(64); LN(128); LN(320); LN(512)
block#.#.norm1 | 8 | LN(64); LN(128); LN(320); LN(512)
block#.#.attn.q.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.q.bias | 8 | (64); (128); (320); (512)
block#.#.attn.kv.weight | 8 | (128, 64); (256, 128); (640, 320); (1024, 512)
block#.#.attn.kv.bias | 8 | (128); (256); (640); (1024)
block#.#.attn.proj.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.proj.bias | 8 | (64); (128); (320); (512)
block#.#.attn.sr.weight | 6 | (64, 64, 8, 8); (128, 128, 4, 4); (320, 320, 2, 2)
block#.#.attn.sr.bias | 6 | (64); (128); (320)
block#.#.attn.norm | 6 | LN(64); LN(128); LN(320)
block#.#.norm2 | 8 | LN(64); LN(128); LN(320); LN(512)
block#.#.mlp.fc1.weight | 8 | (512, 64); (1024, 128); (1280, 320); (2048, 512)
block#.#.mlp.fc1.bias | 8 | (512); (1024); (1280); (2048)
block#.#.mlp.fc2.weight | 8 | (64, 512); (128, 1024); (320, 1280); (512, 2048)
block#.#.mlp.fc2.bias | 8 | (64); (128); (320); (512)
norm | 1 | LN(512)
head.weight | 1 | (1000, 512)
head.bias | 1 | (1000)
""",
    "flatten_swin_tiny": """
patch_embed.proj.weight | 1 | (96, 3, 4, 4)
patch_embed.proj.bias | 1 | (96)
patch_embed.norm | 1 | LN(96)
layers.#.blocks.#.norm1 | 12 | LN(96); LN(192); LN(384); LN(768)
layers.#.blocks.#.attn.scale | 4 | (1, 1, 96); (1, 1, 192)
layers.#.blocks.#.attn.positional_encoding | 4 | (1, 3136, 96); (1, 784, 192)
layers.#.blocks.#.attn.qkv.weight | 12 | (288, 96); (576, 192); (1152, 384); (2304, 768)
layers.#.blocks.#.attn.qkv.bias | 12 | (288); (576); (1152); (2304)
layers.#.blocks.#.attn.proj.weight | 12 | (96, 96); (192, 192); (384, 384); (768, 768)
layers.#.blocks.#.attn.proj.bias | 12 | (96); (192); (384); (768)
layers.#.blocks.#.attn.dwc.weight | 4 | (32, 1, 5, 5)
layers.#.blocks.#.attn.dwc.bias | 4 | (32)
layers.#.blocks.#.norm2 | 12 | LN(96); LN(192); LN(384); LN(768)
layers.#.blocks.#.mlp.fc1.weight | 12 | (384, 96); (768, 192); (1536, 384); (3072, 768)
layers.#.blocks.#.mlp.fc1.bias | 12 | (384); (768); (1536); (3072)
layers.#.blocks.#.mlp.fc2.weight | 12 | (96, 384); (192, 768); (384, 1536); (768, 3072)
layers.#.blocks.#.mlp.fc2.bias | 12 | (96); (192); (384); (768)
layers.#.downsample.reduction.weight | 3 | (192, 384); (384, 768); (768, 1536)
layers.#.downsample.norm | 3 | LN(384); LN(768); LN(1536)
layers.#.blocks.#.attn.relative_position_bias_table | 8 | (169, 12); (169, 24)
layers.#.blocks.#.attn.relative_position_index | 8 | (49, 49)
layers.#.blocks.#.attn_mask | 3 | (4, 49, 49)
norm | 1 | LN(768)
head.weight | 1 | (1000, 768)
head.bias | 1 | (1000)
""",
    "flatten_pvt_tiny": """
pos_embed# | 4 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 49, 512)
patch_embed#.proj.weight | 4 | (64, 3, 4, 4); (128, 64, 2, 2); (320, 128, 2, 2); (512, 320, 2, 2)
patch_embed#.proj.bias | 4 | (64); (128); (320); (512)
patch_embed#.norm | 4 | LN(64); LN(128); LN(320); LN(512)
block#.#.norm1 | 8 | LN(64); LN(128); LN(320); LN(512)
block#.#.attn.scale | 8 | (1, 1, 64); (1, 1, 128); (1, 1, 320); (1, 1, 512)
block#.#.attn.positional_encoding | 8 | (1, 3136, 64); (1, 784, 128); (1, 196, 320); (1, 49, 512)
block#.#.attn.q.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.q.bias | 8 | (64); (128); (320); (512)
block#.#.attn.kv.weight | 8 | (128, 64); (256, 128); (640, 320); (1024, 512)
block#.#.attn.kv.bias | 8 | (128); (256); (640); (1024)
block#.#.attn.proj.weight | 8 | (64, 64); (128, 128); (320, 320); (512, 512)
block#.#.attn.proj.bias | 8 | (64); (128); (320); (512)
block#.#.attn.dwc.weight | 8 | (64, 1, 5, 5)
block#.#.attn.dwc.bias | 8 | (64)
block#.#.norm2 | 8 | LN(64); LN(128); LN(320); LN(512)
block#.#.mlp.fc1.weight | 8 | (512, 64); (1024, 128); (1280, 320); (2048, 512)
block#.#.mlp.fc1.bias | 8 | (512); (1024); (1280); (2048)
block#.#.mlp.fc2.weight | 8 | (64, 512); (128, 1024); (320, 1280); (512, 2048)
block#.#.mlp.fc2.bias | 8 | (64); (128); (320); (512)
norm | 1 | LN(512)
head.weight | 1 | (1000, 512)
head.bias | 1 | (1000)
""",
    "slab_llama_350m": """
model.embed_tokens.weight | 1 | (32000, 1024)
model.layers.#.self_attn.q_proj.weight | 18 | (1024, 1024)
model.layers.#.self_attn.k_proj.weight | 18 | (1024, 1024)
model.layers.#.self_attn.v_proj.weight | 18 | (1024, 1024)
model.layers.#.self_attn.o_proj.weight | 18 | (1024, 1024)
model.layers.#.self_attn.rotary_emb.inv_freq | 18 | (64)
model.layers.#.mlp.gate_proj.weight | 18 | (4096, 1024)
model.layers.#.mlp.down_proj.weight | 18 | (1024, 4096)
model.layers.#.mlp.up_proj.weight | 18 | (4096, 1024)
model.layers.#.input_layernorm | 18 | LLAMA(1024)
model.layers.#.post_attention_layernorm | 18 | LLAMA(1024)
model.norm | 1 | LLAMA(1024)
lm_head.weight | 1 | (32000, 1024)
""",
}

# fmt: off
PARAMETERS = {
    "deit_tiny": 5_717_416, "deit_small": 22_050_664,
    "deit_tiny_prepbn": 5_727_041, "deit_small_prepbn": 22_069_889,
    "slab_deit_tiny": 6_198_401, "slab_deit_small": 22_992_641,
    "swin_tiny": 28_288_354, "swin_tiny_prepbn": 28_313_151,
    "slab_swin_tiny": 29_216_605, "slab_swin_small": 50_552_965,
    "slab_swin_base": 89_029_373, "flatten_swin_tiny": 29_192_384,
    "flatten_swin_small": 50_510_288, "flatten_swin_base": 88_972_488,
    "pvt_tiny": 13_229_288, "pvt_small": 24_485_864,
    "pvt_medium": 44_208_104, "pvt_large": 61_369_320,
    "pvt_tiny_prepbn": 13_239_554, "pvt_small_prepbn": 24_507_801,
    "pvt_medium_prepbn": 44_253_117, "slab_pvt_tiny": 12_157_692,
    "slab_pvt_small": 21_683_788, "slab_pvt_medium": 37_267_300,
    "flatten_pvt_tiny": 12_150_504, "slab_cswin_tiny": 21_227_807,
    "slab_cswin_small": 35_494_205, "flatten_cswin_tiny": 21_201_768,
    "slab_llama_350m": 367_639_589,
}
PLAIN_REPBN = {
    "deit_tiny_prepbn": 5_717_441, "swin_tiny_prepbn": 28_288_383,
    "swin_small_prepbn": 49_606_311,
}
KEYS = {
    "deit_tiny": 152, "deit_tiny_prepbn": 377, "slab_deit_tiny": 413,
    "swin_tiny_prepbn": 451, "slab_swin_tiny": 453, "pvt_tiny_prepbn": 392,
    "slab_pvt_tiny": 338, "slab_cswin_tiny": 925, "pvt_tiny": 161,
    "flatten_pvt_tiny": 168, "slab_llama_350m": 553,
}
# fmt: on
