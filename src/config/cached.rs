//! A run that reads a cache: whether the cache is of its rows, its student and its loss.

use sha2::{Digest, Sha256};

use super::objective::can_be_computed;
use super::types::*;
use crate::cache::{Codec, DataId, Header, Reader, Values};
use crate::corpus::{Encoder, Row, RowRef};
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::signal::Tail;
use crate::teacher::not_cached;
use crate::units::hex;

/// The rows of a config's data, as a cache names them.
pub fn data_id(encoder: &Encoder, loss_on: LossOn) -> DataId {
    DataId {
        chat_template: encoder.template_digest().map_or("none".into(), |digest| hex(&digest)),
        max_length: encoder.max_length(),
        loss_on: loss_on.word().into(),
    }
}

/// Refuses a cache of other rows than `encoder` makes, naming what differs.
pub fn cache_of_rows(cache: &Reader, encoder: &Encoder, loss_on: LossOn) -> Result<()> {
    let (theirs, ours) = (&cache.header().data, data_id(encoder, loss_on));
    let differ = |key: &str, theirs: &str, ours: &str| {
        let message =
            format!("{key} is {theirs} in the teacher's cache and {ours} here: take the same, or cache again");
        Err(Error::input(message))
    };
    match () {
        () if theirs.max_length != ours.max_length => {
            differ("data.max_length", &theirs.max_length.to_string(), &ours.max_length.to_string())
        }
        () if theirs.loss_on != ours.loss_on => differ("data.loss_on", &theirs.loss_on, &ours.loss_on),
        () if theirs.chat_template != ours.chat_template => {
            differ("data.chat_template", &theirs.chat_template, &ours.chat_template)
        }
        () => Ok(()),
    }
}

/// Refuses a [cache] section that says otherwise than the cache that is read.
fn is_as_written(header: &Header, written: &CacheConfig) -> Result<()> {
    let (codec, entries) = match header.codec {
        Codec::TopK { k } => (CacheCodec::TopK, Some(("cache.k", k, written.k))),
        Codec::Sampled { draws, .. } => (CacheCodec::Sampled, Some(("cache.draws", draws, written.draws))),
        Codec::Dense => (CacheCodec::Dense, None),
    };
    let values = if header.values == Values::F16 { CacheValues::F16 } else { CacheValues::F32 };
    let differ = |key: &str, theirs: String, ours: String| {
        let message =
            format!("{key} = {ours}, but the teacher's cache has {theirs}: leave [cache] out, or cache again");
        Err(Error::input(message))
    };
    if written.codec != codec {
        return differ("cache.codec", format!("{:?}", codec.word()), format!("{:?}", written.codec.word()));
    }
    if written.values != values {
        return differ("cache.values", format!("{:?}", values.word()), format!("{:?}", written.values.word()));
    }
    match entries {
        Some((key, theirs, Some(ours))) if theirs != ours => differ(key, theirs.to_string(), ours.to_string()),
        _ => Ok(()),
    }
}

/// Refuses a cache whose tokens reach beyond the student's vocabulary.
pub fn fits_student(cache: &Reader, student: &ModelConfig) -> Result<()> {
    match (cache.header().vocab_size, student.vocab_size) {
        (theirs, ours) if theirs <= ours => Ok(()),
        (theirs, ours) => Err(Error::input(format!(
            "the teacher's cache is of {theirs} tokens, the student's vocabulary has {ours}: cache again with this student"
        ))),
    }
}

/// Refuses to store more tokens of a target than there are.
pub fn fits_vocabulary(k: usize, vocab: usize) -> Result<()> {
    match k <= vocab {
        true => Ok(()),
        false => Err(Error::input(format!(
            "cache.k = {k}, but the teacher's vocabulary has {vocab} tokens: lower it, or take codec = \"dense\""
        ))),
    }
}

/// Refuses more stored tokens than a GPU's kernels take.
pub fn fits_gpu(codec: Codec, devices: &Devices) -> Result<()> {
    let stored = match codec {
        Codec::TopK { k } => k,
        Codec::Sampled { draws, .. } => draws,
        Codec::Dense => 0,
    };
    // MAX_TOP_K of the kernels.
    match stored > 2048 && devices.student.device.is_cuda() {
        false => Ok(()),
        true => Err(Error::input(format!(
            "{codec}: a GPU takes up to 2048 tokens of a target: set student.device = \"cpu\", or store less"
        ))),
    }
}

/// Refuses a cache that the run cannot use.
pub(super) fn cache_fits(
    cache: &Reader,
    config: &RunConfig,
    student: &ModelConfig,
    encoder: &Encoder,
    devices: &Devices,
) -> Result<()> {
    cache_of_rows(cache, encoder, config.data.loss_on)?;
    let header = cache.header();
    let known = |temperature: Scheduled| temperature.constant().is_some_and(|t| header.temperature(t).is_some());
    let top_k = matches!(header.codec, Codec::TopK { .. });
    let needs_rest = match config.loss.tail() {
        Tail::Bucket => header.codec != Codec::Dense,
        Tail::Renormalize => matches!(header.codec, Codec::Sampled { .. }),
    };
    if needs_rest && !known(config.loss.temperature) {
        let ratios = if top_k { ", or loss.tail = \"renormalize\", which needs none of it," } else { "" };
        return Err(Error::input(format!(
            "loss.temperature = {}, but the teacher's cache knows what it left out at {:?} alone: take one of these{ratios} or \
             cache again with this config",
            config.loss.temperature, header.temperatures
        )));
    }
    fits_student(cache, student)?;
    can_be_computed(&config.loss, Some(&header.codec))?;
    fits_gpu(header.codec, devices)?;
    config.cache.as_ref().map_or(Ok(()), |written| is_as_written(header, written))?;
    Ok(())
}

/// The rows of a run, as a cache has them.
#[derive(Default)]
pub struct Lookup {
    missing: u64,
    first: Option<RowRef>,
    found: Sha256,
}

impl Lookup {
    /// Looks for `row` in `cache`.
    pub fn look(&mut self, cache: &Reader, row: &Row) -> Result<()> {
        match cache.find(&row.source.digest)? {
            Some(entry) => {
                self.found.update(entry.digest);
                for field in [entry.frame, entry.length, entry.targets] {
                    self.found.update(field.to_le_bytes());
                }
            }
            None => {
                self.missing += 1;
                self.first.get_or_insert_with(|| row.source.clone());
            }
        }
        Ok(())
    }

    /// Refuses to go on without rows that are missing. A digest of those that are there: rows that come to the cache later do
    /// not change it.
    pub fn finish(self) -> Result<[u8; 32]> {
        match self.first {
            None => Ok(self.found.finalize().into()),
            Some(row) if self.missing == 1 => Err(not_cached(&row)),
            Some(row) => Err(not_cached(&row).context(format!("{} rows are not cached, the first", self.missing))),
        }
    }
}
