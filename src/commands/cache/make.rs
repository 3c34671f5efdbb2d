//! `distill cache --config`: asks the teacher block by block.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::header::{header, weights_digest};
use super::rows::{Rows, corpus_digest};
use super::summary;
use crate::cache::{
    BYTES_BESIDES_FRAME, BlockRow, EncodedRow, Entry, Header, Part, ROWS_PER_BLOCK, Reader, Shard, Writer, encode_batch,
};
use crate::checkpoint::layout;
use crate::cli::{CacheArgs, ShardChoice};
use crate::commands::signals::Watch;
use crate::commands::{Outcome, build, out, responses, show_plan};
use crate::config::plan::Plan;
use crate::config::{self, RolloutConfig, TeacherKind};
use crate::corpus::{Batch, Row};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::signal::Needs;
use crate::teacher::{LocalTeacher, Teacher};
use crate::units::{Bytes, Count, Span};

/// Tokens of a batch at most, unless one row has more. Batches never reach over a block, so that what is computed together,
/// and with it every bit, does not depend on shards and stops.
const BATCH_TOKENS: usize = 4096;

pub fn run(args: &CacheArgs) -> Result<Outcome> {
    let screen = Screen::stderr();
    let (Some(file), Some(dir)) = (&args.config, &args.output) else {
        return Err(Error::input("cache needs --config and --output"));
    };
    let shard = args.shard.map(|choice| shard(choice, |name| std::env::var(name).ok())).transpose()?;
    let config = config::load(file, &args.set, Some(dir))?;
    match config.teacher.as_ref().map(|teacher| teacher.kind) {
        None => return Err(Error::input("the config has no [teacher] whose word could be stored")),
        Some(TeacherKind::Cache) => {
            return Err(Error::input("teacher.kind = \"cache\" is stored already: name the live teacher it is of"));
        }
        Some(TeacherKind::Local | TeacherKind::Gguf) => {}
    }
    if config.rollout.as_ref().is_some_and(RolloutConfig::on_policy) {
        return Err(Error::input(
            "rollout.fraction is above 0: what the student will write cannot be stored before; --set rollout.fraction=0 stores \
             the teacher's word on the corpus's own rows",
        ));
    }
    if responses::wanted(&config).is_some() {
        return Err(Error::input(
            "rollout.from = \"teacher\" replaces the corpus's responses: let `distill train` write responses.jsonl, and cache a \
             config whose data.train is that file",
        ));
    }
    let dir = config.output.dir.clone();
    let fresh = layout::is_fresh(&dir)?;
    if !fresh && !args.resume && !args.dry_run {
        return Err(Error::input(format!(
            "{} is not empty: --resume goes on with the cache in it, another --output starts a new one",
            dir.display()
        )));
    }
    let devices = config.devices(args.device.choice)?;
    let signals = Watch::new("block", &screen)?;
    signals.quit_at_once(Some("stopped before anything was cached"));
    let plan = Plan::new(config, devices, &screen)?;
    plan.notices.iter().for_each(|notice| screen.line(&notice.line()));
    let stop = || signals.flag().load(Ordering::Relaxed);
    let teacher = build::teacher(&plan, &screen)?;
    let teacher = teacher.as_ref().and_then(build::AnyTeacher::live).ok_or_else(|| Error::run("no live teacher"))?;
    let live = plan.config.teacher.as_ref().ok_or_else(|| Error::run("a cache without a teacher"))?;
    let mut wanted = header(&plan, teacher, weights_digest(live, &screen)?)?;
    wanted.shard = shard;
    if args.dry_run {
        let known = match fresh || !args.resume {
            true => HashSet::new(),
            false => Writer::resume(&dir, &wanted)?.entries().iter().map(|entry| entry.digest).collect(),
        };
        return dry_run(&plan, teacher, wanted, known, &screen);
    }
    signals.quit_at_once(None);
    let corpus = corpus_digest(&plan);
    let (mut writer, rows) = match fresh {
        true => start(&plan, wanted, corpus, &dir, &screen)?,
        false => go_on(&plan, &wanted, corpus, &dir, &screen)?,
    };
    let todo = Blocks::of(&writer, &rows);
    let blocks = todo.range.clone();
    let total: usize = blocks.clone().map(|block| todo.rows(block, &rows).count()).sum();
    screen.line(&format!(
        "{:<11}{} blocks of up to {ROWS_PER_BLOCK} rows to compute, {} rows",
        "cache",
        Count(blocks.clone().count() as u64),
        Count(total as u64)
    ));
    let progress = screen.progress("caching rows", Some(total as u64));
    let (began, mut tokens, mut done) = (Instant::now(), 0, 0);
    for block in blocks {
        if stop() {
            screen.line(&format!("stopped before block {block}; --resume goes on from there"));
            return Ok(Outcome::Stopped);
        }
        let block = todo.rows(block, &rows).map(|i| rows.get(i, &plan)).collect::<Result<Vec<Row>>>()?;
        writer.append(&ask(teacher, writer.header(), &block)?)?;
        tokens += block.iter().map(|row| row.tokens.len()).sum::<usize>();
        done += block.len();
        let speed = tokens as f64 / began.elapsed().as_secs_f64();
        progress.set(done as u64, &format!("{} tokens/s  {}", Count(speed as u64), Bytes(writer.bytes())));
    }
    progress.finish();
    writer.finish()?;
    let cache = match shard {
        None => Reader::open(&dir)?,
        Some(Shard { index, count }) => {
            let text = format!("shard    {index} of {count} is complete: {}\n", dir.display());
            out::write(&text)?;
            return Ok(Outcome::Done);
        }
    };
    let speed = match tokens {
        0 => "speed    nothing was missing\n".into(),
        _ => format!(
            "speed    {} tokens/s, {}\n",
            Count((tokens as f64 / began.elapsed().as_secs_f64()) as u64),
            Span(began.elapsed())
        ),
    };
    out::write(&(summary(&cache, &dir) + &speed))?;
    Ok(Outcome::Done)
}

/// A new cache of all rows.
fn start(
    plan: &Plan,
    mut wanted: Header,
    corpus: String,
    dir: &std::path::Path,
    screen: &Screen,
) -> Result<(Writer, Rows)> {
    let rows = Rows::find(plan, HashSet::new(), screen)?;
    wanted.parts = vec![part(corpus, &rows)];
    Ok((Writer::create(dir, wanted)?, rows))
}

/// What is missing of the cache in `dir`: blocks of its last part, or rows that no part has.
fn go_on(
    plan: &Plan,
    wanted: &Header,
    corpus: String,
    dir: &std::path::Path,
    screen: &Screen,
) -> Result<(Writer, Rows)> {
    let mut writer = Writer::resume(dir, wanted)?;
    let digests = |entries: &[Entry]| entries.iter().map(|entry| entry.digest).collect();
    let saved = writer.header().parts.clone();
    let mut parts = writer.parts_that_are_there(&corpus)?;
    let is_whole = parts == saved;
    // The part that was under way is the first one that is not as the header has it.
    let begun = parts.iter().zip(&saved).take_while(|(there, saved)| there == saved).count();
    if let Some(last) = saved.get(begun).filter(|last| wanted.shard.is_some() || last.corpus == corpus) {
        let before = saved[..begun].iter().map(|part| part.rows as usize).sum();
        let rows = Rows::find(plan, digests(writer.entries().get(..before).unwrap_or_default()), screen)?;
        if part(corpus.clone(), &rows) == *last {
            return Ok((writer, rows));
        }
        if wanted.shard.is_some() {
            return Err(other_data(dir));
        }
    }
    // Whatever is there stays, and what these data have besides is a part of its own.
    let rows = Rows::find(plan, digests(writer.entries()), screen)?;
    if !is_whole && !parts.is_empty() {
        screen.line(&format!(
            "{:<11}begun with other data: its {} rows stay",
            "cache",
            Count(writer.entries().len() as u64)
        ));
    }
    if rows.len() > 0 {
        if wanted.shard.is_some() {
            return Err(other_data(dir));
        }
        parts.push(part(corpus, &rows));
    }
    if parts != saved {
        writer.set_parts(parts)?;
    }
    Ok((writer, rows))
}

fn other_data(dir: &std::path::Path) -> Error {
    let dir = dir.display();
    Error::input(format!("{dir} is a shard of other data: finish it with that, or take another --output"))
}

fn part(corpus: String, rows: &Rows) -> Part {
    let count = rows.len() as u64;
    Part { corpus, rows: count, targets: rows.targets, blocks: count.div_ceil(ROWS_PER_BLOCK) }
}

/// The blocks that a writer still has to get.
struct Blocks {
    /// The first block of the rows.
    start: u64,
    range: Range<u64>,
}

impl Blocks {
    /// `rows` are the last part's, or none.
    fn of(writer: &Writer, rows: &Rows) -> Self {
        let header = writer.header();
        let all = header.blocks();
        let start = all.saturating_sub((rows.len() as u64).div_ceil(ROWS_PER_BLOCK));
        let end = header.shard.map_or(all, |shard| shard.of(all).end);
        Self { start, range: writer.next_block()..end }
    }

    /// The rows of block `number`, by their places in `rows`.
    fn rows(&self, number: u64, rows: &Rows) -> Range<usize> {
        let bound = |block: u64| ((block.saturating_sub(self.start) * ROWS_PER_BLOCK) as usize).min(rows.len());
        bound(number)..bound(number + 1)
    }
}

/// A block: the teacher's word on its rows, encoded and compressed.
fn ask(teacher: &LocalTeacher, header: &Header, rows: &[Row]) -> Result<Vec<BlockRow>> {
    let needs = Needs { full_distribution: true, ..Needs::default() };
    let mut block = vec![];
    let mut rest = rows;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |row: &&Row| {
            tokens += row.tokens.len();
            tokens <= BATCH_TOKENS
        };
        let n = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(n);
        rest = later;
        let batch = Batch::new(now);
        let signal = teacher.signal(&batch, &needs)?;
        let compress = |row: EncodedRow| BlockRow::new(row.digest, row.targets, &row.bytes);
        let rows = encode_batch(header, &signal, &batch)?.into_par_iter().map(compress);
        let rows = rows.collect::<std::io::Result<Vec<_>>>();
        block.extend(rows.map_err(|e| Error::run(format!("cannot compress a row: {e}")))?);
    }
    Ok(block)
}

/// The plan, and what the first block says of size and time.
fn dry_run(
    plan: &Plan,
    teacher: &LocalTeacher,
    header: Header,
    known: HashSet<[u8; 32]>,
    screen: &Screen,
) -> Result<Outcome> {
    let rows = Rows::find(plan, known, screen)?;
    if rows.len() == 0 {
        out::write(
            "nothing is missing
",
        )?;
        return Ok(Outcome::Done);
    }
    let blocks = (rows.len() as u64).div_ceil(ROWS_PER_BLOCK);
    let share = header.shard.map_or(1.0, |shard| shard.of(blocks).count() as f64 / blocks.max(1) as f64);
    let first = (0..rows.len().min(ROWS_PER_BLOCK as usize)).map(|i| rows.get(i, plan));
    let first = first.collect::<Result<Vec<Row>>>()?;
    let began = Instant::now();
    let block = ask(teacher, &header, &first)?;
    let took = began.elapsed();
    let bytes: u64 = block.iter().map(|row| row.frame.len() as u64 + BYTES_BESIDES_FRAME).sum();
    let targets: u64 = block.iter().map(|row| row.targets as u64).sum();
    let tokens: usize = first.iter().map(|row| row.tokens.len()).sum();
    let about = if header.shard.is_some() { "≈" } else { "" };
    let per_target = bytes as f64 / targets.max(1) as f64;
    let time = took.mul_f64(share * rows.tokens as f64 / tokens.max(1) as f64);
    let mut text = show_plan::lines(plan).into_iter().take(1).collect::<Vec<_>>().join("\n") + "\n";
    text += &format!("{:<11}{} ({}) at temperatures {:?}\n", "codec", header.codec, header.values, header.temperatures);
    text += &format!(
        "{:<11}{about}{} rows, {about}{} targets: ≈{} ({per_target:.1} bytes a target)\n",
        "size",
        Count((share * rows.len() as f64) as u64),
        Count((share * rows.targets as f64) as u64),
        Bytes((share * per_target * rows.targets as f64) as u64)
    );
    let speed = Count((tokens as f64 / took.max(Duration::from_nanos(1)).as_secs_f64()) as u64);
    text += &format!("{:<11}≈{} at {speed} tokens/s, from the first {} rows\n", "time", Span(time), first.len());
    out::write(&text)?;
    Ok(Outcome::Done)
}

/// The share that `--shard` asks for; `variable` reads the environment.
fn shard(choice: ShardChoice, variable: impl Fn(&str) -> Option<String>) -> Result<Shard> {
    let number = |name: &str| -> Result<Option<u64>> {
        let Some(text) = variable(name) else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| Error::input(format!("{name} = {text:?} is no number")))
    };
    let (index, count) = match choice {
        ShardChoice::Of { index, count } => (index, count),
        ShardChoice::Auto { count } => {
            let slurm = number("SLURM_ARRAY_TASK_ID")?.zip(Some(number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0)));
            let index = slurm.map(|(id, least)| id.wrapping_sub(least)).or(number("JOB_COMPLETION_INDEX")?);
            let count = count.or(number("SLURM_ARRAY_TASK_COUNT")?);
            match (index, count) {
                (Some(index), Some(count)) if index < count => (index, count),
                (Some(index), Some(count)) => {
                    return Err(Error::input(format!("--shard auto: this is task {index} of {count}, counted from 0")));
                }
                (Some(_), None) => {
                    return Err(Error::input(
                        "--shard auto: the scheduler does not say how many tasks there are: auto/N",
                    ));
                }
                (None, _) => {
                    return Err(Error::input(
                        "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set: give I/N",
                    ));
                }
            }
        }
    };
    Ok(Shard { index, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_job_array_comes_from_its_scheduler() {
        let of = |choice: &str, variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
            shard(choice.parse().unwrap(), value).map(|s| (s.index, s.count)).map_err(|e| e.to_string())
        };
        let slurm = [("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_MIN", "5"), ("SLURM_ARRAY_TASK_COUNT", "4")];
        assert_eq!(of("auto", &slurm), Ok((2, 4)));
        assert_eq!(of("1/3", &slurm), Ok((1, 3)));
        assert_eq!(of("auto/8", &[("JOB_COMPLETION_INDEX", "3")]), Ok((3, 8)));
        for (choice, variables, says) in [
            ("auto", &[][..], "give I/N"),
            ("auto", &[("JOB_COMPLETION_INDEX", "3")], "auto/N"),
            ("auto/3", &[("JOB_COMPLETION_INDEX", "3")], "task 3 of 3"),
            ("auto/3", &[("JOB_COMPLETION_INDEX", "x")], "\"x\" is no number"),
        ] {
            assert!(of(choice, variables).is_err_and(|e| e.contains(says)));
        }
        for wrong in ["3/3", "1", "-1/2", "1/0", "auto/0", "a/b", ""] {
            assert!(wrong.parse::<ShardChoice>().is_err(), "{wrong}");
        }
    }
}
