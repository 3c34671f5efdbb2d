//! What a checkpoint holds besides the model: enough that the resumed run equals the unbroken one to the bit.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::optim::{AdamW, Moments};
use super::rollout::RolloutState;
use crate::checkpoint::{Checkpoint, Dtype, Entry, Unsynced, Values, layout, read_safetensors_f32, write_safetensors};
use crate::corpus::LoaderState;
use crate::error::{Error, Result};
use crate::kernels::{Precision, Simd, overwrite};
use crate::loss::HiddenMatch;
use crate::metrics;

/// A held-out score and when it was reached; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub score: f64,
}

/// times.json: what a run took so far, its resumed parts together.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Times {
    /// Training, without loading, evaluation and saving.
    pub train_seconds: f64,
    /// Since the run began, with evaluation and saving but without loading.
    pub elapsed_seconds: f64,
    /// Of `train_seconds`, what the student's answers took.
    #[serde(default)]
    pub rollout_seconds: f64,
}

/// state.json. Step n's state is the one before step n + 1.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    /// Target tokens so far.
    pub target_tokens: u64,
    /// Tokens through the student so far.
    pub input_tokens: u64,
    /// In a file of its own: all else is the same in an interrupted run and in an unbroken one.
    #[serde(skip)]
    pub times: Times,
    pub loader: LoaderState,
    /// Of a run whose student answers prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutState>,
    pub best: Option<Best>,
    /// The step whose evaluation is on record: a run stopped before it evaluates first.
    pub evaluated: Option<u64>,
    pub initial_eval: Option<metrics::Eval>,
    pub last_eval: Option<metrics::Eval>,
    /// What the run reads and must find unchanged, by name.
    pub fingerprints: BTreeMap<String, String>,
    /// Where our own product does not run, sums depend on it in their last bits.
    pub threads: usize,
    /// The CPU's instructions ([`Simd`]) or the GPU, on which sums depend too. Empty in checkpoints of versions that did
    /// not record it.
    #[serde(default)]
    pub hardware: String,
}

impl TrainState {
    /// Writes state.json, times.json, optimizer.safetensors and, where there are any, the projections of hidden states into a
    /// checkpoint's folder.
    pub fn write(&self, dir: &Path, optimizer: &AdamW, hidden: Option<&HiddenMatch>) -> Result<Unsynced> {
        write_json(&dir.join(layout::STATE), self)?;
        write_json(&dir.join(layout::TIMES), &self.times)?;
        let mut unsynced = Unsynced::default();
        let projections: Vec<_> = hidden.iter().flat_map(|hidden| hidden.projections()).collect();
        if !projections.is_empty() {
            let specs: Vec<_> = projections.iter().map(|p| Ok((p.spec(), p.tensor()?))).collect::<Result<_>>()?;
            let entries = specs.iter().map(|(spec, tensor)| Entry {
                name: &spec.name,
                shape: &spec.shape,
                values: Values::Tensor(tensor),
            });
            unsynced = write_safetensors(&dir.join(layout::PROJECTIONS), entries, Dtype::F32, &BTreeMap::new())?;
        }
        let moments: Vec<(String, &Tensor, [usize; 1])> = optimizer
            .moments()
            .flat_map(|(name, m)| [(format!("first.{name}"), &m.first), (format!("second.{name}"), &m.second)])
            .map(|(name, values)| (name, values, [values.elem_count()]))
            .collect();
        let entries = moments.iter().map(|(name, values, shape)| Entry { name, shape, values: Values::Tensor(values) });
        Ok(unsynced.and(write_safetensors(&dir.join(layout::OPTIMIZER), entries, Dtype::F32, &BTreeMap::new())?))
    }

    /// The state of a run that begins, on all threads there are.
    pub fn new(fingerprints: BTreeMap<String, String>, hardware: String) -> Self {
        Self { fingerprints, threads: rayon::current_num_threads(), hardware, ..Self::default() }
    }

    /// Goes on with this process's threads and hardware. Returns a code and a message for each that differs from what
    /// the run had, where that can change results.
    pub fn continue_here(&mut self, hardware: String) -> Vec<(&'static str, String)> {
        let mut changes = vec![];
        let threads = rayon::current_num_threads();
        if self.threads != threads && !Precision::F32.is_native() {
            let message = format!(
                "the run had {0} threads and goes on with {threads}: results may differ in the last bits \
                 (RAYON_NUM_THREADS={0} keeps them)",
                self.threads
            );
            changes.push(("thread_count_changed", message));
        }
        if self.hardware != hardware && !self.hardware.is_empty() {
            let mut message = format!(
                "the run computed on {} and goes on on {hardware}: results may differ in the last bits",
                self.hardware
            );
            if let Some(level) = Simd::named(&self.hardware) {
                message +=
                    &format!(" ({}={} keeps them on a CPU that has these instructions)", Simd::VARIABLE, level.name());
            }
            changes.push(("hardware_changed", message));
        }
        (self.threads, self.hardware) = (threads, hardware);
        changes
    }

    /// Reads state.json of a verified checkpoint.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let state: Self = read_json(&checkpoint.file(layout::STATE))?;
        // Older checkpoints have the times in state.json itself.
        let times = if checkpoint.has(layout::TIMES) { layout::TIMES } else { layout::STATE };
        Ok(Self { times: read_json(&checkpoint.file(times))?, ..state })
    }

    /// Gives the projections of hidden states the values of a verified checkpoint.
    pub fn restore_projections(checkpoint: &Checkpoint, hidden: Option<&HiddenMatch>) -> Result<()> {
        let projections: Vec<_> = hidden.iter().flat_map(|hidden| hidden.projections()).collect();
        if projections.is_empty() {
            return Ok(());
        }
        let path = checkpoint.file(layout::PROJECTIONS);
        let mut saved = read_safetensors_f32(&path)?;
        for projection in projections {
            let values = saved.remove(&projection.name).map(|(_, values)| values);
            let values = values.filter(|values| values.len() == projection.spec().elements());
            let values = values.ok_or_else(|| {
                Error::run(format!("{} does not hold {} in its shape", path.display(), projection.name))
            })?;
            overwrite(projection.tensor()?, |own| own.copy_from_slice(&values))?;
        }
        Ok(())
    }

    /// Reads the optimizer's state of a verified checkpoint, by parameter name.
    pub fn read_moments(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Moments>> {
        let mut saved = read_safetensors_f32(&checkpoint.file(layout::OPTIMIZER))?;
        let names: Vec<String> =
            saved.keys().filter_map(|name| name.strip_prefix("first.").map(str::to_owned)).collect();
        let mut moments = BTreeMap::new();
        for name in names {
            let mut take = |part: &str| saved.remove(&format!("{part}.{name}")).map(|(_, values)| values);
            if let (Some(first), Some(second)) = (take("first"), take("second")) {
                let tensor = |values: Vec<f32>| {
                    let len = values.len();
                    Tensor::from_vec(values, len, &Device::Cpu)
                };
                moments.insert(name, Moments { first: tensor(first)?, second: tensor(second)? });
            }
        }
        Ok(moments)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| Error::run(format!("{}: {e}", path.display())))?;
    std::fs::write(path, text).map_err(|e| Error::unwritable(path, e))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(|e| Error::run(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| Error::run(format!("{} cannot be read: {e}", path.display())))
}
