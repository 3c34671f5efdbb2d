//! How a Hugging Face folder stores a model's tensors: as they are, but for GPT-2, whose linear layers are `Conv1D`s (their
//! matrices `[in, out]`, queries, keys and values side by side in one) under names of its own.

use candle_core::{D, Tensor};

use super::config::{Family, ModelConfig};
use super::tensors::{EMBEDDING, FINAL_NORM, HEAD, POSITIONS, TensorSpec};
use crate::error::{Error, Result};

/// One tensor of a folder, and those of the model that it holds.
#[derive(Debug, Clone)]
pub struct Stored {
    pub name: String,
    /// As the file has it.
    pub shape: Vec<usize>,
    /// Side by side in the last dimension, their matrices transposed; where there is no `Conv1D`, the one that it is.
    pub parts: Vec<TensorSpec>,
    pub conv1d: bool,
}

/// What `transformers` puts before the names of a GPT-2 with a head; files of the bare model lack it.
pub(super) const GPT2_PREFIX: &str = "transformer.";

const GPT2_MODULES: [(&str, &str, bool); 8] = [
    ("input_layernorm", "ln_1", false),
    ("post_attention_layernorm", "ln_2", false),
    ("self_attn.q_proj", "attn.c_attn", true),
    ("self_attn.k_proj", "attn.c_attn", true),
    ("self_attn.v_proj", "attn.c_attn", true),
    ("self_attn.o_proj", "attn.c_proj", true),
    ("mlp.up_proj", "mlp.c_fc", true),
    ("mlp.down_proj", "mlp.c_proj", true),
];

/// GPT-2's name of a tensor, and whether it is of a `Conv1D`.
fn gpt2_name(name: &str) -> Option<(String, bool)> {
    let whole = match name {
        EMBEDDING => Some("wte.weight".to_owned()),
        POSITIONS => Some("wpe.weight".to_owned()),
        // Outside the prefix.
        HEAD => return Some((HEAD.into(), false)),
        _ => name.strip_prefix(FINAL_NORM).map(|kind| format!("ln_f{kind}")),
    };
    if let Some(name) = whole {
        return Some((format!("{GPT2_PREFIX}{name}"), false));
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, theirs, conv1d) = GPT2_MODULES.iter().find(|(ours, ..)| *ours == module)?;
    Some((format!("{GPT2_PREFIX}h.{block}.{theirs}.{kind}"), *conv1d))
}

impl ModelConfig {
    /// Every tensor of the model's folder.
    pub fn stored_tensors(&self) -> Vec<Stored> {
        let mut all: Vec<Stored> = vec![];
        for spec in self.tensors() {
            let gpt2 = (self.family == Family::Gpt2).then(|| gpt2_name(&spec.name)).flatten();
            let (name, conv1d) = gpt2.unwrap_or_else(|| (spec.name.clone(), false));
            match all.iter_mut().rev().take(6).find(|stored| stored.name == name) {
                Some(stored) => stored.parts.push(spec),
                None => all.push(Stored { name, shape: vec![], parts: vec![spec], conv1d }),
            }
        }
        for stored in &mut all {
            let mut shape = stored.parts[0].shape.clone();
            shape[0] = stored.parts.iter().map(|part| part.shape[0]).sum();
            if stored.conv1d {
                shape.reverse();
            }
            stored.shape = shape;
        }
        all
    }

    /// A name in a folder's files, as [`Self::stored_tensors`] has it; None of a tensor that follows from the others.
    pub(super) fn stored_name(&self, name: &str) -> Option<String> {
        // Old files carry RoPE's frequencies or GPT-2's mask, and some tied models a copy of the embedding.
        let derived = name.ends_with("rotary_emb.inv_freq") || (self.tied_head && name == HEAD);
        if self.family != Family::Gpt2 {
            return (!derived).then(|| name.to_owned());
        }
        let mask = name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
        let bare = ["wte.", "wpe.", "h.", "ln_f."].iter().any(|module| name.starts_with(module));
        let name = if bare { format!("{GPT2_PREFIX}{name}") } else { name.to_owned() };
        (!derived && !mask).then_some(name)
    }
}

impl Stored {
    /// The model's tensors that a tensor of the file holds.
    pub(super) fn split(&self, tensor: Tensor) -> Result<Vec<(String, Tensor)>> {
        let mut start = 0;
        let part = |part: &TensorSpec| {
            if !self.conv1d {
                return Ok((part.name.clone(), tensor.clone()));
            }
            let columns = tensor.narrow(D::Minus1, start, part.shape[0])?;
            start += part.shape[0];
            let ours = if part.shape.len() == 2 { columns.t()? } else { columns };
            // A copy of its own: the optimizer changes it in place.
            Ok((part.name.clone(), ours.force_contiguous()?))
        };
        self.parts.iter().map(part).collect::<std::result::Result<_, candle_core::Error>>().map_err(Error::from)
    }
}
