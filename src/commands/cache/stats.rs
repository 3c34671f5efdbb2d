//! `distill cache stats`: what a cache holds and, held against the models, what storing costs.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::header::{teacher_id, weights_digest};
use super::summary;
use crate::cache::{Codec, Header, Reader, Record, Targets, encode_batch};
use crate::cli::StatsArgs;
use crate::commands::{Outcome, build, out};
use crate::config::cached::fits_student;
use crate::config::plan::covers;
use crate::config::{Dtype, TeacherConfig, TeacherKind, Word};
use crate::corpus::{Batch, Row, RowRef, TextTokenizer};
use crate::device::Devices;
use crate::error::{Error, Result};
use crate::eval::{CodecCost, codec_cost};
use crate::hub;
use crate::metrics::Screen;
use crate::signal::{Needs, TeacherSignal};
use crate::teacher::Teacher;
use crate::units::hex;

/// Rows that are read at once.
const CHUNK: u64 = 256;
/// Of draws, how many the costs are averaged over.
const DRAWS: u64 = 8;

pub fn run(args: &StatsArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    let cache = Reader::open(&args.dir)?;
    let mut text = summary(&cache, &args.dir) + &contents(&cache, &screen)?;
    if let (Some(teacher), Some(student)) = (&args.teacher, &args.student) {
        let at = |path| hub::locate(path, Path::new(""));
        text += &costs(&cache, &at(teacher)?, &at(student)?, args, &screen)?;
    }
    out::write(&text)?;
    Ok(Outcome::Done)
}

/// Sums over targets.
#[derive(Default)]
struct Sums {
    targets: f64,
    entropy: f64,
    nll: f64,
    entries: f64,
    /// Of p that is not stored, at each temperature.
    tails: Vec<f64>,
}

impl Sums {
    fn of(said: &Targets, codec: Codec) -> Self {
        let sum = |values: &[f32]| values.iter().map(|&x| x as f64).sum();
        let tails = |rest: &Vec<f32>| rest.iter().map(|&log_tail| (log_tail as f64).exp()).sum();
        Self {
            targets: said.labels.len() as f64,
            entropy: sum(&said.entropies),
            nll: -sum(&said.labels),
            entries: said.values.len() as f64,
            tails: if let Codec::TopK { .. } = codec { said.rests.iter().map(tails).collect() } else { vec![] },
        }
    }

    fn add(&mut self, other: Self) {
        self.targets += other.targets;
        self.entropy += other.entropy;
        self.nll += other.nll;
        self.entries += other.entries;
        self.tails.resize(other.tails.len().max(self.tails.len()), 0.0);
        self.tails.iter_mut().zip(other.tails).for_each(|(sum, more)| *sum += more);
    }
}

/// Reads every row.
fn contents(cache: &Reader, screen: &Screen) -> Result<String> {
    let header = cache.header();
    let progress = screen.progress("reading the cache", Some(cache.len()));
    let mut sums = Sums::default();
    for start in (0..cache.len()).step_by(CHUNK as usize) {
        let rows = (start..(start + CHUNK).min(cache.len())).into_par_iter();
        let of_row = |i| Ok(Sums::of(&cache.read(&cache.entry(i)?)?.said, header.codec));
        rows.map(of_row).collect::<Result<Vec<Sums>>>()?.into_iter().for_each(|row| sums.add(row));
        progress.set((start + CHUNK).min(cache.len()), "rows");
    }
    progress.finish();
    let n = sums.targets.max(1.0);
    let mut text = format!(
        "teacher  {} with {} parameters in {}, entropy {:.4} nats, perplexity {:.3}\n",
        header.teacher.architecture,
        header.teacher.parameters,
        header.teacher.dtype,
        sums.entropy / n,
        (sums.nll / n).exp()
    );
    for (tail, temperature) in sums.tails.iter().zip(&header.temperatures) {
        text += &format!("tail     {:.6} of p at temperature {temperature} is not stored, on average\n", tail / n);
    }
    if let Codec::Sampled { .. } = header.codec {
        text += &format!("draws    {:.2} distinct tokens a target\n", sums.entries / n);
    }
    Ok(text)
}

/// Loss and gradient from the cache against those from the teacher itself.
fn costs(cache: &Reader, teacher: &Path, student: &Path, args: &StatsArgs, screen: &Screen) -> Result<String> {
    let header = cache.header();
    let kind = TeacherKind::of(teacher);
    if kind == TeacherKind::Cache {
        return Err(Error::input("--teacher is a cache: give the live teacher that it is of"));
    }
    let dtype = Dtype::ALL.iter().find(|dtype| dtype.word() == header.teacher.dtype).copied();
    let dtype =
        dtype.ok_or_else(|| Error::input(format!("the cache's teacher.dtype is {:?}", header.teacher.dtype)))?;
    let config = TeacherConfig { kind, path: teacher.to_owned(), tokenizer: None, dtype, device: None };
    let devices = Devices::open(kind.device(args.device.choice), args.device.choice)?;
    let live = build::load_teacher(&config, &devices, screen)?;
    let weights = weights_digest(&config, screen)?;
    let mut theirs = header.clone();
    theirs.teacher = teacher_id(&config, live.decoder(), header.teacher.tokenizer.clone(), weights);
    if let Some(difference) = header.difference(&theirs) {
        return Err(Error::input(format!("{} is not the cache's teacher: {difference}", teacher.display())));
    }
    let tokenizer = TextTokenizer::from_dir(crate::config::plan::model_folder(student)?)?;
    let ours = hex(&tokenizer.vocabulary_digest());
    if ours != header.teacher.tokenizer {
        let theirs = &header.teacher.tokenizer;
        return Err(Error::input(format!("teacher.tokenizer of the cache is {theirs}, the student's is {ours}")));
    }
    let student = build::load_model(student, false, &devices.student.device, screen)?;
    covers(student.config(), &tokenizer, "student")?;
    fits_student(cache, student.config())?;
    // Digests are in no order of ours: the first rows are a sample.
    let rows = (args.rows as u64).min(cache.len());
    let temperature = *header.temperatures.last().unwrap_or(&1.0);
    let source = Arc::new(args.dir.clone());
    let progress = screen.progress("comparing", Some(rows));
    let mut total: Vec<CodecCost> = vec![];
    for i in 0..rows {
        let entry = cache.entry(i)?;
        let Record { tokens, targets, said } = cache.read(&entry)?;
        let source = RowRef { digest: entry.digest, file: source.clone(), line: i + 1 };
        let batch = Batch::new([&Row { tokens, targets, source }]);
        let needs = Needs { full_distribution: true, temperature, ..Needs::default() };
        let whole = live.signal(&batch, &needs)?;
        let mut stored = vec![said.signal(header, &needs)?];
        if let Codec::Sampled { .. } = header.codec {
            for draw in 1..DRAWS {
                stored.push(drawn_again(header, draw, &whole, &batch, &needs)?);
            }
        }
        let row = codec_cost(&whole, &stored, &student, &batch, temperature)?;
        total.resize(row.len(), CodecCost::default());
        total.iter_mut().zip(row).for_each(|(sum, row)| sum.add(row));
        progress.advance(1);
    }
    progress.finish();
    let mean = |figure: fn(&CodecCost) -> f64| total.iter().map(figure).sum::<f64>() / total.len().max(1) as f64;
    let over = if total.len() > 1 { format!(", averaged over {} draws", total.len()) } else { String::new() };
    if mean(CodecCost::whole) == 0.0 {
        return Ok("cost     the student is the teacher: there is no loss to compare\n".into());
    }
    Ok(format!(
        "cost     on {rows} rows at temperature {temperature}{over}:\n\
         \x20        loss {:.6}, {:+.6} ({:+.3} %) against the teacher's own {:.6} nats a target\n\
         \x20        gradient of the logits: relative error {:.5}, cosine {:.6}\n",
        mean(CodecCost::loss),
        mean(CodecCost::difference),
        100.0 * mean(CodecCost::difference) / mean(CodecCost::whole),
        mean(CodecCost::whole),
        mean(CodecCost::relative_error),
        mean(CodecCost::cosine)
    ))
}

/// What other draws would have stored.
fn drawn_again(
    header: &Header,
    draw: u64,
    whole: &TeacherSignal,
    batch: &Batch,
    needs: &Needs,
) -> Result<TeacherSignal> {
    let mut other = header.clone();
    if let Codec::Sampled { seed, .. } = &mut other.codec {
        *seed = seed.wrapping_add(draw);
    }
    let mut all = Targets::default();
    for row in encode_batch(&other, whole, batch)? {
        all.append(&other.decode(&row.bytes).map_err(Error::run)?.said);
    }
    all.signal(&other, needs)
}
