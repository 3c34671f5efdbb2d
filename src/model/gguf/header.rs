//! The header of a GGUF file, read with every count, size and offset held against the file before anything is allocated.
//!
//! Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3, little-endian.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use candle_core::quantized::GgmlDType;

/// One value of the metadata. Numbers of every width are one of three.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f64>),
}

/// Where a tensor lies and what it is; dimensions as in the rest of the crate, the slowest first.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
    /// From the start of the file.
    pub offset: u64,
    pub bytes: usize,
}

/// What stands before the numbers.
#[derive(Debug, Clone)]
pub struct Header {
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

const MAGIC: [u8; 4] = *b"GGUF";
/// Far above every model, and small enough to allocate.
const MOST_ENTRIES: u64 = 1 << 16;
const MOST_ELEMENTS: u64 = 1 << 22;
const LONGEST_NAME: u64 = 1 << 10;
const LONGEST_TEXT: u64 = 1 << 24;
const MOST_DIMENSIONS: u32 = 4;
const LARGEST_ALIGNMENT: u64 = 1 << 16;

/// Reads the header of a file of `size` bytes. The error says what is wrong, without the file's name.
pub fn read(reader: impl Read + Seek, size: u64) -> Result<Header, String> {
    let mut reader = Reader { inner: reader, left: size, size };
    if reader.bytes(4)? != MAGIC {
        return Err("it does not begin with GGUF".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "version {version} of the format is not supported (2 and 3 are; big-endian files are not)"
        ));
    }
    let tensors = reader.count("tensors", MOST_ENTRIES)?;
    let entries = reader.count("metadata entries", MOST_ENTRIES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.text("a metadata key", LONGEST_NAME)?;
        let value = reader.value(&key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("the metadata has {key:?} twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(n)) if n.is_power_of_two() && (8..=LARGEST_ALIGNMENT).contains(n) => *n,
        Some(other) => return Err(format!("general.alignment is {other:?}; a power of two from 8 to 65536 is meant")),
    };
    let mut found: Vec<(String, TensorInfo)> = vec![];
    for _ in 0..tensors {
        found.push(reader.tensor()?);
    }
    let start = (size - reader.left).next_multiple_of(alignment);
    let end = |info: &TensorInfo| start.saturating_add(info.offset).saturating_add(info.bytes as u64);
    let needed = found.iter().map(|(_, info)| end(info)).max().unwrap_or(start);
    for (name, info) in &mut found {
        if info.offset % alignment != 0 {
            return Err(format!("tensor {name:?} starts at {}, which is no multiple of {alignment}", info.offset));
        }
        if end(info) > size {
            return Err(format!(
                "tensor {name:?} ends beyond the file's {size} bytes, of {needed} that its tensors take: a download that broke \
                 off, or a damaged header: fetch it again"
            ));
        }
        info.offset += start;
    }
    let mut order: Vec<&(String, TensorInfo)> = found.iter().collect();
    order.sort_by_key(|(_, info)| info.offset);
    if let Some([(a, _), (b, _)]) =
        order.windows(2).map(|pair| [pair[0], pair[1]]).find(|[(_, a), (_, b)]| a.offset + a.bytes as u64 > b.offset)
    {
        return Err(format!("tensors {a:?} and {b:?} overlap"));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in found {
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("two tensors are named {name:?}"));
        }
    }
    Ok(Header { version, metadata, tensors })
}

/// Reads forward and knows how much is left.
struct Reader<R> {
    inner: R,
    left: u64,
    size: u64,
}

impl<R: Read> Reader<R> {
    fn bytes(&mut self, n: u64) -> Result<Vec<u8>, String> {
        if n > self.left {
            return Err(format!("its header goes on beyond the file's {} bytes", self.size));
        }
        let mut bytes = vec![0; n as usize];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("it cannot be read: {e}"))?;
        self.left -= n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().map_err(|_| "a short read".into())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things, each of which takes at least a byte.
    fn count(&mut self, what: &str, most: u64) -> Result<u64, String> {
        let n = self.u64()?;
        if n > most || n > self.left {
            return Err(format!("it claims {n} {what}; at most {most} are read, and {} bytes are left", self.left));
        }
        Ok(n)
    }

    fn text(&mut self, what: &str, longest: u64) -> Result<String, String> {
        let n = self.u64()?;
        if n > longest || n > self.left {
            return Err(format!("{what} of {n} bytes; at most {longest} are read, and {} are left", self.left));
        }
        String::from_utf8(self.bytes(n)?).map_err(|_| format!("{what} is not UTF-8"))
    }

    /// Text of a vocabulary, which some files hold as bytes that are no UTF-8.
    fn token(&mut self) -> Result<String, String> {
        let n = self.u64()?;
        if n > LONGEST_TEXT || n > self.left {
            return Err(format!("a text of {n} bytes; {} are left", self.left));
        }
        Ok(String::from_utf8_lossy(&self.bytes(n)?).into_owned())
    }

    fn value(&mut self, key: &str) -> Result<Value, String> {
        match self.u32()? {
            8 => Ok(Value::Text(self.text(key, LONGEST_TEXT)?)),
            9 => {
                let kind = self.u32()?;
                let n = self.count(&format!("elements in {key:?}"), MOST_ELEMENTS)?;
                match kind {
                    8 => (0..n).map(|_| self.token()).collect::<Result<_, _>>().map(Value::Texts),
                    9 => Err(format!("{key:?} is an array of arrays, which no model here needs")),
                    _ => {
                        (0..n).map(|_| self.scalar(kind, key).map(number)).collect::<Result<_, _>>().map(Value::Numbers)
                    }
                }
            }
            kind => self.scalar(kind, key),
        }
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("{key:?} is the boolean {other}")),
            },
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("{key:?} is of the unknown type {other}")),
        })
    }

    fn tensor(&mut self) -> Result<(String, TensorInfo), String> {
        let name = self.text("a tensor's name", LONGEST_NAME)?;
        let rank = self.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&rank) {
            return Err(format!("tensor {name:?} has {rank} dimensions; 1 to {MOST_DIMENSIONS} are read"));
        }
        let mut shape = (0..rank).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        // The file has the fastest first.
        shape.reverse();
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0 && n < 1 << 40);
        let elements = elements.ok_or_else(|| format!("tensor {name:?} has the shape {shape:?}"))?;
        let dtype = dtype(self.u32()?)
            .map_err(|kind| format!("tensor {name:?} is of the type {kind}, which cannot be read"))?;
        let (block, last) = (dtype.block_size() as u64, shape[shape.len() - 1]);
        if last % block != 0 {
            return Err(format!("tensor {name:?} has rows of {last}, {dtype:?} comes in blocks of {block}"));
        }
        let bytes = elements / block * dtype.type_size() as u64;
        let offset = self.u64()?;
        if bytes > self.size {
            return Err(format!("tensor {name:?} takes {bytes} bytes of a file of {}", self.size));
        }
        let shape = shape.into_iter().map(|d| d as usize).collect();
        Ok((name, TensorInfo { shape, dtype, offset, bytes: bytes as usize }))
    }
}

/// An array's element; text is read elsewhere.
fn number(value: Value) -> f64 {
    match value {
        Value::Unsigned(n) => n as f64,
        Value::Signed(n) => n as f64,
        Value::Float(x) => x,
        Value::Bool(flag) => f64::from(flag),
        Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => f64::NAN,
    }
}

/// The types that candle reads, by ggml's numbers; the error names another.
fn dtype(kind: u32) -> Result<GgmlDType, String> {
    Ok(match kind {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        16..=23 => return Err(format!("{kind} (an IQ quantisation)")),
        other => return Err(other.to_string()),
    })
}
