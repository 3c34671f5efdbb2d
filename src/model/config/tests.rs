//! What is read, refused and written.

use super::*;

fn qwen(more: &str) -> Result<ModelConfig> {
    ModelConfig::from_json(&format!(
        r#"{{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 97{more}}}"#
    ))
}

#[test]
fn a_cut_keeps_each_layers_window() {
    let whole = qwen(r#", "rope_theta": 1e4, "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2"#)
        .unwrap();
    assert_eq!(whole.windows, [None, None, Some(5), Some(5)]);
    let cut = whole.with_layers(&[1, 3]);
    assert_eq!(cut.windows, [None, Some(5)]);
    let again = ModelConfig::from_json(&cut.to_json("float32")).unwrap();
    assert_eq!((again.layers, again.windows), (2, cut.windows));
}

#[test]
fn what_would_load_a_model_silently_wrong_is_refused() {
    for (more, named) in [
        ("", "rope_theta"),
        (r#", "rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#, "yarn"),
        (r#", "rope_theta": 1e4, "hidden_act": "gelu""#, "gelu"),
        (r#", "rope_theta": 1e4, "partial_rotary_factor": 0.5"#, "partial_rotary_factor"),
        (r#", "rope_theta": "large""#, "rope_theta"),
        (r#", "rope_theta": 1e4, "num_key_value_heads": 3"#, "num_key_value_heads"),
        (r#", "rope_theta": 1e4, "rope_scaling": {"rope_type": 7}"#, "rope_type"),
        (r#", "rope_theta": 1e4, "rope_scaling": "linear""#, "rope_scaling"),
        (r#", "rope_theta": 1e4, "hidden_act": 5"#, "hidden_act"),
        (r#", "rope_theta": 1e4, "initializer_range": -1"#, "initializer_range"),
        (r#", "rope_theta": 1e4, "head_dim": 1"#, "head_dim"),
        (r#", "rope_theta": 1e4, "hidden_size": 16777216, "intermediate_size": 16777216"#, "parameters"),
        (r#", "rope_theta": 1e4, "quantization_config": {}"#, "quantization_config"),
    ] {
        let said = qwen(more).unwrap_err().to_string();
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[test]
fn the_dtype_is_written_in_the_spelling_that_was_read() {
    let old = qwen(r#", "rope_theta": 1e4, "torch_dtype": "float32""#).unwrap().to_json("bfloat16");
    assert!(old.contains(r#""torch_dtype": "bfloat16""#) && !old.contains(r#""dtype": "bf"#));
    let new = qwen(r#", "rope_theta": 1e4, "dtype": "float32""#).unwrap().to_json("bfloat16");
    assert!(new.contains(r#""dtype": "bfloat16""#) && !new.contains("torch_dtype"));
}
