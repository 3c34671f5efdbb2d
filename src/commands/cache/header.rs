//! What a config and its teacher come to as the header of a cache.

use std::path::PathBuf;

use rayon::prelude::*;

use crate::cache::{Codec, Header, TeacherId, Values, Writer};
use crate::checkpoint::layout;
use crate::commands::fingerprints::teacher_files;
use crate::commands::provenance::Digests;
use crate::config::cached::{data_id, fits_gpu, fits_vocabulary};
use crate::config::plan::Plan;
use crate::config::{CacheCodec, CacheConfig, CacheValues, Scheduled, TeacherConfig, Word};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::model::Decoder;
use crate::teacher::{LocalTeacher, Teacher, WriteThrough};
use crate::units::hex;

/// The folder in a run's, of `cache.write_through`.
pub const FOLDER: &str = "cache";

/// The header of a cache of `teacher`'s word, without rows. `weights`: [`weights_digest`].
pub fn header(plan: &Plan, teacher: &LocalTeacher, weights: String) -> Result<Header> {
    let config = &plan.config;
    let cache = config.cache.clone().unwrap_or_default();
    // A longer teacher's row is cut to the student's, as the loss of a live one does it.
    let vocab = teacher.vocab_size().min(plan.student.vocab_size);
    let temperature = match config.loss.temperature {
        Scheduled::Constant(temperature) => temperature,
        // Whole rows serve any temperature.
        Scheduled::Moving { .. } if cache.codec == CacheCodec::Dense => 1.0,
        moving => {
            return Err(Error::input(format!(
                "loss.temperature = {moving}: what a cache leaves out is known at one temperature: keep it, or take \
                 cache.codec = \"dense\""
            )));
        }
    };
    let live = config.teacher.as_ref().ok_or_else(|| Error::run("a cache without a teacher"))?;
    Ok(Header::new(
        codec(&cache, vocab, temperature, config.seed)?,
        values(&cache),
        vocab,
        &[temperature],
        teacher_id(live, teacher.decoder(), hex(&plan.encoder.tokenizer().vocabulary_digest()), weights),
        data_id(&plan.encoder, config.data.loss_on),
    ))
}

fn codec(cache: &CacheConfig, vocab: usize, temperature: f64, seed: u64) -> Result<Codec> {
    Ok(match cache.codec {
        CacheCodec::Dense => Codec::Dense,
        CacheCodec::Sampled => Codec::Sampled { draws: cache.draws.unwrap_or(32), temperature, seed },
        CacheCodec::TopK => {
            let k = cache.k.unwrap_or(64);
            fits_vocabulary(k, vocab)?;
            Codec::TopK { k }
        }
    })
}

fn values(cache: &CacheConfig) -> Values {
    match cache.values {
        CacheValues::F16 => Values::F16,
        CacheValues::F32 => Values::F32,
    }
}

/// A digest of every byte of a live teacher's weights.
pub fn weights_digest(config: &TeacherConfig, screen: &Screen) -> Result<String> {
    let progress = screen.progress("digesting the teacher's weights", None);
    let (files, digests): (Vec<PathBuf>, _) = (teacher_files(config)?, Digests::default());
    files.par_iter().try_for_each(|path| digests.of(path).map(drop).map_err(|e| Error::unreadable(path, e)))?;
    progress.finish();
    digests.over(&files)
}

/// Who a teacher is. `tokenizer`: the digest of its vocabulary; `weights`: that of its weights.
pub fn teacher_id(config: &TeacherConfig, model: &Decoder, tokenizer: String, weights: String) -> TeacherId {
    let shape = model.config();
    TeacherId {
        architecture: shape.family.name().into(),
        parameters: shape.parameters() as u64,
        dtype: config.dtype.word().into(),
        weights,
        tokenizer,
    }
}

/// `teacher`, whose word goes into the cache of the run's folder. `weights`: the digest of its weights.
pub fn write_through<'a>(plan: &Plan, teacher: &'a LocalTeacher, weights: String) -> Result<WriteThrough<'a>> {
    let dir = folder(plan);
    let header = header(plan, teacher, weights)?;
    fits_gpu(header.codec, &plan.devices)?;
    let writer = if layout::is_fresh(&dir)? { Writer::create(&dir, header)? } else { Writer::resume(&dir, &header)? };
    Ok(WriteThrough::new(teacher, writer))
}

/// Where a run that writes through keeps its cache.
pub fn folder(plan: &Plan) -> PathBuf {
    plan.config.output.dir.join(FOLDER)
}
