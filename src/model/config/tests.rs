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

const SIZES: &str = r#""hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "rope_theta": 1e6"#;

/// A config of the family; keys given later win.
fn of(family: &str, more: &str) -> Result<ModelConfig> {
    let own = match family {
        "gpt2" => r#""n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "vocab_size": 97"#.to_owned(),
        "smollm3" => format!(r#"{SIZES}, "pad_token_id": null"#),
        "gemma2" => format!(
            r#"{SIZES}, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": null"#
        ),
        _ => format!(
            r#"{SIZES}, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5, "rope_local_base_freq": 1e4"#
        ),
    };
    ModelConfig::from_json(&format!(r#"{{"model_type": "{family}", {own}{more}}}"#))
}

#[test]
fn what_a_family_cannot_do_is_refused_by_key_and_value() {
    for (family, more, named) in [
        ("smollm3", r#", "hidden_act": "relu""#, "hidden_act is \"relu\""),
        ("smollm3", r#", "no_rope_layers": [1, 0]"#, "no_rope_layers is [1,0]"),
        ("smollm3", r#", "no_rope_layers": [1, 0, 2, 1]"#, "no_rope_layers is 2"),
        ("smollm3", r#", "no_rope_layer_interval": 0"#, "no_rope_layer_interval is 0"),
        ("smollm3", r#", "layer_types": ["sliding_attention", "a", "a", "a"]"#, "layer_types is \"a\""),
        (
            "smollm3",
            r#", "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"]"#,
            "use_sliding_window",
        ),
        ("smollm3", r#", "rope_parameters": {"full_attention": {"rope_theta": 5.0}}"#, "full_attention"),
        (
            "smollm3",
            r#", "rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5}"#,
            "partial_rotary_factor",
        ),
        ("gemma2", r#", "hidden_activation": "gelu""#, "hidden_activation is \"gelu\""),
        ("gemma2", r#", "hidden_act": "silu""#, "hidden_act is \"silu\""),
        ("gemma2", r#", "use_bidirectional_attention": true"#, "use_bidirectional_attention is true"),
        ("gemma2", r#", "attn_logit_softcapping": -1.0"#, "attn_logit_softcapping is -1.0"),
        ("gemma2", r#", "sliding_window": null"#, "sliding_window is missing"),
        ("gemma2", r#", "query_pre_attn_scalar": 0"#, "query_pre_attn_scalar is 0"),
        ("gemma2", r#", "layer_types": ["full_attention"]"#, "layer_types names 1"),
        ("gemma2", r#", "layer_types": "full_attention""#, "a list"),
        ("gemma3_text", r#", "attn_logit_softcapping": 50.0"#, "attn_logit_softcapping"),
        ("gemma3_text", r#", "rope_local_base_freq": null"#, "rope_local_base_freq"),
        ("gemma3_text", r#", "rope_theta": null"#, "rope_parameters.full_attention.rope_theta"),
        ("gemma3_text", r#", "rope_parameters": {"rope_type": "default"}"#, "rope_parameters.rope_type is \"default\""),
        ("gemma3_text", r#", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}"#, "yarn"),
        (
            "gemma3_text",
            r#", "rope_parameters": {"sliding_attention": {"rope_type": "dynamic", "rope_theta": 1e4}}"#,
            "rope_parameters.sliding_attention",
        ),
        ("gemma3_text", r#", "head_dim": null"#, "head_dim is missing"),
        ("gpt2", r#", "activation_function": "gelu""#, "activation_function is \"gelu\""),
        ("gpt2", r#", "scale_attn_weights": false"#, "scale_attn_weights is false"),
        ("gpt2", r#", "scale_attn_by_inverse_layer_idx": true"#, "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", r#", "add_cross_attention": true"#, "add_cross_attention is true"),
        ("gpt2", r#", "hidden_size": 32"#, "hidden_size is given"),
        ("gpt2", r#", "n_head": 5"#, "multiple of n_head = 5"),
        ("gpt2", r#", "n_positions": null"#, "n_positions is missing"),
    ] {
        assert!(of(family, "").is_ok());
        let said = of(family, more).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(named), "{family} {named}: {said}");
    }
    let said = ModelConfig::from_json(r#"{"model_type": "gemma3", "text_config": {}}"#).unwrap_err().to_string();
    assert!(said.contains("gemma3_text") && said.contains("Gemma3ForCausalLM"), "{said}");
    let said = ModelConfig::from_json(&format!(r#"{{"model_type": "smollm3", {SIZES}}}"#)).unwrap_err().to_string();
    assert!(said.contains("pad_token_id is missing"), "{said}");
    let said = ModelConfig::from_json(&format!(
        r#"{{"model_type": "gemma2", {SIZES}, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}}"#
    ));
    assert!(said.unwrap_err().to_string().contains("attn_logit_softcapping is missing"));
}

#[test]
fn both_spellings_of_gemma_3_say_the_same_layers() {
    let scaling = r#"{"rope_type": "linear", "factor": 8.0}"#;
    let old = of("gemma3_text", &format!(r#", "sliding_window_pattern": 2, "rope_scaling": {scaling}"#)).unwrap();
    let new = of(
        "gemma3_text",
        r#", "rope_theta": null, "rope_local_base_freq": null, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]"#,
    )
    .unwrap();
    assert_eq!((&old.windows, &old.rotations), (&new.windows, &new.rotations));
    assert_eq!(old.windows, [Some(5), None, Some(5), None]);
    let thetas: Vec<f64> = old.rotations.iter().map(|r| r.unwrap().theta).collect();
    assert_eq!(thetas, [1e4, 1e6, 1e4, 1e6]);
    // Six by default, so four layers all slide.
    assert_eq!(of("gemma3_text", "").unwrap().windows, [Some(5); 4]);
}

#[test]
fn layers_that_a_cut_leaves_are_what_they_were_in_every_family() {
    for (family, more) in [
        ("smollm3", r#", "no_rope_layer_interval": 2, "use_sliding_window": true, "sliding_window": 5"#),
        ("gemma2", ""),
        ("gemma3_text", r#", "sliding_window_pattern": 2"#),
        ("gpt2", ""),
    ] {
        let whole = of(family, more).unwrap();
        for layers in [&[0usize, 2][..], &[1, 3], &[3], &[1, 2]] {
            let again = ModelConfig::from_json(&whole.with_layers(layers).to_json("float32")).unwrap();
            let want: Vec<_> = layers.iter().map(|&i| (whole.windows[i], whole.rotations[i])).collect();
            let got: Vec<_> = again.windows.iter().copied().zip(again.rotations.iter().copied()).collect();
            assert_eq!(got, want, "{family} {layers:?}");
            assert_eq!(again.layers, layers.len());
        }
    }
}
