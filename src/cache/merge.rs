//! The shards of a job array become the cache that one job would have written, byte for byte.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::block::Blocks;
use super::header::Shard;
use super::reader::Reader;
use super::{SIGNAL, Writer};
use crate::error::{Error, Result};

/// Writes the cache whose shards are in `dirs`, in any order, into `output`, which has to be absent or empty. `progress` is
/// told how many blocks are done, and of how many.
///
/// Input errors: a folder without a complete shard; one that is missing or there twice; shards of different teachers,
/// corpora or settings, by the field that differs; a damaged block.
pub fn merge(dirs: &[PathBuf], output: &Path, progress: impl Fn(u64, u64)) -> Result<()> {
    let mut shards: Vec<(Shard, &Path, Reader)> = vec![];
    for dir in dirs {
        let reader = Reader::open_shard(dir)?;
        let shard = reader.header().shard;
        let shard =
            shard.ok_or_else(|| Error::input(format!("{} is a whole cache, not a shard of one", dir.display())))?;
        shards.push((shard, dir, reader));
    }
    shards.sort_by_key(|(shard, ..)| shard.index);
    let Some((Shard { count, .. }, first_dir, first)) = shards.first() else {
        return Err(Error::input("there is no shard to merge"));
    };
    let named =
        |what: String, dir: &Path| Error::input(format!("{} and {}: {what}", first_dir.display(), dir.display()));
    for (shard, dir, reader) in &shards {
        let (a, b) = (first.header(), reader.header());
        if shard.count != *count {
            return Err(named(format!("one is of {count} shards, the other of {}", shard.count), dir));
        }
        if let Some(difference) = a.difference(b) {
            return Err(named(format!("the shards differ in {difference}"), dir));
        }
        if a.parts != b.parts {
            return Err(named("the shards are of different rows: they were made from another corpus".into(), dir));
        }
    }
    for index in 0..*count {
        let there: Vec<&Path> = shards.iter().filter(|(s, ..)| s.index == index).map(|(_, dir, _)| *dir).collect();
        match there[..] {
            [_] => {}
            [] => return Err(Error::input(format!("shard {index} of {count} is missing"))),
            [a, b, ..] => {
                let (a, b) = (a.display(), b.display());
                return Err(Error::input(format!("shard {index} is there twice: {a} and {b}")));
            }
        }
    }
    let mut header = first.header().clone();
    header.shard = None;
    let (total, identity) = (header.blocks(), header.identity()?);
    let mut writer = Writer::create(output, header)?;
    for (_, dir, _) in &shards {
        let path = dir.join(SIGNAL);
        let unreadable = |cause| Error::unreadable(&path, cause);
        let mut blocks = Blocks::new(File::open(&path).map_err(unreadable)?).map_err(unreadable)?;
        while let Some(block) = blocks.next_block().map_err(unreadable)? {
            let block =
                block.map_err(|what| Error::input(format!("{}: {what}: make this shard again", path.display())))?;
            if block.identity != identity {
                return Err(Error::input(format!("{} is of a cache with another header.json", path.display())));
            }
            if block.number != writer.next_block() {
                let (number, wanted) = (block.number, writer.next_block());
                return Err(Error::input(format!("{} has block {number} where {wanted} belongs", path.display())));
            }
            writer.append_block(block)?;
            progress(writer.next_block(), total);
        }
    }
    writer.finish()
}
