//! `loss.hidden`: which hidden states are held to the teacher's.

use std::collections::BTreeSet;
use std::path::Path;

use super::raw::{Node, Value};
use super::reader::{Numbers, Reader};
use super::types::*;
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Reads `{ layers, kind, weight }`.
pub(super) fn hidden(r: &mut Reader<'_>) -> Option<HiddenConfig> {
    r.node("loss.hidden")?.value.table().or_else(|| {
        r.outside("loss.hidden", "a table, for example { layers = \"auto\", kind = \"cosine\", weight = 1.0 }");
        None
    })?;
    let kind = r.choice("loss.hidden.kind", HiddenKind::Mse, HiddenKind::ALL, &[]);
    let weight = r.float("loss.hidden.weight", 1.0, Numbers::Positive);
    const WANTED: &str = "\"auto\", or pairs [student's layer, teacher's layer], each student's once";
    let layers = match r.node("loss.hidden.layers").map(|node| layers(&node.value)) {
        None => {
            r.missing("loss.hidden.layers", &format!("give {WANTED}"));
            None
        }
        Some(None) => {
            r.outside("loss.hidden.layers", WANTED);
            None
        }
        Some(layers) => layers,
    };
    Some(HiddenConfig { layers: layers?, kind, weight })
}

/// Pairs in the order of the student's layers, each once.
fn layers(value: &Value) -> Option<HiddenLayers> {
    let items = match value {
        Value::String(word) if word == "auto" => return Some(HiddenLayers::Auto),
        Value::Array(items) if !items.is_empty() => items,
        _ => return None,
    };
    let pair = |item: &Node| match &item.value {
        Value::Array(pair) => match pair[..] {
            [Node { value: Value::Integer(s), .. }, Node { value: Value::Integer(t), .. }] => {
                Some([usize::try_from(s).ok()?, usize::try_from(t).ok()?])
            }
            _ => None,
        },
        _ => None,
    };
    let mut pairs = items.iter().map(pair).collect::<Option<Vec<_>>>()?;
    pairs.sort_unstable();
    let students: BTreeSet<usize> = pairs.iter().map(|pair| pair[0]).collect();
    (students.len() == pairs.len()).then_some(HiddenLayers::Pairs(pairs))
}

impl HiddenConfig {
    /// The student's and the teacher's layers that are compared; `of_teacher` is the path of a local teacher. `auto`: each
    /// layer of a cut of the teacher with the one it was; otherwise
    /// student's layer i of n with the teacher's that ends the same share of its depth, (i + 1) · N / n rounded up.
    ///
    /// Input errors: a layer that does not exist.
    pub fn pairs(
        &self,
        source: &StudentSource,
        of_teacher: Option<&Path>,
        student: usize,
        teacher: usize,
    ) -> Result<Vec<[usize; 2]>> {
        let pairs = match (&self.layers, source) {
            (HiddenLayers::Pairs(pairs), _) => pairs.clone(),
            (HiddenLayers::Auto, StudentSource::Pruned { layers: Layers::These(layers), from })
                if Some(from.as_path()) == of_teacher =>
            {
                layers.iter().enumerate().map(|(s, &t)| [s, t]).collect()
            }
            (HiddenLayers::Auto, _) => (0..student).map(|s| [s, ((s + 1) * teacher).div_ceil(student) - 1]).collect(),
        };
        for [s, t] in &pairs {
            for (whose, layer, layers) in [("student", *s, student), ("teacher", *t, teacher)] {
                if layer >= layers {
                    return Err(Error::input(format!(
                        "loss.hidden.layers names layer {layer} of the {whose}, which has the layers 0 to {}",
                        layers - 1
                    )));
                }
            }
        }
        Ok(pairs)
    }
}

/// Refuses hidden states that nobody can give or compare.
pub(super) fn hidden_can_be_compared(
    config: &RunConfig,
    teacher: Option<&ModelConfig>,
    student: &ModelConfig,
    devices: &Devices,
) -> Result<()> {
    let Some(hidden) = &config.loss.hidden else { return Ok(()) };
    let Some(teacher) = teacher else {
        return Err(Error::input(
            "loss.hidden needs the teacher's own layers, which a cache does not have: take a live teacher",
        ));
    };
    if config.cache.as_ref().is_some_and(|cache| cache.write_through) {
        return Err(Error::input(
            "loss.hidden does not go with cache.write_through: from the second epoch on the cache speaks",
        ));
    }
    if devices.student.device.is_cuda() {
        return Err(Error::input(
            "loss.hidden is computed on the CPU alone: set student.device = \"cpu\", or leave it out",
        ));
    }
    hidden.pairs(&config.student.source, config.local_teacher(), student.layers, teacher.layers).map(|_| ())
}
