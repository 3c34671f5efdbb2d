//! Compiles the CUDA kernels to PTX for `--features cuda`; without it there is nothing to do.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Of the PTX: the driver compiles it for whatever GPU there is, from this generation on.
const ARCHITECTURE: &str = "compute_75";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-changed=src/kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let home = || std::env::var("CUDA_HOME").ok().map(|home| format!("{home}/bin/nvcc"));
    let there = |nvcc: &String| Path::new(nvcc).is_file();
    let nvcc = std::env::var("NVCC").ok().or_else(|| home().filter(there)).unwrap_or_else(|| "nvcc".into());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for source in sources(Path::new("src/kernels")) {
        let ptx = out.join(source.with_extension("ptx").file_name().expect("a file has a name"));
        let status = Command::new(&nvcc)
            .args(["-ptx", "-O3", "-std=c++17", "-arch", ARCHITECTURE, "-Isrc/kernels", "-o"])
            .args([&ptx, &source])
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{nvcc} could not compile {} ({status})", source.display()),
            Err(error) => panic!("{nvcc} cannot be run ({error}); --features cuda needs it, see cuda/README.md"),
        }
    }
}

/// The .cu files below `folder`, one folder deep.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        entries.map(|entry| entry.expect("a readable folder").path()).collect()
    };
    let mut found: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| path.is_dir())
        .flat_map(|folder| entries(&folder))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    found.sort();
    found
}
