//! What a config and its teacher come to as the header of a cache.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::cache::{Codec, Header, TeacherId, Values, Writer};
use crate::checkpoint::layout;
use crate::commands::fingerprints::teacher_files;
use crate::config::cached::{data_id, fits_gpu, fits_vocabulary};
use crate::config::plan::Plan;
use crate::config::{CacheCodec, CacheConfig, CacheValues, Scheduled, TeacherConfig, Word};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::model::Decoder;
use crate::teacher::{LocalTeacher, Teacher, WriteThrough};
use crate::units::hex;

/// The folder in a run's, of `cache.write_through`.
const FOLDER: &str = "cache";

/// The header of a cache of `teacher`'s word, without rows.
pub fn header(plan: &Plan, teacher: &LocalTeacher, screen: &Screen) -> Result<Header> {
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
        teacher_id(live, teacher.decoder(), hex(&plan.encoder.tokenizer().vocabulary_digest()), screen)?,
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

/// Who `teacher` is, by every byte of its weights. `tokenizer`: the digest of its vocabulary.
pub fn teacher_id(config: &TeacherConfig, model: &Decoder, tokenizer: String, screen: &Screen) -> Result<TeacherId> {
    let progress = screen.progress("digesting the teacher's weights", None);
    let files: Vec<PathBuf> = teacher_files(config)?;
    let digests = files.par_iter().map(of_file).collect::<Result<Vec<_>>>()?;
    progress.finish();
    let mut hasher = Sha256::new();
    digests.iter().for_each(|digest| hasher.update(digest));
    let shape = model.config();
    Ok(TeacherId {
        architecture: shape.family.name().into(),
        parameters: shape.parameters() as u64,
        dtype: config.dtype.word().into(),
        weights: hex(&hasher.finalize()),
        tokenizer,
    })
}

fn of_file(path: &PathBuf) -> Result<[u8; 32]> {
    let unreadable = |cause| Error::unreadable(path, cause);
    let mut file = File::open(path).map_err(unreadable)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// `teacher`, whose word goes into the cache of the run's folder.
pub fn write_through<'a>(plan: &Plan, teacher: &'a LocalTeacher, screen: &Screen) -> Result<WriteThrough<'a>> {
    let dir = folder(plan);
    let header = header(plan, teacher, screen)?;
    fits_gpu(header.codec, &plan.devices)?;
    let writer = if layout::is_fresh(&dir)? { Writer::create(&dir, header)? } else { Writer::resume(&dir, &header)? };
    Ok(WriteThrough::new(teacher, writer))
}

/// Where a run that writes through keeps its cache.
pub fn folder(plan: &Plan) -> PathBuf {
    plan.config.output.dir.join(FOLDER)
}
