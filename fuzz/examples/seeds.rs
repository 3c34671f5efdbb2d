//! Fills fuzz/corpus with the inputs that fuzzing starts from.

#[path = "../../tests/fuzzed/seeds.rs"]
mod seeds;

use std::path::Path;

use distill_fuzz::readers::{self, READERS};

fn main() -> std::io::Result<()> {
    for (name, _) in READERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        std::fs::create_dir_all(&folder)?;
        for (i, seed) in seeds::of(name).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{i}")), seed)?;
        }
    }
    Ok(())
}
