//! `distill cache`: a teacher's word over a corpus, stored.

mod header;
mod make;
mod rows;
mod stats;

pub use header::{FOLDER, folder, write_through};
pub use rows::corpus_digest;

use std::path::Path;

use super::{Outcome, out};
use crate::cache::{Blocks, Header, Reader, merge};
use crate::checkpoint::{atomic, layout};
use crate::cli::{CacheArgs, CacheCommand, MergeArgs};
use crate::error::{Error, Result};
use crate::metrics::Screen;
use crate::printable::printable;
use crate::units::{Bytes, Count, Rounded};

pub fn run(args: &CacheArgs) -> Result<Outcome> {
    match &args.command {
        None => make::run(args),
        Some(CacheCommand::Merge(args)) => run_merge(args),
        Some(CacheCommand::Stats(args)) => stats::run(args),
    }
}

fn run_merge(args: &MergeArgs) -> Result<Outcome> {
    if !layout::is_fresh(&args.output)? {
        return Err(Error::input(format!(
            "{} is not empty: remove what is in it, or choose another --output",
            args.output.display()
        )));
    }
    let screen = Screen::stderr();
    let _unfinished = atomic::Unfinished::new(&args.output);
    let progress = screen.progress("merging blocks", None);
    merge(&args.shards, &args.output, |done, total| {
        progress.set(done, &format!("{} of {}", Count(done), Count(total)))
    })?;
    progress.finish();
    out::write(&summary(&Reader::open(&args.output)?, &args.output))?;
    Ok(Outcome::Done)
}

/// For `inspect`: what a cache says of itself, whole or not.
pub fn describe(dir: &Path) -> Result<String> {
    let (header, _) = Header::read(dir)?;
    let mut text = match (Reader::open_shard(dir), header.shard) {
        (Ok(cache), None) => summary(&cache, dir),
        (Ok(cache), Some(shard)) => {
            summary(&cache, dir) + &format!("shard    {} of {}, complete\n", shard.index, shard.count)
        }
        (Err(error), _) => {
            let (there, wanted) = blocks(dir, &header);
            format!("cache    {there} of {wanted} blocks are there: {error}\n")
        }
    };
    let (teacher, data) = (&header.teacher, &header.data);
    let mut line = |name: &str, value: String| text += &format!("{name:<9}{}\n", printable(&value));
    line(
        "signal",
        format!(
            "{} ({}), vocabulary {}, temperatures {:?}",
            header.codec, header.values, header.vocab_size, header.temperatures
        ),
    );
    line(
        "teacher",
        format!("{} with {} parameters in {}", teacher.architecture, Rounded(teacher.parameters), teacher.dtype),
    );
    line("", format!("weights   {}", teacher.weights));
    line("", format!("tokenizer {}", teacher.tokenizer));
    line(
        "data",
        format!("max_length {}, loss_on {}, chat_template {}", data.max_length, data.loss_on, data.chat_template),
    );
    for part in &header.parts {
        line(
            "part",
            format!("{} rows, {} targets, {} blocks, corpus {}", part.rows, part.targets, part.blocks, part.corpus),
        );
    }
    Ok(text)
}

/// Blocks that are whole, and how many there are to be.
fn blocks(dir: &Path, header: &Header) -> (u64, u64) {
    let mut there = 0;
    if let Ok(mut blocks) = std::fs::File::open(dir.join("signal.bin")).and_then(Blocks::new) {
        while let Ok(Some(Ok(_))) = blocks.next_block() {
            there += 1;
        }
    }
    let all = header.blocks();
    (there, header.shard.map_or(all, |shard| shard.of(all).count() as u64))
}

/// What a cache is, in two lines.
fn summary(cache: &Reader, dir: &Path) -> String {
    let header = cache.header();
    let (bytes, targets) = (cache.bytes(), header.targets());
    format!(
        "cache    {} ({}, {})\nrows     {}, {} targets, {} ({:.1} bytes a target)\n",
        dir.display(),
        header.codec,
        header.values,
        Count(cache.len()),
        Count(targets),
        Bytes(bytes),
        bytes as f64 / targets.max(1) as f64
    )
}
