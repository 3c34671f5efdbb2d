//! Reads a teacher cache as docs/cache-format.md describes it, with nothing of `distill`:
//! `cargo run --example read_cache -- DIR` prints what is stored of the first row's targets.

use std::fs;

/// The next column of `n` values of `width` bytes, byte b of value i at b · n + i; shorter values are filled up with zeros.
fn column<'a>(rest: &mut &'a [u8], n: usize, width: usize) -> impl Fn(usize) -> [u8; 4] + use<'a> {
    let (column, tail) = rest.split_at(n * width);
    *rest = tail;
    move |i| std::array::from_fn(|byte| if byte < width { column[byte * n + i] } else { 0 })
}

fn main() {
    let dir = std::env::args().nth(1).expect("usage: read_cache DIR");
    let header: serde_json::Value = serde_json::from_slice(&fs::read(format!("{dir}/header.json")).unwrap()).unwrap();
    assert_eq!((&header["format"], &header["version"]), (&"distill teacher cache".into(), &1.into()));
    let (kind, vocab) = (header["codec"]["kind"].as_str().unwrap(), header["vocab_size"].as_u64().unwrap() as usize);

    // The first block, and the record of its first row.
    let block = fs::read(format!("{dir}/signal.bin")).unwrap();
    assert_eq!(&block[..4], b"DTB1");
    let field = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize;
    let (rows, n, record, frame) = (field(44), field(56 + 32), field(56 + 36), field(56 + 40));
    let frames = 56 + 44 * rows;
    let record = zstd::bulk::decompress(&block[frames..frames + frame], record).unwrap();

    // Its columns, in their order.
    let rest = &mut &record[..];
    let (integer, float) = (|b| u32::from_le_bytes(b) as usize, f32::from_le_bytes);
    let length = integer(column(rest, 1, 4)(0));
    let tokens = column(rest, length, 4);
    let mask = column(rest, length.div_ceil(8), 1);
    let (label_log_p, entropy) = (column(rest, n, 4), column(rest, n, 4));
    if kind != "dense" {
        header["temperatures"].as_array().unwrap().iter().for_each(|_| drop(column(rest, n, 4)));
    }
    let entries: Vec<usize> = match kind {
        "dense" => vec![vocab; n],
        "top_k" => vec![header["codec"]["k"].as_u64().unwrap() as usize; n],
        _ => (0..n).map(column(rest, n, 2)).map(integer).collect(),
    };
    let all = entries.iter().sum();
    let ids = column(rest, if kind == "dense" { 0 } else { all }, if vocab > 65_536 { 4 } else { 2 });
    let counts = column(rest, if kind == "sampled" { all } else { 0 }, 2);
    let half = header["values"] == "f16";
    let values = column(rest, all, if half { 2 } else { 4 });
    let log_p = |b: [u8; 4]| if half { half::f16::from_le_bytes([b[0], b[1]]).to_f32() } else { float(b) };

    let is_target = |t: &usize| mask(t / 8)[0] >> (t % 8) & 1 == 1;
    let mut start = 0;
    for (target, t) in (0..length).filter(is_target).enumerate() {
        let (label, h) = (float(label_log_p(target)), float(entropy(target)));
        print!("token {t}: {} with log p {label:.3}, entropy {h:.3};", integer(tokens(t)));
        for entry in (start..start + entries[target]).take(5) {
            let id = if kind == "dense" { entry - start } else { integer(ids(entry)) };
            let times = if kind == "sampled" { format!(" × {}", integer(counts(entry))) } else { String::new() };
            print!("  {id}: {:.3}{times}", log_p(values(entry)));
        }
        start += entries[target];
        println!();
    }
}
