//! Whether a cache is what its writer wrote, by its own checksums.

use std::fs::{self, File};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::block::Blocks;
use super::header::Header;
use super::index::{self, Index};
use super::{FILES, HEADER, INDEX, SIGNAL};

/// A file's name, and what is wrong with it, if anything is.
pub type Examined = (&'static str, Option<String>);

/// Reads every byte of the cache in `dir`, whole or a shard. Memory grows with the rows by 60 bytes each.
pub fn examine(dir: &Path) -> Vec<Examined> {
    let mut found: Vec<Examined> = FILES.map(|name| (name, None)).to_vec();
    for (name, wrong) in &mut found {
        if !dir.join(*name).is_file() {
            let unfinished = "it is missing; of a cache that is not complete `distill cache --resume` writes it";
            *wrong = Some(if *name == INDEX { unfinished.into() } else { "it is missing".into() });
        }
    }
    if found.iter().any(|(_, wrong)| wrong.is_some()) {
        return found;
    }
    let mut blame = |name: &str, why: String| {
        if let Some((_, wrong)) = found.iter_mut().find(|(own, _)| *own == name) {
            wrong.get_or_insert(why);
        }
    };
    let header = Header::read(dir).map_err(|error| blame(HEADER, error.to_string())).ok();
    // The index vouches for itself, then for the header; the blocks for themselves.
    let index = fs::read(dir.join(INDEX)).unwrap_or_default();
    let vouched = match Index::open(&dir.join(INDEX), fs::read(dir.join(HEADER)).map_or([0; 32], digest)) {
        Ok(Some(_)) => true,
        Ok(None) => {
            blame(HEADER, "it is not the one that the index belongs to".into());
            false
        }
        Err(error) => {
            blame(INDEX, error.to_string());
            false
        }
    };
    let mut entries = vec![];
    let identity = header.as_ref().and_then(|(header, _)| header.identity().ok());
    let first = header.as_ref().map_or(0, |(header, _)| header.shard.map_or(0, |s| s.of(header.blocks()).start));
    let mut read = || -> Result<u64, String> {
        let file = File::open(dir.join(SIGNAL)).map_err(|e| e.to_string())?;
        let mut blocks = Blocks::new(file).map_err(|e| e.to_string())?;
        for number in first.. {
            let Some(block) = blocks.next_block().map_err(|e| e.to_string())? else { break };
            let block = block?;
            if identity.is_some_and(|identity| identity != block.identity) && vouched {
                return Err(format!("block {} belongs to another cache", block.number));
            }
            if header.is_some() && block.number != number {
                return Err(format!("block {} stands where block {number} belongs", block.number));
            }
            entries.extend(block.rows);
        }
        Ok(blocks.at())
    };
    match (read(), header) {
        (Err(why), _) => blame(SIGNAL, why),
        (Ok(bytes), Some((_, header))) if vouched && index::to_bytes(header, bytes, &entries) != index => {
            let said = Index::open(&dir.join(INDEX), header).ok().flatten().map_or(0, |index| index.signal_bytes());
            match said == bytes {
                true => blame(INDEX, "it is not the index of these blocks".into()),
                false => blame(SIGNAL, format!("it has {bytes} bytes, {said} were written")),
            }
        }
        _ => {}
    }
    found
}

fn digest(bytes: Vec<u8>) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
