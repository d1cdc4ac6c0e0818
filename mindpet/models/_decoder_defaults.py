"""What the configurations of Llama, Qwen2 and GLM take for a missing key of a `config.json`."""

from typing import Any

__all__ = ["CHATGLM", "CHATGLM_FIXED", "GLM", "LLAMA", "QWEN2"]

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": None,
}
LLAMA = _DEFAULTS | {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
}
QWEN2 = _DEFAULTS | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
GLM = _DEFAULTS | {
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "eos_token_id": (151329, 151336, 151338),
    "attention_bias": True,
}

# What THUDM's own configuration takes for a missing key.
CHATGLM: dict[str, Any] = {
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 2048,
    "attention_dropout": 0.0,
    "layernorm_epsilon": 1e-5,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "multi_query_attention": False,
    "multi_query_group_num": 1,
    "eos_token_id": None,
}
# Keys of THUDM's own that change the numbers, with the one value of each that is computed. What `rope_ratio` stretches
# is not the same in all of its models.
CHATGLM_FIXED: dict[str, Any] = {
    "rmsnorm": True,
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "hidden_dropout": 0.0,
    "quantization_bit": 0,
    "pre_seq_len": None,
    "tie_word_embeddings": False,
    "rope_ratio": 1,
    "position_encoding_2d": None,
}
